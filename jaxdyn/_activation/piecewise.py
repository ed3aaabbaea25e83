"""Activations with a kink, or whose derivatives jump: no Taylor series in time."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from .base import AbstractActivation
from .numerics import (
    fold_odd,
    gauss_mean,
    grow,
    log_cosh,
    magnitude,
    nonnegative,
    ordered,
    positive,
    sech_squared,
    split_mean,
    tanh_mean,
    tanh_relax,
    where,
)


class Softsign(AbstractActivation):
    r"""$s(x) = x / (1 + |x|)$, $S(x) = |x| - \log(1 + |x|)$."""

    @property
    def confining(self) -> bool:
        return True

    @property
    def odd(self) -> bool:
        return True

    def _value(self, x: Array) -> Array:
        a, sign = magnitude(x)
        return sign * (a / (1 + a))

    def _potential(self, x: Array) -> Array:
        a, _ = magnitude(x)
        return a * self._folded(jnp.zeros_like(a), a)

    def _slope(self, x: Array) -> Array:
        root = 1 / (1 + jnp.abs(x))
        return root * root

    def _mean(self, x0: Array, x1: Array) -> Array:
        return fold_odd(self._folded, x0, x1)

    def _folded(self, a: Array, b: Array) -> Array:
        d = b - a
        small = d < 0.5 * (1 + a)
        far = 1 - jnp.log1p(d / (1 + a)) / where(small, 1, d)
        return where(small, gauss_mean(lambda z: z / (1 + z), a, b, 8), far)


class HardTanh(AbstractActivation):
    r"""$s(x) = \max(-1, \min(x, 1))$; $S(x) = x^2/2$ up to $|x| = 1$, then $|x| - 1/2$."""

    @property
    def confining(self) -> bool:
        return True

    @property
    def odd(self) -> bool:
        return True

    @property
    def relaxes(self) -> bool:
        return True

    def _value(self, x: Array) -> Array:
        a, sign = magnitude(x)
        return sign * where(a > 1, 1, a)

    def _potential(self, x: Array) -> Array:
        a, _ = magnitude(x)
        return where(a > 1, a - 0.5, 0.5 * a * a)

    def _slope(self, x: Array) -> Array:
        a, _ = magnitude(x)
        return where(a > 1, jnp.zeros_like(a), jnp.ones_like(a))

    def _mean(self, x0: Array, x1: Array) -> Array:
        return fold_odd(self._folded, x0, x1)

    def _folded(self, a: Array, b: Array) -> Array:
        across = (a < 1) & (b > 1)
        short = 1 - a
        bent = 1 - 0.5 * short * (short / where(across, b - a, 1))
        return where(across, bent, where(a < 1, 0.5 * (a + b), 1))

    def _relax(self, x: Array, tau: Array) -> Array:
        # In the coordinate log a for a <= 1 and a - 1 beyond, the flow is a shift by -tau.
        a, sign = magnitude(x)
        inside = a <= 1
        apart = inside & (a > 0)
        shifted = where(inside, jnp.log(where(apart, a, 1)), a - 1) - tau
        leaves = (shifted > 0) & (apart | ~inside)
        shrunk = grow(a, where(leaves, 0, -tau))
        reached = jnp.exp(where(inside | leaves, 0, shifted))
        return sign * where(leaves, 1 + shifted, where(inside, shrunk, reached))


class AsymmetricTanh(AbstractActivation):
    r"""$s(x) = \tanh x$ for $x \ge 0$ and $g \tanh(x/w)$ for $x < 0$.

    $S(x) = \log\cosh x$ on the right and $g w \log\cosh(x/w)$ on the left. Not odd, and yet
    every orbit of two units closes.

    **Arguments:** `gain` $g$ and `width` $w$, both positive.

    **Raises:** ValueError if one of them is not positive and finite.
    """

    gain: float = eqx.field(default=3.0, static=True, converter=positive("gain"))
    width: float = eqx.field(default=2.0, static=True, converter=positive("width"))

    @property
    def confining(self) -> bool:
        return True

    @property
    def odd(self) -> bool:
        return self.gain == 1 and self.width == 1

    @property
    def relaxes(self) -> bool:
        return True

    def _left(self, x: Array) -> tuple[Array, Array]:
        left = x < 0
        return left, where(left, x / self.width, x)

    def _value(self, x: Array) -> Array:
        left, z = self._left(x)
        return where(left, jnp.asarray(self.gain, x.dtype), 1) * jnp.tanh(z)

    def _potential(self, x: Array) -> Array:
        left, z = self._left(x)
        return where(left, jnp.asarray(self.gain * self.width, x.dtype), 1) * log_cosh(z)

    def _slope(self, x: Array) -> Array:
        left, z = self._left(x)
        return where(left, jnp.asarray(self.gain / self.width, x.dtype), 1) * sech_squared(z)

    def _mean(self, x0: Array, x1: Array) -> Array:
        def left(a: Array, b: Array) -> Array:
            return self.gain * tanh_mean(a / self.width, b / self.width)

        return split_mean(left, tanh_mean, self._potential, x0, x1)

    def _relax(self, x: Array, tau: Array) -> Array:
        left, z = self._left(x)
        z = tanh_relax(z, where(left, jnp.asarray(self.gain / self.width, x.dtype), 1) * tau)
        return where(left, jnp.asarray(self.width, x.dtype), 1) * z


class ELU(AbstractActivation):
    r"""$s(x) = x$ for $x \ge 0$ and $\alpha (e^x - 1)$ for $x < 0$.

    $S(x) = x^2/2$ on the right and $\alpha (e^x - 1 - x)$ on the left.

    **Arguments:** `alpha`, positive.

    **Raises:** ValueError if `alpha` is not positive and finite.
    """

    alpha: float = eqx.field(default=1.0, static=True, converter=positive("alpha"))

    @property
    def confining(self) -> bool:
        return True

    @property
    def odd(self) -> bool:
        return False

    @property
    def relaxes(self) -> bool:
        return True

    def _value(self, x: Array) -> Array:
        left = x < 0
        return where(left, self.alpha * jnp.expm1(where(left, x, 0)), x)

    def _potential(self, x: Array) -> Array:
        left = x < 0
        z = where(left, x, 0)
        return where(left, z * self._left_mean(z, jnp.zeros_like(z)), 0.5 * x * x)

    def _slope(self, x: Array) -> Array:
        left = x < 0
        return where(left, self.alpha * jnp.exp(where(left, x, 0)), 1)

    def _mean(self, x0: Array, x1: Array) -> Array:
        return split_mean(self._left_mean, lambda a, b: 0.5 * (a + b), self._potential, x0, x1)

    def _left_mean(self, x0: Array, x1: Array) -> Array:
        a, b = ordered(x0, x1)
        d = b - a
        small = d < 1
        fall = jnp.exp(b) * (-jnp.expm1(-d) / where(small, 1, d))
        return self.alpha * where(small, gauss_mean(jnp.expm1, a, b, 7), fall - 1)

    def _relax(self, x: Array, tau: Array) -> Array:
        # On the left e^-x - 1 decays at the rate alpha.
        left = x < 0
        z = where(left, -x, 1)
        shift = z - self.alpha * tau
        scale = -jnp.expm1(-z)
        grown = jnp.exp(jnp.minimum(shift, 700.0 if x.dtype == jnp.float64 else 85.0)) * scale
        large = grown > 1e15
        near = jnp.log1p(where(large, 1, grown))
        far = shift + jnp.log(where(large, scale, 1))
        right = grow(where(left, 0, x), -tau)
        return where(left, -where(large, far, near), right)


class LeakyReLU(AbstractActivation):
    r"""$s(x) = x$ for $x \ge 0$ and $\sigma x$ for $x < 0$, $S(x) = x\,s(x)/2$.

    **Arguments:** `slope` $\sigma$, not negative; it confines if positive.

    **Raises:** ValueError if `slope` is negative or not finite.
    """

    slope: float = eqx.field(default=0.1, static=True, converter=nonnegative("slope"))

    @property
    def confining(self) -> bool:
        return self.slope > 0

    @property
    def odd(self) -> bool:
        return self.slope == 1

    @property
    def relaxes(self) -> bool:
        return True

    def _value(self, x: Array) -> Array:
        return self._slope(x) * x

    def _potential(self, x: Array) -> Array:
        return 0.5 * x * self._value(x)

    def _slope(self, x: Array) -> Array:
        return where(x < 0, jnp.asarray(self.slope, x.dtype), jnp.asarray(1, x.dtype))

    def _mean(self, x0: Array, x1: Array) -> Array:
        return split_mean(
            lambda a, b: 0.5 * self.slope * (a + b),
            lambda a, b: 0.5 * (a + b),
            self._potential,
            x0,
            x1,
        )

    def _relax(self, x: Array, tau: Array) -> Array:
        return grow(x, -self._slope(x) * tau)


class ReLU(AbstractActivation):
    r"""$s(x) = \max(x, 0)$, $S(x) = \max(x, 0)^2 / 2$. Its orbits do not close."""

    @property
    def confining(self) -> bool:
        return False

    @property
    def odd(self) -> bool:
        return False

    @property
    def relaxes(self) -> bool:
        return True

    def _value(self, x: Array) -> Array:
        return where(x < 0, 0, x)

    def _potential(self, x: Array) -> Array:
        return 0.5 * self._value(x) * self._value(x)

    def _slope(self, x: Array) -> Array:
        return where(x < 0, jnp.zeros_like(x), jnp.ones_like(x))

    def _mean(self, x0: Array, x1: Array) -> Array:
        return split_mean(
            lambda a, b: jnp.zeros_like(a), lambda a, b: 0.5 * (a + b), self._potential, x0, x1
        )

    def _relax(self, x: Array, tau: Array) -> Array:
        return grow(x, -self._slope(x) * tau)


class RectifiedTanh(AbstractActivation):
    r"""$s(x) = \max(\tanh x, 0)$, $S(x) = \log\cosh\max(x, 0)$. Its orbits do not close."""

    @property
    def confining(self) -> bool:
        return False

    @property
    def odd(self) -> bool:
        return False

    @property
    def relaxes(self) -> bool:
        return True

    def _value(self, x: Array) -> Array:
        return jnp.tanh(where(x < 0, 0, x))

    def _potential(self, x: Array) -> Array:
        return log_cosh(where(x < 0, 0, x))

    def _slope(self, x: Array) -> Array:
        return where(x < 0, 0, sech_squared(x))

    def _mean(self, x0: Array, x1: Array) -> Array:
        return split_mean(lambda a, b: jnp.zeros_like(a), tanh_mean, self._potential, x0, x1)

    def _relax(self, x: Array, tau: Array) -> Array:
        return where(x < 0, x, tanh_relax(where(x < 0, 0, x), tau))

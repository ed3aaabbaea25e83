"""Activations that are analytic on the real line."""

import math

import equinox as eqx
import jax.numpy as jnp
from jax.scipy.special import erf, erfc
from jaxtyping import Array

from .base import AbstractActivation
from .numerics import (
    fold_odd,
    gauss_mean,
    grow,
    log_cosh,
    magnitude,
    once,
    ordered,
    positive,
    product,
    sech_squared,
    square,
    tanh_mean,
    tanh_relax,
    where,
)

Aux = tuple[list[Array], ...]


class Tanh(AbstractActivation):
    r"""$s(x) = \tanh x$, $S(x) = \log\cosh x$: the activation of the paper.

    ??? cite "Reference"

        Casoni, Guidi, Betti, Melacci, Gori: Generative System Dynamics in Recurrent Neural
        Networks, IJCNN 2025, [arXiv:2504.13951](https://arxiv.org/abs/2504.13951).
    """

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
        return jnp.tanh(x)

    def _potential(self, x: Array) -> Array:
        return log_cosh(x)

    def _slope(self, x: Array) -> Array:
        return sech_squared(x)

    def _mean(self, x0: Array, x1: Array) -> Array:
        return tanh_mean(x0, x1)

    def _relax(self, x: Array, tau: Array) -> Array:
        return tanh_relax(x, tau)

    def _series(self, x: list[Array], v: list[Array], aux: Aux) -> Aux:
        k = len(x) - 1
        if k == 0:
            # Not sech_squared: XLA works its exponential out again in every later term (8x slower).
            s0 = jnp.tanh(x[0])
            return [s0], [1 - s0 * s0]
        s, c = aux  # c = 1 - s^2 = s'(x)
        s = [*s, product(c, v, k - 1) / k]
        return s, [*c, -square(s, k)]


class Identity(AbstractActivation):
    r"""$s(x) = x$, $S(x) = x^2/2$: the linear network."""

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
        return x

    def _potential(self, x: Array) -> Array:
        return 0.5 * x * x

    def _slope(self, x: Array) -> Array:
        return jnp.ones_like(x)

    def _mean(self, x0: Array, x1: Array) -> Array:
        return 0.5 * x0 + 0.5 * x1

    def _relax(self, x: Array, tau: Array) -> Array:
        return grow(x, -tau)

    def _series(self, x: list[Array], v: list[Array], aux: Aux) -> Aux:
        return (list(x),)


class Arctan(AbstractActivation):
    r"""$s(x) = \arctan x$, $S(x) = x \arctan x - \tfrac12 \log(1 + x^2)$."""

    @property
    def confining(self) -> bool:
        return True

    @property
    def odd(self) -> bool:
        return True

    def _value(self, x: Array) -> Array:
        return jnp.arctan(x)

    def _potential(self, x: Array) -> Array:
        return x * jnp.arctan(x) - 0.5 * jnp.log1p(x * x)

    def _slope(self, x: Array) -> Array:
        return 1 / (1 + x * x)

    def _mean(self, x0: Array, x1: Array) -> Array:
        return fold_odd(self._folded, x0, x1)

    def _folded(self, a: Array, b: Array) -> Array:
        # With m the midpoint, S(b) - S(a) = d (atan a + atan b) / 2 + m (atan b - atan a)
        # - log((1 + b^2) / (1 + a^2)) / 2; no term exceeds the result by more than a factor 2.
        d, twice_m = b - a, a + b
        small = d < 0.1 * (1 + a)
        apart = where(small, 1, d)
        turn = 0.5 * twice_m * jnp.arctan(d / (1 + a * b))
        growth = 0.5 * jnp.log1p(d * twice_m / (1 + a * a))
        far = 0.5 * (jnp.arctan(a) + jnp.arctan(b)) + (turn - growth) / apart
        return where(small, gauss_mean(jnp.arctan, a, b, 5), far)

    def _series(self, x: list[Array], v: list[Array], aux: Aux) -> Aux:
        k = len(x) - 1
        if k == 0:
            return [jnp.arctan(x[0])], [1 + x[0] * x[0]]
        s, q = aux  # q = 1 + x^2, q s' = x'
        rest = sum(((k - j) * (q[j] * s[k - j]) for j in range(1, k)), start=jnp.zeros_like(x[0]))
        return [*s, once(v[k - 1] - rest) / (k * q[0])], [*q, square(x, k)]


class Erf(AbstractActivation):
    r"""$s(x) = \operatorname{erf} x$, $S(x) = x \operatorname{erf} x + (e^{-x^2} - 1)/\sqrt\pi$."""

    @property
    def confining(self) -> bool:
        return True

    @property
    def odd(self) -> bool:
        return True

    def _value(self, x: Array) -> Array:
        return erf(x)

    def _potential(self, x: Array) -> Array:
        return x * erf(x) + jnp.expm1(-x * x) / math.sqrt(math.pi)

    def _slope(self, x: Array) -> Array:
        return 2 / math.sqrt(math.pi) * jnp.exp(-x * x)

    def _mean(self, x0: Array, x1: Array) -> Array:
        return fold_odd(self._folded, x0, x1)

    def _folded(self, a: Array, b: Array) -> Array:
        # S(x) = x - 1 / sqrt(pi) + rest(x): the large parts cancel exactly.
        d = b - a
        small = d < 0.5
        far = 1 - (self._rest(a) - self._rest(b)) / where(small, 1, d)
        return where(small, gauss_mean(erf, a, b, 7), far)

    def _rest(self, x: Array) -> Array:
        return jnp.exp(-x * x) / math.sqrt(math.pi) - x * erfc(x)

    def _series(self, x: list[Array], v: list[Array], aux: Aux) -> Aux:
        k = len(x) - 1
        if k == 0:
            return [erf(x[0])], [self._slope(x[0])], [x[0] * x[0]]
        s, g, y = aux  # y = x^2, g = s'(x), g' = -y' g
        y = [*y, square(x, k)]
        g = [
            *g,
            -once(sum((j * (y[j] * g[k - j]) for j in range(2, k + 1)), start=y[1] * g[k - 1])) / k,
        ]
        return [*s, product(g, v, k - 1) / k], g, y


class ISRU(AbstractActivation):
    r"""Inverse square root unit, $s(x) = x / \sqrt{1 + \alpha x^2}$.

    $S(x) = x^2 / (1 + \sqrt{1 + \alpha x^2})$, bounded by $|s| < 1/\sqrt\alpha$.

    **Arguments:** `alpha`, positive.

    **Raises:** ValueError if `alpha` is not positive and finite.
    """

    alpha: float = eqx.field(default=1.0, static=True, converter=positive("alpha"))

    @property
    def confining(self) -> bool:
        return True

    @property
    def odd(self) -> bool:
        return True

    def _root(self, x: Array) -> Array:
        return jnp.sqrt(1 + self.alpha * x * x)

    def _value(self, x: Array) -> Array:
        return x / self._root(x)

    def _potential(self, x: Array) -> Array:
        return x * (x / (1 + self._root(x)))

    def _slope(self, x: Array) -> Array:
        root = self._root(x)
        return 1 / root / root / root

    def _mean(self, x0: Array, x1: Array) -> Array:
        return (x0 + x1) / (self._root(x0) + self._root(x1))

    def _series(self, x: list[Array], v: list[Array], aux: Aux) -> Aux:
        k = len(x) - 1
        if k == 0:
            return [self._value(x[0])], [1 / self._root(x[0])], [1 + self.alpha * x[0] * x[0]]
        _, r, q = aux  # q = 1 + alpha x^2, r = q^(-1/2), q r' = -q' r / 2, s = x r
        q = [*q, self.alpha * square(x, k)]
        terms = [(k - 0.5 * j) * (q[j] * r[k - j]) for j in range(1, k + 1)]
        r = [*r, -once(sum(terms[1:], start=terms[0])) / (k * q[0])]
        return [*aux[0], product(x, r, k)], r, q


class Sigmoid(AbstractActivation):
    r"""$s(x) = 1 / (1 + e^{-x})$, $S(x) = \log((1 + e^x) / 2)$.

    It does not change sign, so no orbit of a pair of units closes.
    """

    @property
    def confining(self) -> bool:
        return False

    @property
    def odd(self) -> bool:
        return False

    def _value(self, x: Array) -> Array:
        return sigmoid(x)

    def _potential(self, x: Array) -> Array:
        # log1p is kept to positive arguments: XLA's is off by 100 roundings near -0.41.
        a, _ = magnitude(x)
        drop = jnp.expm1(-a)
        return where(x < 0, 0, x) - jnp.log1p(-drop / (2 + drop))

    def _slope(self, x: Array) -> Array:
        return sigmoid(x) * sigmoid(-x)

    def _mean(self, x0: Array, x1: Array) -> Array:
        # s(x) = 1 - s(-x) brings the midpoint to the left of 0, where the mean is small.
        flip = x0 + x1 > 0
        a, b = ordered(where(flip, -x0, x0), where(flip, -x1, x1))
        mean = self._left_mean(a, b)
        return where(flip, 1 - mean, mean)

    def _left_mean(self, a: Array, b: Array) -> Array:
        # e^a, and e^b below, stay outside of what is rounded: they may be tiny.
        d, tail = b - a, jnp.exp(a)
        small = d < 0.1
        short = where(small, d, 0)
        near = tail * gauss_mean(lambda u: 1 / (tail + jnp.exp(-u)), jnp.zeros_like(d), short, 4)
        # S(b) - S(a) = log(1 + p e^q) with p = 1 - e^(a - b) and q = b - softplus(a)
        apart = where(small, 1, d)
        p, q = -jnp.expm1(-apart), b - softplus(a)
        steep = q > 0
        rise = where(steep, q, 0)
        flat = p * jnp.exp(where(steep, 0, b)) / (1 + tail)
        far = rise + jnp.log1p(where(steep, p - 1 + jnp.exp(-rise), flat))
        return where(small, near, far / apart)

    def _series(self, x: list[Array], v: list[Array], aux: Aux) -> Aux:
        k = len(x) - 1
        if k == 0:
            s0 = sigmoid(x[0])
            return [s0], [s0 * (1 - s0)]
        s, c = aux  # c = s (1 - s) = s'(x)
        s = [*s, product(c, v, k - 1) / k]
        return s, [*c, s[k] - square(s, k)]


class Softplus(AbstractActivation):
    r"""$s(x) = \log(1 + e^x)$, $S(x) = -\operatorname{Li}_2(-e^x) - \pi^2/12$.

    It does not change sign, so no orbit of a pair of units closes.
    """

    @property
    def confining(self) -> bool:
        return False

    @property
    def odd(self) -> bool:
        return False

    def _value(self, x: Array) -> Array:
        return softplus(x)

    def _potential(self, x: Array) -> Array:
        return x * self._mean(jnp.zeros_like(x), x)

    def _slope(self, x: Array) -> Array:
        return sigmoid(x)

    def _mean(self, x0: Array, x1: Array) -> Array:
        # Left of 0 by quadrature; right of 0 softplus(x) = x + softplus(-x).
        a, b = ordered(x0, x1)
        small = b - a < 0.5
        left = _softplus_integral(jnp.minimum(a, 0), jnp.minimum(b, 0))
        a_pos, b_pos = jnp.maximum(a, 0), jnp.maximum(b, 0)
        right = 0.5 * (b_pos - a_pos) * (a_pos + b_pos) + _softplus_integral(-b_pos, -a_pos)
        far = (left + right) / where(small, 1, b - a)
        return where(small, self._short_mean(a, where(small, b - a, 0)), far)

    def _short_mean(self, a: Array, d: Array) -> Array:
        # softplus(a + u) with e^-|a|, which may be tiny, outside of what is rounded.
        size, sign = magnitude(a)
        tail, positive_part = jnp.exp(-size), sign > 0

        def shifted(u: Array) -> Array:
            # Not a product of two exponentials: XLA would contract it.
            power = tail * (1 + jnp.expm1(-sign * u))
            return where(positive_part, a + u, 0) + jnp.log1p(power)

        return gauss_mean(shifted, jnp.zeros_like(d), d, 6)

    def _series(self, x: list[Array], v: list[Array], aux: Aux) -> Aux:
        k = len(x) - 1
        if k == 0:
            g0 = sigmoid(x[0])
            return [softplus(x[0])], [g0], [g0 * (1 - g0)]
        s, g, c = aux  # g = sigmoid(x), c = g (1 - g)
        s, g = [*s, product(g, v, k - 1) / k], [*g, product(c, v, k - 1) / k]
        return s, g, [*c, g[k] - square(g, k)]


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x), relative to itself on the left too."""
    a, sign = magnitude(x)
    e = jnp.exp(-a)
    return where(sign > 0, 1, e) / (1 + e)


def softplus(x: Array) -> Array:
    """log(1 + e^x)."""
    a, _ = magnitude(x)
    return where(x < 0, 0, x) + jnp.log1p(jnp.exp(-a))


def _softplus_integral(a: Array, b: Array) -> Array:
    """The integral of softplus over [a, b], a <= b <= 0: that of log1p(t) / t, t = e^x."""
    width, top = -jnp.expm1(a - b), jnp.exp(b)
    eps = float(jnp.finfo(b.dtype).eps)

    def integrand(t: Array) -> Array:
        # The second branch keeps t^2 in the derivative of the first from underflowing.
        safe = where(t < eps, 1, t)
        return where(t < eps, 1 - 0.5 * t, jnp.log1p(safe) / safe)

    return top * width * gauss_mean(integrand, top * (1 - width), top, 10)

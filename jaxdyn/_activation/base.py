"""What an activation has to offer."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NoReturn

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float


class AbstractActivation(eqx.Module):
    r"""An elementwise function $s$ with its potential $S$, $S' = s$ and $S(0) = 0$.

    All methods act elementwise on arrays of any shape and keep the dtype: float64 and float32
    are computed as they are, float16 and bfloat16 in float32 and rounded at the end. Python
    floats take JAX's default float dtype. Integers, booleans and complex numbers are refused
    with a TypeError, so that a state never changes dtype unnoticed.

    A subclass implements `_value`, `_potential`, `_slope`, `_mean`, `confining` and `odd`, on
    float32 or float64 arrays, and `_relax` (with `relaxes`) and `_series` where they exist.
    """

    def __call__(self, x: ArrayLike) -> Float[Array, "..."]:
        """$s(x)$."""
        return self._apply(self._value, x)

    def potential(self, x: ArrayLike) -> Float[Array, "..."]:
        r"""$S(x) = \int_0^x s(z)\,dz$, to a few units of rounding relative to itself.

        **Arguments:** `x`, an array of any shape.

        **Returns:** $S(x)$, of the shape and dtype of `x`. Its sum over the units is the energy
        of a cell.
        """
        return self._apply(self._potential, x)

    def derivative(self, x: ArrayLike) -> Float[Array, "..."]:
        """$s'(x)$; at a kink, the derivative of the piece that `s` uses there."""
        return self._apply(self._slope, x)

    def discrete_gradient(self, x0: ArrayLike, x1: ArrayLike) -> Float[Array, "..."]:
        r"""The mean of $s$ over the segment from `x0` to `x1`.

        $$\frac{S(x_1) - S(x_0)}{x_1 - x_0} = \int_0^1 s(x_0 + \theta (x_1 - x_0))\,d\theta,
        \qquad s(x_0) \text{ where } x_1 = x_0,$$

        in a form free of cancellation: the error is a few units of rounding of the mean of $|s|$
        over the segment, and of the result itself where $s$ is odd or keeps its sign. It can be
        differentiated everywhere, `x0 == x1` included.

        **Arguments:** `x0`, `x1`, two arrays of one dtype and of one shape (or one is a scalar).

        **Returns:** an array of that shape and dtype.

        ??? cite "Reference"

            McLachlan, Quispel, Robidoux: Geometric integration using discrete gradients,
            Phil. Trans. R. Soc. A 357 (1999).
        """
        _check("x0", x0)
        _check("x1", x1)
        if jnp.shape(x0) != jnp.shape(x1) and jnp.ndim(x0) > 0 and jnp.ndim(x1) > 0:
            raise ValueError(
                "x0 and x1 must have the same shape, or one of them be a scalar; "
                f"got {jnp.shape(x0)} and {jnp.shape(x1)}."
            )
        dtype = jnp.result_type(x0, x1)
        wide = _wide(dtype)
        ends = jnp.broadcast_arrays(jnp.asarray(x0, wide), jnp.asarray(x1, wide))
        return self._mean(*ends).astype(dtype)

    def relax(self, x: ArrayLike, tau: ArrayLike) -> Float[Array, "..."]:
        r"""The exact flow of $\dot x = -s(x)$, elementwise, after a time `tau` of either sign.

        **Arguments:** `x`, an array of any shape; `tau`, a scalar or an array of that shape, in
        model time units. It is taken in the dtype of `x`.

        **Returns:** an array of the shape and dtype of `x`.

        **Raises:** ValueError where no closed form is known (`relaxes` is False).
        """
        if not self.relaxes:
            self._refuse("closed-form flow of x' = -s(x)", "RK4, Taylor or diffrax.Tsit5")
        _check("tau", tau, (jnp.floating, jnp.integer))
        if jnp.ndim(tau) > 0 and jnp.shape(tau) != jnp.shape(x):
            raise ValueError(
                f"tau must be a scalar or have the shape of x, {jnp.shape(x)}; "
                f"got {jnp.shape(tau)}."
            )
        return self._apply(lambda z: self._relax(z, jnp.asarray(tau).astype(z.dtype)), x)

    def series(
        self, x: list[Array], v: list[Array], aux: tuple[list[Array], ...]
    ) -> tuple[list[Array], ...]:
        r"""One more coefficient of the power series of $s(x(t))$ in time.

        With $x(t) = \sum_j x_j t^j$, a call with $k + 1$ coefficients $x_0 \dots x_k$ extends
        every auxiliary series from order $k - 1$ to order $k$. Nothing is changed in place.

        **Arguments:** `x`, the list $[x_0 \dots x_k]$; `v`, the coefficients of $\dot x$, that is
        $v_j = (j + 1) x_{j+1}$ for $j < k$; `aux`, what the call for $k - 1$ returned, `()` for
        $k = 0$.

        **Returns:** a tuple of lists of $k + 1$ coefficients; the first is the series of
        $s(x(t))$.

        **Raises:** ValueError where $s$ has no Taylor recurrence, for instance because it is not
        analytic.
        """
        return self._series(x, v, aux)

    @property
    @abstractmethod
    def confining(self) -> bool:
        r"""Whether $z\,s(z) > 0$ for $z \ne 0$ and $S \to \infty$ on both sides.

        Then the level sets of the energy are compact, and with two units every orbit closes.
        """

    @property
    @abstractmethod
    def odd(self) -> bool:
        """Whether $s(-x) = -s(x)$."""

    @property
    def relaxes(self) -> bool:
        """Whether `relax` has a closed form."""
        return False

    @abstractmethod
    def _value(self, x: Array) -> Array: ...

    @abstractmethod
    def _potential(self, x: Array) -> Array: ...

    @abstractmethod
    def _slope(self, x: Array) -> Array: ...

    @abstractmethod
    def _mean(self, x0: Array, x1: Array) -> Array: ...

    def _relax(self, x: Array, tau: Array) -> Array:
        raise NotImplementedError

    def _series(
        self, x: list[Array], v: list[Array], aux: tuple[list[Array], ...]
    ) -> tuple[list[Array], ...]:
        self._refuse("Taylor recurrence", "RK4, Strang or diffrax.Tsit5")

    def _apply(self, fn: Callable[[Array], Array], x: ArrayLike) -> Array:
        _check("x", x)
        dtype = jnp.result_type(x)
        return fn(jnp.asarray(x, _wide(dtype))).astype(dtype)

    def _refuse(self, what: str, instead: str) -> NoReturn:
        raise ValueError(f"{type(self).__name__} has no {what}; use {instead} instead.")


def _check(name: str, x: ArrayLike, kinds: tuple[Any, ...] = (jnp.floating,)) -> None:
    what = f"dtype {jnp.result_type(x)}" if eqx.is_array_like(x) else repr(x)
    if not eqx.is_array_like(x) or not any(jnp.issubdtype(jnp.result_type(x), k) for k in kinds):
        raise TypeError(
            f"{name} must be a real floating-point array; got {what}. "
            f"Convert it first, for instance with jnp.asarray({name}, float)."
        )


def _wide(dtype: np.dtype) -> np.dtype:
    """The dtype to compute in."""
    return np.dtype(np.float32) if jnp.finfo(dtype).bits < 32 else dtype

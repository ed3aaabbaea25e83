"""Numerical tools that the activations share. All work on float32 and float64 arrays."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array


def where(condition: Array, x: ArrayLike, y: ArrayLike) -> Array:
    """`jnp.where`, with the batch axis left where `jax.vmap` has put it.

    `jnp.where` moves it to the front when a branch is not batched, such as a constant. All that
    follows is then transposed: 9 times the time of a Taylor step with Sigmoid in `simulate`.
    """
    if condition.ndim == 0:
        return jnp.where(condition, x, y)
    dtype = jnp.result_type(x, y)
    # True everywhere, and folded away by XLA, but batched just as the condition is.
    one = jnp.logical_or(condition, True).astype(dtype)
    return jnp.where(condition, one * jnp.asarray(x, dtype), one * jnp.asarray(y, dtype))


def magnitude(x: Array) -> tuple[Array, Array]:
    """`(|x|, sign)`, where the sign of 0 is 1.

    Unlike `jnp.abs`, whose derivative at 0 is 0, it makes `sign * f(|x|)` and `f(|x|)` of an odd
    and an even smooth function have the right derivative at 0.
    """
    sign = where(x < 0, jnp.asarray(-1, x.dtype), jnp.asarray(1, x.dtype))
    return sign * x, sign


@cache
def gauss_legendre(n: int) -> tuple[tuple[float, float], ...]:
    """Nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return tuple((float(t), float(w)) for t, w in zip((nodes + 1) / 2, weights / 2, strict=True))


def gauss_mean(fn: Callable[[Array], Array], x0: Array, x1: Array, n: int) -> Array:
    """The mean of `fn` over the segment from `x0` to `x1`, by Gauss-Legendre quadrature.

    `n` nodes in float64; in float32 half as many, which take the square root of the error.
    """
    d = x1 - x0
    nodes = gauss_legendre(n if d.dtype == jnp.float64 else (n + 1) // 2)
    return sum((w * fn(x0 + t * d) for t, w in nodes), start=jnp.zeros_like(d))


def fold_odd(mean: Callable[[Array, Array], Array], x0: Array, x1: Array) -> Array:
    r"""The mean of an odd function, from `mean(a, b)` that serves $0 \le a \le b$.

    $S$ is even, so the mean over the segment is that over $[|x_0|, |x_1|]$ times
    $(|x_1| - |x_0|) / (x_1 - x_0)$, a difference that is exact where it nearly cancels.
    """
    (a0, sign0), (a1, sign1) = magnitude(x0), magnitude(x1)
    same = sign0 == sign1
    factor = where(same, sign0, (a1 - a0) / where(same, 1, x1 - x0))
    return factor * mean(*ordered(a0, a1))


def split_mean(
    left: Callable[[Array, Array], Array],
    right: Callable[[Array, Array], Array],
    potential: Callable[[Array], Array],
    x0: Array,
    x1: Array,
) -> Array:
    """The mean of a function with a kink at 0, where it vanishes, from those on either side."""
    is_left, is_right = (x0 < 0) & (x1 < 0), (x0 >= 0) & (x1 >= 0)
    across = ~(is_left | is_right)
    plain = (potential(x1) - potential(x0)) / where(across, x1 - x0, 1)
    on_left = left(where(is_left, x0, 0), where(is_left, x1, 0))
    on_right = right(where(is_right, x0, 0), where(is_right, x1, 0))
    return where(is_left, on_left, where(is_right, on_right, plain))


def ordered(x0: Array, x1: Array) -> tuple[Array, Array]:
    """The two ends in ascending order; a tie is left as it is, with one-sided derivatives."""
    swap = x1 < x0
    return where(swap, x1, x0), where(swap, x0, x1)


def positive(name: str) -> Callable[[Any], float]:
    """A converter for a hyper-parameter that has to be positive and finite."""

    def convert(value: Any) -> float:
        number = real(name, value)
        if not number > 0:
            raise ValueError(f"{name} must be positive; got {value!r}.")
        return number

    return convert


def nonnegative(name: str) -> Callable[[Any], float]:
    """A converter for a hyper-parameter that has to be finite and not negative."""

    def convert(value: Any) -> float:
        number = real(name, value)
        if number < 0:
            raise ValueError(f"{name} must not be negative; got {value!r}.")
        return number

    return convert


def real(name: str, value: Any) -> float:
    """`value` as a finite Python float."""
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a concrete real number; got {value!r}.") from error
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite; got {value!r}.")
    return number


def product(a: list[Array], b: list[Array], k: int) -> Array:
    r"""Coefficient $k$ of a product of series, $\sum_{j \le k} a_{k-j} b_j$."""
    return once(sum((a[k - j] * b[j] for j in range(1, k + 1)), start=a[k] * b[0]))


def square(a: list[Array], k: int) -> Array:
    """Coefficient `k` of the square of a series, at half the products."""
    half = [a[i] * a[k - i] for i in range((k + 1) // 2)]
    middle = [a[k // 2] * a[k // 2]] if k % 2 == 0 else []
    if not half:
        return middle[0]
    twice = 2 * sum(half[1:], start=half[0])
    return once(twice + middle[0] if middle else twice)


def once(x: Array) -> Array:
    """`x`, a coefficient that many others will be made of, computed once.

    XLA on CPU computes it again inside every other: O(p^3) operations for p coefficients instead of
    O(p^2), twice the time of a Taylor step of order 16.
    """
    return jax.lax.optimization_barrier(x)


def log_cosh(x: Array) -> Array:
    """log cosh x, relative to itself at 0 and without overflow."""
    a, _ = magnitude(x)
    half = jnp.sinh(0.5 * jnp.minimum(a, 1.0))
    near = jnp.log1p(2 * half * half)
    far = a + jnp.log1p(jnp.exp(-2 * a)) - math.log(2)
    return where(a < 1, near, far)


def sech_squared(x: Array) -> Array:
    """1 / cosh(x)^2, also where 1 - tanh(x)^2 would be 0."""
    a, _ = magnitude(x)
    e = jnp.exp(-2 * a)
    return 4 * e / ((1 + e) * (1 + e))


def tanh_mean(x0: Array, x1: Array) -> Array:
    """The mean of tanh over a segment."""
    return fold_odd(_tanh_mean, x0, x1)


def _tanh_mean(a: Array, b: Array) -> Array:
    # cosh(b) / cosh(a) = e^d (1 - lost) = 1 + gained. log1p is kept to positive arguments: XLA's
    # has been off by 100 roundings near -0.41.
    d = b - a
    tail, drop = jnp.exp(-2 * a), jnp.expm1(-(a + b))
    t = -drop / (2 + drop)
    c = (1 - t) * (1 + t)
    w = d * d
    fourth, sixth = c * (3 * c - 1) / 240, c * ((45 * c - 30) * c + 2) / 20160
    series = t * (1 - w * (c / 12 - w * (fourth - w * sixth)))
    # Measured: below, the series; above, the noise of the derivative, eps / d, is the smaller.
    small = d < (0.03 if d.dtype == jnp.float64 else 0.3)
    apart = where(small, 1, d)
    p = -jnp.expm1(-apart)
    wide = apart > 1
    lost = where(wide, p * (tail + 1 + drop) / (1 + tail), 0)
    gained = where(wide, 0, -p * drop / (1 + tail)) / where(wide, 1, 1 - p)
    log = jnp.log1p(where(wide, lost / (1 - lost), gained))
    far = where(wide, apart - log, log) / apart
    return where(small, series, far)


def grow(x: Array, z: Array) -> Array:
    """x e^z: 0 at x = 0 however large z is, and finite where only e^z overflows."""
    top = math.log(float(jnp.finfo(x.dtype).max)) - 1
    root = jnp.exp(0.5 * where(x == 0, jnp.minimum(z, top), z))
    return x * root * root


def tanh_relax(x: Array, tau: Array) -> Array:
    """sinh x -> e^(-tau) sinh x."""
    a, sign = magnitude(x)
    scale = -0.5 * jnp.expm1(-2 * a)
    z = a - tau
    u = jnp.exp(jnp.minimum(z, 700.0 if x.dtype == jnp.float64 else 85.0)) * scale
    # From here on asinh u = log 2u to rounding, and u or its square may overflow.
    large = u > 1e15
    near = jnp.arcsinh(where(large, 1, u))
    far = z + jnp.log(where(large, 2 * scale, 1))
    return sign * where(large, far, near)

"""Functions that Triton lacks, in terms of those it has; elementwise, float32 and float64."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# erf x = x p(x^2) up to 1, and 1 - e^(-x^2) q((x - 2) / (x + 2)) up to where it is 1 to rounding;
# p and q interpolate at Chebyshev nodes, from 40 digits. Against those erf is off by at most 1.0
# units of rounding in float64 and 1.4 in float32.
_NEAR_64 = (
    1.1283791670955126,
    -0.3761263890318354,
    0.11283791670945006,
    -0.02686617064323777,
    0.0052239776071164225,
    -0.0008548325975389692,
    0.00012055294904839707,
    -1.492473690741966e-05,
    1.6447424703317362e-06,
    -1.6208483801871705e-07,
    1.3720064546777686e-08,
    -7.795898827002142e-10,
)
_FAR_64 = (
    0.25539567631050575,
    -0.4271858474139579,
    0.24165819424246987,
    -0.07897858101585253,
    0.00373289240349224,
    0.006997461747753573,
    -0.0008471431980760424,
    -0.0009819773208131022,
    4.3554202452705896e-05,
    0.00017436697232946864,
    2.7543128185666716e-05,
    -2.7647305443610053e-05,
    -1.4067532694582058e-05,
    1.820143195975009e-06,
    3.917059299925389e-06,
)
_NEAR_32 = (
    1.1283791261787373,
    -0.37612343775327806,
    0.11280316652505075,
    -0.02671505423226643,
    0.004921762027877231,
    -0.0005648059865503044,
)
_FAR_32 = (
    0.25539567631050575,
    -0.4271859897684867,
    0.2416582015255602,
    -0.07896830612793473,
    0.0037323717589395444,
    0.006811140131085635,
    -0.0008379754387023134,
)


def erf(x: jax.Array, **_) -> jax.Array:
    """The error function."""
    wide = x.dtype == jnp.float64
    near, far, top = (_NEAR_64, _FAR_64, 6) if wide else (_NEAR_32, _FAR_32, 4)
    a = lax.abs(x)
    inner, outer = lax.min(a, _like(x, 1)), lax.min(a, _like(x, top))
    short = _horner(near, inner * inner)
    two = _like(x, 2)
    long = _like(x, 1) - lax.exp(-(outer * outer)) * _horner(far, (outer - two) / (outer + two))
    long = lax.select(x < _like(x, 0), -long, long)
    return lax.select(a < _like(x, 1), x * short, long)


def rounded(x: jax.Array, *, rounding_method: lax.RoundingMethod) -> jax.Array:
    """The nearest integer; from halfway the even one, or the one away from zero."""
    below = lax.floor(x)
    part, half = x - below, _like(x, 0.5)
    if rounding_method == lax.RoundingMethod.TO_NEAREST_EVEN:
        up = below * half != lax.floor(below * half)
    else:
        up = x > _like(x, 0)
    up = (part > half) | ((part == half) & up)
    return lax.select(up, below + _like(x, 1), below)


def one_minus_square(x: jax.Array, **_) -> jax.Array:
    """1 - x^2, without cancellation: what JAX makes of the derivative of tanh."""
    one = _like(x, 1)
    return (one - x) * (one + x)


def _horner(coefficients: tuple[float, ...], x: jax.Array) -> jax.Array:
    total = _like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total * x + _like(x, c)
    return total


def _like(x: jax.Array, value: float) -> jax.Array:
    return lax.full(x.shape, value, np.dtype(x.dtype))

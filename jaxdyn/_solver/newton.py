from collections.abc import Callable

import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Float


def newton(residual: Callable, guess: Float[Array, " n"]) -> Float[Array, " n"]:
    """The root of `residual` near `guess`, to rounding; NaN where Newton's method fails.

    An update below the tolerance leaves an error of about its square, so these tolerances end at
    rounding: 1e-20 in float64, 1e-10 in float32. Differentiable by the implicit function theorem.
    """
    tolerance = 1e-10 if guess.dtype == jnp.float64 else 1e-5
    solution = optx.root_find(
        lambda x, _: residual(x),
        optx.Newton(rtol=tolerance, atol=tolerance),
        guess,
        max_steps=32,
        throw=False,
    )
    return jnp.where(solution.result == optx.RESULTS.successful, solution.value, jnp.nan)

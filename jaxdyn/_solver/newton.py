from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# A dense Jacobian of this size takes 128 MiB in float64, for each trajectory.
MAX_UNITS = 4096
# Rounding errors that an iterate at rest still moves by.
_AT_REST = 8


def newton(residual: Callable, guess: Float[Array, " n"]) -> Float[Array, " n"]:
    """The root of `residual` near `guess`, to rounding; NaN where it is not found.

    `residual(x)` is x - F(x), with F a contraction for small steps: x <- F(x) is tried first, and
    Newton's method takes over where it does not halve its update every time. A batch spends time on
    Jacobians only when one of its members needs it, 3 to 10 times less than Newton's method
    alone; memory for one dense Jacobian a member is set aside all the same. Differentiable by the
    implicit function theorem, both modes.
    """
    return jax.lax.custom_root(residual, guess, _solve, _tangent_solve)


def check_size(name: str, n: int) -> None:
    """Refuses a cell whose dense Jacobian does not fit."""
    if n > MAX_UNITS:
        raise ValueError(
            f"{name} solves with a dense {n} x {n} Jacobian for each trajectory (limit {MAX_UNITS} "
            "units); use solver=jaxdyn.Strang(), jaxdyn.Taylor() or jaxdyn.RK4()."
        )


def _solve(residual: Callable, guess: Float[Array, " n"]) -> Float[Array, " n"]:
    eps = float(jnp.finfo(guess.dtype).eps)

    def size(update, x):
        return jnp.linalg.norm(update) / (1 + jnp.linalg.norm(x))

    def contracts(carry):
        # Down to where rounding stops it: a fixed stopping error would be a drift of the energy.
        _, now, before = carry
        return (now > 0) & (now < 0.5 * before)

    def substitute(carry):
        x, now, _ = carry
        update = residual(x)
        return x - update, size(update, x), now

    first = residual(guess)
    start = guess - first, size(first, guess), jnp.asarray(jnp.inf, guess.dtype)
    x, now, _ = jax.lax.while_loop(contracts, substitute, start)

    # An update below the tolerance leaves an error of about its square: rounding.
    tolerance = 1e-10 if guess.dtype == jnp.float64 else 1e-5
    done = now <= _AT_REST * eps
    x = jnp.where(done, x, guess)

    def unsolved(carry):
        _, now, steps = carry
        return (now > tolerance) & (steps < 32)

    def improve(carry):
        x, _, steps = carry
        update = jnp.linalg.solve(jax.jacfwd(residual)(x), residual(x))
        return x - update, size(update, x), steps + 1

    far = jnp.where(done, 0.0, jnp.inf).astype(guess.dtype)
    x, now, _ = jax.lax.while_loop(unsolved, improve, (x, far, 0))
    return jnp.where(now <= tolerance, x, jnp.nan)


def _tangent_solve(linear: Callable, y: Float[Array, " n"]) -> Float[Array, " n"]:
    return jnp.linalg.solve(jax.jacfwd(linear)(jnp.zeros_like(y)), y)

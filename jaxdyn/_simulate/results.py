from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from .._types import is_traced

RESULTS = diffrax.RESULTS

NON_FINITE = (
    "The state became infinite or NaN: the orbit diverged, `x0`, `args` or the cell holds NaN, or "
    "an implicit step could not be solved. Take a smaller `dt`, or another `solver`."
)


def judge(result: Any, finite: Bool[Array, "*b"]) -> Any:
    """`result` of each trajectory; `nonlinear_divergence` where it is not `finite` after all."""

    def one(result, finite):
        diverged: Any = RESULTS.nonlinear_divergence
        return RESULTS.where((result == RESULTS.successful) & ~finite, diverged, result)

    return one(result, finite) if finite.ndim == 0 else jax.vmap(one)(result, finite)


def succeeded(finite: Bool[Array, "*b"]) -> Any:
    """Success where `finite`, else `nonlinear_divergence`."""
    result: Any = RESULTS.successful
    if finite.ndim:
        result = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, finite.shape), result)
    return judge(result, finite)


def all_finite(finite: Array) -> bool:
    """Of known values; where they are spread over processes, all of them are asked."""
    return bool(np.all(finite) if finite.is_fully_addressable else jnp.all(finite))


def raise_failures(solution: diffrax.Solution) -> diffrax.Solution:
    """The solution, or an error at run time that says what went wrong."""
    result: Any = solution.result
    failed = result != RESULTS.successful
    if not is_traced(failed) and not failed.is_fully_addressable:
        # Only a solve of ours is spread over processes. A check within a program would stop one
        # process and leave the others waiting for it.
        raise RuntimeError(NON_FINITE)
    solution = eqx.error_if(solution, result == RESULTS.nonlinear_divergence, NON_FINITE)
    bad = (result != RESULTS.successful) & (result != RESULTS.event_occurred)
    return result.error_if(solution, bad)

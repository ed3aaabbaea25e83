from typing import Any

import diffrax
import jax
from jaxtyping import Array, Bool


class RESULTS(diffrax.RESULTS):  # pyright: ignore[reportGeneralTypeIssues]
    """diffrax's results, and one more."""

    non_finite = (
        "The state became infinite or NaN: the orbit diverged, `x0`, `args` or the cell holds "
        "NaN, or an implicit step could not be solved. Take a smaller `dt`, or another `solver`."
    )


def judge(result: diffrax.RESULTS, finite: Bool[Array, "*b"]) -> RESULTS:
    """`result` of each trajectory, or `non_finite` where it claims success and is not `finite`."""

    def one(result, finite):
        own = RESULTS.promote(result)
        return RESULTS.where((own == RESULTS.successful) & ~finite, RESULTS.non_finite, own)

    return one(result, finite) if finite.ndim == 0 else jax.vmap(one)(result, finite)


def succeeded(finite: Bool[Array, "*b"]) -> RESULTS:
    """Success where `finite`, else `non_finite`."""

    success: Any = RESULTS.successful

    def one(finite):
        return RESULTS.where(finite, success, RESULTS.non_finite)

    return one(finite) if finite.ndim == 0 else jax.vmap(one)(finite)

"""What a user could pick instead, each used as one who knows it would: `x' = W tanh x` for a batch.

Every module here has `missing()`, why it cannot run here and the cure, or None; and functions that
take a `Problem` and a step or a tolerance and return a `Solve`. All set-up, compilation too where
it can be had in advance, is done before that is returned; calling it starts from x0 and ends with
the end states (b, n).
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

Solve = Callable[[], Any]


class Problem(NamedTuple):
    """W (n, n) and x0 (b, n), of the dtype in which all is to be computed, and the end time."""

    W: np.ndarray
    x0: np.ndarray
    t1: float

    @classmethod
    def of(cls, cell, x0, t1: float) -> "Problem":
        return cls(np.asarray(cell.operator.as_matrix(), x0.dtype), np.asarray(x0), t1)


def present(*peers: ModuleType) -> tuple[set[ModuleType], list[str]]:
    """The peers that can run, and for each other one why not."""
    reasons = {peer: peer.missing() for peer in peers}
    return (
        {peer for peer, reason in reasons.items() if reason is None},
        [reason for reason in reasons.values() if reason is not None],
    )


def without(*packages: str) -> str | None:
    """Says which of `packages` are not installed, and the cure; None if all are."""
    from importlib.util import find_spec

    absent = [name for name in packages if find_spec(name) is None]
    return f"{', '.join(absent)} (pip install {' '.join(absent)})" if absent else None

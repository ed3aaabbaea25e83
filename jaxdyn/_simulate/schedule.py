"""The time axis of a solve, and when to save, worked out before anything is traced."""

import math
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._types import is_traced


class Span(NamedTuple):
    """The time axis of a solve; `dt` carries the sign, `n_steps` counts the shortened last one."""

    t0: Any
    t1: Any
    dt: Any
    n_steps: int
    concrete: bool


class Plan(NamedTuple):
    """Saves in whole steps and a fraction of one more, with their times."""

    steps: np.ndarray
    side: np.ndarray
    times: Any


def plan_saves(saveat: diffrax.SaveAt, span: Span) -> Plan | None:
    """The saves of a fixed-step scan, or None when diffrax has to do them."""
    sub = saveat.subs
    extras = saveat.dense or saveat.solver_state or saveat.controller_state or saveat.made_jump
    if extras or not isinstance(sub, diffrax.SubSaveAt):
        return None
    if is_traced(sub.ts) or (sub.ts is not None and not span.concrete):
        return None
    last = span.n_steps
    grid = [0] * sub.t0 + list(range(sub.steps, last + 1, sub.steps) if sub.steps else [])
    if sub.t1 and not (sub.steps and grid and grid[-1] == last):
        grid.append(last)
    if not grid and sub.ts is None:
        if last > 0:
            raise ValueError(
                f"`saveat.steps` = {sub.steps} is more than the {last} steps of this solve, so "
                "that nothing would be saved; add t1=True."
            )
        grid.append(0)
    if not span.concrete:
        steps = np.array(grid)
        return Plan(
            steps, np.zeros(len(grid)), span.t0 + jnp.asarray(steps, span.dt.dtype) * span.dt
        )

    # In units of a step. A save time that its own precision cannot tell from the grid is on it.
    end = (span.t1 - span.t0) / span.dt
    ratio, slack = np.minimum(np.array(grid, float), end), np.full(len(grid), 1e-9)
    times = np.where(ratio == end, span.t1, span.t0 + ratio * span.dt)
    if sub.ts is not None:
        own = np.asarray(sub.ts)
        own_ratio = (own.astype(np.float64) - span.t0) / span.dt
        scale = 1 + np.abs(own_ratio) + abs(span.t0 / span.dt)
        own_slack = np.maximum(1e-9, 4 * np.finfo(own.dtype).eps * scale)
        at = int(sub.t0)
        order = np.argsort(np.concatenate([ratio[:at], own_ratio, ratio[at:]]), kind="stable")
        times = np.concatenate([times[:at], own, times[at:]])[order]
        slack = np.concatenate([slack[:at], own_slack, slack[at:]])[order]
        ratio = np.concatenate([ratio[:at], own_ratio, ratio[at:]])[order]
    nearest = np.rint(ratio)
    on_grid = np.abs(ratio - nearest) <= slack
    steps = np.where(on_grid, nearest, np.floor(ratio)).astype(np.int64)
    return Plan(steps, np.where(on_grid, 0.0, ratio - steps), times)


class Rows(eqx.Module):
    """When to save: rows of at most `length` whole steps, each ending in one output.

    A save far from the one before takes several rows, whose outputs but the last are dropped; with
    `length` the mean distance there are at most twice as many rows as saves. A save between two
    steps ends its row with a side step, a fraction `side` of a step, from which nothing goes on.
    """

    start: Int[Array | np.ndarray, " r"]
    count: Int[Array | np.ndarray, " r"]
    side: Float[Array | np.ndarray, " r"]
    kept: Int[Array | np.ndarray, " t"]
    length: int = eqx.field(static=True)
    ragged: bool = eqx.field(static=True)
    sided: bool = eqx.field(static=True)
    all_kept: bool = eqx.field(static=True)


def rows(steps: np.ndarray, side: np.ndarray, dtype: np.dtype) -> Rows:
    """The rows that save after `steps` whole steps (ascending) and a fraction `side` of one."""
    gaps = np.diff(steps, prepend=0)
    even = len(set(gaps.tolist())) == 1
    length = max(1, int(gaps[0]) if even else math.ceil(steps[-1] / len(steps)))
    start, count, last, kept = [], [], [], []
    for gap, end, extra in zip(gaps, steps, side, strict=True):
        first = end - gap
        while end - first > length:
            start.append(first)
            count.append(length)
            last.append(0.0)
            first += length
        start.append(first)
        count.append(end - first)
        last.append(extra)
        kept.append(len(start) - 1)
    integer = jnp.result_type(int)
    return Rows(
        start=np.array(start, integer),
        count=np.array(count, integer),
        side=np.array(last, dtype),
        kept=np.array(kept, integer),
        length=length,
        ragged=any(c != length for c in count),
        sided=any(e != 0 for e in last),
        all_kept=len(kept) == len(start),
    )


SAVE_END = diffrax.SaveAt(t1=True)
SAVE_STATE = SAVE_END.subs.fn
"""What diffrax saves when it is not told what: the state itself."""


def is_sub(node) -> bool:
    return isinstance(node, diffrax.SubSaveAt)


def subs_of(saveat: diffrax.SaveAt) -> list:
    return jax.tree.leaves(saveat.subs, is_leaf=is_sub)

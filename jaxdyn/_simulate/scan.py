"""The fixed-step engine: one scan over time whose state is a batch, or tile after tile of it.

Inside, the state is (n, b), the batch in the minor axis, which is the fast layout on CPU. Loops are
never batched, and time is t0 + k dt with a constant dt, never accumulated.
"""

import math
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from .results import succeeded
from .rollout import Rollout, laid_out
from .schedule import Rows
from .tiles import in_tiles, tiles_of


def collect(
    rollout: Rollout, rows: Rows, outs: PyTree, finite: Array
) -> tuple[PyTree, Bool[Array, " b"]]:
    """Of the outputs of all rows those to keep, leading axes (b, t); which trajectories stayed
    finite."""
    if not rows.all_kept:
        outs = jax.tree.map(lambda leaf: leaf[rows.kept], outs)
    if rollout.fn is None:
        outs = jnp.moveaxis(outs, -1, 0)
    else:
        outs = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), outs)
    return outs, finite[-1]


def judged(
    given: Rollout, outs: PyTree, finite: Bool[Array, " b"]
) -> tuple[PyTree, Bool[Array, "*b"], Any]:
    """Without the batch axis for a `given` x0 (n,); and with the result of each trajectory."""
    if given.x0.ndim == 1:
        outs, finite = jax.tree.map(lambda leaf: leaf[0], (outs, finite))
    return outs, finite, succeeded(finite)


@eqx.filter_jit
def integrate(
    given: Rollout, rows: Rows, meter: diffrax.AbstractProgressMeter | None, tile: int | None
) -> tuple[PyTree, Bool[Array, "*b"], Any]:
    """What `fn` makes of the states at the saves; which trajectories stayed finite; results."""
    prepared = given.solver.prepare(given.cell, given.dt)
    steps, tiles = jnp.sum(rows.count), tiles_of(given, tile)

    def solve(state, part, number):
        rollout = laid_out(part)

        def row(carry, xs):
            x, state = carry
            start, count, side = xs

            def step(x, i):
                def move(x):
                    return rollout.advance(prepared, rollout.time(start + i), rollout.dt, x)

                x = jax.lax.cond(i < count, move, lambda x: x, x) if rows.ragged else move(x)
                return x, None

            def tick(state, i):
                if meter is None:
                    return state
                done = number.astype(float) + (start + i) / steps
                return meter.step(state, done / tiles)

            x, state = _checkpointed_scan(step, x, rows.length, tick, state)
            return (x, state), rollout.output(x, start + count, side if rows.sided else None)

        (_, state), (outs, finite) = jax.lax.scan(
            row, (rollout.x0, state), (rows.start, rows.count, rows.side)
        )
        return state, collect(rollout, rows, outs, finite)

    state, saved = in_tiles(solve, None if meter is None else meter.init(), given, tile)
    if meter is not None:
        meter.close(state)
    return judged(given, *saved)


def _checkpointed_scan(step: Callable, x: Any, length: int, tick: Callable, state: Any) -> Any:
    """`step` applied for i = 0, ..., length - 1, with square-root checkpointing under reverse mode.

    Going backwards keeps the states at every sqrt(length)-th step and works the others out again.
    Every so often `tick(state, i)` is told how far it has come.
    """
    root = max(1, math.isqrt(length))
    # One loop in another, so that a step is compiled once: a length without a divisor near its
    # root is rounded up, with steps that do nothing.
    inner = next((d for d in range(root, root // 2, -1) if length % d == 0), root)
    outer = -(-length // inner)

    def move(x, i):
        if outer * inner == length:
            return step(x, i)
        return jax.lax.cond(i < length, lambda x: step(x, i)[0], lambda x: x, x), None

    @jax.checkpoint
    def block(x, i):
        return jax.lax.scan(move, x, i)[0]

    def body(carry, i):
        x, state = carry
        return (block(x, i), tick(state, jnp.minimum(i[-1] + 1, length))), None

    indices = jnp.arange(outer * inner).reshape(outer, inner)
    (x, state), _ = jax.lax.scan(body, (x, state), indices)
    return x, state

"""The fixed-step engine: one scan over time whose state is the whole batch.

Inside, the state is (n, b), the batch in the minor axis, which is the fast layout on CPU. The
solver is written for one trajectory and mapped over that axis inside the scan, so the loop itself
is never batched. Time is t0 + k dt with a constant dt, never accumulated.
"""

import math
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from .._cell import AbstractCell, AbstractInputs
from .._solver import AbstractCellSolver
from .schedule import Rows


@eqx.filter_jit
def integrate(
    solver: AbstractCellSolver,
    cell: AbstractCell,
    inputs: AbstractInputs,
    x0: Float[Array, "b n"],
    t0: Float[Array, ""],
    dt: Float[Array, ""],
    rows: Rows,
    fn: Callable[[Array, Array, Any], PyTree] | None,
    meter: diffrax.AbstractProgressMeter | None,
) -> tuple[PyTree, Bool[Array, " b"]]:
    """What `fn` makes of the states at the saves, leading axes (b, t); and which stayed finite.

    `fn(t, x, args)` is for one trajectory; None saves x.
    """
    members = jnp.arange(x0.shape[0])
    prepared = solver.prepare(cell, dt)
    total = jnp.sum(rows.count)

    def advance(cell, t, h, x):
        return solver.advance_batch(cell, t, h, x, inputs)

    def output(t, x):
        if (save := fn) is None:
            return x
        return jax.vmap(lambda x, i: save(t, x, inputs(i)), in_axes=(1, 0))(x, members)

    def time(k):
        return t0 + k.astype(x0.dtype) * dt

    def row(carry, xs):
        x, state = carry
        start, count, side = xs

        def step(x, i):
            def move(x):
                return advance(prepared, time(start + i), dt, x)

            return (jax.lax.cond(i < count, move, lambda x: x, x) if rows.ragged else move(x)), None

        def tick(state, i):
            return state if meter is None else meter.step(state, (start + i) / total)

        x, state = _checkpointed_scan(step, x, rows.length, tick, state)
        saved, at = x, time(start + count)
        if rows.sided:
            h, end = side * dt, at
            saved = jax.lax.cond(side != 0, lambda x: advance(cell, end, h, x), lambda x: x, x)
            at = end + h
        return (x, state), (output(at, saved), jnp.all(jnp.isfinite(saved), axis=0))

    state = None if meter is None else meter.init()
    (_, state), (outs, finite) = jax.lax.scan(
        row, (x0.T, state), (rows.start, rows.count, rows.side)
    )
    if meter is not None:
        meter.close(state)
    if not rows.all_kept:
        outs = jax.tree.map(lambda leaf: leaf[rows.kept], outs)
    if fn is None:
        return jnp.moveaxis(outs, -1, 0), finite[-1]
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), outs), finite[-1]


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

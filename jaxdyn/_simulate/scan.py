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
from .results import succeeded
from .schedule import Rows


class Saving(eqx.Module):
    """The user's `fn(t, x, args)` as a function of (t, x, i), i the number of a trajectory."""

    fn: Callable[[Array, Array, Any], PyTree]
    inputs: AbstractInputs

    def __call__(self, t: Array, x: Array, i: Array) -> PyTree:
        return self.fn(t, x, self.inputs(i))


class Rollout(eqx.Module):
    """A fixed-step solve of a batch: what it depends on, and what can be differentiated."""

    solver: AbstractCellSolver
    cell: AbstractCell
    inputs: AbstractInputs
    x0: Float[Array, "..."]
    t0: Float[Array, ""]
    dt: Float[Array, ""]
    fn: Callable[[Array, Array, Array], PyTree] | None
    """`fn(t, x, i)` is what to save of trajectory i; None saves x."""

    def time(self, k: Array) -> Array:
        return self.t0 + k.astype(self.x0.dtype) * self.dt

    def advance(self, prepared: Any, t: Array, dt: Array, x: Array) -> Array:
        return self.solver.advance_batch(prepared, t, dt, x, self.inputs)

    def output(self, x: Array, k: Array, side: Array | None) -> tuple[PyTree, Bool[Array, " b"]]:
        """What is saved after `k` steps, state `x`, and a fraction `side` of one more."""
        at = self.time(k)
        if side is not None:
            h, end = side * self.dt, at
            x = jax.lax.cond(
                side != 0, lambda x: self.advance(self.cell, end, h, x), lambda x: x, x
            )
            at = end + h
        finite = jnp.all(jnp.isfinite(x), axis=0)
        if self.fn is None:
            return x, finite
        save = jax.vmap(self.fn, in_axes=(None, 1, 0))
        return save(at, x, jnp.arange(x.shape[1])), finite


def laid_out(rollout: Rollout) -> Rollout:
    """`rollout`, given with x0 (n,) or (b, n), with the batch in the minor axis."""
    return eqx.tree_at(lambda r: r.x0, rollout, jnp.atleast_2d(rollout.x0).T)


def collect(
    given: Rollout, rows: Rows, outs: PyTree, finite: Array
) -> tuple[PyTree, Bool[Array, "*b"], Any]:
    """Of the outputs of all rows those to keep, leading axes (b, t), or (t,) for a `given` x0 (n,);
    which trajectories stayed finite, and their results."""
    if not rows.all_kept:
        outs = jax.tree.map(lambda leaf: leaf[rows.kept], outs)
    finite = finite[-1]
    if given.fn is None:
        outs = jnp.moveaxis(outs, -1, 0)
    else:
        outs = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), outs)
    if given.x0.ndim == 1:
        outs, finite = jax.tree.map(lambda leaf: leaf[0], (outs, finite))
    return outs, finite, succeeded(finite)


@eqx.filter_jit
def integrate(
    given: Rollout, rows: Rows, meter: diffrax.AbstractProgressMeter | None
) -> tuple[PyTree, Bool[Array, "*b"], Any]:
    """What `fn` makes of the states at the saves; which trajectories stayed finite; results."""
    rollout = laid_out(given)
    prepared = rollout.solver.prepare(rollout.cell, rollout.dt)
    total = jnp.sum(rows.count)

    def row(carry, xs):
        x, state = carry
        start, count, side = xs

        def step(x, i):
            def move(x):
                return rollout.advance(prepared, rollout.time(start + i), rollout.dt, x)

            return (jax.lax.cond(i < count, move, lambda x: x, x) if rows.ragged else move(x)), None

        def tick(state, i):
            return state if meter is None else meter.step(state, (start + i) / total)

        x, state = _checkpointed_scan(step, x, rows.length, tick, state)
        return (x, state), rollout.output(x, start + count, side if rows.sided else None)

    state = None if meter is None else meter.init()
    (_, state), (outs, finite) = jax.lax.scan(
        row, (rollout.x0, state), (rows.start, rows.count, rows.side)
    )
    if meter is not None:
        meter.close(state)
    return collect(given, rows, outs, finite)


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

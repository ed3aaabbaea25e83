"""Gradients without a stored trajectory: the states come back by undoing the steps."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from diffrax import AbstractSolver, SaveAt
from jaxtyping import Array, Bool, Float, PyTree

from .._cell import AbstractCell, AbstractInputs, cast, evaluate_input, is_constant_input
from .._solver import AbstractCellSolver, Step, Strang
from .._types import is_traced
from .adjoint import ReversibleAdjoint, check_reversible
from .checks import check_number, check_solver, check_times, check_types, check_x0, inputs_of
from .memory import check_memory
from .rollout import Rollout, laid_out
from .scan import collect, judged
from .schedule import Rows, rows
from .tiles import in_tiles

MISSED = (
    "The states that came back while the gradient was taken are further off than `error` of the "
    "ReversibleAdjoint allows: the orbit is chaotic, or `dt` is long for the solver. Keep a state "
    "every so often (`checkpoint_every`, see jaxdyn.reversal_interval), use a splitting on a grid "
    "such as jaxdyn.Strang(grid=2.0**-36) in float64, or leave `adjoint` out."
)


@eqx.filter_jit
def integrate_reversibly(
    given: Rollout, rows: Rows, total: int, adjoint: ReversibleAdjoint, tile: int | None
) -> tuple[PyTree, Bool[Array, "*b"], Any]:
    """As `integrate`, with the gradient that `adjoint` describes; `total` counts all steps."""
    formed = eqx.tree_at(lambda r: r.cell, given, given.solver.form(given.cell))
    every = adjoint.checkpoint_every
    every = None if every is None else min(every, max(1, total))
    error = allowed_error(adjoint.error, given.x0.dtype)

    def solve(state, part, _):
        rollout = _without_closures(laid_out(part))
        rollout = eqx.tree_at(lambda r: r.x0, rollout, rollout.solver.start(rollout.x0))
        outs, finite = _roll(rollout, rows, total, every, error)
        return state, collect(rollout, rows, outs, finite)

    _, saved = in_tiles(solve, None, formed, tile)
    return judged(given, *saved)


def allowed_error(error: float | None, dtype: Any) -> float:
    """How far off states may come back, in the precision of `dtype`."""
    if error is not None:
        return error
    return 1e-6 if dtype == jnp.float64 else 1e-2


def reversal_interval(
    cell: AbstractCell,
    x0: Any,
    *,
    dt: Any,
    n_steps: int,
    error: float,
    solver: AbstractCellSolver | None = None,
    args: Any = None,
    t0: Any = 0.0,
) -> int | None:
    """The `checkpoint_every` that keeps the states of a [`jaxdyn.ReversibleAdjoint`][] to `error`.

    Solves from `x0` and undoes the steps again, with the states of every k-th step restored, for
    k = `n_steps`, half of it, and so on, until every state that comes back is within `error` of
    what it was. Each trial costs two solves.

    **Arguments:** as those of [`jaxdyn.simulate`][], concrete; `error` as that of
    [`jaxdyn.ReversibleAdjoint`][].

    **Returns:** the largest of these k; None when no state but x0 need be kept.

    **Raises:** ValueError or TypeError that names the argument; ValueError when even a single step
    is not undone to `error`.
    """
    error = float(check_number("error", error, "a number > 0"))
    adjoint = ReversibleAdjoint(error=error)
    check_types(cell=(cell, AbstractCell), solver=(solver, AbstractSolver))
    x0 = check_x0(cell, x0)
    span = check_times(t0, None, dt, n_steps, x0.dtype)
    if span.n_steps < 1:
        raise ValueError(f"`n_steps` must be >= 1, got {n_steps}: without a step none is undone.")
    solver = Strang() if solver is None else solver
    check_solver(solver, cell, adjoint, None)
    check_reversible(adjoint, solver, cell, args)
    cell = cast(cell, x0.dtype)
    inputs = inputs_of(cell, args, x0, span)
    t0, dt = (jnp.asarray(t, x0.dtype) for t in (span.t0, span.dt))
    state = solver.start(jnp.atleast_2d(x0).T)
    rollout = Rollout(solver, solver.form(cell), inputs, state, t0, dt, None)
    if is_traced((cell, x0, args, dt, t0)):
        raise ValueError(
            "`cell`, `x0`, `dt` and the like must be concrete; call it outside of jit."
        )
    every, end = span.n_steps, SaveAt(t1=True)
    while not (off := float(_trip(rollout, span.n_steps, every))) <= error:
        if not math.isfinite(off):
            raise ValueError(
                "`x0` leads to an orbit that becomes infinite or NaN; take a smaller `dt`."
            )
        if every == 1:
            raise ValueError(
                f"`error` = {error} is out of reach: {type(solver).__name__} undoes a single step "
                f"to {off:.1e}. Take a larger one, a smaller `dt`, or a splitting on a grid."
            )
        every = -(-every // 2)
        check_memory(x0, end, span.n_steps, every)
    return None if every == span.n_steps else every


@eqx.filter_jit
def _trip(rollout: Rollout, total: int, every: int) -> Float[Array, ""]:
    """How far off states come back over `total` steps, every `every`-th restored."""
    when = rows(np.array([total]), np.zeros(1), rollout.x0.dtype)
    _, (x, kept) = _forward(rollout, when, total, every)
    solver, prepared = rollout.solver, rollout.solver.prepare(rollout.cell, rollout.dt)
    nothing = jax.tree.map(lambda _: False, _step(rollout, jnp.asarray(0)))

    def back(i, carry):
        x, worst = carry
        k = total - 1 - i
        step, ct = _step(rollout, k), jnp.zeros_like(x)
        memo = solver.open_memo(prepared, step, x, ct, 1, nothing)
        x, _, _ = solver.undo_batch(prepared, step, x, ct, memo, jnp.asarray(0), nothing)
        return _restored(kept, every, k, x, worst)

    worst = jax.lax.fori_loop(0, total, back, (x, jnp.zeros(x.shape[1], x.dtype)))[1]
    return jnp.max(worst)


@eqx.filter_custom_vjp
def _roll(rollout, rows, total, every, error):
    return _forward(rollout, rows, total, None)[0]


@_roll.def_fwd
def _(perturbed, rollout, rows, total, every, error):
    return _forward(rollout, rows, total, every)


@_roll.def_bwd
def _(residuals, cotangents, perturbed, rollout, rows, total, every, error):
    gradient, worst = _backward(residuals, cotangents[0], perturbed, rollout, rows, every)
    # A trajectory that diverged was reported by the solve itself; its gradient is NaN anyway.
    lost = ~(worst <= error) & jnp.all(jnp.isfinite(residuals[0]), axis=0)
    return eqx.error_if(gradient, jnp.any(lost), MISSED)


def _forward(rollout: Rollout, when: Rows, total: int, every: int | None) -> Any:
    """The outputs of all rows; the last state, and the states of every `every`-th step."""
    prepared = rollout.solver.prepare(rollout.cell, rollout.dt)

    def row(carry, xs):
        start, count, side = xs

        def step(i, carry):
            (x, kept), k = carry, start + i
            if kept is not None:
                # The last one written to a place is that before a multiple of `every` steps.
                kept = kept.at[(k + every - 1) // every].set(x, mode="drop")
            return rollout.advance(prepared, rollout.time(k), rollout.dt, x), kept

        x, kept = jax.lax.fori_loop(0, count, step, carry)
        return (x, kept), rollout.output(x, start + count, side if when.sided else None)

    kept = None
    if every is not None:
        kept = jnp.zeros((max(1, math.ceil(total / every)), *rollout.x0.shape), rollout.x0.dtype)
    carry, outs = jax.lax.scan(row, (rollout.x0, kept), (when.start, when.count, when.side))
    return outs, carry


def _backward(residuals, cotangent, perturbed, rollout: Rollout, rows: Rows, every: int | None):
    """The gradient for the perturbed leaves of `rollout`, and the worst error of a state."""
    x1, kept = residuals
    prepared = rollout.solver.prepare(rollout.cell, rollout.dt)
    free, fixed = eqx.partition(rollout, perturbed)
    wanted = Step(perturbed.cell, perturbed.inputs, perturbed.t0, perturbed.dt, False)
    seen = jax.tree.map(lambda leaf: leaf is not None, cotangent, is_leaf=_none)
    solver = rollout.solver
    steps = min(rows.length, solver.memo_steps(prepared, x1.shape[1]))

    def row(carry, xs):
        x, l, gradient, worst = carry
        (start, count, side), of_output = xs

        def output(free, x):
            whole = eqx.combine(free, fixed)
            out, _ = whole.output(x, start + count, side if rows.sided else None)
            return eqx.filter(out, seen)

        _, vjp = jax.vjp(output, free, x)
        of_free, of_x = vjp(of_output)

        def back(last, i, carry):
            x, l, memo, worst = carry
            k = last - i
            x, l, memo = solver.undo_batch(prepared, _step(rollout, k), x, l, memo, i, wanted)
            x, worst = _restored(kept, every, k, x, worst)
            return x, l, memo, worst

        def chunk(j, carry):
            x, l, gradient, worst = carry
            done = j * steps
            last = start + count - 1 - done
            memo = solver.open_memo(prepared, _step(rollout, last), x, l, steps, wanted)
            few = jnp.minimum(steps, count - done)
            x, l, memo, worst = jax.lax.fori_loop(
                0, few, lambda i, carry: back(last, i, carry), (x, l, memo, worst)
            )
            of_step = solver.close_memo(memo)
            changes = [of_step.cell, of_step.inputs, of_step.t0, of_step.dt]
            gradient = eqx.tree_at(
                _leaves, gradient, _sum(_leaves(gradient), changes), is_leaf=_none
            )
            return x, l, gradient, worst

        carry = x, l + of_x, _sum(gradient, of_free), worst
        return jax.lax.fori_loop(0, -(-count // steps), chunk, carry), None

    xs = ((rows.start, rows.count, rows.side), cotangent)
    nothing = jax.tree.map(jnp.zeros_like, free)
    carry = (x1, jnp.zeros_like(x1), nothing, jnp.zeros(x1.shape[1], x1.dtype))
    (x, l, gradient, worst), _ = jax.lax.scan(row, carry, xs, reverse=True)
    gradient = eqx.tree_at(lambda g: g.x0, gradient, l if perturbed.x0 else None, is_leaf=_none)
    return gradient, jnp.maximum(worst, distance(x, rollout.x0))


def _step(rollout: Rollout, k: Array) -> Step:
    k = k.astype(rollout.x0.dtype)
    return Step(rollout.cell, rollout.inputs, rollout.t0, rollout.dt, k)


def _restored(kept: Array | None, every: int | None, k: Array, x: Array, worst: Array):
    """The state before step `k`, as it was kept if it was; and the worst error of those so far."""
    if kept is None or every is None:
        return x, worst

    def restore(x, worst):
        known = kept[k // every]
        return known, jnp.maximum(worst, distance(x, known))

    return jax.lax.cond(k % every == 0, restore, lambda *carry: carry, x, worst)


def _leaves(rollout):
    return [rollout.cell, rollout.inputs, rollout.t0, rollout.dt]


def _none(leaf):
    return leaf is None


def _sum(a, b):
    return jax.tree.map(jnp.add, a, b)


def distance(x: Float[Array, "n b"], known: Float[Array, "n b"]) -> Float[Array, " b"]:
    """How far off states are, in units of their size or 1."""
    return jnp.max(jnp.abs(x - known), axis=0) / (1 + jnp.max(jnp.abs(known), axis=0))


def _without_closures(rollout: Rollout) -> Rollout:
    """`rollout` with the values that functions close over made leaves of it.

    Otherwise they could not be differentiated by.
    """
    inputs, t0, first = rollout.inputs, rollout.t0, jnp.arange(1)[0]
    fn = rollout.fn
    if fn is not None:
        fn = eqx.filter_closure_convert(fn, t0, rollout.x0[:, 0], first)
    if not is_constant_input(inputs(0)):
        at = eqx.filter_closure_convert(lambda t, i: evaluate_input(inputs(i), t), t0, first)
        inputs = _Converted(at, t0.dtype)
    return eqx.tree_at(lambda r: (r.inputs, r.fn), rollout, (inputs, fn), is_leaf=_none)


class _Converted(AbstractInputs):
    """Inputs as a function of (t, i)."""

    at: Callable
    dtype: Any = eqx.field(static=True)

    def __call__(self, i):
        return lambda t: self.at(jnp.asarray(t, self.dtype), jnp.asarray(i))

"""The gradient of a kernel's solve, by kernels that undo its steps."""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from .._cell import SharedInput, is_constant_input
from .._kernel import Kernel
from .._solver import Step
from .reversible import MISSED, allowed_error, distance
from .rollout import Rollout
from .schedule import Rows

# Bytes that a trajectory carries along in a thread while its steps are undone: the state, its
# cotangent and the gradient of everything else. A thread has 255 registers of four bytes; a step
# needs some too.
MOST_CARRIED = 448
# Bytes of the matrices in which a tile sums gradients up: W of 128 units in float32, and what goes
# with the input. A multiprocessor has 256 KiB of registers.
MOST_SUMMED = 96 * 1024


class Undoing(NamedTuple):
    """How steps are undone."""

    back: Callable[[Array, Array, Array, Array, PyTree], tuple[Array, Array, PyTree]]
    """Of `(end, count, x, l, gradient)`, the states x (b, n) after step `end`, their cotangents and
    the gradient so far: the same `count` steps before."""
    nothing: PyTree
    """The gradient of no steps."""
    total: Callable[[PyTree], tuple[PyTree, Array, Array]]
    """Of a gradient, that by `parts`, by t0 and by dt."""


def ways_to_undo(rollout: Rollout, rows: Rows) -> list[Callable[[Rollout, Kernel], Undoing]]:
    """What can undo the steps of this solve, the best first; each may raise Refused or CannotServe
    all the same."""
    (batch, n), solver = rollout.x0.shape, rollout.solver
    ((of_cell, of_u), _), apart, _ = parts(rollout)
    u = rollout.inputs.stacked()[0]
    on_grid = getattr(solver, "grid", None) is not None
    # On a grid the input has to be seen at the very times of the way there,
    if rows.sided or (on_grid and not is_constant_input(u)):
        return []
    ways, itemsize = [], rollout.x0.dtype.itemsize
    own = sum(v.size for v in jax.tree.leaves(of_u)) // (batch if apart else 1)
    size = sum(v.size for v in jax.tree.leaves(of_cell)) + own
    if (2 * n + size + 2) * itemsize <= MOST_CARRIED:
        ways.append(by_lanes)
    # and products would have to be rounded as they were.
    if not on_grid:
        ways.append(by_products)
    return ways


def undone_in_kernel(
    rollout: Rollout,
    rows: Rows,
    ys: Float[Array, "b t n"],
    ct: Float[Array, "b t n"],
    error: float | None,
    undoing: Undoing,
) -> tuple[PyTree, Array, Array, Array]:
    """The gradient by what the solver forms of the cell and the input, by x0, by t0 and by dt.

    From a save to the one before, the steps are undone in one kernel. Saved states are as they were
    saved, and what comes back is compared with them.

    **Raises:** a RuntimeError at run time when a state that comes back is off by more than `error`.
    """
    x0 = rollout.x0
    end = (rows.start + rows.count)[rows.kept]
    start = jnp.concatenate([jnp.zeros_like(end[:1]), end[:-1]])
    first = rollout.solver.start(x0)
    known = jnp.concatenate([first[:, None], ys[:, :-1]], axis=1)

    def segment(carry, xs):
        l, gradient, worst = carry
        start, end, x, before, of_x = xs
        x, l, gradient = undoing.back(end, end - start, x, l + of_x, gradient)
        return (l, gradient, jnp.maximum(worst, distance(x.T, before.T))), None

    by_save = (jnp.moveaxis(v, 1, 0) for v in (ys, known, ct))
    nothing = jnp.zeros_like(first), undoing.nothing, jnp.zeros(x0.shape[0], x0.dtype)
    carry, _ = jax.lax.scan(segment, nothing, (start, end, *by_save), reverse=True)
    l, gradient, worst = carry
    of_parts, of_t0, of_dt = undoing.total(gradient)
    (free, _), *_ = parts(rollout)
    of_parts = jax.tree.map(lambda v, like: v.astype(like.dtype), of_parts, free)
    lost = ~(worst <= allowed_error(error, x0.dtype)) & jnp.all(jnp.isfinite(ys[:, -1]), axis=-1)
    return eqx.error_if((of_parts, l, of_t0, of_dt), jnp.any(lost), MISSED)


def by_lanes(rollout: Rollout, kernel: Kernel) -> Undoing:
    """A trajectory in a thread: the state x, its cotangent l, and the sum so far of the gradients
    of its steps."""
    from .._kernel.launch import Saves, integrate_in_kernel

    solver, (batch, n), dtype = rollout.solver, rollout.x0.shape, rollout.x0.dtype
    (free, fixed), apart, static = parts(rollout)

    def in_precision(tree):
        return jax.tree.map(lambda v: v.astype(dtype), tree)

    one = free[0], jax.tree.map(lambda v: v[0], free[1]) if apart else free[1]
    flat, unravel = ravel_pytree(in_precision((*one, rollout.t0, rollout.dt)))

    def advance(free, fixed, t, dt, x):
        cell, u = eqx.combine(free, fixed, static)
        return solver.advance_lane(cell, t, dt, x, u)

    def undo(constants, t, dt, y):
        """`dt` is that of the undoing, and `t` the time at the end of the step."""
        free, fixed, t0 = constants
        x, l, gradient = y[:n], y[n : 2 * n], y[2 * n :]
        before = advance(free, fixed, t, dt, x)
        _, vjp = jax.vjp(lambda f, t, h, x: advance(f, fixed, t, h, x), free, t + dt, -dt, before)
        of_free, of_t, of_dt, l = vjp(l)
        change = in_precision((*of_free, of_t, of_dt + _number(t, dt, t0) * of_t))
        return jnp.concatenate([before, l, gradient + ravel_pytree(change)[0]])

    def back(end, count, x, l, gradient):
        y, saves = jnp.concatenate([x, l, gradient], axis=1), Saves(-end[None], count[None], None)
        constants, own = (free, fixed, rollout.t0), ((False, apart), (False, apart), False)
        given = undo, constants, own, y, rollout.t0, -rollout.dt, saves, kernel
        y = integrate_in_kernel(*given)[:, 0]
        return y[:, :n], y[:, n : 2 * n], y[:, 2 * n :]

    def total(gradient):
        of_cell, of_u, of_t0, of_dt = jax.vmap(unravel)(gradient)
        of_u = of_u if apart else _summed(of_u)
        return (_summed(of_cell), of_u), jnp.sum(of_t0), jnp.sum(of_dt)

    return Undoing(back, jnp.zeros((batch, flat.size), dtype), total)


def by_products(rollout: Rollout, kernel: Kernel) -> Undoing:
    """A tile of trajectories in pieces: x, l and the sum so far of the gradients that are numbers
    or vectors, of each trajectory; and of those that are matrices, of them all."""
    from .._kernel.blocks import States, run_in_blocks
    from .._kernel.launch import MOST_LANES
    from .._kernel.rows import CannotServe, padded, sides

    if rollout.x0.shape[1] <= MOST_LANES:
        # The way there was without products, in full precision, and in tiles of another kind.
        kernel = Kernel(interpret=kernel.interpret)

    solver, batch, dtype = rollout.solver, rollout.x0.shape[0], rollout.x0.dtype
    (free, fixed), apart, static = parts(rollout)
    units = solver.pieces(eqx.combine(free[0], fixed[0], static[0]))
    if units is None:
        raise CannotServe("the steps of this solver for this cell")

    def cut(of_cell):
        return solver.cut(eqx.combine(of_cell, fixed[0], static[0]))

    _, of_cell = jax.vjp(lambda free: eqx.filter(cut(free), eqx.is_inexact_array), free[0])
    of_cut, rest = eqx.partition(cut(free[0]), eqx.is_inexact_array)
    rest, still = eqx.partition(rest, eqx.is_array)
    of_u = jax.tree.map(lambda v: v[0], free[1]) if apart else free[1]
    likes = Step(of_cut, SharedInput(of_u), rollout.t0, rollout.dt, None)
    leaves, structure = jax.tree.flatten(likes)
    is_matrix = [len(sides(v.shape)) > 1 for v in leaves]
    is_vector = [not m for m in is_matrix]
    is_own = jax.tree.leaves(_filled(likes, Step(False, SharedInput(apart), False, False, None)))
    sums = [jax.ShapeDtypeStruct(v.shape, dtype) for v in _chosen(leaves, is_matrix)]
    if any(map(operator.and_, is_matrix, is_own)):
        raise CannotServe("a matrix of each trajectory's own")
    if sum(math.prod(map(padded, sides(v.shape))) for v in sums) * dtype.itemsize > MOST_SUMMED:
        raise CannotServe("sums of matrices that large")

    def undo(constants, t, dt, states, totals):
        """`dt` is that of the undoing, and `t` the time at the end of the step."""
        of_cut, rest, free, fixed, t0 = constants
        u = SharedInput(eqx.combine(free, fixed, static[1]))
        step = Step(eqx.combine(of_cut, rest, still), u, t0, -dt, _number(t, dt, t0))
        by_all = jax.tree.map(eqx.is_inexact_array, step)
        wanted = eqx.tree_at(lambda step: step.k, by_all, False)
        x, l, vectors = (tuple(v) for v in _split(states, len(units)))
        x, l, change = solver.undo_pieces(step, x, l, wanted)
        changes = [v.astype(dtype) for v in jax.tree.leaves(change)]
        vectors, totals = (
            [v + change for v, change in zip(of_kind, _chosen(changes, kind), strict=True)]
            for of_kind, kind in ((vectors, is_vector), (totals, is_matrix))
        )
        return (*x, *l, *vectors), tuple(totals)

    def back(end, count, x, l, gradient):
        vectors, totals = gradient
        states = [States(x[:, c], "edge") for c in units]
        states += [States(l[:, c], "constant") for c in units]
        states += [States(v, "constant") for v in vectors]
        constants, own = (of_cut, rest, free[1], fixed[1], rollout.t0), (False, False, apart, apart)
        own = _filled(constants, (*own, False))
        when, times = (-end[None], count[None]), (rollout.t0, -rollout.dt)
        ys, more = run_in_blocks(undo, constants, own, when, states, sums, *times, kernel, tile)
        xs, ls, vectors = _split([y[:, 0] for y in ys], len(units))
        for c, of_x, of_l in zip(units, xs, ls, strict=True):
            x, l = x.at[:, c].set(of_x), l.at[:, c].set(of_l)
        return x, l, (vectors, [a + b for a, b in zip(totals, more, strict=True)])

    def total(gradient):
        vectors, totals = map(iter, gradient)
        whole = [
            next(totals) if of_all else next(vectors) if own else jnp.sum(next(vectors), axis=0)
            for of_all, own in zip(is_matrix, is_own, strict=True)
        ]
        change = jax.tree.unflatten(structure, whole)
        return (*of_cell(change.cell), change.inputs.u), change.t0, change.dt

    tile = kernel.columns(batch, undone=True)
    nothing = [jnp.zeros((batch, *v.shape), dtype) for v in _chosen(leaves, is_vector)]
    return Undoing(back, (nothing, [jnp.zeros(v.shape, dtype) for v in sums]), total)


def parts(rollout: Rollout) -> tuple[tuple[PyTree, PyTree], bool, PyTree]:
    """What the solver forms of the cell, and the input: the numbers to differentiate by and other
    arrays; whether the input is each trajectory's own; and all that is no array."""
    u, apart = rollout.inputs.stacked()
    arrays, static = eqx.partition((rollout.solver.form(rollout.cell), u), eqx.is_array)
    return eqx.partition(arrays, eqx.is_inexact_array), apart, static


def _number(t: Array, dt: Array, t0: Array) -> Array:
    """Of the step of t0 + k (-dt) that is undone from `t` by `dt`, its k."""
    return jnp.round((t0 - t - dt) / jnp.where(dt == 0, 1, dt))


def _summed(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda v: jnp.sum(v, axis=0), tree)


def _chosen(items: Sequence[Any], which: Sequence[bool]) -> list[Any]:
    return [item for item, chosen in zip(items, which, strict=True) if chosen]


def _split(items: Sequence[Any], n: int) -> list[list[Any]]:
    """The first n, the next n, and the rest."""
    return [list(v) for v in (items[:n], items[n : 2 * n], items[2 * n :])]


def _filled(tree: PyTree, prefix: PyTree) -> PyTree:
    """`tree` with the leaves of `prefix` in all places below them."""
    return jax.tree.map(lambda v, below: jax.tree.map(lambda _: v, below), prefix, tree)

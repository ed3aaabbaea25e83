"""The fixed-step engine of `jaxdyn.Kernel`, and what it is given to do."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, PyTree

from .._cell import SharedInput, VectorField, evaluate_input, is_constant_input
from .._kernel import LEAST_COLUMNS, Kernel, check_device
from .._solver import AbstractCellSolver
from .adjoint import ReversibleAdjoint
from .reversible import integrate_reversibly
from .rollout import Rollout
from .scan import integrate, judged
from .schedule import Rows
from .tiles import tile_size
from .undone_in_kernel import by_products, parts, undone_in_kernel, ways_to_undo

# Beyond so many units W does not fit into what a GPU's multiprocessor shares.
MOST_UNITS = 128


def check_kernel(kernel: Kernel, solver: diffrax.AbstractSolver, n: int, x0: Array) -> None:
    """Refuses what a kernel cannot serve.

    **Raises:** ValueError that names the argument.
    """
    if not isinstance(solver, AbstractCellSolver):
        raise ValueError(
            "`engine=jaxdyn.Kernel` is for solvers of ours, jaxdyn.Strang(), jaxdyn.RK4(), "
            f"jaxdyn.Taylor() and the like, and `solver` is {type(solver).__name__}; leave "
            "`engine` out."
        )
    if not solver.explicit:
        raise ValueError(
            "`engine=jaxdyn.Kernel` takes solvers whose step is a formula, and "
            f"{type(solver).__name__} works with matrices; use solver=jaxdyn.Strang(), "
            "jaxdyn.RK4() or jaxdyn.Taylor(), or leave `engine` out."
        )
    if n > MOST_UNITS:
        raise ValueError(
            f"`engine=jaxdyn.Kernel` keeps states and W on the chip, which is for up to "
            f"{MOST_UNITS} units, and `cell` has {n}; leave `engine` out."
        )
    check_device(kernel, x0)


@eqx.filter_jit
def integrate_by_kernel(
    given: Rollout, rows: Rows, total: int, adjoint: ReversibleAdjoint | None, kernel: Kernel
) -> tuple[PyTree, Bool[Array, "*b"], Any]:
    """As `integrate`, or `integrate_reversibly` for an `adjoint`, with `total` steps."""
    x0 = jnp.atleast_2d(given.x0)
    cell, inputs = _without_closures(given.cell, given.inputs, given.t0, x0)
    batch = eqx.tree_at(
        lambda r: (r.x0, r.cell, r.inputs, r.fn),
        given,
        (x0, cell, inputs, None),
        is_leaf=lambda v: v is None,
    )
    tile = tile_size(given.solver, given.cell, given.x0, None)
    # As arguments, because what is differentiated must not close over what jit traces.
    arrays, static = eqx.partition((batch, rows), eqx.is_array)

    def forward(*arrays):
        rollout, rows = eqx.combine(arrays, static)
        return _states(rollout, rows, kernel)

    def plain(*arrays):
        rollout, rows = eqx.combine(arrays, static)
        if adjoint is None:
            return integrate(rollout, rows, None, tile)[0]
        return integrate_reversibly(rollout, rows, total, adjoint, tile)[0]

    def undone(way, rollout, rows, ys, ct):
        whole, rows = eqx.combine((rollout, rows), static)
        assert adjoint is not None
        undoing = way(whole, kernel)
        (gradient, *rest) = undone_in_kernel(whole, rows, ys, ct, adjoint.error, undoing)

        def formed(rollout):
            whole = eqx.combine(rollout, static[0])
            (free, _), _, _ = parts(whole)
            return free, whole.solver.start(whole.x0), whole.t0, whole.dt

        return _of_floats(jax.vjp(formed, rollout)[1]((gradient, *rest))[0])

    if adjoint is None:
        solve = _derived(forward, plain)
    else:
        ways = ways_to_undo(batch, rows) if adjoint.checkpoint_every is None else []

        def by_the_scan(rollout, rows, ys, ct):
            pull = jax.vjp(lambda rollout: plain(rollout, rows), rollout)[1]
            return _of_floats(pull(ct)[0])

        undoings: list[Callable] = []
        for way in ways:
            undo = functools.partial(undone, way)
            undoings.append(_for_members(undo, by_the_scan) if way is by_products else undo)
        solve = _derived_in_reverse(forward, undoings, by_the_scan)
    ys = solve(*arrays)
    finite = jnp.all(jnp.isfinite(ys[:, -1]), axis=-1)
    outs = ys if given.fn is None else _saved(given, rows, ys)
    return judged(given, outs, finite)


def _derived(forward: Callable, plain: Callable) -> Callable:
    """`forward` with the derivatives of `plain`, in both modes."""
    solve = jax.custom_jvp(forward)

    @solve.defjvp
    def _(primals, tangents):
        (rollout, rows), (tangent, _) = primals, tangents
        _, out = jax.jvp(lambda rollout: plain(rollout, rows), (rollout,), (tangent,))
        return solve(*primals), out

    return solve


def _derived_in_reverse(
    forward: Callable, ways: Sequence[Callable], by_the_scan: Callable
) -> Callable:
    """`forward` with the gradient by the first of `ways` that can, or else by the scan."""
    from .._kernel.entries import Refused
    from .._kernel.rows import CannotServe

    solve = jax.custom_vjp(forward)

    def kept(rollout, rows):
        ys = forward(rollout, rows)
        return ys, (rollout, rows, ys if ways else None)

    def pulled(kept, ct):
        for undone in ways:
            with contextlib.suppress(Refused, CannotServe):
                return undone(*kept, ct), None
        return by_the_scan(*kept, ct), None

    solve.defvjp(kept, pulled)
    return solve


def _for_members(undone: Callable, by_the_scan: Callable) -> Callable:
    """`undone`, but by the scan for members with few trajectories each and a cell that all share:
    every member has programs and a gradient of its own, which would be idle for the most part. Of
    maps in maps the innermost decides."""

    @custom_vmap
    def gradient(*given):
        return undone(*given)

    @gradient.def_vmap
    def _(size, mapped, rollout, *rest):
        of_rollout, *_ = mapped
        batch = rollout.x0.shape[1 if of_rollout.x0 else 0]
        idle = batch < LEAST_COLUMNS and not any(jax.tree.leaves(of_rollout.cell))
        axes = jax.tree.map(lambda m: 0 if m else None, tuple(mapped))
        out = jax.vmap(by_the_scan if idle else undone, axes)(rollout, *rest)
        return out, jax.tree.map(lambda _: True, out)

    return gradient


def _of_floats(gradient: PyTree) -> PyTree:
    """None for numbers that nothing is differentiated by."""
    return jax.tree.map(lambda v: None if v.dtype == jax.dtypes.float0 else v, gradient)


def _states(rollout: Rollout, rows: Rows, kernel: Kernel) -> Float[Array, "b t n"]:
    # Late: Pallas takes as long to import as all of jaxdyn, and few need it.
    from .._kernel.launch import Saves, integrate_in_kernel

    solver = rollout.solver
    u, apart = rollout.inputs.stacked()
    (cell, u), static = eqx.partition((solver.form(rollout.cell), u), eqx.is_array)

    def step(constants, t, dt, x):
        cell, u = eqx.combine(constants, static)
        return solver.advance_lane(cell, t, dt, x, u)

    end = (rows.start + rows.count)[rows.kept]
    start = jnp.concatenate([jnp.zeros_like(end[:1]), end[:-1]])
    side = rows.side[rows.kept] if rows.sided else None
    saves = Saves(start, end - start, side)
    x0 = solver.start(rollout.x0)
    own = (False, apart)
    given = step, (cell, u), own, x0, rollout.t0, rollout.dt, saves, kernel
    return integrate_in_kernel(*given, _pieces(solver, eqx.combine(cell, static[0]), static))


def _pieces(solver: AbstractCellSolver, cell: Any, static: tuple) -> Any:
    from .._kernel.blocks import Pieces
    from .._kernel.rows import CannotServe

    units = solver.pieces(cell)

    def cut(constants, own):
        (cell, u), (own_cell, own_u) = constants, own
        if units is None:
            raise CannotServe("the steps of this solver for this cell")
        if any(jax.tree.leaves(own_cell)):
            raise CannotServe("a cell of each trajectory's own")
        cut, still = eqx.partition(solver.cut(eqx.combine(cell, static[0])), eqx.is_array)

        def step(constants, t, dt, x):
            cut, u = constants
            args = eqx.combine(u, static[1])
            return solver.advance_pieces(eqx.combine(cut, still), t, dt, x, args)

        return step, (cut, u), (jax.tree.map(lambda _: False, cut), own_u)

    return Pieces(units or (slice(None),), cut)


def _saved(given: Rollout, rows: Rows, ys: Float[Array, "b t n"]) -> PyTree:
    """What the user's `fn` makes of the states."""
    fn: Any = given.fn
    at = given.time((rows.start + rows.count)[rows.kept])
    if rows.sided:
        at = at + rows.side[rows.kept] * given.dt
    each_time = jax.vmap(fn, in_axes=(0, 0, None))
    return jax.vmap(each_time, in_axes=(None, 0, 0))(at, ys, jnp.arange(ys.shape[0]))


class _Input(eqx.Module):
    """u(t) with the values that the function closes over made leaves of it."""

    at: Callable
    dtype: Any = eqx.field(static=True)

    def __call__(self, t):
        return self.at(jnp.asarray(t, self.dtype))


def _without_closures(cell: Any, inputs: Any, t0: Array, x0: Array) -> tuple[Any, Any]:
    """What functions close over made leaves: else it could be neither differentiated by nor mapped
    over."""
    if isinstance(cell, VectorField):
        fn = eqx.filter_closure_convert(cell.fn, t0, x0[0], inputs(0))
        return eqx.tree_at(lambda c: c.fn, cell, fn), inputs
    if not isinstance(inputs, SharedInput):
        return cell, inputs
    u = inputs.u
    if is_constant_input(u) or isinstance(u, diffrax.AbstractPath):
        return cell, inputs
    at = eqx.filter_closure_convert(lambda t: evaluate_input(u, t), t0)
    return cell, SharedInput(_Input(at, t0.dtype))

import functools
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from .._cell import AbstractCell, AbstractVectorField, cast, field_of
from .._kernel import Kernel
from .._solver import RK4, AbstractCellSolver, Strang
from .._types import Args, RealScalar, is_traced
from .adjoint import ReversibleAdjoint, check_reversible
from .checks import (
    check_event,
    check_flags,
    check_saveat,
    check_solver,
    check_times,
    check_types,
    check_x0,
    inputs_of,
    is_count,
)
from .in_kernel import check_kernel, integrate_by_kernel
from .memory import check_memory
from .results import all_finite, raise_failures
from .reversible import integrate_reversibly
from .rollout import Rollout, Saving
from .scan import integrate
from .schedule import SAVE_END, SAVE_STATE, Span, plan_saves, rows, subs_of
from .sharded import check_mesh, integrate_on_mesh
from .threads import Threads, check_threads, integrate_in_threads
from .through_diffrax import by_diffrax
from .tiles import tile_size


def simulate(
    cell: AbstractCell | Callable[..., Any],
    x0: Any,
    *,
    t1: RealScalar | None = None,
    dt: RealScalar,
    t0: RealScalar = 0.0,
    n_steps: int | None = None,
    args: Args = None,
    solver: diffrax.AbstractSolver | None = None,
    saveat: diffrax.SaveAt | None = None,
    adjoint: diffrax.AbstractAdjoint | None = None,
    stepsize_controller: diffrax.AbstractStepSizeController | None = None,
    event: diffrax.Event | None = None,
    max_steps: int | None = None,
    engine: Threads | Kernel | None = None,
    mesh: Mesh | None = None,
    progress: bool = False,
    throw: bool = True,
) -> diffrax.Solution:
    r"""Integrates x' = cell(t, x, args) from one initial state, or from a batch of them.

    With a solver of ours and a fixed step, all trajectories go through one `lax.scan` over time;
    everything else (adaptive steps, events, dense output, traced save times, another `adjoint`, a
    diffrax solver) goes through `diffrax.diffeqsolve`.

    **Arguments:**

    - `cell`: a PoissonCell or AntisymmetricCell of n units, or any function (t, x, args) that
      returns x' (n,), for [`jaxdyn.RK4`][] and diffrax's solvers. Every new function object
      compiles anew; an `eqx.Module` with array fields does not.
    - `x0`: initial states, (n,) or (b, n). Its dtype (float32 or float64) is the precision of the
      whole solve, to which the cell is cast. Integers are taken as the default float type.
    - `t1`: end time, in model time units. Before `t0` integrates backwards. With `t1 == t0` the
      solution is `x0`.
    - `dt`: the step, > 0, in model time units: of every step of a fixed-step solve (the last is
      shortened to land on `t1`), the first step of an adaptive one. May be traced with `n_steps`,
      and is then not checked.
    - `t0`: start time.
    - `n_steps`: instead of `t1`, the number of steps: t1 = t0 + n_steps dt.
    - `args`: the input u of a driven cell: (m,), a callable u(t) or a diffrax path, shared by all
      trajectories; or one each: (b, m), a callable or path that evaluates to (b, m), or a stack of
      paths as `eqx.filter_vmap` makes them. A new Python function compiles anew; an `eqx.Module`
      with array fields does not. To a `cell` that is a function they are handed as they are, the
      same for all trajectories (`jax.vmap` gives each its own), with floats in the precision of
      `x0`; new integers, and all else that is no array, compile anew.
    - `solver`: one of ours or any diffrax solver (implicit ones solve their stages to 1e-9 at fixed
      steps, 1e-5 in float32). Default: [`jaxdyn.Strang`][], the cheapest of
      ours per step and free of energy drift (benchmarks/ensemble.py); where the cell cannot be
      split, or is a function, [`jaxdyn.RK4`][].
    - `saveat`: a `diffrax.SaveAt`; default `SaveAt(t1=True)`, the end only. Its `fn(t, x, args)`
      saves something else than the state of one trajectory. Save times between steps are reached
      by a shortened side step, never by interpolation (diffrax's solvers interpolate). The scan
      ends at the last save.
    - `adjoint`: [`jaxdyn.ReversibleAdjoint`][], for gradients in memory that does not grow with
      the number of steps, or a diffrax adjoint. Default: the scan, differentiable in forward and
      reverse mode, with square-root checkpointing.
    - `stepsize_controller`: a diffrax controller, e.g. `diffrax.PIDController(rtol=, atol=)`, for
      solvers with an error estimate ([`jaxdyn.Taylor`][], diffrax's). Default: constant steps.
    - `event`: a `diffrax.Event`.
    - `max_steps`: the most steps diffrax may take. Default: what a fixed step needs; else 2^20, or
      4096 where every step is stored.
    - `engine`: [`jaxdyn.Threads`][], to share a batch among the cores of a CPU, or
      [`jaxdyn.Kernel`][], for all steps in one program of a GPU. Default: one scan for all.
    - `mesh`: a `jax.sharding.Mesh`, such as `jax.make_mesh((jax.device_count(),), ("b",))`: the
      batch is shared among all its devices, of all processes if it spans several; x0 is then the
      whole batch in each of them, or a global array. `.ys` is sharded in the same way. On CPUs the
      numbers of a trajectory do not depend on how many devices there are, to the last bit.
      Default: one program, where x0 is.
    - `progress`: show a progress bar (without `adjoint`, `engine` and `mesh`).
    - `throw`: raise if a trajectory fails; if False, look at `.result`, one for each trajectory
      (`diffrax.RESULTS.nonlinear_divergence` where the state became infinite or NaN).

    **Returns:**

    A `diffrax.Solution`. With `x0` (n,), `.ys` is (t, n) and `.ts` is (t,). With (b, n), `.ys` is
    (b, t, n) and `.ts` is (t,), or (b, t) where trajectories save at times of their own (adaptive
    `steps=True`, events); its other arrays lead with b.

    **Raises:** ValueError or TypeError that names the argument, before anything is computed; a
    RuntimeError during the solve when a state stops being finite (unless `throw=False`).
    """
    check_types(
        cell=(cell, AbstractCell if isinstance(cell, type) else Callable),
        solver=(solver, diffrax.AbstractSolver),
        saveat=(saveat, diffrax.SaveAt),
        adjoint=(adjoint, diffrax.AbstractAdjoint),
        stepsize_controller=(stepsize_controller, diffrax.AbstractStepSizeController),
        event=(event, diffrax.Event),
        engine=(engine, Threads | Kernel),
        mesh=(mesh, Mesh),
    )
    check_flags(progress=progress, throw=throw)
    if progress and (engine is not None or isinstance(adjoint, ReversibleAdjoint)):
        raise ValueError(
            "`progress=True` goes with neither `engine` nor `adjoint=jaxdyn.ReversibleAdjoint`; "
            "leave it out."
        )
    check_event(event)
    x0 = check_x0(cell if isinstance(cell, AbstractCell) else None, x0)
    if not isinstance(cell, AbstractCell):
        cell = field_of(cell, x0, args)
    span = check_times(t0, t1, dt, n_steps, x0.dtype)
    saveat = check_saveat(SAVE_END if saveat is None else saveat, span)
    fixed = stepsize_controller is None or isinstance(stepsize_controller, diffrax.ConstantStepSize)
    undoing = adjoint if isinstance(adjoint, ReversibleAdjoint) else None
    every = None if undoing is None else undoing.checkpoint_every
    check_memory(x0, saveat, span.n_steps if fixed else 0, every)
    if max_steps is not None and (not is_count(max_steps) or max_steps < 1):
        raise ValueError(f"`max_steps` must be a positive integer or None, got {max_steps!r}.")
    solver = default_solver(cell) if solver is None else solver
    check_solver(solver, cell, adjoint, stepsize_controller)
    if undoing is not None:
        check_reversible(undoing, solver, cell, args)
    if isinstance(engine, Kernel):
        check_kernel(engine, solver, cell.size, x0)
    elif engine is not None:
        check_threads(x0, adjoint, cell, args, dt, t0, solver, saveat)
    if mesh is not None:
        check_mesh(mesh, x0, engine, progress)
    cell = cast(cell, x0.dtype)
    inputs = inputs_of(cell, args, x0, span)
    plan = None
    if (
        isinstance(solver, AbstractCellSolver)
        and not isinstance(solver, diffrax.AbstractWrappedSolver)
        and fixed
        and (adjoint is None or undoing is not None)
        and event is None
        and (max_steps is None or span.n_steps <= max_steps)
    ):
        plan = plan_saves(saveat, span)
    if plan is not None:
        fn = saveat.subs.fn
        solution, finite = by_scan(
            solver, cell, inputs, x0, span, plan, fn, progress, undoing, engine, mesh
        )
        # Looking first costs nothing where the values are known, and saves half a millisecond.
        throw = throw and (is_traced(finite) or not all_finite(finite))
    elif engine is not None or mesh is not None:
        given = f"engine=jaxdyn.{type(engine).__name__}" if mesh is None else "mesh"
        raise ValueError(
            f"`{given}` is for solvers of ours with fixed steps and concrete save "
            "times, without `event`, a `max_steps` that is too few, or SaveAt's dense, "
            "solver_state, controller_state and several subs; leave it out."
        )
    elif undoing is not None:
        raise ValueError(
            "`adjoint=jaxdyn.ReversibleAdjoint` is for fixed steps with concrete save times, and "
            "without `event`, a `max_steps` that is too few, or SaveAt's dense, solver_state, "
            "controller_state and several subs; change those, or use "
            "adjoint=diffrax.RecursiveCheckpointAdjoint()."
        )
    else:
        controller = diffrax.ConstantStepSize() if fixed else stepsize_controller
        solution = by_diffrax(
            cell,
            inputs,
            x0,
            tuple(jnp.asarray(t, x0.dtype) for t in (span.t0, span.t1, span.dt)),
            saveat,
            (solver, controller, adjoint, event),
            default_max_steps(saveat, span if fixed else None) if max_steps is None else max_steps,
            progress,
        )
    return raise_failures(solution) if throw else solution


def default_solver(cell: AbstractVectorField) -> AbstractCellSolver:
    """Strang where it can split the cell, else RK4."""
    if not isinstance(cell, AbstractCell):
        return RK4()
    try:
        Strang().check(cell)
    except ValueError:
        return RK4()
    return Strang()


def by_scan(
    solver,
    cell,
    inputs,
    x0,
    span,
    plan,
    fn,
    progress,
    adjoint: ReversibleAdjoint | None,
    engine: Threads | Kernel | None,
    mesh: Mesh | None,
) -> tuple[diffrax.Solution, Any]:
    """The solution, and which trajectories stayed finite."""
    # To the last save: what comes after it is not integrated.
    num_steps = np.full(x0.shape[:-1], plan.steps[-1] + np.count_nonzero(plan.side))
    t0, dt, t1, ts, num_steps = _arrays(x0.dtype, span.t0, span.dt, span.t1, plan.times, num_steps)
    saving = None if fn is SAVE_STATE else Saving(fn, inputs)
    rollout = Rollout(solver, cell, inputs, x0, t0, dt, saving)
    when = rows(plan.steps, plan.side, x0.dtype)
    stats: dict[str, Any] = {"num_steps": num_steps, "max_steps": None}
    if mesh is not None:
        total = int(plan.steps[-1])
        ys, finite, result = integrate_on_mesh(rollout, when, total, adjoint, mesh)
        if adjoint is not None:
            stats["checkpoint_every"] = adjoint.checkpoint_every
    elif isinstance(engine, Kernel):
        total = int(plan.steps[-1])
        ys, finite, result = integrate_by_kernel(rollout, when, total, adjoint, engine)
        if adjoint is not None:
            stats["checkpoint_every"] = adjoint.checkpoint_every
    elif engine is not None and x0.ndim == 2:
        ys, finite, result = integrate_in_threads(rollout, when, engine)
    elif adjoint is not None:
        total, tile = int(plan.steps[-1]), tile_size(solver, cell, x0, None)
        ys, finite, result = integrate_reversibly(rollout, when, total, adjoint, tile)
        stats["checkpoint_every"] = adjoint.checkpoint_every
    else:
        meter = diffrax.TqdmProgressMeter() if progress else None
        ys, finite, result = integrate(rollout, when, meter, tile_size(solver, cell, x0, None))
    solution = diffrax.Solution(
        t0=t0,
        t1=t1,
        ts=ts,
        ys=ys,
        interpolation=None,
        stats=stats,
        result=result,
        solver_state=None,
        controller_state=None,
        made_jump=None,
        event_mask=None,
    )
    return solution, finite


@functools.partial(jax.jit, static_argnums=0)
def _arrays(dtype: Any, *values: Any) -> tuple[jax.Array, ...]:
    """Numbers as arrays, floats in `dtype`. One program: placed one by one, each takes as long."""
    arrays = map(jnp.asarray, values)
    return tuple(a.astype(dtype) if eqx.is_inexact_array(a) else a for a in arrays)


def default_max_steps(saveat, span: Span | None) -> int:
    """What a fixed step needs, diffrax's accumulated time allowed for; or a generous bound."""
    if span is not None:
        return max(1, span.n_steps + 1 + span.n_steps // 1000)
    stored = saveat.dense or any(sub.steps for sub in subs_of(saveat))
    return 4096 if stored else 2**20

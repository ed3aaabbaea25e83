"""What can be refused before anything is computed."""

import math
from contextlib import nullcontext
from typing import Any, get_origin

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._cell import (
    AbstractCell,
    AbstractInputs,
    AbstractVectorField,
    FieldArgs,
    SharedInput,
    check_constant,
    per_trajectory,
)
from .._solver import RK4, AbstractCellSolver
from .._types import Args, is_inside_jit, is_traced
from .schedule import Span, is_sub, subs_of


def check_types(**arguments) -> None:
    cures = {
        "cell": "a jaxdyn.PoissonCell or jaxdyn.AntisymmetricCell, or a function f(t, x, args)",
        "solver": "a solver object such as jaxdyn.Strang() or diffrax.Tsit5()",
        "saveat": "a diffrax.SaveAt",
        "adjoint": "a jaxdyn.ReversibleAdjoint or a diffrax adjoint",
        "stepsize_controller": "a diffrax controller such as diffrax.PIDController(rtol=, atol=)",
        "event": "a diffrax.Event",
        "engine": "a jaxdyn.Threads or jaxdyn.Kernel",
        "mesh": 'a jax.sharding.Mesh such as jax.make_mesh((2,), ("b",))',
    }
    for name, (value, kind) in arguments.items():
        if not isinstance(value, kind) and (value is not None or name == "cell"):
            hint = " (an object, not the class)" if isinstance(value, type) else ""
            raise TypeError(f"`{name}` must be {cures[name]}{hint}, got {value!r}.")


def check_flags(**arguments) -> None:
    for name, value in arguments.items():
        if not isinstance(value, bool):
            raise TypeError(f"`{name}` must be True or False, got {value!r}.")


def check_solver(
    solver: diffrax.AbstractSolver,
    cell: AbstractVectorField,
    adjoint: diffrax.AbstractAdjoint | None,
    controller: diffrax.AbstractStepSizeController | None,
) -> None:
    """Refuses a solver that cannot serve the cell, the adjoint or the step size controller."""
    bare: Any = solver
    while isinstance(bare, diffrax.AbstractWrappedSolver):
        bare = bare.solver
    if isinstance(bare, AbstractCellSolver):
        if not isinstance(bare, RK4) and not isinstance(cell, AbstractCell):
            raise ValueError(
                f"`solver` = {type(bare).__name__} is made for cells, and `cell` is a function; "
                "use solver=jaxdyn.RK4() or a diffrax solver such as diffrax.Tsit5()."
            )
        bare.check(cell)
        if isinstance(adjoint, diffrax.BacksolveAdjoint) and not isinstance(bare, RK4):
            raise ValueError(
                "`adjoint=diffrax.BacksolveAdjoint` integrates a system that is not a cell; give "
                "it solver=jaxdyn.RK4() or a diffrax solver, or leave `adjoint` out."
            )
    structure = get_origin(bare.term_structure) or bare.term_structure
    if not (isinstance(structure, type) and issubclass(diffrax.ODETerm, structure)):
        raise ValueError(
            f"`solver` must integrate one vector field, and {type(bare).__name__} is for several "
            "(stochastic or split equations); use jaxdyn.Strang(), jaxdyn.Taylor(), "
            "diffrax.Tsit5() or diffrax.Kvaerno5()."
        )
    if isinstance(controller, diffrax.StepTo):
        raise ValueError(
            "`stepsize_controller=diffrax.StepTo` sets every step itself and leaves no use for "
            "`dt`; call diffrax.diffeqsolve(diffrax.ODETerm(cell), ...) with dt0=None."
        )
    while isinstance(controller, diffrax.ClipStepSizeController):
        controller = controller.controller
    estimates = isinstance(solver, diffrax.AbstractAdaptiveSolver)
    if isinstance(controller, diffrax.PIDController) and not estimates:
        raise ValueError(
            f"`stepsize_controller` adapts the step to an error estimate, and "
            f"{type(solver).__name__} makes none; use solver=jaxdyn.Taylor(), diffrax.Tsit5() or "
            "diffrax.HalfSolver(...), or constant steps."
        )


def check_event(event: diffrax.Event | None) -> None:
    if event is None:
        return
    for fn in jax.tree.leaves(event.cond_fn, is_leaf=callable):
        if not callable(fn):
            raise TypeError(
                "`event.cond_fn` must be a function of (t, x, args, **kwargs) that returns a "
                f"number or a bool, got {fn!r}."
            )


def check_x0(cell: AbstractVectorField | None, x0: Any) -> Float[Array, "..."]:
    """The initial states of `cell`; None is a vector field of as many units as they have."""
    n: Any = "n" if cell is None else cell.size
    try:
        x0 = jnp.asarray(x0)
    except (TypeError, ValueError, OverflowError) as e:
        raise TypeError(
            f"`x0` must be an array of real numbers of shape ({n},) or (b, {n}), got {x0!r}."
        ) from e
    if x0.dtype == bool or not jnp.issubdtype(x0.dtype, jnp.number):
        raise TypeError(f"`x0` must hold real numbers such as floats, got dtype {x0.dtype}.")
    if jnp.issubdtype(x0.dtype, jnp.complexfloating):
        raise TypeError("`x0` must be real, got a complex state; pass x0.real.")
    if jnp.issubdtype(x0.dtype, jnp.integer):
        x0 = x0.astype(jnp.result_type(float))
    if x0.dtype not in (jnp.float32, jnp.float64):
        raise TypeError(f"`x0` must be float32 or float64, got {x0.dtype}; use x0.astype(...).")
    if x0.ndim not in (1, 2) or (cell is not None and x0.shape[-1] != n):
        raise ValueError(
            f"`x0` must have shape ({n},) or (b, {n}), one column per unit of the cell; got "
            f"{x0.shape}."
        )
    if x0.size == 0:
        raise ValueError(f"`x0` is an empty batch, shape {x0.shape}; give at least one state.")
    if not is_traced(x0):
        # Inside jit a state that is not traced still has a value to look at.
        with jax.ensure_compile_time_eval() if is_inside_jit() else nullcontext():
            if not _all_finite(x0):
                raise ValueError("`x0` holds NaN or infinity; every initial state must be finite.")
    return x0


@jax.jit
def _all_finite(x: Array) -> Bool[Array, ""]:
    return jnp.all(jnp.isfinite(x))


def is_count(value) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_number(name: str, value: Any, needs: str) -> Any:
    """`value` as a float, or as it is when traced."""
    kind = getattr(value, "dtype", np.dtype(float))
    real = jnp.issubdtype(kind, jnp.floating) or jnp.issubdtype(kind, jnp.integer)
    if not real or isinstance(value, str | bool):
        raise TypeError(f"`{name}` must be {needs}, got {value!r}.")
    if is_traced(value):
        if value.ndim != 0:
            raise ValueError(f"`{name}` must be a scalar, got shape {value.shape}.")
        return value
    try:
        number = float(value) if np.ndim(value) == 0 else None
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None:
        raise TypeError(f"`{name}` must be {needs}, got {value!r}.")
    if not math.isfinite(number):
        raise ValueError(f"`{name}` must be {needs}, got {number}.")
    return number


def check_times(t0: Any, t1: Any, dt: Any, n_steps: Any, dtype: Any) -> Span:
    if (t1 is None) == (n_steps is None):
        got = "neither" if t1 is None else "both"
        raise ValueError(f"Give exactly one of `t1` (the end time) and `n_steps`, got {got}.")
    t0 = check_number("t0", t0, "a finite number")
    dt = check_number("dt", dt, "a finite number > 0")
    traced = is_traced(t0) or is_traced(dt)
    if not is_traced(dt):
        if dt <= 0:
            raise ValueError(f"`dt` must be > 0, got {dt}; to go backwards take t1 < t0.")
        if dt < float(jnp.finfo(dtype).tiny):
            raise ValueError(f"`dt` = {dt} is 0 in x0's precision, {dtype}; take a larger one.")
    if n_steps is not None:
        if not is_count(n_steps) or n_steps < 0:
            raise ValueError(
                f"`n_steps` must be a Python integer >= 0, known before tracing; got {n_steps!r}."
            )
        _check_count("n_steps", int(n_steps))
        if traced:  # in one dtype, that of the state
            t0, dt = jnp.asarray(t0, dtype), jnp.asarray(dt, dtype)
        else:
            _check_range(dtype, t0=t0, dt=dt, n_steps=t0 + int(n_steps) * dt)
        return Span(t0, t0 + int(n_steps) * dt, dt, int(n_steps), not traced)
    t1 = check_number("t1", t1, "a finite number")
    if traced or is_traced(t1):
        raise ValueError(
            "`t0`, `t1` and `dt` must be concrete, because the number of steps must be known "
            "before tracing; inside jit or grad pass `n_steps` instead of `t1`."
        )
    _check_range(dtype, t0=t0, dt=dt, t1=t1)
    length = abs(t1 - t0) / dt
    _check_count("dt", length)
    n_steps = max(0, math.ceil(length - 1e-9))
    return Span(t0, t1, math.copysign(dt, t1 - t0), n_steps, True)


def _check_count(name: str, n_steps: float | int) -> None:
    if not n_steps < jnp.iinfo(jnp.result_type(int)).max:
        cure = "a larger `dt`" if name == "dt" else "fewer steps"
        raise ValueError(f"`{name}` asks for {n_steps:g} steps, too many to count; take {cure}.")


def _check_range(dtype: Any, **times: float | int) -> None:
    for name, time in times.items():
        if not abs(time) <= float(jnp.finfo(dtype).max):
            raise ValueError(
                f"`{name}` leads to a time of {time}, infinite in x0's precision, {dtype}; take a "
                "smaller one."
            )


def check_saveat(saveat: diffrax.SaveAt, span: Span) -> diffrax.SaveAt:
    """`saveat`, its save times made floating-point."""
    subs = subs_of(saveat)
    if not subs and not saveat.dense:
        raise ValueError("`saveat` saves nothing; give t0, t1, ts, steps or dense.")
    for sub in subs:
        if not callable(sub.fn):
            raise TypeError(f"`saveat.fn` must be a function of (t, x, args), got {sub.fn!r}.")
        if not is_count(sub.steps) or sub.steps < 0:
            raise ValueError(
                f"`saveat.steps` must be True, False or an integer >= 0, got {sub.steps!r}."
            )
    if all(sub.ts is None for sub in subs):
        return saveat
    saveat = eqx.tree_at(
        lambda s: s.subs, saveat, jax.tree.map(_with_float_times, saveat.subs, is_leaf=is_sub)
    )
    for sub in subs_of(saveat):
        if sub.ts is None or is_traced(sub.ts) or not span.concrete:
            continue
        ts = np.asarray(sub.ts, np.float64)
        if not np.all(np.isfinite(ts)):
            raise ValueError("`saveat.ts` holds NaN or infinity; every save time must be finite.")
        if np.any(np.diff(ts) * span.dt < 0):
            raise ValueError("`saveat.ts` must be sorted from t0 to t1; sort it.")
        slack = 4 * np.finfo(np.asarray(sub.ts).dtype).eps * np.max(np.abs([span.t0, span.t1]))
        low, high = min(span.t0, span.t1) - slack, max(span.t0, span.t1) + slack
        if ts.size and (ts.min() < low or ts.max() > high):
            raise ValueError(
                f"`saveat.ts` must lie between t0 = {span.t0} and t1 = {span.t1}, got "
                f"[{ts.min()}, {ts.max()}]."
            )
    return saveat


def _with_float_times(sub: diffrax.SubSaveAt) -> diffrax.SubSaveAt:
    if sub.ts is None:
        return sub
    floating = jnp.issubdtype(sub.ts.dtype, jnp.floating)
    if not floating and not jnp.issubdtype(sub.ts.dtype, jnp.integer):
        raise TypeError(f"`saveat.ts` must hold real numbers, got dtype {sub.ts.dtype}.")
    if sub.ts.ndim != 1:
        raise ValueError(f"`saveat.ts` must have shape (t,), a row of times; got {sub.ts.shape}.")
    if floating:
        return sub
    # What is known inside jit stays known.
    with jax.ensure_compile_time_eval():
        return eqx.tree_at(lambda s: s.ts, sub, sub.ts.astype(float))


def inputs_of(cell: AbstractVectorField, args: Args, x0: Array, span: Span) -> AbstractInputs:
    if not isinstance(cell, AbstractCell):
        return FieldArgs(args, x0.dtype)
    if args is None or cell.input_matrix is None:
        if args is not None or cell.input_matrix is not None:
            cell.drive(span.t0, args)  # says what is missing
        return SharedInput(None)
    m = cell.input_matrix.shape[1]
    if not callable(args) and not isinstance(args, diffrax.AbstractPath):
        check_constant(args, "args")
    if x0.ndim == 2:
        return per_trajectory(args, span.t0, x0.shape[0], m)
    inputs = SharedInput(args)
    cell.drive(span.t0, args)
    return inputs

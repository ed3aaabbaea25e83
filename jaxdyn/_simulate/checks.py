"""What can be refused before anything is computed."""

import math
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._cell import AbstractCell, AbstractInputs, SharedInput, per_trajectory
from .._types import Args
from .schedule import Span, subs_of


def check_types(**arguments) -> None:
    cures = {
        "cell": "a jaxdyn.PoissonCell or jaxdyn.AntisymmetricCell",
        "solver": "a solver object such as jaxdyn.Strang() or diffrax.Tsit5()",
        "saveat": "a diffrax.SaveAt",
        "adjoint": "a diffrax adjoint such as diffrax.RecursiveCheckpointAdjoint()",
        "stepsize_controller": "a diffrax controller such as diffrax.PIDController(rtol=, atol=)",
        "event": "a diffrax.Event",
    }
    for name, (value, kind) in arguments.items():
        if not isinstance(value, kind) and (value is not None or name == "cell"):
            hint = " (an object, not the class)" if isinstance(value, type) else ""
            raise TypeError(f"`{name}` must be {cures[name]}{hint}, got {value!r}.")


def check_x0(cell: AbstractCell, x0: Any) -> Float[Array, "..."]:
    n = cell.size
    try:
        x0 = jnp.asarray(x0)
    except (TypeError, ValueError) as e:
        raise TypeError(
            f"`x0` must be an array of real numbers of shape ({n},) or (b, {n}), got {x0!r}."
        ) from e
    if x0.dtype == bool or not jnp.issubdtype(x0.dtype, jnp.number):
        raise TypeError(f"`x0` must hold real numbers, got dtype {x0.dtype}.")
    if jnp.issubdtype(x0.dtype, jnp.complexfloating):
        raise TypeError("`x0` must be real, got a complex state; pass x0.real.")
    if jnp.issubdtype(x0.dtype, jnp.integer):
        x0 = x0.astype(jnp.result_type(float))
    if x0.dtype not in (jnp.float32, jnp.float64):
        raise TypeError(f"`x0` must be float32 or float64, got {x0.dtype}; use x0.astype(...).")
    if x0.ndim not in (1, 2) or x0.shape[-1] != n:
        raise ValueError(
            f"`x0` must have shape ({n},) or (b, {n}), one column per unit of the cell; got "
            f"{x0.shape}."
        )
    if x0.shape[0] == 0:
        raise ValueError(f"`x0` is an empty batch, shape {x0.shape}; give at least one state.")
    if not isinstance(x0, jax.core.Tracer) and not bool(jnp.all(jnp.isfinite(x0))):
        raise ValueError("`x0` holds NaN or infinity; every initial state must be finite.")
    return x0


def is_count(value) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _number(name: str, value: Any, needs: str) -> Any:
    """`value` as a float, or as it is when traced."""
    if isinstance(value, jax.core.Tracer):
        if value.ndim != 0:
            raise ValueError(f"`{name}` must be a scalar, got shape {value.shape}.")
        return value
    if isinstance(value, str) or value is None or isinstance(value, bool):
        raise TypeError(f"`{name}` must be {needs}, got {value!r}.")
    try:
        number = float(value)
    except (TypeError, ValueError) as e:
        raise TypeError(f"`{name}` must be {needs}, got {value!r}.") from e
    if not math.isfinite(number):
        raise ValueError(f"`{name}` must be {needs}, got {number}.")
    return number


def check_times(t0: Any, t1: Any, dt: Any, n_steps: Any, dtype: Any) -> Span:
    if (t1 is None) == (n_steps is None):
        raise ValueError("Give exactly one of `t1` (the end time) and `n_steps`.")
    t0 = _number("t0", t0, "a finite number")
    dt = _number("dt", dt, "a finite number > 0")
    traced = isinstance(t0, jax.core.Tracer) or isinstance(dt, jax.core.Tracer)
    if not isinstance(dt, jax.core.Tracer) and dt <= 0:
        raise ValueError(f"`dt` must be > 0, got {dt}; to go backwards take t1 < t0.")
    if n_steps is not None:
        if not is_count(n_steps) or n_steps < 0:
            raise ValueError(f"`n_steps` must be an integer >= 0, got {n_steps!r}.")
        if traced:  # in one dtype, that of the state
            t0, dt = jnp.asarray(t0, dtype), jnp.asarray(dt, dtype)
        return Span(t0, t0 + int(n_steps) * dt, dt, int(n_steps), not traced)
    t1 = _number("t1", t1, "a finite number")
    if traced or isinstance(t1, jax.core.Tracer):
        raise ValueError(
            "`t0`, `t1` and `dt` must be concrete, because the number of steps must be known "
            "before tracing; inside jit or grad pass `n_steps` instead of `t1`."
        )
    n_steps = max(0, math.ceil(abs(t1 - t0) / dt - 1e-9))
    return Span(t0, t1, math.copysign(dt, t1 - t0), n_steps, True)


def check_saveat(saveat: diffrax.SaveAt, span: Span) -> None:
    subs = subs_of(saveat)
    if not subs and not saveat.dense:
        raise ValueError("`saveat` saves nothing; give t0, t1, ts, steps or dense.")
    for sub in subs:
        if sub.ts is None or isinstance(sub.ts, jax.core.Tracer) or not span.concrete:
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


def inputs_of(cell: AbstractCell, args: Args, x0: Array, span: Span) -> AbstractInputs:
    if args is None or cell.input_matrix is None:
        cell.drive(span.t0, args)  # says what is missing
        return SharedInput(None)
    m = cell.input_matrix.shape[1]
    if x0.ndim == 2:
        return per_trajectory(args, span.t0, x0.shape[0], m)
    inputs = SharedInput(args)
    cell.drive(span.t0, args)
    return inputs

"""Signals from the limit cycles of planar oscillators."""

import contextlib
from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jaxtyping import Array, Float

from .checks import count, number, outside_jit
from .generators import sample_times
from .signal import Signal

_TOLERANCE = 1e-12
_MAX_STEPS = 10_000_000
_MAX_TURNS = 4000
# Successive maxima of a cycle that has settled differ by a few times the tolerance.
_SETTLED = 1e-11


def van_der_pol(
    mu: float | int = 1.0,
    *,
    channels: int = 1,
    n_samples: int = 400,
    dt: float | int = 0.05,
    ts: Any = None,
) -> Signal:
    r"""The limit cycle of van der Pol's oscillator, $x'' - \mu (1 - x^2) x' + x = 0$.

    The first sample is at the maximum of x. With $\mu = 1$ the period is 6.663286859323. Solved to
    a tolerance of 1e-12 a step, with a step that ends on each sample.

    **Arguments:**

    - `mu`: $\mu$ from 0.01, a sine of amplitude 2, to 100, relaxation oscillations.
    - `channels`: 1 for x, 2 for x and x'.
    - `n_samples`, `dt`: how many samples, from time 0, and the model time between them. Or
    - `ts`: their times, (t,), strictly increasing, in place of these two.

    **Returns:** the `Signal`.

    **Raises:** TypeError or ValueError for numbers out of their range, and for times that take more
    than ten million steps.
    """
    times, size = sample_times(n_samples, dt, ts), count("channels", channels, 1, 2)
    args = {"mu": number("mu", mu, least=0.01, most=100.0)}
    ys = _limit_cycle(_van_der_pol, (2.0, 0.0), args, times)
    return Signal.of(ys[:, :size], ts=times, name="van der Pol", channels=("x", "x'")[:size])


def fitzhugh_nagumo(
    current: float | int = 0.5,
    *,
    a: float | int = 0.7,
    b: float | int = 0.8,
    tau: float | int = 12.5,
    channels: int = 1,
    n_samples: int = 400,
    dt: float | int = 0.5,
    ts: Any = None,
) -> Signal:
    r"""The spikes of a FitzHugh-Nagumo neuron, $v' = v - v^3/3 - w + I$, $\tau w' = v + a - bw$.

    On the limit cycle; the first sample is at the maximum of v. Solved to a tolerance of 1e-12 a
    step, with a step that ends on each sample.

    **Arguments:**

    - `current`: $I$. With the other parameters as they are, 0.34 to 1.41 make it oscillate.
    - `a`; `b` >= 0; `tau`, in model time, from 0.01 to 1e4.
    - `channels`: 1 for v, 2 for v and w.
    - `n_samples`, `dt`, `ts`: as in `van_der_pol`. The period is 39.5 by default, and `dt` 0.5.

    **Returns:** the `Signal`.

    **Raises:** TypeError or ValueError for numbers out of their range, when the state of rest is
    not unique or is stable, so that nothing need oscillate, and for times that take more than ten
    million steps.
    """
    times, size = sample_times(n_samples, dt, ts), count("channels", channels, 1, 2)
    args = {
        "current": number("current", current, least=-1e3, most=1e3),
        "a": number("a", a, least=-1e3, most=1e3),
        "b": number("b", b, least=0.0, most=1e3),
        "tau": number("tau", tau, least=1e-2, most=1e4),
    }
    ys = _limit_cycle(_fitzhugh_nagumo, _near_rest(**args), args, times)
    return Signal.of(ys[:, :size], ts=times, name="FitzHugh-Nagumo", channels=("v", "w")[:size])


def _van_der_pol(t: Array, y: Float[Array, "2"], args: tuple[Array]) -> Float[Array, "2"]:
    (mu,) = args
    return jnp.stack([y[1], mu * (1 - y[0] * y[0]) * y[1] - y[0]])


def _fitzhugh_nagumo(
    t: Array, y: Float[Array, "2"], args: tuple[Array, Array, Array, Array]
) -> Float[Array, "2"]:
    current, a, b, tau = args
    v, w = y[0], y[1]
    return jnp.stack([v - v * v * v / 3 - w + current, (v + a - b * w) / tau])


def _near_rest(current: float, a: float, b: float, tau: float) -> tuple[float, float]:
    """A state beside the only state of rest, which is unstable: the flow leads to the cycle."""
    # Times b, so that b = 0 needs no case of its own.
    roots = np.roots([-b / 3, 0.0, b - 1, b * current - a])
    real = roots.real[np.abs(roots.imag) < 1e-9 * (1 + np.abs(roots))]
    if real.size == 1:
        v = float(real[0])
        if 1 - v * v - b / tau > 0:
            return v + 0.1, v - v**3 / 3 + current
    found = "a stable state of rest" if real.size == 1 else f"{real.size} states of rest"
    raise ValueError(
        f"`current`, `a`, `b`, `tau` must make the neuron oscillate, and {current:g}, {a:g}, {b:g},"
        f" {tau:g} give it {found}; with the default `a`, `b`, `tau` give a `current` from 0.34 to "
        "1.41."
    )


def _limit_cycle(
    field: Callable, start: tuple[float, float], args: dict[str, float], ts: np.ndarray
) -> Float[np.ndarray, "t 2"]:
    """States at `ts`, the first of them at the maximum of the first component."""
    outside_jit()
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.enable_x64(True))
        with contextlib.suppress(RuntimeError):  # no CPU among JAX_PLATFORMS
            # An accelerator takes a thousand times as long over two numbers.
            cpu = jax.local_devices(backend="cpu")[0]
            stack.enter_context(jax.default_device(cpu))
        y = jnp.asarray(start, jnp.float64)
        numbers = tuple(jnp.asarray(a, jnp.float64) for a in args.values())
        settled = False
        for _ in range(_MAX_TURNS):
            top = y
            bottom, fell = _extremum(field, top, numbers, True)
            y, rose = _extremum(field, bottom, numbers, False)
            if not (fell and rose):
                break
            settled = float(jnp.max(jnp.abs(y - top))) <= _SETTLED
            if settled:
                break
        if not settled:
            named = ", ".join(f"`{name}` = {value:g}" for name, value in args.items())
            raise ValueError(
                f"{named} is too near the onset of oscillations to reach the limit cycle; move it "
                "away from there."
            )
        ys, good = _sampled(field, y, numbers, jnp.asarray(ts - ts[0], jnp.float64))
        if not good:
            raise ValueError(
                f"`ts` (or `n_samples` and `dt`) must take fewer than {_MAX_STEPS} steps of the "
                f"solver, got {ts[-1] - ts[0]:g} in time; give shorter times."
            )
        return np.asarray(ys)


def _solve(field: Callable, y: Array, args: Any, t1: Any, controller: Any, **options: Any) -> Any:
    return dfx.diffeqsolve(
        dfx.ODETerm(field),
        dfx.Dopri8(),
        0.0,
        t1,
        None,
        y,
        args,
        stepsize_controller=controller,
        adjoint=dfx.ForwardMode(),
        max_steps=_MAX_STEPS,
        throw=False,
        **options,
    )


@eqx.filter_jit
def _extremum(field: Callable, y: Array, args: Any, rising: bool) -> tuple[Array, Array]:
    """The next state at which the first component stops to fall (`rising`) or to rise."""
    event = dfx.Event(
        lambda t, y, args, **_: field(t, y, args)[0],
        optx.Newton(1e-13, 1e-13),
        direction=rising,
    )
    controller = dfx.PIDController(rtol=_TOLERANCE, atol=_TOLERANCE)
    solution = _solve(field, y, args, 1e5, controller, event=event)
    return solution.ys[-1], solution.result == dfx.RESULTS.event_occurred


@eqx.filter_jit
def _sampled(field: Callable, y: Array, args: Any, ts: Array) -> tuple[Array, Array]:
    controller = dfx.ClipStepSizeController(
        dfx.PIDController(rtol=_TOLERANCE, atol=_TOLERANCE), step_ts=ts
    )
    solution = _solve(field, y, args, ts[-1], controller, saveat=dfx.SaveAt(ts=ts))
    return solution.ys, solution.result == dfx.RESULTS.successful

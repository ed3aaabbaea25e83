"""Lyapunov exponents: how fast nearby trajectories part, in every direction."""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float

from .._types import is_traced
from .flow import Flow, checked_flow, positive, step_count, whole
from .tangents import Schedule, along, orthonormal, random_frame

RECORDS = 200
# What comes before is left out of the averages: vectors first turn into their directions.
SETTLED = 0.1
BATCHES = 10


class LyapunovSpectrum(eqx.Module):
    """Exponents of one trajectory, or with a leading axis of each of a batch.

    `exponents` (*b, k), the largest first, per time unit; `error` (*b, k), the most of two standard
    errors of each, what it changed by in the second half of the run, and 5 / t, below which no run
    of length t tells an exponent from 0; `times` (r,) and
    `history` (*b, r, k), the estimates up to those times; `finite` (*b), False where the trajectory
    diverged, whose exponents are NaN; `size`, n.
    """

    exponents: Float[Array, "*b k"]
    error: Float[Array, "*b k"]
    times: Float[Array, " r"]
    history: Float[Array, "*b r k"]
    finite: Bool[Array, "*b"]
    size: int = eqx.field(static=True)

    @property
    def sum(self) -> Float[Array, "*b"]:
        """Of the exponents: with k = n the mean divergence of the field, 0 where volume is kept."""
        return jnp.sum(self.exponents, axis=-1)

    @property
    def pairing(self) -> Float[Array, "*b"]:
        """The largest |l_i + l_(n+1-i)|, 0 for a Hamiltonian or Poisson flow; NaN unless k = n."""
        worst = jnp.max(jnp.abs(self.exponents + self.exponents[..., ::-1]), axis=-1)
        return worst if self.exponents.shape[-1] == self.size else jnp.full_like(worst, jnp.nan)

    @property
    def zeros(self) -> Array:
        """How many exponents are 0 within their error, (*b): of a conservative cell at least 2 and
        one for each dimension of ker W."""
        return jnp.sum(jnp.abs(self.exponents) <= self.error, axis=-1)


def lyapunov_spectrum(
    field: Any,
    x0: Any,
    t1: Any,
    dt: Any,
    k: Any = None,
    *,
    solver: Any = None,
    args: Any = None,
    every: Any = 10,
    key: Array | None = None,
    throw: bool = True,
) -> LyapunovSpectrum:
    r"""The k largest Lyapunov exponents, $\lambda_i = \lim \frac{1}{t} \ln |R_{ii}(t)|$.

    k tangent vectors follow the exact derivative of the solver's own steps (for a splitting of a
    PoissonCell it is a Poisson map, and exponents come in pairs as those of the flow do) and are
    made orthonormal every few steps (Benettin et al. 1980, Shimada and Nagashima 1979). The first
    tenth of the run is left out of the averages. Regular trajectories have exponents 0, which are
    approached like ln t / t: no run of length t tells a smaller one from 0.

    **Arguments:**

    - `field`: a cell, or any f(t, x, args).
    - `x0`: (n,), or (b, n) for b trajectories at once.
    - `t1`, `dt`: how long, from time 0, and the step. The run is t1 long or a little longer, a
      whole number of records of equal length, 200 at most: see `.times`.
    - `k`: how many exponents, at most n; default n.
    - `solver`: for cells one of ours; default that of `simulate`. For other fields
      `jaxdyn.RK4()` or an explicit Runge-Kutta solver of diffrax, with constant steps; default
      `diffrax.Dopri8()`.
    - `args`: handed to the field.
    - `every`: steps between two orthonormalisations.
    - `key`: of the first tangent vectors; default `jax.random.key(0)`.
    - `throw`: whether a trajectory that diverges raises; else its numbers are NaN.

    **Returns:** a [`jaxdyn.LyapunovSpectrum`][].

    **Raises:** TypeError or ValueError that names the argument; RuntimeError when a trajectory
    diverges.
    """
    flow, x0 = checked_flow(field, x0, solver, args)
    t1, dt, every = positive("t1", t1), positive("dt", dt), whole("every", every, 1)
    n = x0.shape[-1]
    k = n if k is None else whole("k", k, 1)
    if k > n:
        raise ValueError(
            f"`k` must be at most n = {n}, the number of exponents there are; got {k}."
        )
    if t1 < BATCHES * every * dt:
        raise ValueError(
            f"`t1` must be at least {BATCHES} times `every` steps, {BATCHES * every * dt:g}, for "
            f"an average and its error; got {t1:g}."
        )
    schedule = Schedule.of(step_count(t1, dt), every, RECORDS)
    key = jr.key(0) if key is None else key
    found = _spectrum(flow, x0, jnp.asarray(dt, x0.dtype), schedule, k, key)
    if throw:
        check_finite(found.finite)
    return found


@eqx.filter_jit
def _spectrum(
    flow: Flow,
    x0: Float[Array, "*b n"],
    dt: Float[Array, ""],
    schedule: Schedule,
    k: int,
    key: Array,
) -> LyapunovSpectrum:
    x = jnp.atleast_2d(x0).T
    vectors = random_frame(key, x, k)
    nothing = lambda vectors: None  # noqa: E731
    x, (logs, _) = along(flow, x, vectors, dt, schedule, orthonormal, nothing)
    return summary(x, jnp.moveaxis(logs, -1, 0), dt, schedule, x0.ndim == 1)


def summary(
    x: Float[Array, "n b"], logs: Float[Array, "b r k"], dt: Any, schedule: Schedule, single: bool
) -> LyapunovSpectrum:
    """Averages of the logarithms of each record, and their errors."""
    span = schedule.rounds * schedule.every * dt
    records = logs.shape[1]
    skipped = int(SETTLED * records)
    counted = logs[:, skipped:] / span
    count = counted.shape[1]
    numbers = jnp.arange(1, count + 1, dtype=logs.dtype)
    history = jnp.cumsum(counted, axis=1) / numbers[None, :, None]
    exponents = history[:, -1]
    # Means of a few long stretches are nearly independent of each other.
    size = count // min(BATCHES, count)
    stretches = counted[:, count - size * (count // size) :]
    means = stretches.reshape(len(logs), -1, size, logs.shape[2]).mean(2)
    spread = 2 * jnp.std(means, axis=1) / max(1.0, means.shape[1] - 1.0) ** 0.5
    late = jnp.abs(jnp.mean(counted[:, count // 2 :], axis=1) - exponents)
    # Twice what a vector shows that grows linearly, as vectors do along a torus.
    floor = 2 * math.log(records / skipped) / (count * span) if skipped else 0.0
    finite = jnp.all(jnp.isfinite(x), axis=0) & jnp.all(jnp.isfinite(exponents), axis=1)
    nan = jnp.where(finite, 0.0, jnp.nan).astype(logs.dtype)
    order = jnp.argsort(-exponents, axis=1)
    pick = lambda a: jnp.take_along_axis(a, order, axis=-1) + nan[:, None]  # noqa: E731
    out = LyapunovSpectrum(
        exponents=pick(exponents),
        error=pick(jnp.maximum(jnp.maximum(spread, late), floor)),
        times=(skipped + numbers) * span,
        history=jnp.take_along_axis(history, order[:, None], axis=-1) + nan[:, None, None],
        finite=finite,
        size=x.shape[0],
    )
    if not single:
        return out
    return LyapunovSpectrum(
        out.exponents[0], out.error[0], out.times, out.history[0], out.finite[0], out.size
    )


def check_finite(finite: Bool[Array, "*b"]) -> None:
    """**Raises:** RuntimeError that names the trajectories that diverged; nothing under jit."""
    if is_traced(finite):
        return
    bad = np.flatnonzero(~np.atleast_1d(np.asarray(finite)))
    if bad.size:
        which = "the trajectory" if finite.ndim == 0 else f"trajectories {bad[:10].tolist()}"
        raise RuntimeError(
            f"{which} diverged, or tangent vectors left the range of floats; give a smaller `dt` "
            "or `every`, or another solver, or throw=False for NaN there."
        )


def max_lyapunov(
    field: Any,
    x0: Any,
    t1: Any,
    dt: Any,
    *,
    solver: Any = None,
    args: Any = None,
    every: Any = 10,
    key: Array | None = None,
    throw: bool = True,
) -> LyapunovSpectrum:
    """The largest Lyapunov exponent alone: [`jaxdyn.lyapunov_spectrum`][] with k = 1."""
    return lyapunov_spectrum(
        field, x0, t1, dt, 1, solver=solver, args=args, every=every, key=key, throw=throw
    )

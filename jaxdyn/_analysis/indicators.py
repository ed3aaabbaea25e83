"""Indicators that tell chaotic from regular trajectories sooner than exponents do."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float

from .._types import is_traced
from .flow import Flow, checked_flow, positive, step_count, whole
from .lyapunov import LyapunovSpectrum, check_finite
from .tangents import Schedule, along, orthonormal, random_frame, unit

RECORDS = 200
# Growth of ln |v| over the second half of a run: ln 2 where |v| grows linearly, as on a torus; a
# chaotic orbit that was sticky in the first half can be far above.
REGULAR, CHAOTIC = 3.0, 10.0
SELDOM = 4


class Indicator(eqx.Module):
    """`times` (r,) and `values` (*b, r) of an indicator; `finite` (*b), False where the trajectory
    diverged, whose values are NaN."""

    times: Float[Array, " r"]
    values: Float[Array, "*b r"]
    finite: Bool[Array, "*b"]

    @property
    def last(self) -> Float[Array, "*b"]:
        """The value at the end of the run."""
        return self.values[..., -1]


def gali(
    field: Any,
    x0: Any,
    t1: Any,
    dt: Any,
    k: Any = 2,
    *,
    solver: Any = None,
    args: Any = None,
    every: Any = 10,
    key: Array | None = None,
    throw: bool = True,
) -> Indicator:
    r"""The generalised alignment index of order k, $|\hat v_1 \wedge \dots \wedge \hat v_k|$.

    The volume that k tangent vectors of length 1 span (Skokos, Bountis and Antonopoulos 2007). On a
    chaotic orbit it falls like $\exp(-\sum_{i=2}^k (\lambda_1 - \lambda_i) t)$, down to rounding;
    on a torus of dimension s >= k it stays of one order, and for k > s falls as a power of t, with
    n = 2 like 1 / t.

    **Arguments:** `k`, from 2 to n; the others as for [`jaxdyn.lyapunov_spectrum`][].

    **Returns:** an `Indicator` with the values at 200 times at most.

    **Raises:** TypeError or ValueError that names the argument; RuntimeError when a trajectory
    diverges.
    """
    flow, x0 = checked_flow(field, x0, solver, args)
    t1, dt, every = positive("t1", t1), positive("dt", dt), whole("every", every, 1)
    n, k = x0.shape[-1], whole("k", k, 2)
    if k > n:
        raise ValueError(f"`k` must be at most n = {n}, the dimension of the states; got {k}.")
    schedule = Schedule.of(step_count(t1, dt), every, RECORDS)
    key = jr.key(0) if key is None else key
    found = _gali(flow, x0, jnp.asarray(dt, x0.dtype), schedule, k, key)
    if throw:
        check_finite(found.finite)
    return found


@eqx.filter_jit
def _gali(
    flow: Flow,
    x0: Float[Array, "*b n"],
    dt: Float[Array, ""],
    schedule: Schedule,
    k: int,
    key: Array,
) -> Indicator:
    x = jnp.atleast_2d(x0).T

    def volume(vectors):
        volume = jnp.exp(jnp.sum(orthonormal(unit(vectors))[1], axis=0))
        # Vectors that have become one to rounding span nothing.
        sizes = jnp.sum(vectors**2, axis=1)
        real = jnp.all(jnp.isfinite(sizes) & (sizes > 0), axis=0)
        return jnp.where(real, jnp.where(jnp.isnan(volume), 0.0, volume), jnp.nan)

    def renew(vectors):
        return unit(vectors), None

    frame = random_frame(key, x, k)
    x, (_, volumes) = along(flow, x, frame, dt, schedule, renew, volume)
    finite = jnp.all(jnp.isfinite(x), axis=0) & jnp.all(jnp.isfinite(volumes), axis=0)
    values = jnp.where(finite[:, None], volumes.T, jnp.nan)
    span = schedule.rounds * schedule.every * dt
    times = span * jnp.arange(1, schedule.records + 1, dtype=x.dtype)
    if x0.ndim == 1:
        return Indicator(times, values[0], finite[0])
    return Indicator(times, values, finite)


def sali(
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
) -> Indicator:
    r"""The smaller alignment index, $\min(|\hat v_1 + \hat v_2|, |\hat v_1 - \hat v_2|)$.

    0 for two tangent vectors that have become parallel or opposite, as they do on a chaotic orbit
    like $\exp(-(\lambda_1 - \lambda_2) t)$; at most $\sqrt 2$ (Skokos 2001). With GALI_2 = sin of
    the angle between them it is $2 \sin(\mathrm{angle} / 2)$, from which it is worked out.

    **Arguments**, **Returns**, **Raises:** as [`jaxdyn.gali`][].
    """
    found = gali(field, x0, t1, dt, 2, solver=solver, args=args, every=every, key=key, throw=throw)
    sine = jnp.minimum(found.values, 1.0)
    # 2 sin(a / 2) = sqrt(2 - 2 cos a), without the difference of nearly equal numbers.
    values = sine * jnp.sqrt(2 / (1 + jnp.sqrt((1 - sine) * (1 + sine))))
    return Indicator(found.times, values, found.finite)


def verdict(spectrum: Any) -> np.ndarray:
    r"""Whether trajectories are "regular", "chaotic" or "undecided", an array of such words (*b).

    Judged by the growth of the fastest tangent vector over the second half of the run, $g = \ln
    |v(t)| - \ln |v(t / 2)|$: about ln 2 where it grows linearly, as on a torus, and lambda t / 2 on
    a chaotic orbit. Regular: g < 3. Chaotic: g > 10, and the exponent above its error. Runs must
    be several tens of 1 / lambda long, or chaos that weak stays unseen; "undecided" asks for a
    longer one. Trajectories that diverged are "undecided".

    **Arguments:** `spectrum`, of [`jaxdyn.lyapunov_spectrum`][] or [`jaxdyn.max_lyapunov`][].

    **Raises:** TypeError for anything else, and for one that is traced; ValueError when the run has
    too few records.
    """
    if not isinstance(spectrum, LyapunovSpectrum) or is_traced(spectrum):
        raise TypeError(
            f"`spectrum` must be what lyapunov_spectrum or max_lyapunov returned, got {spectrum!r}."
        )
    times, history = np.asarray(spectrum.times), np.asarray(spectrum.history)[..., 0]
    if times.shape[-1] < SELDOM:
        raise ValueError(
            f"`spectrum` has {times.shape[-1]} records, too few to judge; give a longer t1."
        )
    # Of spectra of several cells, (a, r) for (a, b, r).
    times = times.reshape(*times.shape[:-1], *[1] * (history.ndim - times.ndim), -1)
    since = times - times[..., :1] + (times[..., 1:2] - times[..., :1])
    logs = history * since
    growth = logs[..., -1] - logs[..., times.shape[-1] // 2 - 1]
    first, error = np.asarray(spectrum.exponents)[..., 0], np.asarray(spectrum.error)[..., 0]
    words = np.where(growth < REGULAR, "regular", "undecided")
    chaotic = (growth > CHAOTIC) & (first > error)
    return np.where(np.isnan(growth), "undecided", np.where(chaotic, "chaotic", words))

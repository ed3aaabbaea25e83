"""Signals in closed form."""

import math
from typing import Any

import numpy as np
from jaxtyping import Float

from .checks import count, increasing, number, real_array, uniform
from .signal import Signal

GOLDEN = (1 + math.sqrt(5)) / 2


def sample_times(n_samples: Any, dt: Any, ts: Any) -> Float[np.ndarray, " t"]:
    """`ts`, or `n_samples` times `dt` apart."""
    if ts is not None:
        return increasing("ts", ts)
    return uniform(count("n_samples", n_samples, 2), dt)


def tones(
    omega: Any,
    *,
    amplitude: Any = 1.0,
    phase: Any = None,
    channels: int = 1,
    n_samples: int = 400,
    dt: float | int = 0.05,
    ts: Any = None,
) -> Signal:
    r"""Sums of k sines, $x_c(t) = \sum_j a_{cj} \sin(\omega_j t + \varphi_{cj})$.

    By default $\varphi_{cj} = 2\pi \operatorname{frac}((ck + j)\, g)$ with $g = (\sqrt5 - 1)/2$,
    $c, j = 0, 1, \dots$: no two of these are equal, so no two channels are, and the first is 0.

    **Arguments:**

    - `omega`: $\omega$, (k,) or a number, > 0, radians per time unit.
    - `amplitude`: a number, (k,) or (channels, k).
    - `phase`: $\varphi$ in radians, likewise; None for those above.
    - `channels`: how many.
    - `n_samples`, `dt`: how many samples, from time 0, and the time between them. Or
    - `ts`: their times, (t,), strictly increasing, in place of these two.

    **Returns:** the `Signal`.

    **Raises:** TypeError or ValueError for numbers that are not finite or out of their range,
    shapes that do not fit, and an `omega` of which a period has no more than two steps `dt`.
    """
    times = sample_times(n_samples, dt, ts)
    m = count("channels", channels, 1)
    frequencies = np.atleast_1d(real_array("omega", omega).astype(np.float64))
    if frequencies.ndim != 1 or frequencies.size == 0:
        raise ValueError(f"`omega` must have shape (k,), k >= 1; got {frequencies.shape}.")
    if not np.all(np.isfinite(frequencies) & (frequencies > 0)):
        raise ValueError(f"`omega` must be finite and > 0, got {omega!r}.")
    _resolved("omega", float(np.max(frequencies)), dt, ts)
    k = frequencies.size
    if phase is None:
        turns = np.arange(m * k).reshape(m, k) * (GOLDEN - 1)
        phases = 2 * math.pi * (turns % 1)
    else:
        phases = _table("phase", phase, m, k)
    amplitudes = _table("amplitude", amplitude, m, k)
    # One tone at a time: the array over times, channels and tones may not fit.
    values = np.zeros((times.size, m))
    for j in range(k):
        angle = frequencies[j] * times[:, None] + phases[None, :, j]
        values += amplitudes[None, :, j] * np.sin(angle)
    return _signal(values, times, "tones", None)


def lissajous(
    p: int = 3,
    q: int = 2,
    *,
    omega: float | int = 1.0,
    phase: float | int = math.pi / 2,
    amplitude: float | int = 1.0,
    n_samples: int = 400,
    dt: float | int = 0.05,
    ts: Any = None,
) -> Signal:
    r"""A Lissajous figure, $x = a \sin(p\omega t + \varphi)$, $y = a \sin(q\omega t)$.

    **Arguments:**

    - `p`, `q`: integers >= 1; the figure closes after $2\pi/(\omega \gcd(p, q))$.
    - `omega`: $\omega$ > 0, radians per time unit.
    - `phase`: $\varphi$ in radians.
    - `amplitude`: $a$ > 0.
    - `n_samples`, `dt`, `ts`: as in `tones`.

    **Returns:** a `Signal` of two channels, x and y.

    **Raises:** TypeError or ValueError for numbers out of their range, and for an oscillation of
    which a period has no more than two steps `dt`.
    """
    times = sample_times(n_samples, dt, ts)
    p, q = count("p", p, 1), count("q", q, 1)
    omega, a = number("omega", omega, above=0.0), number("amplitude", amplitude, above=0.0)
    _resolved("max(p, q) * omega", max(p, q) * omega, dt, ts)
    x = np.sin(p * omega * times + number("phase", phase))
    y = np.sin(q * omega * times)
    return _signal(a * np.stack([x, y], axis=-1), times, "lissajous", ("x", "y"))


def amplitude_modulated(
    carrier: float | int,
    modulation: float | int,
    depth: float | int,
    *,
    amplitude: float | int = 1.0,
    n_samples: int = 400,
    dt: float | int = 0.05,
    ts: Any = None,
) -> Signal:
    r"""A carrier of varying amplitude, $x = a\,(1 + d \cos \Omega t) \sin \omega t$.

    Its spectrum holds $\omega$, of amplitude $a$, and $\omega \pm \Omega$, of amplitude $ad/2$.

    **Arguments:**

    - `carrier`: $\omega$ > 0; `modulation`: $\Omega$ > 0; radians per time unit.
    - `depth`: $0 \le d \le 1$.
    - `amplitude`: $a$ > 0.
    - `n_samples`, `dt`, `ts`: as in `tones`.

    **Returns:** a `Signal` of one channel.

    **Raises:** TypeError or ValueError for numbers out of their range, and when a period of
    $\omega + \Omega$ has no more than two steps `dt`.
    """
    times = sample_times(n_samples, dt, ts)
    w, slow = number("carrier", carrier, above=0.0), number("modulation", modulation, above=0.0)
    d = number("depth", depth, least=0.0, most=1.0)
    a = number("amplitude", amplitude, above=0.0)
    _resolved("carrier + modulation", w + slow, dt, ts)
    values = a * (1 + d * np.cos(slow * times)) * np.sin(w * times)
    return _signal(values, times, "amplitude modulated", None)


def quasi_periodic(
    omega: float | int = 1.0,
    *,
    amplitude: float | int = 1.0,
    n_samples: int = 400,
    dt: float | int = 0.05,
    ts: Any = None,
) -> Signal:
    r"""Two incommensurate frequencies, added and multiplied: a motion on a torus, without a period.

    $x_1 = \tfrac a2 (\sin \omega t + \sin g\omega t)$, $x_2 = a \sin \omega t\, \sin g\omega t$
    with the golden ratio $g = (1 + \sqrt5)/2$, the number worst approximated by fractions.

    **Arguments:**

    - `omega`: $\omega$ > 0, radians per time unit.
    - `amplitude`: $a$ > 0, which neither channel exceeds.
    - `n_samples`, `dt`, `ts`: as in `tones`.

    **Returns:** a `Signal` of two channels, sum and product.

    **Raises:** TypeError or ValueError for numbers out of their range, and when a period of
    $(1 + g)\,\omega$, the fastest in the product, has no more than two steps `dt`.
    """
    times = sample_times(n_samples, dt, ts)
    w, a = number("omega", omega, above=0.0), number("amplitude", amplitude, above=0.0)
    _resolved("2.618 * omega", (1 + GOLDEN) * w, dt, ts)
    slow, fast = np.sin(w * times), np.sin(GOLDEN * w * times)
    values = a * np.stack([(slow + fast) / 2, slow * fast], axis=-1)
    return _signal(values, times, "quasi-periodic", ("sum", "product"))


def stuart_landau(
    mu: float | int,
    omega: float | int,
    *,
    radius: float | int = 0.1,
    phase: float | int = 0.0,
    n_samples: int = 400,
    dt: float | int = 0.05,
    ts: Any = None,
) -> Signal:
    r"""The normal form of a Hopf bifurcation, $r' = \mu r - r^3$, $\theta' = \omega$. Exact.

    $r^2 = r_0^2 / (e^{-2\mu s} + r_0^2 (1 - e^{-2\mu s})/\mu)$ at the time s since the first
    sample; for $\mu > 0$ it approaches the limit cycle $r = \sqrt\mu$, otherwise 0.

    **Arguments:**

    - `mu`: $\mu$, of either sign, per time unit.
    - `omega`: $\omega$, of either sign but not 0, radians per time unit.
    - `radius`: $r_0$ > 0 and `phase`, $\theta_0$ in radians: the first sample.
    - `n_samples`, `dt`, `ts`: as in `tones`.

    **Returns:** a `Signal` of two channels, $x = r \cos\theta$ and $y = r \sin\theta$.

    **Raises:** TypeError or ValueError for numbers out of their range, and for an `omega` of which
    a period has no more than two steps `dt`.
    """
    times = sample_times(n_samples, dt, ts)
    mu, omega = number("mu", mu), number("omega", omega)
    if omega == 0:
        raise ValueError("`omega` must not be 0: without rotation nothing oscillates.")
    _resolved("omega", abs(omega), dt, ts)
    radius = number("radius", radius, above=0.0, most=1e100)
    s = times - times[0]
    # Either form keeps its exponential below 1.
    decay = np.exp(-2 * abs(mu) * s)
    area = 2 * s if mu == 0 else -np.expm1(-2 * abs(mu) * s) / abs(mu)
    grow, shrink = (1.0, decay) if mu >= 0 else (np.sqrt(decay), 1.0)
    r = radius * grow / np.sqrt(shrink + radius * radius * area)
    theta = omega * s + number("phase", phase)
    values = np.stack([r * np.cos(theta), r * np.sin(theta)], axis=-1)
    return _signal(values, times, "stuart-landau", ("x", "y"))


def _table(name: str, value: Any, m: int, k: int) -> Float[np.ndarray, "m k"]:
    """A finite number for each channel and tone."""
    array = real_array(name, value).astype(np.float64)
    if not np.all(np.isfinite(array)):
        raise ValueError(f"`{name}` must be finite, got {value!r}.")
    if array.shape not in ((), (k,), (m, k)):
        raise ValueError(
            f"`{name}` must be a number or have shape ({k},) or ({m}, {k}), one for each tone or "
            f"for each channel and tone; got {array.shape}."
        )
    return np.broadcast_to(array.reshape((1,) * (2 - array.ndim) + array.shape), (m, k))


def _resolved(name: str, omega: float, dt: Any, ts: Any) -> None:
    """Refuses an angular frequency at or above half the sampling frequency."""
    if ts is None and not omega * float(dt) < math.pi:
        raise ValueError(
            f"`dt` = {dt:g} is too long for `{name}` = {omega:g}, of which it makes another "
            f"frequency (aliasing); give a `dt` below pi / {omega:g} = {math.pi / omega:.3g}."
        )


def _signal(
    values: np.ndarray, ts: np.ndarray, name: str, channels: tuple[str, ...] | None
) -> Signal:
    return Signal.of(values, ts=ts, name=name, channels=channels)

"""Tones, spectra and frequency diffusion of uniformly sampled signals."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._types import is_traced
from .naff import Frequencies, hann, tones

_PERIODS = 2


class PowerSpectrum(NamedTuple):
    """`omega` (f,), radians per time unit, ascending; `power` (..., f), density per unit omega."""

    omega: Float[Array, " f"]
    power: Float[Array, "*b f"]


class FrequencyMap(NamedTuple):
    """`omega`, `first`, `second` (..., k): frequencies of the whole and of its halves, matched.

    `diffusion` (...,): log10 of the largest |second - first| over the tones.
    """

    omega: Float[Array, "*b k"]
    first: Float[Array, "*b k"]
    second: Float[Array, "*b k"]
    diffusion: Float[Array, "*b"]


def frequencies(signal: Any, dt: Any, k: Any = 1) -> Frequencies:
    r"""The k strongest tones of a signal, by numerical analysis of fundamental frequencies.

    $y(t) = c + \sum_{j<k} a_j \cos(\omega_j t + \phi_j)$ with $\omega_j > 0$ for a real signal,
    $y(t) = \sum_{j<k} a_j e^{i(\omega_j t + \phi_j)}$ with $\omega_j$ of either sign for a complex
    one. Each tone starts at the highest peak of what the ones before left, one bin
    $2\pi/(N\,dt)$ or more from them, and after each all are refined together: Levenberg and
    Marquardt on $\sum_n \chi_n |r_n|^2$ with the Hann window $\chi_n = 1 + \cos(2\pi u_n/N)$, $u_n$
    counted from the middle. A sum of k tones, two or more bins apart, comes out to rounding; what
    tones beyond those add to the error falls like the cube of their distance in bins. The window
    costs a factor 1.53 over the least error that white noise allows.

    Where the signal has fewer tones than k, the amplitudes left over are rounding, and their
    frequencies mean nothing. Derivatives in the signal, of either mode, are exact.

    **Arguments:**

    - `signal`: (t,) or (b, t), real or complex.
    - `dt`: the time between samples, one number: sampling must be uniform.
    - `k`: how many tones, at most (t - 2) / 4. Static.

    **Returns:** `omega`, `amplitude`, `phase`, each (k,) or (b, k), strongest first.

    **Raises:** TypeError or ValueError that names the argument: a constant or non-finite `signal`,
    or a real one of fewer than two periods of its strongest tone. Traced values are not checked.

    Source: Laskar, The chaotic motion of the solar system, Icarus 88 (1990) 266.
    """
    signal = _check_signal(signal)
    dt = _check_dt(dt, signal)
    k = _check_k(k, signal.shape[-1])
    found, _ = _over(functools.partial(tones, k=k), signal, (0, None))(signal, dt)
    _check_periods(found, signal, dt, signal.shape[-1], "")
    return found


def power_spectrum(signal: Any, dt: Any) -> PowerSpectrum:
    r"""Power spectral density by the Hann window, one-sided for a real signal.

    $P_j = \frac{dt}{2\pi\sum\chi^2} |\sum_n \chi_n (y_n - \bar y) e^{-2\pi ijn/N}|^2$, twice that
    where a real signal has the same at $-\omega_j$; $\chi_n = 1 + \cos(2\pi u_n/N)$, $u_n$ counted
    from the middle, and $\bar y = \sum\chi y/\sum\chi$. By Parseval $\sum_j P_j\,\Delta\omega$,
    $\Delta\omega = 2\pi/(N\,dt)$, is $\sum\chi^2|y - \bar y|^2/\sum\chi^2$: the variance, the
    middle of the signal counting more. For white noise that is the variance in the mean, and for a
    tone of amplitude a with a whole number of periods, two or more, it is $a^2/2$ (complex: $a^2$)
    to rounding.

    **Arguments:** `signal`, (t,) or (b, t), real or complex; `dt`, the time between samples.

    **Returns:** `omega`, ascending: (t // 2 + 1,) from 0 for a real signal, (t,) of either sign for
    a complex one; `power`, (f,) or (b, f).

    **Raises:** as [`jaxdyn.frequencies`][], periods aside.
    """
    signal = _check_signal(signal)
    return _power_spectrum(signal, _check_dt(dt, signal))


def frequency_map(signal: Any, dt: Any, k: Any = 1) -> FrequencyMap:
    r"""How far the frequencies of a signal move from its first half to its second.

    $D = \log_{10} \max_j |\omega_j'' - \omega_j'|$: near rounding on a quasi-periodic orbit, large
    on a chaotic one. A tone of the whole signal is matched with the nearest of the first half, and
    that with the nearest of the second; tones that only rounding made count for nothing, and D is
    at least that of the rounding of the largest frequency.

    **Arguments:** as [`jaxdyn.frequencies`][]; each half of t // 2 samples must have room for `k`
    tones. An odd sample in the middle belongs to neither half.

    **Returns:** `omega`, `first`, `second`, (k,) or (b, k); `diffusion`, () or (b,).

    **Raises:** as [`jaxdyn.frequencies`][], with two periods in either half.

    Source: Laskar, Frequency analysis for multi-dimensional systems, Physica D 67 (1993) 257.
    """
    signal = _check_signal(signal)
    dt = _check_dt(dt, signal)
    half = signal.shape[-1] // 2
    k = _check_k(k, half, " in each half")
    of = _over(functools.partial(tones, k=k), signal, (0, None))
    whole, real = of(signal, dt)
    first, real_first = of(signal[..., :half], dt)
    second, real_second = of(signal[..., -half:], dt)
    for found in (first, second):
        _check_periods(found, signal, dt, half, " in each half")
    return _over(_match, signal, 0)(
        (whole.omega, real), (first.omega, real_first), (second.omega, real_second)
    )


def _over(fn: Any, signal: Array, in_axes: Any) -> Any:
    return fn if signal.ndim == 1 else jax.vmap(fn, in_axes=in_axes)


@jax.jit
def _match(whole: Any, first: Any, second: Any) -> FrequencyMap:
    (omega, real), (first, real_first), (second, real_second) = whole, first, second

    def nearest(target, values, known):
        gap = jnp.abs(target[:, None] - values[None, :])
        best = jnp.argmin(jnp.where(known[None, :], gap, jnp.inf), axis=1)
        return values[best], known[best]

    first, real_first = nearest(omega, first, real_first)
    second, real_second = nearest(first, second, real_second)
    counts = real & real_first & real_second
    moved = jnp.max(jnp.where(counts, jnp.abs(second - first), 0.0))
    floor = jnp.finfo(omega.dtype).eps * jnp.max(jnp.where(counts, jnp.abs(first), 0.0))
    return FrequencyMap(omega, first, second, jnp.log10(jnp.maximum(moved, floor)))


@jax.jit
def _power_spectrum(signal: Array, dt: Float[Array, ""]) -> PowerSpectrum:
    n, dtype = signal.shape[-1], dt.dtype
    window = hann(n)
    chi = jnp.asarray(window, signal.dtype)
    mean = jnp.sum(signal * _row(chi, signal), axis=-1, keepdims=True)
    windowed = (signal - mean) * _row(chi, signal)
    scale = dt / (2 * math.pi * float(np.sum(window**2)))
    if jnp.iscomplexobj(signal):
        spectrum = jnp.fft.fftshift(jnp.fft.fft(windowed), axes=-1)
        bins = np.arange(-(n // 2), n - n // 2)
        sides = np.ones(n)
    else:
        spectrum = jnp.fft.rfft(windowed)
        bins = np.arange(n // 2 + 1)
        sides = np.where((bins == 0) | (2 * bins == n), 1.0, 2.0)
    power = (spectrum.real**2 + spectrum.imag**2) * _row(jnp.asarray(sides, dtype), signal)
    omega = jnp.asarray(2 * np.pi * bins / n, dtype) / dt
    return PowerSpectrum(omega, power * scale)


def _row(vector: Array, signal: Array) -> Array:
    return vector if signal.ndim == 1 else vector[None, :]


def _check_signal(signal: Any) -> Array:
    try:
        values = jnp.asarray(signal) if not isinstance(signal, str) else None
    except (TypeError, ValueError, OverflowError):
        values = None
    if values is None:
        raise TypeError(f"`signal` must be an array of shape (t,) or (b, t), got {signal!r}.")
    if not jnp.issubdtype(values.dtype, jnp.inexact) or jnp.finfo(values.dtype).bits < 32:
        raise TypeError(
            "`signal` must be real or complex, of 32 bits or more, got dtype "
            f"{values.dtype}; convert it with jnp.asarray(signal, float)."
        )
    if values.ndim not in (1, 2):
        raise ValueError(
            f"`signal` must have shape (t,) or (b, t), time last; got {values.shape}. Take one "
            "observable of a state, such as ys[..., 0]."
        )
    if values.shape[0] == 0 or values.shape[-1] < 6:
        raise ValueError(
            f"`signal` must have 6 samples or more in its last axis and at least one row, got "
            f"shape {values.shape}."
        )
    if not is_traced(signal):
        known = np.asarray(signal)
        if not np.all(np.isfinite(known)):
            raise ValueError("`signal` must be finite; it holds NaN or infinity.")
        if np.any(np.all(known == known[..., :1], axis=-1)):
            raise ValueError("`signal` is constant: it has no tones. Leave such signals out.")
    return values


def _check_dt(dt: Any, signal: Array) -> Float[Array, ""]:
    if np.ndim(dt) != 0:
        raise ValueError(
            "`dt` must be one number, the time between samples: sampling must be uniform. Got "
            f"shape {np.shape(dt)}; save at equal times, and give ts[1] - ts[0]."
        )
    kind = getattr(getattr(dt, "dtype", None), "kind", "none")
    if isinstance(dt, bool) or not (isinstance(dt, float | int) or kind in "fiu"):
        raise TypeError(f"`dt` must be a number, the time between samples, got {dt!r}.")
    if not is_traced(dt) and not (math.isfinite(dt) and dt > 0):
        raise ValueError(f"`dt` must be finite and above 0, got {dt}.")
    return jnp.asarray(dt, signal.real.dtype)


def _check_k(k: Any, samples: int, where: str = "") -> int:
    if isinstance(k, bool) or not isinstance(k, int | np.integer):
        raise TypeError(f"`k` must be a whole number of tones, at least 1, got {k!r}.")
    most = (samples - 2) // 4
    if k < 1 or k > most:
        raise ValueError(
            f"`k` must be between 1 and {most}, (t - 2) / 4 for {samples} samples{where}; got {k}."
        )
    return int(k)


def _check_periods(found: Frequencies, signal: Array, dt: Array, samples: int, where: str) -> None:
    if is_traced((found, dt)) or jnp.iscomplexobj(signal):
        return
    # Two periods of a tone that was found to rounding may come out a little short.
    periods = np.asarray(found.omega)[..., 0] * samples * float(dt) / (2 * np.pi)
    if np.any(periods < _PERIODS * (1 - 1e-6)):
        raise ValueError(
            f"`signal` must hold at least two periods of its strongest tone{where}, got "
            f"{np.min(periods):.2g}; give a longer signal, or take its trend off."
        )

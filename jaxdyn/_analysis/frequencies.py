"""Frequency map analysis of uniformly sampled signals: tones, spectra, frequency diffusion."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._types import is_traced

# In the units below neighbouring bins of the Fourier transform lie pi apart.
_BIN = math.pi
_PADDING = 4
_MAX_STEPS = 60
_PERIODS = 2
_dot = functools.partial(jnp.matmul, precision="highest")


class Frequencies(NamedTuple):
    r"""Tones of a signal, strongest first; t counts from the first sample.

    `omega` (..., k), radians per time unit; `amplitude` (..., k), at least 0; `phase` (..., k) in
    $(-\pi, \pi]$.
    """

    omega: Float[Array, "*b k"]
    amplitude: Float[Array, "*b k"]
    phase: Float[Array, "*b k"]


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
    found, _ = _over(functools.partial(_tones, k=k), signal, (0, None))(signal, dt)
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
    tones = _over(functools.partial(_tones, k=k), signal, (0, None))
    whole, real = tones(signal, dt)
    first, real_first = tones(signal[..., :half], dt)
    second, real_second = tones(signal[..., -half:], dt)
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


def _hann(n: int) -> np.ndarray:
    """Of sum 1."""
    return (1 + np.cos(2 * np.pi * _from_middle(n) / n)) / n


def _from_middle(n: int) -> np.ndarray:
    return np.arange(n) - (n - 1) / 2


@jax.jit
def _power_spectrum(signal: Array, dt: Float[Array, ""]) -> PowerSpectrum:
    n, dtype = signal.shape[-1], dt.dtype
    window = _hann(n)
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


class _Problem(NamedTuple):
    """min over z of sum chi (y - model(z))^2 / 2, z = (phi (k), a (k), b (k), offset).

    A tone is (a + ib) exp(i phi s), s = u / (N / 2) in (-1, 1), of which a real signal has the real
    part. Rows of y are real and imaginary part. A complex signal's offset is 0.
    """

    y: Float[Array, "c t"]
    s: Float[Array, " t"]
    chi: Float[Array, " t"]

    @property
    def is_real(self) -> bool:
        return self.y.shape[0] == 1

    @property
    def top(self) -> float:
        """phi of the Nyquist frequency."""
        return self.s.shape[0] * _BIN / 2

    @property
    def eps(self) -> float:
        return float(jnp.finfo(self.y.dtype).eps)

    def residual(self, z: Array) -> Array:
        cos, sin, a, b = self.waves(z)
        real = _dot(cos, a) - _dot(sin, b) + z[-1]
        if self.is_real:
            return self.y - real[None, :]
        return self.y - jnp.stack([real, _dot(sin, a) + _dot(cos, b)])

    def cost(self, z: Array) -> Array:
        return jnp.sum(self.chi[None, :] * self.residual(z) ** 2) / 2

    def waves(self, z: Array) -> tuple[Array, Array, Array, Array]:
        phi, a, b = z[:-1].reshape(3, -1)
        angle = self.s[:, None] * phi[None, :]
        return jnp.cos(angle), jnp.sin(angle), a, b

    def jacobian(self, z: Array, size: Array) -> Array:
        """d model / d (size phi, a, b, offset), (c t, p)."""
        cos, sin, a, b = self.waves(z)
        a, b, ramp = (a / size)[None, :], (b / size)[None, :], self.s[:, None]
        ones = jnp.ones_like(ramp)
        real = jnp.concatenate([-ramp * (a * sin + b * cos), cos, -sin, ones], axis=1)
        if self.is_real:
            return real
        slope = ramp * (a * cos - b * sin)
        return jnp.concatenate(
            [real, jnp.concatenate([slope, sin, cos, jnp.zeros_like(ramp)], axis=1)]
        )

    def size(self, z: Array) -> Array:
        _, a, b = z[:-1].reshape(3, -1)
        return jnp.maximum(jnp.hypot(a, b), jnp.finfo(z.dtype).tiny ** 0.5)

    def normal(self, z: Array, size: Array) -> tuple[Array, Array]:
        """J^T chi J and J^T chi residual."""
        jacobian = self.jacobian(z, size)
        weighted = (jnp.tile(self.chi, self.y.shape[0])[:, None] * jacobian).T
        return _dot(weighted, jacobian), _dot(weighted, self.residual(z).ravel())

    def bend(self, z: Array, size: Array) -> Array:
        """sum chi residual d^2 model: not 0 only within a tone, and there in rows with phi."""
        cos, sin, a, b = self.waves(z)
        k = len(a)
        first = self.residual(z) * (self.chi * self.s)[None, :]
        second = first * self.s[None, :]

        def project(rows):
            along, across = _dot(rows[0], cos), -_dot(rows[0], sin)
            if self.is_real:
                return along, across
            return along + _dot(rows[1], sin), across + _dot(rows[1], cos)

        (along, across), (along2, across2) = project(first), project(second)
        j = np.arange(k)
        upper = jnp.zeros((len(z), len(z)), z.dtype)
        upper = upper.at[j, j].set(-(a * along2 + b * across2) / (2 * size**2))
        upper = upper.at[j, k + j].set(across / size).at[j, 2 * k + j].set(-along / size)
        return upper + upper.T

    def rounding(self, z: Array, active: Array) -> Array:
        """The rounding of one sample of the model, for a signal of size 1."""
        return self.eps * (1 + jnp.max(jnp.where(active, jnp.abs(z[: len(active)]), 0.0)))

    def free(self, active: Array) -> Array:
        return jnp.concatenate([active, active, active, jnp.asarray([self.is_real])])

    def solve(self, matrix: Array, rhs: Array, active: Array) -> Array:
        """matrix^-1 rhs over the free unknowns, and 0 for the others."""
        free = self.free(active)
        eye = jnp.eye(len(rhs), dtype=rhs.dtype)
        ridge = self.eps * jnp.max(jnp.abs(jnp.diagonal(matrix)))
        matrix = jnp.where(free[:, None] & free[None, :], matrix + ridge * eye, eye)
        return jnp.linalg.solve(matrix, jnp.where(free, rhs, 0.0))

    def refine(self, z: Array, active: Array, last: Array) -> Array:
        """Levenberg-Marquardt over the active tones; roughly, unless all tones are there."""
        enough = jnp.where(last, self.eps**0.75, 1e-3)
        k = len(active)
        low = _BIN / 2 if self.is_real else -math.inf
        high = self.top if self.is_real else math.inf

        def step(state):
            z, cost, damping, _, count = state
            size = self.size(z)
            gram, rhs = self.normal(z, size)
            gram = gram + damping * jnp.diag(jnp.diagonal(gram))
            move = self.solve(gram, rhs, active)
            turn = jnp.clip(move[:k] / size, -_BIN / 2, _BIN / 2)
            phi = jnp.where(active, jnp.clip(z[:k] + turn, low, high), z[:k])
            trial = jnp.concatenate([phi, z[k:] + move[k:]])
            noise = self.rounding(z, active)
            settled = jnp.max(jnp.abs(move)) <= 4 * noise
            new = self.cost(trial)
            # What is left in the end, the Newton step finds.
            settled = settled | (jnp.abs(new - cost) <= enough * cost)
            better = new <= cost + noise**2
            z, cost = jnp.where(better, trial, z), jnp.where(better, new, cost)
            damping = jnp.where(better, damping / 30, damping * 10)
            return z, cost, damping, settled | (damping > 1e8), count + 1

        def going(state):
            return ~state[3] & (state[4] < _MAX_STEPS)

        start = z, self.cost(z), jnp.asarray(1e-4, z.dtype), jnp.asarray(False), jnp.asarray(0)
        return jax.lax.while_loop(going, step, start)[0]

    def newton(self, z: Array, active: Array) -> Array:
        """One Newton step from the minimum: nothing but rounding, with the minimum's derivative
        in y."""
        z = jax.lax.stop_gradient(z)
        fixed = jax.lax.stop_gradient(self)
        size = fixed.size(z)
        scale = jnp.concatenate([1 / size, jnp.ones_like(z[len(size) :])])
        hessian = fixed.normal(z, size)[0] - fixed.bend(z, size)
        move = self.solve(hessian, self.normal(z, size)[1], active)
        small = jnp.max(jnp.abs(move)) < 1e-3
        move = jnp.where(self.free(active) & small, move, 0.0)
        return z + move * jnp.where(self.free(active), scale, 1.0)

    def next_tone(self, j: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        """Tone j from the peak of the residual, and the tones so far refined together."""
        z, active = state
        k, n = len(active), self.s.shape[0]
        residual = self.residual(z) * self.chi[None, :]
        length = 1 << math.ceil(math.log2(_PADDING * n))
        if self.is_real:
            spectrum, turns = jnp.fft.rfft(residual[0], length), np.fft.rfftfreq(length)
        else:
            values = jax.lax.complex(residual[0], residual[1])
            spectrum, turns = jnp.fft.fft(values, length), np.fft.fftfreq(length)
        # The grid ends at turns = 1/2, the Nyquist frequency.
        grid = jnp.asarray(2 * self.top * turns, z.dtype)
        gap = jnp.abs(grid[:, None] - z[None, :k])
        gap = jnp.minimum(gap, jnp.abs(2 * self.top - gap))
        taken = jnp.any((gap < _BIN) & active[None, :], axis=1)
        if self.is_real:
            taken = taken | (grid < _BIN)
        power = spectrum.real**2 + spectrum.imag**2
        phi = grid[jnp.argmax(jnp.where(taken, -1.0, power))]
        cos, sin = jnp.cos(self.s * phi), jnp.sin(self.s * phi)
        if self.is_real:
            a, b = 2 * jnp.sum(residual[0] * cos), -2 * jnp.sum(residual[0] * sin)
        else:
            a = jnp.sum(residual[0] * cos + residual[1] * sin)
            b = jnp.sum(residual[1] * cos - residual[0] * sin)
        z = z.at[j].set(phi).at[k + j].set(a).at[2 * k + j].set(b)
        noise = self.eps + self.rounding(z, active.at[j].set(True)) / math.sqrt(n)
        active = active.at[j].set(jnp.hypot(a, b) > 8 * noise)
        return self.refine(z, active, j == k - 1), active


@functools.partial(jax.jit, static_argnames="k")
def _tones(signal: Array, dt: Float[Array, ""], k: int) -> tuple[Frequencies, Bool[Array, " k"]]:
    """The tones, and which of them are more than rounding."""
    n, dtype = signal.shape[0], dt.dtype
    rows = [signal.real, signal.imag] if jnp.iscomplexobj(signal) else [signal]
    y = jnp.stack(rows)
    scale = jnp.max(jnp.abs(jax.lax.stop_gradient(y)))
    scale = jnp.where(scale > 0, scale, 1.0)
    u, chi = jnp.asarray(_from_middle(n), dtype), jnp.asarray(_hann(n), dtype)
    problem = _Problem(y / scale, u / (n / 2), chi)
    fixed = jax.lax.stop_gradient(problem)
    z = jnp.zeros(3 * k + 1, dtype)
    if problem.is_real:
        z = z.at[-1].set(jnp.sum(chi * fixed.y[0]))
    z, active = jax.lax.fori_loop(0, k, fixed.next_tone, (z, jnp.zeros(k, bool)))
    phi, a, b = problem.newton(z, active)[:-1].reshape(3, k)
    theta = phi / (n / 2)
    phase = _wrapped(jnp.arctan2(b, a) + theta * u[0])
    theta = theta if problem.is_real else _wrapped(theta)
    amplitude = jnp.hypot(a, b) * scale
    order = jnp.argsort(-amplitude)
    found = Frequencies(theta[order] / dt, amplitude[order], phase[order])
    return found, active[order]


def _wrapped(angle: Array) -> Array:
    """In (-pi, pi]."""
    return angle - 2 * math.pi * jax.lax.stop_gradient(jnp.ceil(angle / (2 * math.pi) - 0.5))


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

"""A sampled signal: values, their times, and which of them were measured."""

import dataclasses
import math
from typing import Any

import jax
import jax.random as jr
import numpy as np
from jaxtyping import Bool, Float

from .checks import (
    count,
    increasing,
    line,
    names,
    number,
    numpy_array,
    outside_jit,
    random_key,
    real_array,
)
from .checks import uniform as uniform_times

# Steps that differ by less than this part of their median count as equal.
_UNIFORM = 1e-6


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Signal:
    r"""Samples of m channels at t times, some of which may be missing. Made by `Signal.of`.

    The arrays are NumPy's, live on the host and cannot be written to.

    **Arguments:**

    - `values`: (t, m), float32 or float64; 0 where nothing was measured.
    - `ts`: (t,), float64, strictly increasing, in `time_unit`.
    - `mask`: (t, m), True where a sample was measured.
    - `name`, `channels`: of the signal and of each of its m channels.
    - `time_unit`: what `ts` counts in, in words.
    """

    values: Float[np.ndarray, "t m"]
    ts: Float[np.ndarray, " t"]
    mask: Bool[np.ndarray, "t m"]
    name: str
    channels: tuple[str, ...]
    time_unit: str

    @classmethod
    def of(
        cls,
        values: Any,
        *,
        dt: float | int | None = None,
        ts: Any = None,
        mask: Any = None,
        name: str = "signal",
        channels: Any = None,
        time_unit: str = "model time",
    ) -> "Signal":
        r"""A checked signal from arrays or lists.

        **Arguments:**

        - `values`: (t,) or (t, m), real numbers, at least two samples. float32 stays float32,
            everything else becomes float64. A `Signal` is returned as it is.
        - `dt`: the time between samples, in `time_unit`; the first is at time 0. Or
        - `ts`: the time of each sample, (t,), strictly increasing.
        - `mask`: (t,) or (t, m), True where a sample was measured; None where all were.
        - `name`, `time_unit`: a line of text each.
        - `channels`: a name for each channel; None gives x1, x2, ...

        **Returns:** the signal.

        **Raises:** TypeError for values that are no real numbers. ValueError when not exactly one
        of `dt` and `ts` is given, for measured samples that are not finite or too large to be
        squared and summed, and for a channel that is constant or has fewer than two samples.
        """
        if isinstance(values, Signal):
            same = (name, time_unit) == ("signal", "model time")
            if not same or any(v is not None for v in (dt, ts, mask, channels)):
                raise ValueError(
                    "`values` is a Signal, which has its own times, mask and names; leave `dt`, "
                    "`ts`, `mask`, `name`, `channels` and `time_unit` out, or give signal.values."
                )
            return values
        array = real_array("values", values)
        if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] == 0):
            raise ValueError(f"`values` must have shape (t,) or (t, m), got {array.shape}.")
        array = array.reshape(array.shape[0], -1) if array.ndim == 1 and array.size else array
        if array.shape[0] < 2:
            raise ValueError(f"`values` must hold at least 2 samples, got {array.shape[0]}.")
        if (dt is None) == (ts is None):
            raise ValueError("Give `dt` or `ts`, exactly one: the time step or the sample times.")
        if ts is None:
            times = uniform_times(array.shape[0], dt)
        else:
            times = increasing("ts", ts, array.shape[0])
        labels = names(channels, array.shape[1])
        measured = _measured(mask, array.shape)
        _check(array, measured, labels, mask is not None)
        array[~measured] = 0
        for a in (array, times, measured):
            a.setflags(write=False)
        unit = line("time_unit", time_unit)
        return cls(array, times, measured, line("name", name), labels, unit)

    def __repr__(self) -> str:
        step = "irregular times" if self.dt is None else f"dt={self.dt:g}"
        missing = "" if self.is_complete else f", {int(np.sum(~self.mask))} missing"
        return (
            f"Signal({self.name!r}, {self.n_samples} samples x {self.n_channels} channels, {step}, "
            f"in {self.time_unit}{missing})"
        )

    @property
    def dt(self) -> float | None:
        """The time between samples, or None when their times are not uniform (to 1e-6)."""
        steps = np.diff(self.ts)
        median = float(np.median(steps))
        if np.any(np.abs(steps - median) > _UNIFORM * median):
            return None
        return self.duration / (self.n_samples - 1)

    @property
    def n_samples(self) -> int:
        return self.values.shape[0]

    @property
    def n_channels(self) -> int:
        return self.values.shape[1]

    @property
    def duration(self) -> float:
        """The time from the first to the last sample."""
        return float(self.ts[-1] - self.ts[0])

    @property
    def is_complete(self) -> bool:
        """Whether every sample of every channel was measured."""
        return bool(np.all(self.mask))

    def split(self, tail: float | int) -> "tuple[Signal, Signal]":
        """The signal in two parts, in the order of time: to learn from, and to be tested on.

        **Arguments:** `tail`, the size of the second part: a share of the samples, a float between
        0 and 1, or a number of samples, an integer.

        **Returns:** the head and the tail, each at its own times. In a part, other than in a whole
        signal, channels may be constant or missing.

        **Raises:** ValueError when that leaves fewer than 2 samples in either part.
        """
        share = isinstance(tail, float | np.floating)
        n = round(number("tail", tail, above=0.0) * self.n_samples) if share else tail
        if share and tail >= 1:
            raise ValueError(f"`tail` must be a share below 1 or a whole number, got {tail!r}.")
        if not share:
            n = count("tail", tail, 0)
        if not 2 <= n <= self.n_samples - 2:
            raise ValueError(
                f"`tail` must leave at least 2 samples in either part of the {self.n_samples}, got "
                f"{tail!r}, which is {n} in the tail."
            )
        cut = self.n_samples - n
        return self._part(0, cut), self._part(cut, self.n_samples)

    def window(self, start: int, stop: int) -> "Signal":
        """The samples `start` to `stop` - 1, at their own times.

        **Arguments:** `start`, `stop`: sample numbers, 0 <= start and stop <= n_samples.

        **Returns:** that part; in it channels may be constant or missing.

        **Raises:** ValueError when the window leaves the signal or has fewer than 2 samples.
        """
        start = count("start", start, 0, self.n_samples - 2)
        return self._part(start, count("stop", stop, start + 2, self.n_samples))

    def _part(self, start: int, stop: int) -> "Signal":
        part = slice(start, stop)
        return dataclasses.replace(
            self, values=self.values[part], ts=self.ts[part], mask=self.mask[part]
        )

    def with_noise(self, db: float | int, *, key: Any) -> "Signal":
        r"""The signal with white Gaussian noise of variance $\sigma_c^2\, 10^{-db/10}$.

        $\sigma_c^2$ is the variance of channel c over its measured samples.

        **Arguments:** `db`, the ratio of signal to noise in decibels; `key`, a `jax.random.key`.

        **Returns:** the noisy signal; missing samples stay missing. The noise depends on the key
        and the shape alone, not on whether 64-bit types are on.

        **Raises:** TypeError or ValueError for a ratio that is no finite number or that makes the
        noise overflow.
        """
        db, key = number("db", db), random_key(key)
        noise = _drawn(jr.normal, key, 0, self.values.shape)
        values = self.values.astype(np.float64)
        size = np.maximum(np.sum(self.mask, axis=0), 1)
        mean = np.sum(values, axis=0) / size
        variance = np.sum(np.where(self.mask, values - mean, 0) ** 2, axis=0) / size
        with np.errstate(over="ignore", invalid="ignore"):
            scale = np.sqrt(variance) * np.power(10.0, -db / 20)
            noisy = np.where(self.mask, values + noise * scale, 0).astype(self.values.dtype)
        if not np.all(np.abs(noisy) <= _largest(self.values)):
            raise ValueError(
                f"`db` must leave a signal that can be squared and summed, got {db:g}; give a "
                "larger ratio."
            )
        noisy.setflags(write=False)
        return dataclasses.replace(self, values=noisy)

    def drop(self, fraction: float | int, *, key: Any) -> "Signal":
        """The signal with a part of its samples missing, at random and in each channel apart.

        **Arguments:** `fraction`, the share of the measured samples that each channel loses (the
        nearest whole number of them), 0 <= fraction < 1; `key`, a `jax.random.key`.

        **Returns:** the signal with fewer samples measured.

        **Raises:** ValueError when a channel keeps fewer than 2 samples, or equal ones only.
        """
        fraction, key = number("fraction", fraction, least=0.0), random_key(key)
        draws = _drawn(jr.uniform, key, 1, self.values.shape)
        lost = np.rint(fraction * np.sum(self.mask, axis=0)).astype(int)
        # Of the measured samples, those with the smallest draws go.
        order = np.argsort(np.where(self.mask, draws, 2.0), axis=0, kind="stable")
        rank = np.argsort(order, axis=0, kind="stable")
        try:
            return Signal.of(
                self.values,
                ts=self.ts,
                mask=self.mask & (rank >= lost[None, :]),
                name=self.name,
                channels=self.channels,
                time_unit=self.time_unit,
            )
        except ValueError as error:
            raise ValueError(
                f"`fraction` must leave a signal, got {fraction:g}; give a smaller one: {error}"
            ) from None


def _drawn(draw: Any, key: Any, use: int, shape: tuple[int, ...]) -> np.ndarray:
    outside_jit()
    # In 64 bits always, so that a key means one noise. Each use has its own stream: with one key
    # for both, the samples that `drop` takes would be those of low noise.
    with jax.enable_x64(True):
        return np.asarray(draw(jr.fold_in(key, use), shape, np.float64))


def _measured(mask: Any, shape: tuple[int, ...]) -> Bool[np.ndarray, "t m"]:
    if mask is None:
        return np.ones(shape, bool)
    array = numpy_array("mask", mask)
    if array.dtype != bool:
        raise TypeError(
            f"`mask` must hold truth values, True where a sample was measured, got {array.dtype}; "
            "give numpy.asarray(mask, bool)."
        )
    if array.shape not in (shape, shape[:1]):
        raise ValueError(f"`mask` must have shape {shape[:1]} or {shape}, got {array.shape}.")
    array = array[:, None] if array.ndim == 1 else array
    return np.broadcast_to(array, shape).copy()


def _largest(values: Float[np.ndarray, "t m"]) -> float:
    """Up to which the squares of values, less their mean, can be summed over time."""
    return math.sqrt(float(np.finfo(values.dtype).max) / (4 * values.shape[0]))


def _check(
    values: Float[np.ndarray, "t m"],
    mask: Bool[np.ndarray, "t m"],
    channels: tuple[str, ...],
    masked: bool,
) -> None:
    """Refuses what no variance can be taken of."""

    def at(bad: np.ndarray) -> str:
        sample, channel = np.argwhere(bad)[0]
        return f"at sample {sample} of channel {channels[channel]!r}"

    unknown = mask & np.isnan(values)
    if np.any(unknown):
        cure = "set `mask` to False there" if masked else "pass mask=~np.isnan(values)"
        raise ValueError(f"`values` has NaN {at(unknown)}; {cure}, or drop those rows.")
    infinite = mask & np.isinf(values)
    if np.any(infinite):
        raise ValueError(f"`values` must be finite, got {values[infinite][0]} {at(infinite)}.")
    few = np.flatnonzero(np.sum(mask, axis=0) < 2)
    if few.size:
        raise ValueError(
            f"Channel {channels[few[0]]!r} of `values` has fewer than 2 measured samples; leave "
            "the channel out or measure more."
        )
    dtype = np.finfo(values.dtype)
    largest = _largest(values)
    large = mask & (np.abs(values) > largest)
    if np.any(large):
        raise ValueError(
            f"`values` must be small enough to be squared and summed in {values.dtype} (up to "
            f"{largest:.2g}), got {values[large][0]} {at(large)}; divide the channel by its scale."
        )
    low = np.min(np.where(mask, values, np.inf), axis=0)
    spread = np.max(np.where(mask, values, -np.inf), axis=0).astype(np.float64) - low
    constant = np.flatnonzero(spread == 0)
    if constant.size:
        c = constant[0]
        raise ValueError(
            f"Channel {channels[c]!r} of `values` is constant ({low[c]:g}), and nothing can be "
            "learned from it; leave it out."
        )
    least = math.sqrt(float(dtype.tiny) / float(dtype.eps))
    faint = np.flatnonzero(spread < least)
    if faint.size:
        raise ValueError(
            f"Channel {channels[faint[0]]!r} of `values` varies by {spread[faint[0]]:.2g} only, "
            f"too little to be squared in {values.dtype}; multiply it."
        )

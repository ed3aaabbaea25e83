"""Signals from files and to files."""

import errno
import math
import os
import stat
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Real

from ..._files import replacing
from . import table, wav
from .checks import count, number
from .signal import Signal

_TEXT = (".csv", ".txt", ".tsv")
_SUFFIXES = (*_TEXT, ".npy", ".wav")


def read(
    path: Any,
    *,
    dt: float | int | None = None,
    time: int | str | None = None,
    channels: Any = None,
    max_bytes: int = 2**29,
) -> Signal:
    """A signal from a file, by its suffix.

    `.csv`, `.txt`, `.tsv`: a line for each sample, with or without a header; cells between commas,
    semicolons, tabs or blanks; `#` begins a comment; empty cells, `nan` and `NA` are missing
    samples. `.npy`: (t,) or (t, k); NaN are missing samples. `.wav`: integers of 8 to 32 bits,
    scaled to [-1, 1], and floats of 32 and 64 bits; times are in seconds.

    **Arguments:**

    - `path`: the file.
    - `dt`: the time between samples, when no column holds their times. Not for `.wav`.
    - `time`: the column that holds the times, by name or by number from 0. None takes the first one
        that the header calls t, time, ts, year(s), second(s) or s, in small or capital letters,
        unless `channels` and `dt` are given.
    - `channels`: the columns to read, by name or by number from 0 (the time counts); None for all.
    - `max_bytes`: a larger file is refused.

    **Returns:** the `Signal`. A `.csv` that `write` made comes back as it was, in float64.

    **Raises:** FileNotFoundError, PermissionError or another OSError when the file cannot be
    opened. ValueError, with its name and the line, for what is not such a file, and for all that
    `Signal.of` refuses. TypeError for arguments of another type.
    """
    suffix, name = _suffix(path), os.fspath(path)
    if dt is not None:
        number("dt", dt, above=0.0)
    if time is not None and not isinstance(time, str):
        time = count("time", time, 0)
    if channels is not None:
        chosen = not isinstance(channels, str) and isinstance(channels, Sequence)
        if not chosen or not channels:
            raise TypeError(
                f"`channels` must be a list of names or numbers of columns, got {channels!r}."
            )
    data = _open(path, count("max_bytes", max_bytes, 1))
    with data as file:
        header, lines, notes = None, None, {}
        if suffix == ".wav":
            if dt is not None or time is not None:
                raise ValueError(f"`dt` and `time` must be left out: {name} has its own rate.")
            columns, rate = wav.parse(file.read(), name)
            dt, notes = 1 / rate, {"time_unit": "s"}
        elif suffix == ".npy":
            columns = _load_array(file, name)
        else:
            columns, header, lines, notes = table.parse(file, name, suffix == ".tsv", time)
    clock = _time_column(name, header, columns.shape[1], dt, time, channels)
    others = [i for i in range(columns.shape[1]) if i != clock]
    labels = header or _numbered(columns.shape[1], clock)
    if channels is not None:
        others = [_column("channels", c, header, columns.shape[1], name) for c in channels]
        if clock in others:
            raise ValueError(
                f"`channels` must not hold the column of times of {name}, {labels[clock]!r}; leave "
                "it out."
            )
    if not others:
        raise ValueError(f"{name} has no column but that of the times; give it a channel.")
    ts = None
    if clock is not None:
        ts = columns[:, clock]
        _check_times(ts, lines, name)
    values = columns[:, others]
    try:
        return Signal.of(
            values,
            dt=dt,
            ts=ts,
            mask=~np.isnan(values),
            channels=[labels[i] for i in others],
            **({"name": _printable(Path(name).stem)} | notes),
        )
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def write(path: Any, signal: Signal) -> None:
    """Writes a signal to a file, by its suffix, whole or not at all.

    A file of that name is replaced when the new one is complete, and stays as it is when that
    fails. `.csv`: a column of times, `t`, and one for each channel, with every digit; empty where
    nothing was measured. `.npy`: (t, 1 + m) in float64, the times first and NaN where nothing was
    measured, to be read with `time=0`. `.wav`: 32-bit floats at the rate 1 / dt; names, the time of
    the first sample and its unit are lost.

    **Arguments:** `path`, which ends in .csv, .npy or .wav; `signal`, a `Signal`.

    **Raises:** OSError when nothing can be written there. TypeError for what is no signal.
    ValueError for another suffix, and for a `.wav` of irregular times, missing samples, a rate that
    is no whole number (to 1e-3), or values beyond float32.
    """
    suffix, name = _suffix(path), os.fspath(path)
    if not isinstance(signal, Signal):
        raise TypeError(
            f"`signal` must be a Signal, got {type(signal).__name__}; make one with "
            "Signal.of(values, dt=...)."
        )
    if suffix not in (".csv", ".npy", ".wav"):
        raise ValueError(f"`path` must end in .csv, .npy or .wav to be written, got {name!r}.")
    if suffix == ".wav" and not signal.is_complete:
        raise ValueError(
            f"`signal` has missing samples, for which {name} has no place; fill them or write .csv."
        )
    with replacing(path, "w" if suffix == ".csv" else "wb") as file:
        if suffix == ".csv":
            table.save(file, signal)
        elif suffix == ".wav":
            wav.save(file, signal.values, signal.dt, name)
        else:
            values = np.where(signal.mask, signal.values.astype(np.float64), math.nan)
            np.save(file, np.column_stack([signal.ts, values]), allow_pickle=False)


def _suffix(path: Any) -> str:
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise TypeError(f"`path` must be the name of a file, got {path!r}.")
    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES or "\0" in os.fspath(path):
        raise ValueError(
            f"`path` must be the name of a file that ends in {', '.join(_SUFFIXES)}, got "
            f"{os.fspath(path)!r}."
        )
    return suffix


def _open(path: Any, max_bytes: int) -> Any:
    # Before it is opened: opening a pipe would wait for a writer.
    info, name = os.stat(path), os.fspath(path)
    if stat.S_ISDIR(info.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a directory; give a file", name)
    if not stat.S_ISREG(info.st_mode):
        raise ValueError(f"{name} is not an ordinary file; save its content to one.")
    if info.st_size == 0:
        raise ValueError(f"{name} is empty; give a file with samples.")
    if info.st_size > max_bytes:
        raise ValueError(
            f"{name} has {info.st_size} bytes, more than `max_bytes` = {max_bytes}; raise that, or "
            "give a smaller file."
        )
    return open(path, "rb")


def _load_array(file: Any, name: str) -> Real[np.ndarray, "t k"]:
    """The array in a .npy file, whose header is not believed: it may claim any size."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of files from Python 2
            version = np.lib.format.read_magic(file)
            reader = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, fortran, dtype = reader(file)
    except Exception:  # its parser is Python's own, with many ways to fail
        raise ValueError(f"{name} is not a .npy file or is damaged; save it anew.") from None
    if dtype.hasobject or dtype.kind not in "fiu":
        raise ValueError(
            f"{name} holds {'objects' if dtype.hasobject else dtype}, not real numbers; save an "
            "array of floats."
        )
    if len(shape) not in (1, 2) or 0 in shape:
        raise ValueError(f"{name} holds an array of shape {shape}; give (t,) or (t, m).")
    data = file.read()
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError(
            f"{name} is truncated or damaged: an array of shape {shape} takes "
            f"{math.prod(shape) * dtype.itemsize} bytes and {len(data)} are there; save it anew."
        )
    values = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    return values.reshape(shape[0], -1)


def _time_column(
    name: str,
    header: tuple[str, ...] | None,
    width: int,
    dt: Any,
    time: int | str | None,
    channels: Any,
) -> int | None:
    if time is not None:
        if dt is not None:
            raise ValueError("`dt` and `time` must not both be given; the times hold the step.")
        return _column("time", time, header, width, name)
    named = [i for i, h in enumerate(header or ()) if h.casefold() in table.TIME_NAMES]
    if dt is None:
        if not named:
            raise ValueError(
                f"{name} has no column with the name of a time; give `dt`, the time between "
                "samples, or `time`, the column that holds the times."
            )
        return named[0]
    if named and header and channels is None:
        raise ValueError(
            f"`dt` must be left out: {name} has the column of times {header[named[0]]!r}; if that "
            "is none, name the `channels` to read."
        )
    return None


def _column(
    argument: str, which: Any, header: tuple[str, ...] | None, width: int, name: str
) -> int:
    if isinstance(which, str):
        if header is None:
            raise ValueError(
                f"`{argument}` must be a number of a column, from 0: {name} has no header, so no "
                f"column is called {which!r}."
            )
        if which not in header:
            known = ", ".join(repr(h) for h in header[:10])
            raise ValueError(f"`{argument}` must be a column of {name} ({known}), got {which!r}.")
        return header.index(which)
    return count(argument, which, 0, width - 1)


def _numbered(width: int, clock: int | None) -> tuple[str, ...]:
    """x1, x2, ... for all columns but that of the times."""
    labels = [f"x{i + 1}" for i in range(width)]
    if clock is not None:
        labels.insert(clock, "t")
    return tuple(labels[:width])


def _check_times(ts: np.ndarray, lines: np.ndarray | None, name: str) -> None:
    """Refuses times with the line they stand on."""

    def at(i: int) -> str:
        return f"{name}, sample {i}" if lines is None else f"{name}, line {lines[i]}"

    unknown = np.flatnonzero(~np.isfinite(ts))
    if unknown.size:
        raise ValueError(f"{at(unknown[0])}: has no finite time; give one, or drop the sample.")
    late = np.flatnonzero(ts[1:] <= ts[:-1])
    if late.size:
        i = int(late[0]) + 1
        raise ValueError(
            f"{at(i)}: the time {ts[i]} does not come after {ts[i - 1]}; sort the samples by time "
            "and keep one of equal times."
        )


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text).strip() or "signal"

"""`jaxdyn generate`."""

import contextlib
import csv
import dataclasses
import io
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from tyro.conf import Positional, arg

from .._files import replacing
from .common import UsageError, caching, in_options, print_table, reason, refuse, require, writing

SUFFIXES = (".csv", ".npy", ".wav")
# Samples that are computed, and held in memory, at a time.
CHUNK = 2**14
# Bytes of a number in a file; of text, about.
WIDTH = {".csv": 20, ".npy": 8, ".wav": 4}
LARGEST_WAV = 2**32 - 64


@dataclasses.dataclass(frozen=True)
class Generate:
    """Run a saved oscillator and write the signal that it generates, of any length.

    .csv has a column of times, t, and one for each channel; .npy an array of float64 with the same
    columns. Both are written as they are computed, so that memory does not limit their length. .wav
    has 32-bit floats at 1 / --dt samples per time unit of the model; the values are not scaled, and
    players clip what leaves [-1, 1]. Exit status 2 for a wrong option or a file that cannot be
    read or written.
    """

    model: Positional[Annotated[Path, arg(metavar="MODEL")]]
    """A model.eqx that `jaxdyn fit`, or `save` in Python, wrote."""
    t1: float
    """End time, in time units of the signal that was fitted."""
    out: Path
    """File to write: .csv, .npy or .wav."""
    dt: float | None = None
    """Time between samples. Or"""
    rate: float | None = None
    """Samples per time unit."""
    t0: float | None = None
    """Time of the first sample; by default the oscillator's own, where the fitted signal began."""
    cache: Path | None = None
    """Folder, made if need be, that keeps compiled programs for later runs; none by default."""

    def __call__(self) -> int:
        self.check()
        import jax

        with caching(self.cache), jax.enable_x64(True):
            return self.run()

    @property
    def step(self) -> float:
        return self.dt if self.dt is not None else 1 / (self.rate or 1.0)

    @property
    def suffix(self) -> str:
        return self.out.suffix.lower()

    def check(self) -> None:
        """What can be refused before anything is imported or computed."""
        if (self.dt is None) == (self.rate is None):
            raise UsageError("give --dt or --rate, exactly one: the time between samples.")
        for name in ("dt", "rate"):
            value = getattr(self, name)
            ok = value is None or (math.isfinite(value) and value > 0)
            require(ok, name, value, "give a finite number > 0")
        for name in ("t0", "t1"):
            value = getattr(self, name)
            require(value is None or math.isfinite(value), name, value, "give a finite number")
        cure = f"give a name that ends in {', '.join(SUFFIXES)}"
        require(self.suffix in SUFFIXES, "out", self.out, cure)

    def load(self) -> Any:
        import jaxdyn as jd

        try:
            return jd.Oscillator.load(self.model)
        except (ValueError, TypeError) as error:
            raise UsageError(in_options(error, {})) from error
        except OSError as error:
            cure = "give a model.eqx that `jaxdyn fit` wrote"
            raise UsageError(f"{self.model}: {reason(error)}; {cure}.") from error

    def run(self) -> int:
        oscillator = self.load()
        start = oscillator.t0 if self.t0 is None else self.t0
        cure = f"give at least {start + self.step:.6g}, one step of {self.step:g} after the start"
        require(self.t1 >= start + self.step, "t1", f"{self.t1:g}", cure)
        # As `Oscillator.generate` counts.
        steps = (self.t1 - start) / self.step * (1 + 1e-12)
        width = len(oscillator.channels) + (self.suffix != ".wav")
        self.check_size(steps * width)
        count = math.floor(steps) + 1
        mode = "w" if self.suffix == ".csv" else "wb"
        with writing(self.out), replacing(self.out, mode) as file:
            write, finish = self.writer(file, oscillator, count)
            with _bar(count) as bar:
                for ts, values in _chunks(oscillator, start, self.step, count):
                    write(ts, values)
                    bar.update(len(ts))
            finish()
        print_table(
            [
                ("signal", f"{', '.join(oscillator.channels)} from {oscillator.size} units"),
                ("samples", f"{count:,} every {self.step:.6g} ({oscillator.time_unit})"),
                ("times", f"{start:.6g} to {start + (count - 1) * self.step:.6g}"),
                ("size", f"{self.out.stat().st_size:,} bytes"),
            ]
        )
        print(f"wrote {self.out}")
        return 0

    def check_size(self, numbers: float) -> None:
        """Refuses what the disk, or the format, has no room for."""
        needed = numbers * WIDTH[self.suffix]
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(self.out.parent).free
            cure = f"that takes about {needed:.2g} bytes, and {free:.2g} are free"
            require(needed < free, "t1", f"{self.t1:g}", f"{cure}; give a smaller one")
        if self.suffix == ".wav" and needed > LARGEST_WAV:
            refuse("t1", f"{self.t1:g}", "a .wav ends at 4 GiB; write .npy or a shorter one")

    def writer(
        self, file: Any, oscillator: Any, count: int
    ) -> tuple[Callable[[Any, Any], Any], Callable[[], Any]]:
        """Writes the head of the file, and returns what writes a chunk and what ends the file."""
        channels = oscillator.channels
        if self.suffix == ".wav":
            # What it cannot hold is refused before anything is computed.
            self.save_wav(io.BytesIO(), np.zeros((2, len(channels)), np.float32))
            # Its head depends on all the samples.
            samples = np.zeros((count, len(channels)), np.float32)
            done = 0

            def keep(ts: Any, values: Any) -> None:
                nonlocal done
                samples[done : done + len(ts)] = values
                done += len(ts)

            return keep, lambda: self.save_wav(file, samples)
        if self.suffix == ".npy":
            head = {"descr": "<f8", "fortran_order": False, "shape": (count, 1 + len(channels))}
            np.lib.format.write_array_header_1_0(file, head)
            return lambda *chunk: file.write(np.column_stack(chunk).tobytes()), lambda: None
        # As `jaxdyn.signals.write` does, so that `read` finds the names and the times.
        file.write(f"# name: generated\n# time_unit: {oscillator.time_unit}\n")
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["t", *channels])
        return lambda *chunk: rows.writerows(np.column_stack(chunk).tolist()), lambda: None

    def save_wav(self, file: Any, samples: np.ndarray) -> None:
        from .._train.signals import wav

        try:
            wav.save(file, samples, self.step, str(self.out))
        except ValueError as error:
            told = in_options(error, {}).removeprefix("signal ")
            raise UsageError(f"--out {self.out}: the signal {told}") from error


def _chunks(
    oscillator: Any, start: float, step: float, count: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Times and values, each part from the last state of the one before it."""
    if start != oscillator.t0:
        x0 = oscillator.states([start])[0]
        oscillator = dataclasses.replace(oscillator, x0=x0, t0=start)
    at_once = min(CHUNK, count - 1)
    # From 0 in every part, so that all have one program.
    oscillator = dataclasses.replace(oscillator, t0=0.0)
    since = step * np.arange(at_once + 1)
    for first in range(0, count, at_once):
        states = oscillator.states(since)
        here = min(at_once, count - first)
        values = np.asarray(oscillator.readout.batch(states[:here]), np.float64)
        yield start + step * np.arange(first, first + here), values
        oscillator = dataclasses.replace(oscillator, x0=states[-1])


def _bar(count: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=count, unit="sample", unit_scale=True, disable=not sys.stderr.isatty())

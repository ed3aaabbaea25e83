"""`jaxdyn fit`."""

import contextlib
import dataclasses
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from .._files import replacing
from .common import UsageError, caching, in_options, print_table, reason, refuse, require

CHECKPOINT = "checkpoint.jdyn"
RESULTS = (
    "model.eqx",
    "history.csv",
    "fit.png",
    "spectrum.png",
    "phase.png",
    "energy.png",
    "metrics.json",
)
# What a folder must have room for before anything is computed: about twice what results take.
ROOM = 2**21
SUNSPOTS = "sunspots"
# 1980 to 2008.
SUNSPOTS_HELD_OUT = 29
# Frequencies that the table has room for.
MOST_FREQUENCIES = 6


@dataclasses.dataclass(frozen=True)
class Fit:
    """Fit an oscillator to a measured signal and say how well it forecasts.

    Prints a table and writes into a folder: model.eqx, which `jaxdyn generate` runs on; history.csv
    and metrics.json; fit.png, spectrum.png, phase.png and energy.png. Files of these names are
    replaced when the fit is done, others are kept. Exit status 0 if the fit is done, 1 if every
    restart diverges, 2 for a wrong option or a file that cannot be read or written.
    """

    signal: Positional[Annotated[str, arg(metavar="FILE|sunspots")]]
    """File of samples (.csv, .txt, .tsv, .npy or .wav), or sunspots for the bundled series."""
    units: int = 16
    """Number of units n, at least 2 and at least the number of channels."""
    restarts: int = 16
    """How many starts to try."""
    steps: int | None = None
    """Steps of gradient descent; by default none where the model is small enough to polish."""
    polish: int | None = None
    """Most steps of Levenberg-Marquardt; by default as many as the size of the model allows."""
    seed: int = 0
    """Seed; the same one gives the same files, bit for bit on one machine."""
    out: Path = Path("fit")
    """Folder for the results, made if need be. While the fit runs, checkpoint.jdyn is there too."""
    resume: bool = False
    """Go on from the checkpoint in --out; give the other options as before. Without one, a fit that
    is finished stays as it is, and any other begins."""
    dt: float | None = None
    """Time between samples, for files without a column of times."""
    time: str | None = None
    """Column of the times, by name or by number from 0."""
    channels: tuple[str, ...] | None = None
    """Columns to fit, by name or by number from 0; all by default."""
    holdout: float | None = None
    """Tail to forecast, never fitted: a fraction below 1 or a number of samples. By default 0.2,
    and for sunspots the 29 years from 1980 to 2008."""
    validation: float = 0.2
    """Tail of the rest by which restarts are chosen, given in the same way."""
    shell: float | None = None
    """Make the energy attracting, at this rate to begin with; by default energy is conserved."""
    cache: Path | None = None
    """Folder, made if need be, that keeps compiled programs for later runs; none by default."""

    def __call__(self) -> int:
        self.check()
        signal = self.read()
        with caching(self.cache), self.folder():
            return self.run(signal)

    def check(self) -> None:
        """What can be refused before anything is imported or computed."""
        require(self.units >= 2, "units", self.units, "give at least 2")
        require(self.restarts >= 1, "restarts", self.restarts, "give at least 1")
        for name in ("steps", "polish"):
            value = getattr(self, name)
            require(value is None or value >= 0, name, value, "give a whole number >= 0")
        require(0 <= self.seed < 2**63, "seed", self.seed, "give a whole number >= 0")
        for name in ("dt", "shell"):
            value = getattr(self, name)
            ok = value is None or (math.isfinite(value) and value > 0)
            require(ok, name, value, "give a finite number > 0")
        for name in ("holdout", "validation"):
            value = getattr(self, name)
            ok = value is None or 0 <= value < 1 or (value >= 1 and value.is_integer())
            require(ok, name, value, "give a fraction below 1 or a whole number of samples")

    @property
    def options(self) -> dict[str, str]:
        """What the arguments of the library are called here, with the values that were given."""
        given = {
            field.name: f"--{field.name} {getattr(self, field.name)}"
            for field in dataclasses.fields(self)
        }
        return given | {"signal": self.signal, "path": self.signal, "max_bytes": "the limit"}

    @property
    def bundled(self) -> bool:
        # A folder of that name may well be where the results go.
        return self.signal == SUNSPOTS and not Path(self.signal).is_file()

    @property
    def checkpoint(self) -> Path:
        return self.out / CHECKPOINT

    def read(self) -> Any:
        import jaxdyn as jd

        if self.bundled:
            for name in ("dt", "time", "channels"):
                value = getattr(self, name)
                require(value is None, name, value, "sunspots has its own; leave it out")
            return jd.signals.sunspots()
        try:
            return jd.signals.read(
                self.signal,
                dt=self.dt,
                time=None if self.time is None else _column(self.time),
                channels=None if self.channels is None else [_column(c) for c in self.channels],
            )
        except (ValueError, TypeError) as error:
            raise UsageError(in_options(error, self.options)) from error
        except OSError as error:
            cure = f"give a file of samples, or {SUNSPOTS}"
            raise UsageError(f"{self.signal}: {reason(error)}; {cure}.") from error

    @contextlib.contextmanager
    def folder(self) -> Iterator[None]:
        """Makes --out, and takes it away again if the block leaves nothing there."""
        made = [p for p in (self.out, *self.out.parents) if not p.exists()]
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            for name in (*RESULTS, CHECKPOINT):
                if (self.out / name).is_dir():
                    refuse("out", self.out, f"{name} there is a folder; remove it")
            with replacing(self.checkpoint) as file:
                # On disk, so that a full one shows itself; with nothing in it when all is well.
                file.write(bytes(ROOM))
                file.flush()
                os.fsync(file.fileno())
                file.seek(0)
                file.truncate()
            yield
        except OSError as error:
            raise UsageError(self._unwritable(error)) from error
        finally:
            for folder in made:
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def _unwritable(self, error: OSError) -> str:
        cure = "give a folder you can write"
        if self.checkpoint.exists():
            cure = "make room or leave to write; the same command with --resume then goes on"
        return f"--out {self.out}: cannot write there ({reason(error)}); {cure}."

    def run(self, signal: Any) -> int:
        import jax

        with jax.enable_x64(True):
            return self._run(signal)

    def _run(self, signal: Any) -> int:
        import jax.random as jr

        import jaxdyn as jd

        began, task = time.time(), self.task(signal)
        if self.checkpoint.exists() and not self.resume:
            cure = f"holds an unfinished fit; add --resume to go on with it, or delete {CHECKPOINT}"
            refuse("out", self.out, cure)
        if self.resume and not self.checkpoint.exists() and self.finished(task):
            print(f"{self.out} holds this fit, finished; without --resume it is done again.")
            return 0
        holdout = self.holdout
        if holdout is None:
            holdout = SUNSPOTS_HELD_OUT if self.bundled else 0.2
        try:
            fit = jd.fit(
                signal,
                units=self.units,
                restarts=self.restarts,
                key=jr.key(self.seed),
                steps=self.steps,
                polish=self.polish,
                holdout=_part(holdout),
                validation=_part(self.validation),
                shell=self.shell,
                progress=sys.stderr.isatty(),
                checkpoint=self.checkpoint,
                resume=self.resume,
            )
        except (ValueError, TypeError) as error:
            raise UsageError(self._refused(error)) from error
        except RuntimeError as error:
            if "diverged" not in str(error):
                raise
            # All rounds were done: there is nothing to resume.
            self.checkpoint.unlink(missing_ok=True)
            print(f"jaxdyn fit: {' '.join(str(error).split())}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            if self.checkpoint.exists():
                raise KeyboardInterrupt("the same command with --resume goes on") from None
            raise
        self.write(fit, task, began)
        self.print(fit)
        return 0

    def _refused(self, error: Exception) -> str:
        told = str(error)
        if not told.startswith("`checkpoint` "):
            return in_options(error, self.options)
        told = told.removeprefix("`checkpoint` ").removeprefix(f"{self.checkpoint} ")
        what = re.split(r"[;:.] ", told)[0]
        return (
            f"--resume: {self.checkpoint} {what}; repeat the command that it came from, give "
            "another --out, or delete it to start afresh."
        )

    def task(self, signal: Any) -> str:
        """A digest of all that the result depends on, kept in metrics.json."""
        import jax

        from .. import __version__
        from .._fingerprint import fingerprint

        options = [
            getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("signal", "out", "resume", "cache")
        ]
        names = signal.name, signal.channels, signal.time_unit
        arrays = signal.values, signal.ts, signal.mask
        return fingerprint(arrays, names, options, (__version__, jax.__version__))

    def finished(self, task: str) -> bool:
        """Whether the results of this fit are there, all of them: metrics.json is the last."""
        try:
            metrics = json.loads((self.out / "metrics.json").read_text("utf-8"))
            same = metrics["fit"] == task
        except (OSError, ValueError, LookupError, TypeError):
            return False
        return same and all((self.out / name).is_file() for name in RESULTS)

    def write(self, fit: Any, task: str, began: float) -> None:
        """All results, none before all of them are on disk; then the checkpoint is not needed."""
        from .._train.report import figures
        from .._train.result import metrics_json

        files = {
            "metrics.json": metrics_json({**fit.metrics, "fit": task}).encode(),
            "history.csv": fit.history.to_csv().encode(),
            **figures(fit),
        }
        with contextlib.ExitStack() as stack:
            # They take their places in reverse order.
            for name, content in files.items():
                file = stack.enter_context(replacing(self.out / name))
                file.write(content)
                file.flush()
            fit.save(self.out / "model.eqx")
        self.checkpoint.unlink(missing_ok=True)
        # What killed runs of this fit were writing, and nothing that is being written now.
        for left in self.out.glob(".jaxdyn-*"):
            with contextlib.suppress(OSError):
                if left.stat().st_mtime < began:
                    left.unlink()

    def print(self, fit: Any) -> None:
        metrics, signal = fit.metrics, fit.signal
        rows = [
            ("signal", f"{signal.name}: {', '.join(signal.channels)}"),
            ("samples", f"{fit.fitted.n_samples} fitted{self._step(signal)}"),
            ("network", f"{metrics['units']} units, {metrics['parameters']} parameters"),
            (
                "mean squared error",
                f"{metrics['mse']:.3e} (best of {metrics['restarts']}), "
                f"{_number(metrics['mse_median'])} (median)",
            ),
        ]
        if metrics["forecast_samples"]:
            rows[1] = ("samples", f"{rows[1][1]}, {metrics['forecast_samples']} held out")
            rows.append(("forecast RMSE", _number(metrics["forecast_rmse"])))
            rows += [
                (f"  {name.replace('_', ' ')}", _number(value))
                for name, value in metrics["naive_rmse"].items()
            ]
        unit = "time unit" if signal.time_unit == "model time" else signal.time_unit
        frequencies = metrics["frequencies"]
        for i, w in enumerate(frequencies[:MOST_FREQUENCIES]):
            name = f"frequencies (rad/{unit})" if i == 0 else ""
            rows.append((name, f"{w:.6g} (period {2 * math.pi / w:.6g})"))
        if len(frequencies) > MOST_FREQUENCIES:
            rows.append(("", f"and {len(frequencies) - MOST_FREQUENCIES} weaker ones"))
        rows += [
            ("energy", f"{metrics['energy']:.4g}"),
            ("seconds", f"{metrics['seconds']:.1f}"),
        ]
        print_table(rows)
        print(f"wrote {self.out}: {', '.join(RESULTS)}")

    def _step(self, signal: Any) -> str:
        missing = int((~signal.mask).sum())
        step = "" if signal.dt is None else f" every {signal.dt:.6g}"
        return step + (f", {missing} missing" if missing else "")


def _column(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _part(value: float) -> float | int:
    """A fraction, or a number of samples."""
    return value if 0 < value < 1 else int(value)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3e}"

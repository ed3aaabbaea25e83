"""What a fit returns, and how good its forecast is."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .._cell import PoissonCell
from .forecasters import autoregression, last_value, season, seasonal
from .oscillator import Oscillator
from .signals import Signal


@dataclasses.dataclass(frozen=True, eq=False)
class History:
    """How a fit went: one row for each round of every stage.

    `stage` (rounds,), "descent", "polish" or "refit"; `iteration` (rounds,), steps of the stage
    so far; `loss` and `score` (rounds, restarts), NaN for restarts that were not in the stage.
    Both refer to the standardised signal: `loss` is what was made smaller, `score` the loss of the
    validation part, by which restarts are chosen.
    """

    stage: tuple[str, ...]
    iteration: np.ndarray
    loss: np.ndarray
    score: np.ndarray

    def to_csv(self) -> str:
        """A table with the best and the median restart of each round."""
        rows = ["stage,iteration,restarts,loss_best,loss_median,score_best,score_median"]
        for stage, iteration, loss, score in zip(
            self.stage, self.iteration, self.loss, self.score, strict=True
        ):
            there = ~np.isnan(loss)
            values = [f"{f(v[there]):.9e}" for v in (loss, score) for f in (np.min, np.median)]
            rows.append(",".join([stage, str(iteration), str(there.sum()), *values]))
        return "\n".join(rows) + "\n"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The chosen oscillator in float64, and how it was found."""

    model: Oscillator
    losses: np.ndarray
    best: int
    history: History
    parameters: int


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """A fitted oscillator and how it came about.

    - `oscillator`: the best one, a [`jaxdyn.Oscillator`][].
    - `loss`: its mean squared error over the fitted window, in squared units of the signal.
    - `losses`: (restarts,), that of every restart over the part it was trained on, before the best
        one was refitted; infinite where a restart diverged.
    - `best`: which restart was chosen.
    - `history`: a `History`.
    - `metrics`: a dictionary that JSON can hold; see `jaxdyn.fit`.
    - `signal`, `fitted`: the whole signal, and the part before the held-out tail.
    """

    oscillator: Oscillator
    loss: float
    losses: np.ndarray
    best: int
    history: History
    metrics: dict[str, Any]
    signal: Signal
    fitted: Signal

    @property
    def held_out(self) -> Signal | None:
        """The tail that was not fitted, or None."""
        count = self.signal.n_samples - self.fitted.n_samples
        return self.signal.window(self.fitted.n_samples, self.signal.n_samples) if count else None

    def save(self, path: str | Path) -> None:
        """Writes the oscillator to one file, which `jaxdyn.Oscillator.load` reads."""
        self.oscillator.save(path)

    def __repr__(self) -> str:
        return (
            f"Fit({self.signal.name!r}, {self.oscillator.size} units, loss {self.loss:.3g}, best "
            f"of {len(self.losses)} restarts)"
        )


def metrics_of(outcome: Outcome, fitted: Signal, held_out: Signal | None) -> dict[str, Any]:
    """The figures of merit, all in units of the signal."""
    oscillator, losses = outcome.model, outcome.losses
    found = np.asarray(oscillator(fitted.ts), np.float64)
    mse = float(np.mean((found - fitted.values)[fitted.mask] ** 2))
    ahead: dict[str, Any] = dict.fromkeys(("forecast_rmse", "forecast_samples"))
    naive: dict[str, float | None] = dict.fromkeys(("last_value", "seasonal", "autoregression"))
    if held_out is not None:
        measured = held_out.mask

        def rmse(forecast: Callable[[], np.ndarray]) -> float | None:
            """None where a forecaster cannot serve the samples that are there, or overflows."""
            try:
                error = float(np.sqrt(np.mean((forecast() - held_out.values)[measured] ** 2)))
            except ValueError:
                return None
            return error if np.isfinite(error) else None

        ahead["forecast_rmse"] = rmse(lambda: np.asarray(oscillator(held_out.ts), np.float64))
        ahead["forecast_samples"] = held_out.n_samples
        n, past = held_out.n_samples, (fitted.values.astype(np.float64), fitted.mask)
        naive["last_value"] = rmse(lambda: last_value(past[0], n, mask=past[1]))
        # The other two count in samples, which irregular times do not.
        if _uniform(fitted, held_out):
            naive["seasonal"] = rmse(
                lambda: seasonal(past[0], n, season(past[0], mask=past[1]), mask=past[1])
            )
            naive["autoregression"] = rmse(lambda: autoregression(past[0], n, mask=past[1]))
    median = float(np.median(losses))
    cell, shell = oscillator.cell, {}
    if isinstance(cell, PoissonCell) and cell.regulator is not None:
        shell = {
            "shell_energy": float(cell.regulator.energy),
            "shell_rate": float(cell.regulator.rate),
            "multiplier": oscillator.multiplier(),
        }
    return {
        "mse": mse,
        "mse_median": median if np.isfinite(median) else None,
        **ahead,
        "naive_rmse": naive,
        "frequencies": oscillator.frequencies().tolist(),
        "energy": float(oscillator.energy()),
        **shell,
        "units": oscillator.size,
        "parameters": outcome.parameters,
        "restarts": len(losses),
        "best_restart": outcome.best,
        "samples": fitted.n_samples,
    }


def _uniform(fitted: Signal, held_out: Signal) -> bool:
    step = fitted.dt
    if step is None:
        return False
    steps = np.diff(np.concatenate([fitted.ts[-1:], held_out.ts]))
    return bool(np.all(np.abs(steps - step) <= 1e-6 * step))


def metrics_json(metrics: dict[str, Any]) -> str:
    return json.dumps(metrics, indent=2, allow_nan=False) + "\n"

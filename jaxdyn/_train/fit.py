"""From a measured signal to a network that reproduces it and runs on."""

import time
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import Array

from .._solver import AbstractCellSolver
from .checks import checked_request
from .initialisers import AbstractInitialiser
from .job import Job
from .losses import AbstractLoss
from .oscillator import default_precision
from .result import Fit, metrics_of
from .stages import Callback


def fit(
    signal: Any,
    *,
    dt: float | int | None = None,
    ts: Any = None,
    mask: Any = None,
    units: int = 16,
    restarts: int = 16,
    key: Array,
    init: AbstractInitialiser | None = None,
    loss: AbstractLoss | None = None,
    weights: Any = None,
    shell: float | int | None = None,
    steps: int | None = None,
    optimiser: Any = None,
    horizon: float | int = 1.0,
    polish: int | None = None,
    holdout: float | int = 0.2,
    validation: float | int = 0.2,
    patience: int = 2,
    tolerance: float | int = 1e-10,
    project: bool = True,
    ridge: float = 1e-12,
    solver: AbstractCellSolver | None = None,
    progress: bool = False,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    mesh: Mesh | None = None,
) -> Fit:
    r"""Fits a skew-symmetric network that reproduces a signal and runs on without end.

    The model is x' = W s(x), y = C x + d, with x(t_0), W, C and d free. Restarts start from
    `init` and run side by side in one program. The readout is not trained but solved for, a ridge
    regression at every step, which training differentiates through (variable projection, Golub and
    Pereyra 1973). First come `steps` steps of `optimiser`, then up to `polish` steps of
    Levenberg-Marquardt for the best restarts; by default only the latter where the model is small
    enough for it, and only the former where it is not. The restart with the least error on the
    validation part wins. Its readout is then fitted to both parts; where there was no descent, the
    same number of steps from a start on both is tried too, and whichever comes closer is taken.
    Everything is computed in float64; the oscillator has JAX's default precision.

    **Arguments:**

    - `signal`: samples (t,) or (t, m) with `dt` or `ts` and perhaps `mask`, as for
      [`jaxdyn.signals.Signal`][]`.of`, or such a `Signal`.
    - `units`: n, the size of the network, at least 2 and at least m.
    - `restarts`: how many starts to try.
    - `key`: a JAX random key. The same key gives the same result, bit for bit on one machine.
    - `init`: where to start, from `jaxdyn.initialisers`; default `FrequenciesFirst()`.
    - `loss`: what to make small, from `jaxdyn.losses`; default `Trajectory()`. Restarts are chosen
      by the same loss of the validation part; by its mean squared error where the loss is one of
      several horizons or segments.
    - `weights`: how much each sample counts, (t,) or (t, m), >= 0; default 1.
    - `shell`: the rate of an [`jaxdyn.EnergyShell`][] to start with, at the energy of the start;
      its energy and its rate are then trained too. Default: none, energy is conserved.
    - `steps`, `optimiser`: of gradient descent, any of optax's with any schedule; default Adam
      with a cosine schedule from 0.003.
    - `horizon`: the fraction of the window that descent sees at first, in (0, 1]; it grows to all
      of it over the first half of `steps`.
    - `polish`: the most steps of Levenberg-Marquardt, in rounds of 5; 0 for none.
    - `holdout`: the tail that is never fitted, on which the forecast is measured: a fraction of
      the samples in [0, 1), or their number.
    - `validation`: of what remains, the tail by which restarts are chosen and stopped early.
    - `patience`: a stage ends when no restart has improved by 1 % within so many rounds (of 5 steps
      of polishing, 50 of descent).
    - `tolerance`: a stage ends when a restart has this loss on the validation part, which for
      `Trajectory` is the mean squared error as a fraction of the signal's variance.
    - `project`: solve for the readout, by least squares whatever the loss; else it is trained with
      the rest, as it always is with `losses.Huber`.
    - `ridge`: the regularisation of that regression, relative to the mean square of the states.
    - `solver`: one of ours, for training; default Taylor of order 8, at .3 / |W|_2 or less.
    - `progress`: show a bar with the best score so far and its restart.
    - `callback`: called with a `Progress` after every round; returns True to end the stage.
    - `checkpoint`, `resume`: a file that is replaced after every round, and whether to go on from
      the one that is there. A resumed fit ends with the very numbers of an undisturbed one.
    - `mesh`: a `jax.sharding.Mesh` of this process's devices, to which the restarts are dealt out;
      each compiles for itself. On CPUs the result does not depend on how many devices there are, to
      the last bit. Default: one program on one device.

    **Returns:** a [`jaxdyn.Fit`][]: `.oscillator`, `.loss`, `.losses`, `.history`, `.metrics`.
    `.metrics` has `mse`, `mse_median`; `forecast_rmse` on the tail, against `naive_rmse` of three
    forecasters (last value, seasonal, autoregression), None for one that cannot serve the samples;
    `frequencies`, `energy`, `parameters`, `seconds`; with `shell` also `shell_energy`, `shell_rate`
    and the `multiplier` of the cycle.

    **Raises:** ValueError or TypeError that names the argument, before anything is computed: a
    signal that is constant, not finite, or shorter than two periods of its fastest tone, more
    channels than units, and the like; RuntimeError when every restart diverges.
    """
    given = dict(locals())
    began = time.perf_counter()
    with jax.enable_x64(True):
        request = checked_request(given)
        job = Job(request)
        outcome = job.run()
        fitted = request.signal.window(0, request.fitted)
        tail = request.signal.n_samples - request.fitted
        held_out = request.signal.window(request.fitted, request.signal.n_samples) if tail else None
        metrics = metrics_of(outcome, fitted, held_out)
    metrics["seconds"] = time.perf_counter() - began
    return Fit(
        oscillator=default_precision(outcome.model),
        loss=metrics["mse"],
        losses=outcome.losses,
        best=outcome.best,
        history=outcome.history,
        metrics=metrics,
        signal=request.signal,
        fitted=fitted,
    )

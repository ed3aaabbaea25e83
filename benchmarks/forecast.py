"""Fitting a signal and letting it run on: jaxdyn, networks and naive forecasters, one budget."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import jaxdyn as jd
from jaxdyn import plot
from jaxdyn._train import forecasters

from .forecast_training import Forecast
from .peers import in_equinox, in_linax, present
from .report import Report, Table, Target

X64 = True
SAMPLES, HORIZONS = 400, (1, 10, 100)
BUDGET, QUICK_BUDGET = 20.0, 2.0
UNITS = 16
FULL: dict[str, int] = {"restarts": 16}
SHORT: dict[str, int] = {"restarts": 2, "steps": 100, "polish": 0}
LAST_YEAR = 1979
YEARS = LAST_YEAR - 1700 + 1
OURS, AR = "jaxdyn", "autoregression"
TONES, NOISY, CYCLE = "three tones", "three tones, 10 dB noise", "van der Pol"
TEACHER, SUNSPOTS = "nonlinear teacher", "sunspots"
QUICK = (NOISY, SUNSPOTS)
# One colour and marker for each method, in all panels.
STYLES: dict[str, dict[str, Any]] = {
    OURS: {"color": plot.BLUE, "marker": "o", "lw": 2.2, "zorder": 5},
    "neural ODE": {"color": plot.VERMILLION, "marker": "s"},
    "GRU": {"color": plot.GREEN, "marker": "^"},
    "LSTM": {"color": plot.PURPLE, "marker": "v"},
    "LinOSS": {"color": plot.ORANGE, "marker": "D"},
    AR: {"color": plot.BLACK, "marker": "x"},
    "seasonal": {"color": plot.GREY, "ls": "--"},
    "last value": {"color": plot.GREY, "ls": ":"},
}


class Case(NamedTuple):
    """A window of samples (t, m) `dt` apart; the truth in it and after it; how far it is known."""

    values: np.ndarray
    truth: np.ndarray
    dt: float
    horizons: dict[str, int]

    @property
    def ahead(self) -> np.ndarray:
        return self.truth[len(self.values) :]


def run(quick: bool = False) -> Report:
    seconds = QUICK_BUDGET if quick else BUDGET
    how = ", ".join(f"{name}={value}" for name, value in (SHORT if quick else FULL).items())
    report = Report(
        "forecast",
        f"Each method sees a window of {SAMPLES} samples (sunspots: the years 1700 to {LAST_YEAR}) "
        "and runs on by itself. Errors: root mean square over the samples and channels of the "
        "window (`fit`), and of the stretch after it as long as 1, 10 and 100 windows (sunspots: "
        f"the years {LAST_YEAR + 1} to 2008), over the standard deviation of the signal in the "
        "window; the mean of the signal would have 1. Noise is left out of the truth. fit is: free "
        "run, from a fitted initial state; one step, each sample forecast from the measured ones "
        f"before it. {OURS}: jd.fit with units={UNITS}, holdout=0, {how}, all else as it comes, in "
        "float64; it takes no budget: seconds are all it took, compile s XLA's part (clean tones "
        "need no training: they end where the restarts start). Neural ODE (diffrax, MLP), GRU and "
        "LSTM (equinox), LinOSS (linax): float32, "
        f"{seconds:g} s each after compilation, as forecast_training.py describes. {AR}: order by "
        "Akaike's criterion. seasonal: the period where the autocorrelation is largest.",
        size=(8.0, 5.6),
    )
    methods, report.skipped = available()
    curves: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    errors: dict[tuple[str, str], dict[str, float]] = {}
    for number, (name, make) in enumerate(CASES.items()):
        if quick and name not in QUICK:
            continue
        case, curves[name], rows = make(), {}, []
        for method, function in methods.items():
            n_ahead, key = len(case.ahead), jr.fold_in(jr.key(0), number)
            found = function(case.values, case.dt, n_ahead, seconds=seconds, key=key)
            errors[name, method] = measured = measure(case, found)
            curves[name][method] = curve(case, found)
            kind = None if not len(found.fitted) else "free run" if found.free else "one step"
            cells = [found.seconds, found.compile_seconds, found.parameters]
            rows.append(
                [method, measured.get("fit"), kind, *map(measured.get, case.horizons), *cells]
            )
        columns = ["method", "fit", "fit is", *case.horizons, "seconds", "compile s", "parameters"]
        report.tables.append(Table(name, columns, rows))
    report.targets = targets(errors, curves)
    report.draw = lambda figure: draw(figure, curves)
    return report


def available() -> tuple[dict[str, Callable[..., Forecast]], list[str]]:
    """The methods that can run, in the order of the tables, and why others cannot."""
    able, skipped = present(in_equinox, in_linax)
    methods: dict[str, Callable[..., Forecast]] = {}
    if hasattr(jd, "fit"):
        methods[OURS] = ours
    else:
        skipped.append(f"{OURS} (this version has no jd.fit)")
    if in_equinox in able:
        methods |= {"neural ODE": in_equinox.neural_ode}
        methods |= {"GRU": in_equinox.gru, "LSTM": in_equinox.lstm}
    if in_linax in able:
        methods["LinOSS"] = in_linax.linoss
    return methods | {AR: autoregression, "seasonal": seasonal, "last value": last_value}, skipped


def ours(values: np.ndarray, dt: float, n_ahead: int, *, seconds: float, key: Any) -> Forecast:
    """jd.fit has no budget: it takes what it takes, and in a quick run does less."""
    how = FULL if seconds == BUDGET else SHORT
    start, compiled = time.perf_counter(), compile_seconds()
    fit = jd.fit(values, dt=dt, units=UNITS, key=key, holdout=0, **how)
    spent, compiled = time.perf_counter() - start, compile_seconds() - compiled
    out = np.asarray(fit.oscillator(dt * np.arange(len(values) + n_ahead)))
    leaves = jax.tree.leaves(eqx.filter(fit.oscillator, eqx.is_inexact_array))
    count = sum(leaf.size for leaf in leaves)
    return Forecast(out[: len(values)], out[len(values) :], count, spent, compiled, free=True)


_COMPILED: list[float] = []


def compile_seconds() -> float:
    """Seconds that XLA has spent compiling since this was first called."""
    if not _COMPILED:
        _COMPILED.append(0.0)

        def listen(event: str, seconds: float, **kwargs) -> None:
            if event.endswith("backend_compile_duration"):
                _COMPILED.append(seconds)

        jax.monitoring.register_event_duration_secs_listener(listen)
    return sum(_COMPILED)


def autoregression(values: np.ndarray, dt: float, n_ahead: int, **unused) -> Forecast:
    start = time.perf_counter()
    model = forecasters.fit_autoregression(values)
    spent = time.perf_counter() - start
    fitted = model.fitted(values)[model.order :]
    ahead = model.forecast(values, n_ahead)
    return Forecast(fitted, ahead, model.parameters, spent, None, free=False)


def seasonal(values: np.ndarray, dt: float, n_ahead: int, **unused) -> Forecast:
    start = time.perf_counter()
    ahead = forecasters.seasonal(values, n_ahead, forecasters.season(values))
    return _naive(values, ahead, time.perf_counter() - start)


def last_value(values: np.ndarray, dt: float, n_ahead: int, **unused) -> Forecast:
    start = time.perf_counter()
    ahead = forecasters.last_value(values, n_ahead)
    return _naive(values, ahead, time.perf_counter() - start)


def _naive(values: np.ndarray, ahead: np.ndarray, spent: float) -> Forecast:
    return Forecast(values[:0], ahead, 0, spent, None, free=False)


def tones() -> Case:
    return _generated(_tones(_total()))


def noisy_tones() -> Case:
    noisy = _tones(SAMPLES).with_noise(10, key=jr.key(1))
    return _generated(_tones(_total()), np.asarray(noisy.values))


def _tones(n_samples: int) -> Any:
    return jd.signals.tones([1.0, 2.3, 3.7], channels=2, n_samples=n_samples, dt=0.05)


def van_der_pol() -> Case:
    return _generated(jd.signals.van_der_pol(1.0, n_samples=_total(), dt=0.1))


def teacher() -> Case:
    """Four units at H = 0.5, regular, through two channels."""
    dt, keys = 0.1, jr.split(jr.key(4), 3)
    cell = jd.PoissonCell(jd.DenseSkew.random(4, key=keys[0]), jd.Tanh())
    x0 = jr.normal(keys[1], (4,))
    low, high = 0.0, 10.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if cell.energy(middle * x0) < 0.5 else (low, middle)
    ts = dt * np.arange(_total())
    saveat = diffrax.SaveAt(ts=jnp.asarray(ts))
    sol = jd.simulate(cell, low * x0, t1=float(ts[-1]), dt=dt, solver=jd.Taylor(16), saveat=saveat)
    values = np.asarray(sol.ys @ jr.normal(keys[2], (4, 2)))
    return _generated(jd.signals.Signal.of(values, dt=dt))


def sunspots() -> Case:
    """Numbers of every year, 1700 to 2008."""
    values = np.asarray(jd.signals.sunspots().values)
    after = len(values) - YEARS
    return Case(values[:YEARS], values, 1.0, {f"{after} years": after})


CASES: dict[str, Callable[[], Case]] = {
    TONES: tones,
    NOISY: noisy_tones,
    CYCLE: van_der_pol,
    TEACHER: teacher,
    SUNSPOTS: sunspots,
}


def _total() -> int:
    return SAMPLES * (1 + max(HORIZONS))


def _generated(signal: Any, values: np.ndarray | None = None) -> Case:
    truth = np.asarray(signal.values)
    values = truth[:SAMPLES] if values is None else values
    return Case(values, truth, float(signal.dt), {f"{h}x": h * SAMPLES for h in HORIZONS})


def measure(case: Case, found: Forecast) -> dict[str, float]:
    """Relative errors in the window and up to each horizon."""
    window = len(case.values)
    running = _running(found.ahead, case.ahead) / _scale(case)
    out = {name: float(running[n - 1]) for name, n in case.horizons.items()}
    if len(found.fitted):
        truth = case.truth[window - len(found.fitted) : window]
        out["fit"] = float(_running(found.fitted, truth)[-1] / _scale(case))
    return out


def curve(case: Case, found: Forecast) -> tuple[np.ndarray, np.ndarray]:
    """Horizons in windows, and the relative error of the stretch up to each of them."""
    running = _running(found.ahead, case.ahead) / _scale(case)
    n = np.arange(1, len(running) + 1)
    if len(n) > 100:
        n = np.unique(np.geomspace(len(case.values) // 50, len(n), 40).astype(int))
    return n / len(case.values), running[n - 1]


def _running(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The root mean square error of the first 1, 2, ... samples; infinite from a NaN on."""
    squares = np.mean((found - truth) ** 2, axis=1)
    squares = np.where(np.isnan(squares), np.inf, squares)
    return np.sqrt(np.cumsum(squares) / np.arange(1, len(squares) + 1))


def _scale(case: Case) -> float:
    window = case.truth[: len(case.values)]
    return float(np.sqrt(np.mean(np.var(window, axis=0))))


def targets(errors: dict, curves: dict) -> list[Target]:
    """What was not measured is NaN, which reaches nothing."""
    nothing: dict[str, float] = {}

    def of(case: str, horizon: str, method: str = OURS) -> float:
        return errors.get((case, method), nothing).get(horizon, float("nan"))

    out = []
    if TONES in curves:
        # A mean square of 1e-3 of tones whose variance is 3 / 2.
        out.append(Target(f"{TONES}: error to 100x", of(TONES, "100x"), (1e-3 / 1.5) ** 0.5))
    if CYCLE in curves:
        out.append(Target(f"{CYCLE}: error in the window", of(CYCLE, "fit"), 0.01))
    for case in (NOISY, TEACHER):
        if case in curves:
            others = [of(case, "10x", method) for method in curves[case] if method != OURS]
            ratio = of(case, "10x") / min(others)
            out.append(Target(f"{case}: error to 10x / best other", ratio, 1.0))
    if SUNSPOTS in curves:
        years = next(name for name in errors[SUNSPOTS, AR] if name != "fit")
        ratio = of(SUNSPOTS, years) / of(SUNSPOTS, years, AR)
        out.append(Target(f"{SUNSPOTS}: error / {AR}'s", ratio, 1.0))
    return out


def draw(figure: Any, curves: dict) -> None:
    rows, columns = (2, 3) if len(curves) > 3 else (1, 3)
    panels = list(figure.subplots(rows, columns).flat)
    for ax, (name, methods) in zip(panels, curves.items(), strict=False):
        for method, (windows, error) in methods.items():
            shown = np.minimum(error, 1e9)
            x = windows * YEARS if name == SUNSPOTS else windows
            style = {"lw": 1.3, "markersize": 3.5, "markevery": (4, 8)} | STYLES[method]
            ax.loglog(x, shown, label=method, **style)
        smallest = min(float(np.min(error)) for _, error in methods.values())
        # Errors beyond ten standard deviations say no more.
        ax.set_ylim(max(1e-14, 0.5 * smallest), 12.0)
        ax.axhline(1.0, color=plot.GREY, lw=0.6)
        ax.set_title(name)
        ax.set_xlabel("forecast length (windows)")
        if name == SUNSPOTS:
            ax.set_xscale("linear")
            ax.set_xlabel("forecast length (years)")
    panels[0].set_ylabel("relative RMS error")
    if rows == 2:
        panels[columns].set_ylabel("relative RMS error")
    handles = panels[0].get_legend_handles_labels()
    for ax in panels[len(curves) :]:
        ax.axis("off")
    panels[len(curves)].legend(*handles, loc="center")

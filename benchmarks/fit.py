"""How well `jaxdyn.fit` reproduces signals and runs on: every number is an error, not a time.

Each case is one call of `fit` in this process, compilation included in its seconds.
"""

import itertools
from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np

import jaxdyn as jd
from jaxdyn import plot

from .report import Report, Table, Target

X64 = True
TONES = (1.0, 2.3, 3.7)
VAN_DER_POL_PERIOD = 6.663286859323
KEY = 2


def run(quick: bool = False) -> Report:
    report = Report(
        "fit",
        "`jaxdyn.fit` with its defaults but for what a row says: 16 restarts, float64, compilation "
        "included in the seconds. Errors of forecasts are root mean squares relative to the "
        "standard deviation of the true signal, which is noise-free.",
        size=(8.0, 6.0),
    )
    rows: list[list[Any]] = []
    curves: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    cases = (three_tones, nonlinear_tones, two_units, four_units, van_der_pol, noisy, sunspots)
    for case in cases[:2] if quick else cases:
        case(report, rows, curves)
    kicked(report)
    columns = ["case", "units", "parameters", "samples", "mse, best", "mse, median", "seconds"]
    report.tables.insert(0, Table("Fits", columns, rows))
    report.draw = lambda figure: draw(figure, curves)
    return report


def three_tones(report: Report, rows: list, curves: dict) -> None:
    signal = jd.signals.tones(TONES, channels=2, n_samples=400, dt=0.05)
    fit = jd.fit(signal, key=jr.key(KEY), holdout=0, validation=0)
    _row(rows, "three tones", fit)
    long = jd.signals.tones(TONES, channels=2, n_samples=40_000, dt=0.05)
    ahead = np.asarray(fit.oscillator(long.ts))
    energies = np.asarray(fit.oscillator.energy(long.ts))
    found = fit.oscillator.frequencies(3)
    wrong = max(min(abs(w - f) for f in found) for w in TONES)
    curves["three tones"] = _curve(ahead, long.values, fit)
    report.targets += [
        Target("three tones: best mean squared error", fit.loss, 1e-8),
        Target("three tones: median of the restarts", fit.metrics["mse_median"], 1e-5),
        Target("three tones: seconds", fit.metrics["seconds"], 20.0),
        Target("three tones: mse to 100 windows", float(np.mean((ahead - long.values) ** 2)), 1e-3),
        Target(
            "three tones: energy, max / min to 100 windows", np.ptp(energies) / energies[0], 1e-9
        ),
        Target("three tones: error of the frequencies", wrong, 1e-5),
    ]


def nonlinear_tones(report: Report, rows: list, curves: dict) -> None:
    signal = jd.signals.tones(TONES, channels=2, n_samples=400, dt=0.05)
    init = jd.initialisers.FrequenciesFirst(energy=(0.2, 1.0))
    fit = jd.fit(signal, key=jr.key(KEY), holdout=0, init=init)
    _row(rows, "three tones, nonlinear", fit)
    size = float(np.sqrt(np.mean(np.asarray(fit.oscillator.states(signal.ts)) ** 2)))
    long = jd.signals.tones(TONES, channels=2, n_samples=40_000, dt=0.05)
    ahead = np.asarray(fit.oscillator(long.ts))
    curves["three tones, nonlinear"] = _curve(ahead, long.values, fit)
    report.targets += [
        Target("three tones, nonlinear: rms of the states", size, 0.3, at_least=True),
        Target("three tones, nonlinear: best mean squared error", fit.loss, 1e-6),
        Target(
            "three tones, nonlinear: mse to 100 windows",
            float(np.mean((ahead - long.values) ** 2)),
            1e-3,
        ),
    ]


def two_units(report: Report, rows: list, curves: dict) -> None:
    frequency = 1.7
    W = jnp.array([[0.0, frequency], [-frequency, 0.0]])
    cell = jd.PoissonCell(jd.DenseSkew.from_matrix(W), jd.Tanh())
    teacher = jd.Oscillator(
        jd.orbit(0.4, 2.0, frequency), cell, jd.Readout(jnp.array([[1.0, 0.4]]))
    )
    dt = 3 * float(jd.period(2.0, frequency)) / 200
    fit = _taught(report, rows, curves, "two units, H = 2", teacher, dt, 200, 100)
    student = fit.oscillator
    # The student's energy stands for the teacher's: the networks are the same up to a rotation by
    # a quarter turn, so the same energies have the same periods.
    worst = 0.0
    for energy in (0.25, 0.5, 1.0, 3.0, 4.0):
        own = 2 * np.pi / student.at_energy(energy).frequencies(1)[0]
        worst = max(worst, abs(own / float(jd.period(energy, frequency)) - 1))
    report.targets.append(Target("two units: error of the period at other energies", worst, 0.02))


def four_units(report: Report, rows: list, curves: dict) -> None:
    key_w, key_x, key_c = jr.split(jr.key(4), 3)
    cell = jd.PoissonCell(jd.DenseSkew.random(4, key=key_w, scale=1.7), jd.Tanh())
    readout = jd.Readout(jr.normal(key_c, (2, 4)))
    teacher = jd.Oscillator(jr.normal(key_x, (4,)), cell, readout).at_energy(0.5)
    _taught(report, rows, curves, "four units, H = .5", teacher, 0.074, 400, 20)


def van_der_pol(report: Report, rows: list, curves: dict) -> None:
    period, samples = VAN_DER_POL_PERIOD, 400
    dt = 6 * period / samples
    signal = jd.signals.van_der_pol(1.0, n_samples=samples, dt=dt)
    fit = jd.fit(signal, key=jr.key(KEY), holdout=0)
    _row(rows, "van der Pol, mu = 1", fit)
    long = jd.signals.van_der_pol(1.0, n_samples=10 * samples, dt=dt)
    ahead = np.asarray(fit.oscillator(long.ts))
    curves["van der Pol"] = _curve(ahead, long.values, fit)
    # The phase of the fundamental over one period after 50 of them.
    ts = 50 * period + period / 256 * np.arange(256)
    true = jd.signals.van_der_pol(1.0, ts=np.concatenate([[0.0], ts])).values[1:, 0]
    turn = np.exp(-2j * np.pi * ts / period)
    angle = np.angle((np.asarray(fit.oscillator(ts))[:, 0] @ turn) / (true @ turn))
    report.targets += [
        Target(
            "van der Pol: relative RMSE in the window",
            float(np.sqrt(fit.loss / signal.values.var())),
            0.01,
        ),
        Target("van der Pol: phase error after 50 periods", abs(angle) / (2 * np.pi), 0.02),
    ]


def noisy(report: Report, rows: list, curves: dict) -> None:
    """The comparison with the peers is `python -m benchmarks forecast`."""
    signal = jd.signals.tones(TONES, channels=2, n_samples=400, dt=0.05)
    long = jd.signals.tones(TONES, channels=2, n_samples=4400, dt=0.05)
    table = Table(
        "Three tones in 10 dB of noise", ["seed", "in the window", "1x", "10x", "seconds"], []
    )
    for seed in range(3):
        fit = jd.fit(signal.with_noise(10, key=jr.key(seed)), key=jr.key(KEY), holdout=0)
        ahead = np.asarray(fit.oscillator(long.ts))
        errors = [
            _relative(ahead[s], long.values[s]) for s in (np.s_[:400], np.s_[400:800], np.s_[400:])
        ]
        table.rows.append([seed, *errors, fit.metrics["seconds"]])
        if seed == 0:
            _row(rows, "three tones, 10 dB of noise", fit)
            curves["three tones, 10 dB"] = _curve(ahead, long.values, fit)
    report.tables.append(table)
    worst = max(row[3] for row in table.rows)
    report.targets.append(Target("10 dB of noise: error to 10 windows, worst of three", worst, 1.0))


def sunspots(report: Report, rows: list, curves: dict) -> None:
    signal = jd.signals.sunspots()
    fit = jd.fit(signal, key=jr.key(KEY), holdout=29)
    _row(rows, "sunspots 1700-1979", fit)
    naive = fit.metrics["naive_rmse"]
    found = [["jaxdyn", fit.metrics["forecast_rmse"]], *([k, v] for k, v in naive.items())]
    report.tables.append(Table("Sunspots 1980-2008", ["forecaster", "RMSE"], found))
    ratio = fit.metrics["forecast_rmse"] / naive["autoregression"]
    report.targets.append(Target("sunspots: RMSE / that of the autoregression", ratio, 1.0))


def kicked(report: Report) -> None:
    """A limit cycle is fitted from its transient, kicked, and watched on its way back."""
    cell = jd.PoissonCell(
        jd.DenseSkew.from_matrix(jnp.array([[0.0, 1.3], [-1.3, 0.0]])),
        jd.Tanh(),
        regulator=jd.EnergyShell(1.5, 0.1),
    )
    teacher = jd.Oscillator(jnp.array([0.6, 0.2]), cell, jd.Readout(jnp.array([[1.0, 0.4]])))
    dt = 0.12
    values = np.asarray(teacher(dt * np.arange(250)))
    fit = jd.fit(values, dt=dt, units=2, shell=0.05, holdout=0, validation=0, key=jr.key(KEY))
    shell = fit.oscillator.cell.regulator
    on = fit.oscillator.at_energy(float(shell.energy))
    period = 2 * np.pi / on.frequencies(1)[0]
    kicked = on.at_energy(1.02 * float(shell.energy))
    away = np.asarray(kicked.energy(period * np.arange(6))) - float(shell.energy)
    rates = np.log(away[1:] / away[:-1])
    frequency = float(fit.oscillator.cell.operator.frequencies()[0])
    exact = float(jnp.log(jd.shell_multiplier(shell.energy, shell.rate, frequency)))
    table = Table("A limit cycle from its transient", ["", "teacher", "fitted"], [])
    table.rows = [
        ["attracting energy", 1.5, float(shell.energy)],
        ["rate", 0.1, float(shell.rate)],
        ["multiplier", teacher.multiplier(), fit.oscillator.multiplier()],
    ]
    report.tables.append(table)
    worst = float(np.max(np.abs(rates / exact - 1)))
    report.targets.append(Target("kicked limit cycle: error of the rate of return", worst, 0.05))


def _taught(
    report: Report,
    rows: list,
    curves: dict,
    name: str,
    teacher: jd.Oscillator,
    dt: float,
    samples: int,
    windows: int,
) -> jd.Fit:
    ts = dt * np.arange(samples * windows)
    true = np.asarray(teacher(ts))
    fit = jd.fit(true[:samples], dt=dt, units=teacher.size, holdout=0, key=jr.key(KEY))
    _row(rows, f"teacher of {name}", fit)
    ahead = np.asarray(fit.oscillator(ts))
    curves[f"teacher, {name}"] = _curve(ahead, true, fit)
    what = f"teacher of {name}: error over {windows} windows"
    report.targets.append(Target(what, _relative(ahead, true), 0.01))
    return fit


def _row(rows: list, name: str, fit: jd.Fit) -> None:
    m = fit.metrics
    rows.append(
        [name, m["units"], m["parameters"], m["samples"], m["mse"], m["mse_median"], m["seconds"]]
    )


def _relative(found: np.ndarray, true: np.ndarray) -> float:
    return float(np.sqrt(np.mean((found - true) ** 2) / true.var()))


def _curve(found: np.ndarray, true: np.ndarray, fit: jd.Fit) -> tuple[np.ndarray, np.ndarray]:
    """The relative error in stretches of a tenth of the window, against time in windows."""
    samples = fit.fitted.n_samples
    edges = np.unique(np.geomspace(samples / 10, len(true), 40).astype(int))
    middle = (edges[1:] + edges[:-1]) / 2 / samples
    size = true.std()
    rms = [np.sqrt(np.mean((found[a:b] - true[a:b]) ** 2)) for a, b in itertools.pairwise(edges)]
    return middle, np.array(rms) / size


def draw(figure: Any, curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    ax = figure.subplots()
    ax.axvspan(1e-2, 1, color=plot.GREY, alpha=0.15, linewidth=0)
    for (name, (windows, errors)), color in zip(curves.items(), plot.COLORS, strict=False):
        ax.loglog(windows, np.maximum(errors, 1e-16), color=color, label=name)
    ax.axhline(1.0, color=plot.GREY, linewidth=0.8)
    ax.set_xlim(0.1, 120)
    ax.set_xlabel("time (windows that were fitted; the shaded part is what the fit saw)")
    ax.set_ylabel("error relative to the signal")
    ax.legend(fontsize=8, ncols=2, loc="upper left", bbox_to_anchor=(0.0, -0.12), frameon=False)

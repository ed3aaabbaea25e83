"""How well every solver keeps the energy over a long time, and what keeping it costs."""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import jaxdyn as jd
from jaxdyn import plot

from . import energy_long
from .report import Report, Table, Target

X64 = True
N, ENERGY, DT = 8, 4.0, 0.1
SOLVERS = (
    ("Euler", diffrax.Euler()),
    ("RK4", jd.RK4()),
    ("ImplicitMidpoint", jd.ImplicitMidpoint()),
    ("DiscreteGradient", jd.DiscreteGradient()),
    ("Strang", jd.Strang()),
    ("Yoshida4", jd.Yoshida4()),
    ("Suzuki4", jd.Suzuki4()),
    ("BlanesMoan4", jd.BlanesMoan4()),
    ("Yoshida6", jd.Yoshida6()),
    ("Taylor(16)", jd.Taylor()),
)
# (norm of W, solver): worst |H - H(0)| / H(0) after 1e5 steps.
BOUNDS = {
    (1.4, "DiscreteGradient"): 5e-12,
    (1.4, "BlanesMoan4"): 1e-7,
    (1.4, "Strang"): 1e-3,
    (1.0, "Taylor(16)"): 1e-11,
}


def run(quick: bool = False) -> Report:
    steps, long = (1000, 2000) if quick else (100_000, 1_000_000)
    report = Report(
        "energy",
        f"x' = W tanh x, n = {N} units, one trajectory, H = {ENERGY:g}, steps of {DT}, one dense "
        f"random W scaled to the given |W|_2; energies saved every {_every(steps)} steps, nothing "
        "else. worst: largest |H - H(0)| / H(0). trend: slope of a straight line through the means "
        "of that over 20 stretches of equal length, over the standard error of the slope: beyond "
        "about 3 there is a trend. The last table: states every 1000 time units, |W|_2 = 1; cases "
        f"of up to {energy_long.RACED:g} s: medians of 5 rounds in turn; longer ones timed once.",
        size=(8.0, 4.8),
    )
    errors = {}
    columns = ["solver", "worst", "first half", "second half", "trend / its error"]
    for norm in (1.4, 1.0):
        rows = []
        for name, solver in SOLVERS:
            error = drift(solver, norm, steps, jnp.float64)
            rows.append([name, *summary(error)])
            errors[norm, name] = error
            if (norm, name) in BOUNDS:
                worst, bound = float(np.max(error)), BOUNDS[norm, name]
                report.targets.append(Target(f"{name}, norm {norm}", worst, bound))
            if (norm, name) == (1.4, "Strang"):
                report.targets.append(Target("Strang: trend / its error", abs(trend(error)), 3.0))
        report.tables.append(Table(f"float64, {steps} steps, |W|_2 = {norm:g}", columns, rows))
    rows = []
    for name, solver in (("Strang", jd.Strang()), ("BlanesMoan4", jd.BlanesMoan4())):
        error = drift(solver, 1.4, long, jnp.float32)
        rows.append([name, *summary(error)])
        if name == "Strang":
            what = "Strang, float32: trend / its error"
            report.targets.append(Target(what, abs(trend(error)), 3.0))
    report.tables.append(Table(f"float32, {long} steps, |W|_2 = 1.4", columns, rows))
    cell, x0 = problem(1.0, jnp.float64)
    rounds, count = (2, 2) if quick else (5, energy_long.COUNT)
    outcomes = energy_long.race(cell, x0, rounds, count, report.skipped, quick)
    report.tables.append(energy_long.table(outcomes, count))
    report.targets += energy_long.targets(outcomes, count, report.skipped)
    times = DT * _every(steps) * np.arange(1, steps // _every(steps) + 1)
    report.draw = lambda figure: draw(figure, times, errors, outcomes)
    return report


def problem(norm: float, dtype) -> tuple[jd.PoissonCell, jax.Array]:
    operator = jd.DenseSkew.random(N, key=jr.key(0), scale=norm, dtype=dtype)
    cell = jd.PoissonCell(operator, jd.Tanh())
    return cell, at_energy(cell, jr.normal(jr.key(1), (N,), dtype), ENERGY)


def drift(solver, norm: float, steps: int, dtype) -> np.ndarray:
    """|H - H(0)| / H(0) at every save."""
    cell, x0 = problem(norm, dtype)

    def energy(t, x, args):
        # In float64: the sum itself would be most of what float32 shows.
        return jnp.sum(cell.activation.potential(x.astype(jnp.float64)))

    every = _every(steps)
    saveat = diffrax.SaveAt(t0=True, steps=every, fn=energy)
    solution = jd.simulate(cell, x0, n_steps=steps, dt=DT, solver=solver, saveat=saveat)
    assert solution.ys is not None
    H = np.asarray(solution.ys)
    H = H[np.isfinite(H)]
    return np.abs(H[1:] / H[0] - 1)


def _every(steps: int) -> int:
    return max(1, steps // 10_000)


def at_energy(cell: jd.PoissonCell, x: jax.Array, energy: float) -> jax.Array:
    """The multiple of `x` with that energy, by bisection."""
    low, high = 0.0, 100.0
    for _ in range(80):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if cell.energy(middle * x) < energy else (low, middle)
    return high * x


def summary(error: np.ndarray) -> list[float]:
    half = len(error) // 2
    return [
        float(np.max(error)),
        float(np.max(error[:half])),
        float(np.max(error[half:])),
        trend(error),
    ]


def trend(error: np.ndarray, blocks: int = 20) -> float:
    """The slope of a line through the means of `blocks` stretches, over its standard error."""
    means = np.array([np.mean(part) for part in np.array_split(error, blocks)])
    time = np.arange(blocks) - (blocks - 1) / 2
    slope = float(time @ means / (time @ time))
    rest = means - np.mean(means) - slope * time
    return slope / float(np.sqrt(rest @ rest / (blocks - 2) / (time @ time)) + 1e-300)


def draw(figure: Any, times: np.ndarray, errors: dict, outcomes: dict) -> None:
    """The worst error so far against time; and the seconds that an error over t = 1e5 costs."""
    left, right = figure.subplots(1, 2)
    shown = np.unique(np.geomspace(1, len(times), 60).astype(int)) - 1
    styles = [(color, dash) for dash in ("-", "--") for color in plot.COLORS]
    for (name, _), (color, dash) in zip(SOLVERS, styles, strict=False):
        worst = np.maximum.accumulate(np.maximum(errors[1.4, name], 1e-17))
        at = shown[shown < len(worst)]
        left.loglog(times[at], worst[at], dash, color=color, lw=1.4, label=name)
    left.set_xlabel(plot.TIME_LABEL)
    left.set_ylabel("worst $|H - H_0|\\,/\\,H_0$ so far")
    families: dict[str, list] = {}
    for name, outcome in outcomes.items():
        families.setdefault(name.split(",")[0], []).append(outcome)
    markers = [(color, mark) for mark in "osD" for color in plot.COLORS]
    for (name, group), (color, mark) in zip(families.items(), markers, strict=False):
        error = [max(outcome.error, 1e-17) for outcome in group]
        seconds = [outcome.seconds for outcome in group]
        right.loglog(seconds, error, mark, color=color, ms=5, label=name)
    right.axhline(energy_long.BOUND, color=plot.GREY, lw=0.8, ls="--")
    right.set_xlabel("seconds for the whole time, one trajectory")
    right.set_ylabel("worst $|H - H_0|\\,/\\,H_0$")
    for ax in (left, right):
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)

"""Every solver's order, error and drift on one dense network of eight tanh units."""

import functools
import math
import time
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from .. import plot
from .._activation import Tanh
from .._cell import PoissonCell
from .._invariants import poisson_defect
from .._solver import (
    RK4,
    AbstractCellSolver,
    BlanesMoan4,
    DiscreteGradient,
    ImplicitMidpoint,
    Strang,
    Suzuki4,
    Taylor,
    Yoshida4,
    Yoshida6,
)
from .claim import Check, Claim, at_least, at_most, near
from .euler import SAVED, euler_run
from .measure import ROWS, energies, march, random_skew, slope, tanh_states

NORM, ENERGY, STEP, END = 1.4, 4.0, 0.1, 5.0
ORDER_TOLERANCE = 0.15
# Errors outside this range are rounding, or too large to be in the asymptotic regime.
PLATEAU, COARSE = 1e-12, 3e-2
DEFECT_BOUND = 1e-13


class _Method(NamedTuple):
    """`steps` to t = END for the regression; `products` with W a step, 0 where it varies.

    `drift` bounds the worst |dH|/H (inf: not judged, it grows); `reference` is what it was for
    another W over 1e5 steps.
    """

    name: str
    solver: AbstractCellSolver
    order: int
    steps: tuple[int, ...]
    products: int
    poisson: bool
    drift: float
    reference: str


METHODS = (
    _Method("RK4", RK4(), 4, (50, 100, 200, 400), 4, False, 1.4e-3, "1.4e-4"),
    _Method(
        "implicit midpoint", ImplicitMidpoint(), 2, (50, 100, 200, 400), 0, True, 3.9e-3, "3.9e-4"
    ),
    _Method(
        "discrete gradient", DiscreteGradient(), 2, (50, 100, 200, 400), 0, False, 5e-12, "1.5e-12"
    ),
    _Method("Strang", Strang(), 2, (50, 100, 200, 400), 2, True, 7.4e-3, "7.4e-4"),
    _Method("Yoshida4", Yoshida4(), 4, (50, 100, 200, 400), 6, True, 3.5e-5, "3.5e-6"),
    _Method("Suzuki4", Suzuki4(), 4, (50, 100, 200, 400), 10, True, 3.8e-6, "3.8e-7"),
    _Method("Blanes-Moan 4", BlanesMoan4(), 4, (50, 100, 200, 400), 12, True, 3.1e-7, "3.1e-8"),
    _Method("Yoshida6", Yoshida6(), 6, (25, 50, 75, 100), 14, True, 2.4e-8, "2.4e-9"),
    _Method("Taylor 6", Taylor(6), 6, (75, 100, 150, 200), 6, False, math.inf, ""),
)
# What the quick run leaves out: compositions of sweeps it measures in other methods.
QUICK_WITHOUT = ("Suzuki4",)
QUICK_DEFECT = ("RK4", "Strang", "Blanes-Moan 4")


class _Result(NamedTuple):
    method: _Method
    steps: np.ndarray
    errors: np.ndarray
    order: float
    at_step: float
    times: np.ndarray
    energy_error: np.ndarray
    defect: float | None
    seconds: float


def _network(norm: float = NORM) -> tuple[PoissonCell, np.ndarray]:
    return PoissonCell(random_skew(8, seed=7, norm=norm), Tanh()), tanh_states(8, 4, ENERGY, seed=8)


@functools.cache
def _reference() -> np.ndarray:
    cell, x0 = _network()
    return march(Taylor(16), cell, x0, END / 250, 250, 1)[:, 0]


@functools.cache
def _results(quick: bool) -> dict[str, _Result]:
    cell, x0 = _network()
    long = 5_000 if quick else 100_000
    results = {}
    for method in METHODS:
        if quick and method.name in QUICK_WITHOUT:
            continue

        def error(steps: int, method=method) -> float:
            end = march(method.solver, cell, x0, END / steps, steps, 1)[:, 0]
            return float(np.max(np.abs(end - _reference())))

        steps = np.array(method.steps)
        errors = np.array([error(s) for s in method.steps])
        fit = (errors > PLATEAU) & (errors < COARSE)
        order = -slope(np.log(steps[fit]), np.log(errors[fit])) if fit.sum() > 1 else np.nan
        at_step = error(round(END / STEP))
        began = time.perf_counter()
        ys = march(method.solver, cell, x0, STEP, long // ROWS)
        seconds = (time.perf_counter() - began) / long
        h = energies(cell, np.concatenate([x0[:, None], ys], axis=1))
        defect = None
        if not quick or method.name in QUICK_DEFECT:
            defect = float(poisson_defect(method.solver, cell, jnp.asarray(x0[0]), STEP))
        times = STEP * (long // ROWS) * np.arange(ROWS + 1)
        results[method.name] = _Result(
            method, steps, errors, order, at_step, times, np.abs(h / ENERGY - 1), defect, seconds
        )
    return results


def orders(quick: bool) -> list[Claim]:
    results = _results(quick)
    checks: list[Check] = []
    for r in results.values():
        checks.append(
            near(
                f"{r.method.name}: order",
                r.order,
                r.method.order,
                ORDER_TOLERANCE,
                f"nominal order ± {ORDER_TOLERANCE}, regression of log error on log step",
            )
        )
    for r in results.values():
        if r.method.poisson and r.defect is not None:
            checks.append(
                at_most(
                    f"{r.method.name}: Poisson defect |M W Mᵀ − W|",
                    r.defect,
                    DEFECT_BOUND,
                    "0 to rounding for a Poisson map",
                )
            )
    rk4 = results["RK4"]
    assert rk4.defect is not None
    checks.append(at_least("RK4: Poisson defect", rk4.defect, 1e-10, "not a Poisson map", "1.6e-8"))
    dg = results["discrete gradient"].defect
    if dg is not None:
        basis = "keeps the energy, is not a Poisson map"
        checks.append(at_least("discrete gradient: Poisson defect", dg, 1e-8, basis, "2.3e-5"))
    same_work = {
        name: _error_at_work(results[name], 120.0) for name in ("Yoshida4", "Blanes-Moan 4")
    }
    checks.append(
        at_least(
            "Yoshida4's error over Blanes-Moan 4's at 120 products a time unit",
            same_work["Yoshida4"] / same_work["Blanes-Moan 4"],
            3.0,
            "typically 15 (5-95 % of 60 random W: 6 to 50)",
            "15",
        )
    )

    def draw(figure):
        left, right = figure.subplots(1, 2)
        # One look for each method, in the quick run and in the full one.
        looks = dict(
            zip((m.name for m in METHODS), (*plot.COLORS, plot.GREY, plot.BLUE), strict=True)
        )
        markers = dict(zip(looks, "osD^v<>PX", strict=True))
        for name, r in results.items():
            dash = "--" if name.startswith("Taylor") else "-"
            style: Any = dict(color=looks[name], marker=markers[name], ls=dash, label=name)
            style |= dict(ms=4, lw=1.2)
            left.loglog(END / r.steps, r.errors, **style)
            if r.method.products:
                right.loglog(r.method.products * r.steps / END, r.errors, **style)
        left.set_xlabel("step $h$ (model units)")
        left.set_ylabel(f"largest error at t = {END:g}")
        left.set_title("The slope is the order")
        left.xaxis.set_minor_formatter("")
        right.set_xlabel("products with W per time unit")
        right.set_title("error against work")
        figure.legend(
            *left.get_legend_handles_labels(),
            loc="outside lower center",
            ncols=5,
            fontsize=7,
            frameon=False,
        )

    return [
        Claim(
            "e1-orders",
            "Every solver has its order, and the splittings and the implicit midpoint rule are "
            "Poisson maps.",
            tuple(checks),
            "adds",
            "The paper integrates with forward Euler only.",
            f"n = 8, dense W, |W|₂ = {NORM}, four states of H = {ENERGY:g}; error at t = {END:g} "
            "against Taylor of order 16 at step 0.02.",
            draw,
            "Implicit methods are left out on the right: their work depends on Newton's method.",
        )
    ]


def _error_at_work(r: _Result, work: float) -> float:
    """The error at so many products with W per time unit, along the fitted power law."""
    fit = (r.errors > PLATEAU) & (r.errors < COARSE)
    line = np.polyfit(np.log(r.method.products * r.steps[fit] / END), np.log(r.errors[fit]), 1)
    return float(np.exp(np.polyval(line, np.log(work))))


def drift(quick: bool) -> list[Claim]:
    results = _results(quick)
    count = 5_000 if quick else 100_000
    cell, _ = _network()
    _, h = euler_run(cell, tanh_states(8, 8, ENERGY, seed=8), STEP, 20_000, 20_000 // SAVED)
    euler = np.max(h[:, -1]) / ENERGY - 1
    checks = []
    for r in results.values():
        worst = float(np.max(r.energy_error))
        if math.isinf(r.method.drift):
            continue
        text = f"{r.method.name}: worst |ΔH|/H over {count:,} steps"
        checks.append(
            at_most(
                text,
                worst,
                r.method.drift,
                "at most ten times the reference, found for another W",
                r.method.reference,
            )
        )
    unit, x0 = _network(1.0)
    ys = march(Taylor(16), unit, x0, STEP, count // ROWS)
    checks.append(
        at_most(
            f"Taylor 16 (the default) at |W| = 1: worst |ΔH|/H over {count:,} steps",
            np.max(np.abs(energies(unit, ys) / ENERGY - 1)),
            1e-11,
            "rounding × steps",
        )
    )
    strang, rk4 = results["Strang"], results["RK4"]
    checks += [
        at_most(
            "Strang: trend of the energy over its oscillation",
            _trend(strang),
            0.2,
            "a random walk of the sampled phase; a secular method has 1 and more",
        ),
        at_least(
            "RK4: trend of the energy over its scatter about it", _trend(rk4), 1.0, "secular loss"
        ),
        at_least(
            "Euler: relative gain of energy over 20,000 steps",
            euler,
            1.0,
            "grows without end",
            "50",
        ),
    ]

    def draw(figure):
        ax = figure.subplots()
        names = ("RK4", "Strang", "Blanes-Moan 4", "Yoshida6", "discrete gradient")
        for name, color in zip(names, plot.COLORS, strict=False):
            r = results[name]
            worst = np.maximum.accumulate(np.max(r.energy_error, axis=0))[1:]
            ax.loglog(r.times[1:], np.maximum(worst, 1e-16), color=color, lw=1.6)
            ax.annotate(
                name,
                (r.times[-1], worst[-1]),
                (5, 0),
                textcoords="offset points",
                color=color,
                fontsize=8,
                va="center",
                annotation_clip=False,
            )
        ax.set_xlabel(plot.TIME_LABEL)
        ax.set_ylabel(r"worst $|\Delta H|/H$ so far")
        ax.set_title(f"Splittings level off, RK4 keeps losing (step {STEP:g}, |W| = {NORM:g})")

    return [
        Claim(
            "e2-drift",
            "Structure-preserving solvers keep the energy error bounded for ever; RK4 loses energy "
            "steadily, Euler gains it.",
            tuple(checks),
            "sharpens",
            "The paper relies on the bounded activation to keep Euler in check. A splitting costs "
            "two products a step and has no drift at all.",
            f"As e1-orders, step {STEP:g}, {count:,} steps.",
            draw,
            "Worst of four orbits.",
        )
    ]


def _trend(r: _Result) -> float:
    """|slope| × length of the mean energy error's line, over the scatter about that line."""
    y = np.mean(r.energy_error, axis=0)[1:]
    line = np.polyfit(r.times[1:], y, 1)
    scatter = np.ptp(y - np.polyval(line, r.times[1:]))
    return float(abs(line[0]) * np.ptp(r.times[1:]) / max(scatter, 1e-300))


MEASUREMENTS = (orders, drift)

"""All Lyapunov exponents of many trajectories: ours and lyapax's, at one error of the energy."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import jaxdyn as jd

from .peers import Problem, in_lyapax, present
from .report import Report, Table, Target
from .timing import race

X64 = True
N, BATCH, T1 = 8, 256, 1000.0
# Time units between two orthonormalisations, the same for all.
BETWEEN = 2.0
# The worst relative error of the energy over the run that a case may have, and steps to choose of.
BOUNDS = (1e-2, 1e-4)
STEPS = (0.5, 0.4, 0.25, 0.2, 0.125, 0.1, 0.08, 0.0625, 0.05, 0.04, 0.025, 0.02)
SOLVERS: dict[str, Any] = {
    "Strang": jd.Strang(),
    "BlanesMoan4": jd.BlanesMoan4(),
    "RK4": jd.RK4(),
    "Taylor(8)": jd.Taylor(8),
}
LYAPAX = "lyapax, RK4"


def run(quick: bool = False) -> Report:
    batch, t1, rounds = (8, 100.0, 1) if quick else (BATCH, T1, 3)
    cell = jd.PoissonCell(jd.DenseSkew.random(N, key=jr.key(0)), jd.Tanh())
    x0 = jr.normal(jr.key(1), (batch, N))
    problem = Problem.of(cell, x0, t1)
    able, skipped = present(in_lyapax)
    report = Report(
        "lyapunov",
        f"All {N} exponents of {batch} trajectories of a dense random tanh network, |W|_2 = 1, x0 "
        f"~ N(0, 1), t = {t1:g}, float64, vectors made orthonormal every {BETWEEN:g} time units. "
        "Each method takes the longest of a list of steps at which the energy's worst relative "
        "error over the run, of any trajectory, stays within the bound. Orbits are chaotic: "
        "exponents of one orbit differ from method to method, means over the ensemble must not "
        f"(first exponent, and the standard error of its mean). Medians of {rounds} rounds, "
        "compilation apart.",
        skipped=skipped,
    )
    for bound in BOUNDS:
        cases: dict[str, Any] = {}
        steps: dict[str, float] = {}
        for name, solver in SOLVERS.items():
            found = longest(cell, x0, t1, solver, bound)
            if found is not None:
                steps[name] = found
                cases[name] = ours(cell, x0, t1, found, solver)
        rk4 = steps.get("RK4")
        if in_lyapax in able and rk4 is not None:
            # The same steps as our RK4.
            steps[LYAPAX] = rk4
            cases[LYAPAX] = in_lyapax.spectrum(problem, rk4, every(rk4))
        timings = race(cases, rounds)
        fastest = min((t for name, t in timings.items() if name != LYAPAX), key=lambda t: t.median)
        rows = []
        for name, timing in sorted(timings.items(), key=lambda item: item[1].median):
            exponents = np.asarray(timing.result)
            first = exponents.max(axis=1)
            rows.append(
                [
                    name,
                    steps[name],
                    timing.median,
                    timing.ratio(fastest),
                    timing.compile,
                    float(first.mean()),
                    float(first.std() / np.sqrt(batch)),
                    float(np.abs(exponents.sum(axis=1)).max()),
                ]
            )
        columns = ["method", "dt", "seconds", "/ our fastest", "compile s", "first exponent"]
        columns += ["its error", "largest |sum|"]
        report.tables.append(Table(f"Energy within {bound:g}", columns, rows))
        if LYAPAX in timings and not quick:
            ratio = fastest.ratio(timings[LYAPAX])
            report.targets.append(
                Target(f"seconds over lyapax's, energy within {bound:g}", ratio, 1 / 3)
            )
    return report


def every(dt: float) -> int:
    return max(1, round(BETWEEN / dt))


def ours(cell: Any, x0: Any, t1: float, dt: float, solver: Any) -> Any:
    return lambda: np.asarray(
        jd.lyapunov_spectrum(cell, x0, t1, dt, solver=solver, every=every(dt)).exponents
    )


def longest(cell: Any, x0: Any, t1: float, solver: Any, bound: float) -> float | None:
    """The longest step that keeps the energy within the bound, or None."""
    return next((dt for dt in STEPS if _drift(cell, x0, t1, solver, dt) <= bound), None)


@functools.cache
def _saved(steps: int) -> Any:
    import diffrax

    return diffrax.SaveAt(steps=max(1, steps // 200))


def _drift(cell: Any, x0: Any, t1: float, solver: Any, dt: float) -> float:
    steps = round(t1 / dt)
    sol = jd.simulate(cell, x0, n_steps=steps, dt=dt, solver=solver, saveat=_saved(steps))
    return float(jnp.max(jd.energy_drift(cell, x0, jax.block_until_ready(sol))))

"""The energy of one trajectory kept to 1e-10 over t = 1e5: seconds, ours and the peers'."""

import importlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import diffrax
import jax
import numpy as np

import jaxdyn as jd

from .peers import Problem, without
from .report import Table, Target
from .timing import Timing
from .timing import race as race_cases

STRETCH, COUNT, BOUND = 1000.0, 100, 1e-10
# (solver, steps in a stretch): a sweep wide enough to hold the best of each.
OURS = (
    ("Taylor(8)", jd.Taylor(8), (9_000, 9_600)),
    ("Taylor(10)", jd.Taylor(10), (5_200, 5_600)),
    ("Taylor(12)", jd.Taylor(12), (3_800, 4_000)),
    ("Taylor(14)", jd.Taylor(14), (3_600, 3_800)),
    ("Taylor(16)", jd.Taylor(16), (3_400, 3_600)),
    ("BlanesMoan4", jd.BlanesMoan4(), (25_000,)),
    ("Yoshida6", jd.Yoshida6(), (11_000,)),
)
# Each of these is another order; heyoka's step follows from the order.
HEYOKA = (1e-11, 1e-10, 1e-12)
SCIPY = (1e-12, 1e-13)
DOPRI8 = (1e-12, 3e-13, 1e-13)
NUMBA = ("RK4", 180_000), ("RK4", 200_000), ("Strang", 200_000)
# Above the first a case is timed once; above the second it is stopped after a tenth of the time.
RACED, WHOLE = 2.5, 25.0

# Integrates that many stretches and returns the state at the end of each, (count, n).
Solve = Callable[[int], Any]


class Outcome(NamedTuple):
    timing: Timing
    error: float
    share: float
    """How much of the time was run to; the seconds are those of the share."""

    @property
    def seconds(self) -> float:
        return self.timing.median / self.share


def race(cell, x0, rounds: int, count: int, skipped: list[str], quick: bool) -> dict[str, Outcome]:
    """Every case over `count` stretches; short ones in turn, `rounds` of them."""
    shares, raced, once = {}, {}, {}
    for name, solve in cases(cell, x0, skipped, quick).items():
        solve(1)
        start = time.perf_counter()
        jax.block_until_ready(solve(1))
        estimate = (time.perf_counter() - start) * count
        shares[name] = 0.1 if estimate > WHOLE else 1.0
        part = round(count * shares[name])
        (raced if estimate <= RACED else once)[name] = lambda solve=solve, part=part: solve(part)
    timings = race_cases(raced, rounds) if raced else {}
    for name, case in once.items():
        jax.block_until_ready(case())  # compiles
        start = time.perf_counter()
        result = jax.block_until_ready(case())
        timings[name] = Timing([time.perf_counter() - start], result=result)
    energy = jax.vmap(cell.energy)
    return {
        name: Outcome(
            timings[name],
            float(np.max(np.abs(energy(np.asarray(timings[name].result)) / cell.energy(x0) - 1))),
            shares[name],
        )
        for name in shares
    }


def cases(cell, x0, skipped: list[str], quick: bool) -> dict[str, Solve]:
    out: dict[str, Solve] = {}
    for name, solver, steps in OURS[-3:] if quick else OURS:
        for k in steps[:1] if quick else steps:
            out[f"{name}, dt {STRETCH / k:.3g}"] = ours(cell, x0, solver, k)
    problem = Problem(np.asarray(cell.operator.as_matrix()), np.asarray(x0)[None], STRETCH)
    peers: dict[str, dict[str, Callable[[], Solve]]] = {
        "heyoka": {f"heyoka, tol {tol:g}": partial(heyoka, problem, tol) for tol in HEYOKA},
        "scipy": {
            f"scipy DOP853, tol {tol:g}": partial(chained, "in_scipy", "adaptive", problem, tol)
            for tol in SCIPY
        },
        "numba": {
            f"numba {method}, dt {STRETCH / k:.3g}": partial(numba, problem, method, k)
            for method, k in NUMBA
        },
    }
    for tol in DOPRI8:
        out[f"diffrax Dopri8, tol {tol:g}"] = chained(
            "in_diffrax", "batched_adaptive", problem, tol, diffrax.Dopri8()
        )
    for package, makers in peers.items():
        why = without(package)
        if why is not None:
            skipped.append(f"energy over t = 1e5: {why}")
            continue
        for name, make in list(makers.items())[: 1 if quick else None]:
            out[name] = make()
    return out


def ours(cell, x0, solver, steps: int) -> Solve:
    def solve(count):
        saveat = diffrax.SaveAt(ts=STRETCH * np.arange(1, count + 1))
        return jd.simulate(
            cell, x0, t1=STRETCH * count, dt=STRETCH / steps, solver=solver, saveat=saveat
        ).ys

    return solve


def chained(module: str, function: str, problem: Problem, *options: Any) -> Solve:
    """A peer that goes from x0 to one end, stretch after stretch."""
    make = getattr(importlib.import_module(f"{__package__}.peers.{module}"), function)

    def solve(count):
        states = [problem.x0]
        for _ in range(count):
            at = problem._replace(x0=np.asarray(states[-1]))
            states.append(make(at, *options)())
        return np.concatenate(states[1:])

    return solve


def heyoka(problem: Problem, tol: float) -> Solve:
    """One scalar integrator: its batch mode is for many trajectories."""
    import heyoka as hy

    x0, n = problem.x0[0], problem.x0.shape[1]
    units = hy.make_vars(*(f"x{i}" for i in range(n)))
    outputs = [hy.tanh(x) for x in units]
    equations = [
        (units[i], hy.sum([float(problem.W[i, j]) * outputs[j] for j in range(n) if j != i]))
        for i in range(n)
    ]
    integrator = hy.taylor_adaptive(equations, x0, tol=tol, fast_math=True)

    def solve(count):
        integrator.time = 0.0
        integrator.state[:] = x0
        states = np.empty((count, n))
        for i in range(count):
            integrator.propagate_until(problem.t1 * (i + 1))
            states[i] = integrator.state
        return states

    return solve


def numba(problem: Problem, method: str, steps: int) -> Solve:
    """A loop over the steps of one trajectory, fastmath."""
    import numba as nb

    W, x0 = np.ascontiguousarray(problem.W), problem.x0[0]
    n, dt = len(x0), problem.t1 / steps
    jit = nb.njit(fastmath=True)

    @jit
    def field(x, g, k):
        for j in range(n):
            g[j] = np.tanh(x[j])
        for i in range(n):
            k[i] = 0.0
            for j in range(n):
                k[i] += W[i, j] * g[j]

    @jit
    def rk4(x):
        y, g, k, total = np.empty(n), np.empty(n), np.empty(n), np.empty(n)
        for _ in range(steps):
            field(x, g, total)
            for stage in range(3):
                reach = dt if stage == 2 else dt / 2
                for i in range(n):
                    y[i] = x[i] + reach * (total[i] if stage == 0 else k[i])
                field(y, g, k)
                for i in range(n):
                    total[i] += k[i] if stage == 2 else 2 * k[i]
            for i in range(n):
                x[i] += dt / 6 * total[i]

    @jit
    def strang(x):
        for _ in range(steps):
            for turn in range(2 * n):
                i = turn if turn < n else 2 * n - 1 - turn
                pulse = dt / 2 * np.tanh(x[i])
                for j in range(n):
                    x[j] += W[j, i] * pulse

    advance = rk4 if method == "RK4" else strang

    def solve(count):
        states = np.empty((count, n))
        x = x0.copy()
        for i in range(count):
            advance(x)
            states[i] = x
        return states

    return solve


def table(outcomes: dict[str, Outcome], count: int) -> Table:
    rows = []
    for name, outcome in outcomes.items():
        reached = f"energy within {BOUND:g}" if outcome.error <= BOUND else "out: error too large"
        if outcome.share < 1:
            reached = f"not run to the end: {outcome.share:.0%} of it, seconds scaled; " + reached
        rows.append([name, outcome.seconds, outcome.timing.spread, outcome.error, reached])
    title = f"Energy to {BOUND:g} over t = {STRETCH * count:,.0f}, one trajectory"
    return Table(title, ["case", "seconds", "spread", "worst", "takes part"], rows)


def targets(outcomes: dict[str, Outcome], count: int, skipped: list[str]) -> list[Target]:
    """Fastest of all who keep the bound to the end, or within twice heyoka."""
    fit = {k: o for k, o in outcomes.items() if o.error <= BOUND and o.share == 1}
    names = {solver for solver, _, _ in OURS}
    mine = [o for k, o in fit.items() if k.split(",")[0] in names]
    heyoka = [o for k, o in fit.items() if k.startswith("heyoka")]
    what = f"energy to {BOUND:g} over t = {STRETCH * count:,.0f}: the best of ours / of heyoka's"
    if not mine or not heyoka:
        skipped.append(f"target {what}: no case of {'heyoka' if mine else 'ours'} kept it")
        return []
    best, peer = (min(group, key=lambda o: o.seconds) for group in (mine, heyoka))
    return [Target(what, best.seconds / peer.seconds, 2.0)]

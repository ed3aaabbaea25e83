"""Seconds against error: every solver of ours that makes sense, and every peer."""

from typing import NamedTuple

import jax
import numpy as np

from jaxdyn import plot

from .ensemble import problem
from .peers import Problem, Solve, in_heyoka, present
from .precision_cases import ON_THREADS, PEERS, QUICK, SETTINGS, T1, Setting, ours
from .report import TIMING_COLUMNS, Report, Table, Target, timing_cells
from .timing import Timing, race

X64 = True
BROWN = "#7A4A12"
# Colour, marker and dash: ours in blue and green, a colour for each package, C in black.
STYLES = {
    "Taylor": (plot.BLUE, "o", "-"),
    "Taylor, threads": (plot.BLUE, "o", "--"),
    "RK4": (plot.SKY, "o", "-"),
    "Strang": (plot.GREEN, "s", "-"),
    "BlanesMoan4": (plot.GREEN, "D", "--"),
    "Yoshida6": (plot.GREEN, "v", ":"),
    "diffrax Tsit5 adaptive, vmapped": (plot.VERMILLION, "^", "-"),
    "diffrax Tsit5 fixed, vmapped": (plot.VERMILLION, "^", "--"),
    "diffrax Tsit5 adaptive, batch in state": (plot.VERMILLION, "v", "-"),
    "diffrax Tsit5 fixed, batch in state": (plot.VERMILLION, "v", "--"),
    "diffrax Dopri8 adaptive, vmapped": (plot.ORANGE, "^", "-"),
    "diffrax Dopri8 fixed, batch in state": (plot.ORANGE, "v", "--"),
    "torchdiffeq rk4": (plot.PURPLE, "P", "--"),
    "torchdiffeq dopri5": (plot.PURPLE, "P", "-"),
    "scipy DOP853": (plot.GREY, "h", "-"),
    "numba RK4": (plot.GREY, "D", "--"),
    "heyoka": (BROWN, "*", "-"),
    "C RK4": (plot.BLACK, "x", "-"),
    "C Strang": (plot.BLACK, "+", "--"),
}


class Measured(NamedTuple):
    """One case: a method with one number of steps or tolerance."""

    method: str
    case: str
    timing: Timing
    error: float


def run(quick: bool = False) -> Report:
    settings, rounds = ((QUICK,), 3) if quick else (SETTINGS, 5)
    peers, skipped = present(*dict.fromkeys(module for module, _ in PEERS.values()))
    report = Report("precision", "", skipped=skipped)
    agreement, results = 0.0, []
    for setting in settings:
        cell, x0 = problem(setting.n, setting.batch, setting.dtype)
        exact, gap = reference(cell, np.asarray(x0, np.float64))
        agreement = max(agreement, gap)
        timings = race(cases(setting, cell, x0, peers, report.skipped), rounds)
        measured = [
            Measured(*name, t, float(np.max(np.abs(np.asarray(t.result) - exact))))
            for name, t in timings.items()
        ]
        results.append((setting, measured))
        report.tables += [every_case(setting, measured), best_at(setting, measured)]
        add_targets(report, setting, measured)
    report.setting = (
        f"x' = W tanh x to t = {T1:g}, dense W with |W|_2 = 1, x0 ~ N(0, 1), end state only. "
        "error: largest over all trajectories and units, at the end, against Taylor(24) with 200 "
        "steps in float64, which agrees with scipy's DOP853 (rtol = atol = 1e-13) to "
        f"{agreement:.1e} on four trajectories of each setting. tol: rtol and atol. How each peer "
        "is used stands at the head of its file in benchmarks/peers; scipy computes in float64 "
        "throughout. Every JAX solve is inside jax.jit, but for ours on threads (jaxdyn.Threads), "
        "which calls simulate as a user does. Set-up and compilation are outside the seconds; "
        "compile s is what the first call takes beyond them, and numba, heyoka and C have compiled "
        "before it."
    )
    report.draw, report.size = lambda figure: draw(figure, results), (9.0, 4.2 * len(settings))
    return report


def reference(cell, x0: np.ndarray) -> tuple[np.ndarray, float]:
    """The end states, and how far DOP853 is from them on a few trajectories."""
    from scipy.integrate import solve_ivp

    exact = np.asarray(ours(cell, x0, "Taylor(24)", 200)())
    W = np.asarray(cell.operator.as_matrix(), np.float64)
    gap = 0.0
    for start, end in zip(x0[:4], exact[:4], strict=True):
        oracle = solve_ivp(
            lambda t, x: W @ np.tanh(x), (0.0, T1), start, method="DOP853", rtol=1e-13, atol=1e-13
        )
        gap = max(gap, float(np.max(np.abs(oracle.y[:, -1] - end))))
    return exact, gap


def cases(setting: Setting, cell, x0: jax.Array, peers: set, skipped: list[str]) -> dict:
    """A solve for each (method, case); what is left out of this setting goes into `skipped`."""
    same = Problem.of(cell, x0, T1)
    found: dict[tuple[str, str], Solve] = {}
    for method, sweep in setting.sweeps.items():
        module, solve = PEERS.get(method, (None, None))
        if module is not None and module not in peers:
            continue
        reason = in_heyoka.cannot(same) if module is in_heyoka else None
        if reason is not None:
            skipped.append(reason)
            continue
        for number in sweep:
            case = f"{number} steps" if isinstance(number, int) else f"tol {number:g}"
            found[method, case] = (
                ours(cell, x0, method, number) if solve is None else solve(same, number)
            )
    return found


def every_case(setting: Setting, results: list[Measured]) -> Table:
    rows = [[m.method, m.case, *timing_cells(m.timing), m.error] for m in results]
    columns = ["solver", "case", *TIMING_COLUMNS, "error"]
    return Table(f"Work and precision, {setting.name}", columns, rows)


def best_at(setting: Setting, results: list[Measured]) -> Table:
    """The fastest case of every method within each error."""
    rows = []
    for bound in setting.bounds:
        best = fastest(results, our_methods(setting), bound)
        for method in setting.sweeps:
            m = fastest(results, (method,), bound)
            if m is not None:
                ratio = None if best is None else m.timing.ratio(best.timing)
                rows.append([f"{bound:g}", method, m.case, m.error, m.timing.median, ratio])
    columns = ["error <=", "solver", "case", "its error", "seconds", "/ our fastest"]
    return Table(f"The fastest case within an error, {setting.name}", columns, rows)


def add_targets(report: Report, setting: Setting, results: list[Measured]) -> None:
    for goal in setting.goals:
        best = fastest(results, our_methods(setting), goal.bound)
        theirs = fastest(results, goal.methods, goal.bound)
        what = f"{setting.name}, error {goal.bound:g}: {goal.what}"
        if best is None or theirs is None:
            who = "our solvers" if best is None else goal.what
            report.skipped.append(f"target {what}: no case of {who} is within the error")
            continue
        cases = f"({theirs.case}) / {best.method} ({best.case})"
        ratio = theirs.timing.ratio(best.timing)
        report.targets.append(Target(f"{what} {cases}", ratio, goal.times, at_least=True))


def our_methods(setting: Setting) -> tuple[str, ...]:
    return tuple(method for method in setting.sweeps if method not in PEERS)


def fastest(results: list[Measured], methods: tuple[str, ...], bound: float) -> Measured | None:
    """The fastest case of the methods whose error is within `bound`."""
    fit = [m for m in results if m.method in methods and m.error <= bound]
    return min(fit, key=lambda m: m.timing.median, default=None)


def draw(figure, results: list[tuple[Setting, list[Measured]]]) -> None:
    """Seconds against error, one panel a setting; all orders of Taylor are one line."""
    axes = figure.subplots(len(results), 1, squeeze=False).ravel()
    for ax, (setting, measured) in zip(axes, results, strict=True):
        lines: dict[str, list[tuple[float, float]]] = {}
        for m in measured:
            kind, threads, _ = m.method.partition(ON_THREADS)
            line = ("Taylor" if kind.startswith("Taylor(") else kind) + threads
            lines.setdefault(line, []).append((m.error, m.timing.median))
        for line, points in lines.items():
            if line not in STYLES:  # of ours on threads Taylor is enough, of torch all cores are
                continue
            color, marker, dash = STYLES[line]
            front = sorted(p for p in points if not any(q < p and q[1] <= p[1] for q in points))
            ours = line not in PEERS
            ax.loglog(
                *zip(*front, strict=True),
                color=color,
                marker=marker,
                linestyle=dash,
                linewidth=2.0 if ours else 1.0,
                markersize=5,
                zorder=3 if ours else 2,
                label=f"jaxdyn {line}" if ours else line,
            )
        for bound in setting.bounds:
            ax.axvline(bound, color=plot.GREY, linewidth=0.8, linestyle=":")
        ax.set_title(setting.name)
        ax.set_xlabel(f"largest error at t = {T1:g}")
        ax.set_ylabel("seconds")
        ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)

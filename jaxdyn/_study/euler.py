"""How forward Euler gains energy: exponentially in linear networks, like a square root in tanh."""

import functools

import diffrax
import jax.numpy as jnp
import numpy as np

from .. import plot
from .._activation import Identity, Tanh
from .._cell import PoissonCell
from .._exact import euler_energy, euler_energy_linear, euler_max_step
from .._simulate import simulate
from .._skew import BlockSkew
from .claim import Claim, at_least, at_most, near
from .measure import LN2, energies, random_skew, slope, tanh_states

STEPS, SAVED = 100_000, 200
PAIRS = ((1.0, 0.01), (1.0, 0.05), (1.0, 0.2), (1.7, 0.01), (1.7, 0.05), (1.7, 0.2))


def euler_run(cell: PoissonCell, x0: np.ndarray, dt: float, steps: int, every: int = 1):
    """Energies (b, t) at the start and after every so many steps of diffrax.Euler, with times."""
    sol = simulate(
        cell,
        x0,
        t1=steps * dt,
        dt=dt,
        solver=diffrax.Euler(),
        # Euler's first and last step share rounding with t1: save between steps of interest.
        saveat=diffrax.SaveAt(ts=jnp.asarray(dt * np.arange(0, steps + 1, every))),
        throw=False,
        # One number for all runs: it is part of what gets compiled.
        max_steps=max(steps, STEPS) + 1000,
    )
    return np.asarray(sol.ts), energies(cell, np.asarray(sol.ys))


def _start(energy: float) -> np.ndarray:
    """Two tanh units of this energy, x2 = 0."""
    return np.array([[np.arccosh(np.exp(energy)), 0.0]])


@functools.cache
def _large_pair(w: float, dt: float) -> tuple[np.ndarray, np.ndarray]:
    """Energy of two tanh units started at H = 8, where the square-root law has set in."""
    cell = PoissonCell(BlockSkew(jnp.asarray([w])), Tanh())
    ts, h = euler_run(cell, _start(8.0), dt, STEPS, STEPS // SAVED)
    return ts, h[0]


def linear(quick: bool) -> list[Claim]:
    steps, dt = 6000, 0.05
    operator = random_skew(8, seed=1)
    cell = PoissonCell(operator, Identity())
    x0 = tanh_states(8, 8, 2.0, seed=3)
    ts, h = euler_run(cell, x0, dt, steps, steps // SAVED)
    count = np.rint(ts / dt).astype(int)
    exact = np.asarray(euler_energy_linear(count, operator, x0[0], dt))
    tanh = PoissonCell(operator, Tanh())
    _, bounded = euler_run(tanh, x0, dt, steps, steps // SAVED)

    def draw(figure):
        left, right = figure.subplots(1, 2)
        left.semilogy(ts, h[0], color=plot.VERMILLION, lw=2)
        left.semilogy(ts[::20], exact[::20], "o", color=plot.BLACK, ms=3.5)
        left.semilogy(ts, bounded[0], color=plot.BLUE, lw=2)
        left.annotate(
            "linear: exponential",
            (200, np.interp(200, ts, h[0])),
            (-8, 6),
            ha="right",
            textcoords="offset points",
            color=plot.VERMILLION,
        )
        left.annotate(
            "tanh",
            (280, np.interp(280, ts, bounded[0])),
            (0, 8),
            ha="right",
            textcoords="offset points",
            color=plot.BLUE,
        )
        left.set_xlabel(plot.TIME_LABEL)
        left.set_ylabel("energy $H$")
        left.set_title(f"Euler, n = 8, step {dt}")
        for (w, step), color in (((1.7, 0.05), plot.SKY), ((1.0, 0.2), plot.BLUE)):
            t, e = _large_pair(w, step)
            right.loglog(t[1:], e[1:], color=color, lw=2, label=f"w = {w:g}, h = {step:g}")
            law = np.sqrt((8 + 2 * LN2) ** 2 + 2 * step * w**2 * t) - 2 * LN2
            right.loglog(t[1:], law[1:], ":", color=plot.BLACK, lw=1.2)
        right.set_xlabel(plot.TIME_LABEL)
        right.set_ylabel("energy $H$")
        right.set_title("two tanh units: a square root (dotted)")
        right.yaxis.set_minor_formatter("")
        right.legend(loc="upper left", frameon=False, fontsize=8)

    return [
        Claim(
            "c1-euler-linear",
            "In linear networks forward Euler gains energy exponentially, exactly by "
            "Σ |aₖ|² (1 + h²wₖ²)ᴺ.",
            (
                at_most(
                    "worst relative error of the law, n = 8, 6000 steps",
                    np.max(np.abs(h[0] / exact - 1)),
                    1e-10,
                    "exact: N units of rounding, jaxdyn.euler_energy_linear",
                ),
                at_least(
                    "energy gained, H / H₀ at t = 300",
                    h[0, -1] / h[0, 0],
                    10.0,
                    "a conserved energy would stay at 1",
                ),
            ),
            "agrees",
            "Forward Euler is unstable on linear oscillations.",
            f"Dense random W, |W|₂ = 1, n = 8, h = {dt}.",
            draw,
            "Left: the same weights, linear and tanh (dots: exact law). Right: two tanh units "
            "against the square-root law.",
        )
    ]


def bound(quick: bool) -> list[Claim]:
    steps = 5000 if quick else 50_000
    operator = random_skew(8, seed=2)
    cell = PoissonCell(operator, Tanh())
    x0 = tanh_states(8, 8, 2.0, seed=3)
    dt = 0.2
    _, h = euler_run(cell, x0, dt, steps)
    gain = np.diff(h, axis=1)
    most = dt**2 / 2 * 8
    safe = float(euler_max_step(0.1, 50.0, 8, 1.0))
    count = SAVED * int(np.ceil(50.0 / safe / SAVED))
    _, slow = euler_run(cell, x0, 50.0 / count, count, count // SAVED)
    return [
        Claim(
            "c2-euler-bound",
            "With tanh forward Euler never loses energy and gains at most (h²/2) n |W|² a step, "
            "which gives the largest admissible step.",
            (
                at_least(
                    "smallest gain in one step",
                    np.min(gain),
                    -1e-12,
                    "H is convex: never below 0 but for rounding of H",
                ),
                at_most(
                    "largest gain in one step over the bound",
                    np.max(gain) / most,
                    1.0,
                    "0 ≤ s′ ≤ 1 and |s| ≤ 1",
                ),
                at_most(
                    "gain over t = 50 at jaxdyn.euler_max_step(0.1, …)",
                    np.max(slow[:, -1] - slow[:, 0]),
                    0.1,
                    "what was asked for",
                ),
            ),
            "sharpens",
            "A bounded nonlinearity tames forward Euler. The bound says by how much.",
            f"n = 8, |W|₂ = 1, h = {dt}, eight states of H = 2, {steps} steps; h = {safe:.4g}.",
        )
    ]


def pair(quick: bool) -> list[Claim]:
    checks, worst = [], 0.0
    for w, dt in PAIRS[::2] if quick else PAIRS:
        ts, h = _large_pair(w, dt)
        measured = slope(ts, (h + 2 * LN2) ** 2) / (2 * dt * w**2)
        worst = max(worst, abs(measured - 1))
    checks.append(
        at_most(
            "worst relative error of the slope of (H + 2 ln 2)² over 2 h w² t",
            worst,
            1e-3,
            "exact averaged law; a part of a turn over the whole run",
        )
    )
    # From small to large energy, against the averaged law itself.
    w, dt = 1.0, 0.05
    cell = PoissonCell(BlockSkew(jnp.asarray([w])), Tanh())
    runs = [euler_run(cell, _start(h0), dt, 20_000, 20_000 // SAVED) for h0 in (1e-3, 1.0)]
    ts, h = runs[0][0], np.concatenate([h for _, h in runs])
    law = np.asarray(euler_energy(jnp.asarray(ts)[None], jnp.asarray([[1e-3], [1.0]]), w, dt))
    error = np.max(np.abs(h / law - 1))
    early = ts <= 20.0
    rate = slope(ts[early], np.log(h[0, early]))
    expected = np.log1p((dt * w) ** 2) / dt
    checks += [
        at_most(
            "worst relative error of the averaged law from H = 0.001 and 1 over t = 1000",
            error,
            0.1,
            "leading order in h: h w = 0.05, phase of the orbit included",
        ),
        near(
            "rate of growth from H = 0.001, over the linear network's",
            rate / expected,
            1.0,
            0.05,
            "small energies are linear; averaged over 3 turns",
        ),
    ]

    def draw(figure):
        ax = figure.subplots()
        for row, target, color, text, at in zip(
            h,
            law,
            (plot.VERMILLION, plot.BLUE),
            ("from H = 0.001", "from H = 1"),
            (0.006, 1.7),
            strict=True,
        ):
            ax.loglog(ts[1:], row[1:], color=color, lw=2)
            ax.loglog(ts[1:], target[1:], ":", color=plot.BLACK, lw=1.2)
            ax.annotate(text, (6, at), color=color)
        ax.set_xlabel(plot.TIME_LABEL)
        ax.set_ylabel("energy $H$")
        ax.set_title("Two tanh units under Euler: exponential first, then a square root")

    return [
        Claim(
            "c3-euler-root",
            "In two tanh units the gain is a square root in time at large energy, and exponential "
            "as in the linear network at small energy. Bounded activations slow the drift; they do "
            "not remove it.",
            tuple(checks),
            "corrects",
            "The paper reports that bounded activations stabilise forward Euler. Measured, the "
            "exponential blow-up becomes a creep H ~ w √(2 h t), which never stops.",
            f"diffrax.Euler, {STEPS} steps, (w, h) in {PAIRS[::2] if quick else PAIRS} from H = 8; "
            "H = 0.001 and 1 at w = 1, h = 0.05.",
            draw,
            "Energy (lines) and the averaged law (dotted), jaxdyn.euler_energy.",
        )
    ]


def many(quick: bool) -> list[Claim]:
    steps = 40_000 if quick else 400_000
    operator = random_skew(8, seed=2)
    cell = PoissonCell(operator, Tanh())
    ts, h = euler_run(cell, tanh_states(8, 8, 2.0, seed=3), 0.2, steps, steps // SAVED)
    late = ts > 0.1 * ts[-1]
    exponent = slope(np.log(ts[late]), np.log(np.mean(h, axis=0)[late]))
    return [
        Claim(
            "c4-euler-many",
            "Eight tanh units gain energy like a square root of time too.",
            (
                near(
                    "exponent of H ~ t^a, mean of eight orbits",
                    exponent,
                    0.5,
                    0.05,
                    "1/2; H + const is what grows, so late times only",
                ),
            ),
            "sharpens",
            "As in c3-euler-root.",
            f"n = 8, |W|₂ = 1, h = 0.2, t = {0.2 * steps:g}, the last nine tenths.",
        )
    ]


MEASUREMENTS = (linear, bound, pair, many)

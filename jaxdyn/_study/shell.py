"""A true limit cycle: the energy shell x' = W g - kappa (H - H*) g."""

import jax.numpy as jnp
import numpy as np

from .. import plot
from .._activation import Tanh
from .._cell import EnergyShell, PoissonCell
from .._exact import period, shell_multiplier
from .._skew import BlockSkew
from .._solver import RK4, Taylor
from .claim import Claim, at_least, at_most, near
from .measure import energies, first_return, random_skew, record, tanh_states

FREQUENCY, LEVEL, RATE = 1.3, 1.5, 0.2
MULTIPLIER = "0.1025834765"
MULTIPLIER_TOLERANCE = 1e-8


def cycle(quick: bool) -> list[Claim]:
    cell = PoissonCell(
        BlockSkew(jnp.asarray([FREQUENCY])), Tanh(), regulator=EnergyShell(LEVEL, RATE)
    )
    delta = 1e-5
    levels = (LEVEL + delta, LEVEL - delta, 0.05, 6.0)
    x0 = np.stack([np.arccosh(np.exp(np.array(levels))), np.zeros(4)], axis=1)
    ts, ys = record(cell, x0, 80.0, 0.02, Taylor(8))
    # The section x2 = 0, x1 > 0, which orbits cross with x2 falling.
    normal = np.array([0.0, -1.0])
    back = [first_return(ts, y, normal) for y in ys[:2]]
    after = energies(cell, np.stack([x for _, x in back]))
    measured = (after[0] - after[1]) / (2 * delta)
    formula = float(shell_multiplier(LEVEL, RATE, FREQUENCY))
    length = float(period(LEVEL, FREQUENCY))
    h = energies(cell, ys)

    def draw(figure):
        left, right = figure.subplots(1, 2)
        ring = ys[0, ts < 1.01 * length]
        plot.phase_portrait(cell, ys[2:], ax=left, linewidth=0.9)
        left.plot(*ring.T, color=plot.BLACK, lw=2)
        left.annotate("limit cycle", (1.6, 2.0), (2.6, 3.4), arrowprops={"arrowstyle": "-"})
        left.set_title("From inside and outside onto one orbit")
        stop = ts < 50
        for row, color, text in zip(
            h[2:], plot.COLORS, ("from H = 0.05", "from H = 6"), strict=False
        ):
            right.semilogy(ts[stop], np.abs(row[stop] - LEVEL), color=color, lw=1.4, label=text)
        tail = ts[stop]
        guide = abs(h[3, 0] - LEVEL) * formula ** (tail / length)
        right.semilogy(tail, guide, ":", color=plot.BLACK, lw=1.2, label="exact multiplier")
        right.set_xlabel(plot.TIME_LABEL)
        right.set_ylabel(r"$|H - H^*|$")
        right.set_ylim(1e-7, 30)
        right.legend(fontsize=8, frameon=False)
        right.set_title("at the rate of the exact multiplier")

    return [
        Claim(
            "d1-shell",
            "One more term makes a true limit cycle: with an energy shell, two units have an "
            "isolated, attracting orbit whose Floquet multiplier is known exactly.",
            (
                near(
                    "multiplier by Poincaré returns, w = 1.3, H* = 1.5, κ = 0.2",
                    measured,
                    formula,
                    MULTIPLIER_TOLERANCE,
                    "exact formula, jaxdyn.shell_multiplier; central difference of 1e-5",
                    MULTIPLIER,
                ),
                near(
                    "time of that return over the exact period",
                    back[0][0] / length,
                    1.0,
                    1e-4,
                    "jaxdyn.period, to first order in the push of 1e-5",
                ),
                at_most(
                    "worst |H − H*| at t = 80, from H = 0.05 and 6",
                    np.max(np.abs(h[2:, -1] - LEVEL)),
                    1e-6,
                    "eleven returns, less a slow start from H = 0.05",
                ),
            ),
            "corrects",
            "The paper speaks of limit cycles of the bare network. Those are neutrally stable (see "
            "a3-centre); the regulated network has one in the strict sense.",
            "Taylor of order 8, step 0.02; energy after one return to x₂ = 0 from H* ± 1e-5.",
            draw,
            "Left: two orbits and the cycle they approach. Right: distance in energy.",
        )
    ]


def surface(quick: bool) -> list[Claim]:
    eight = PoissonCell(random_skew(8, seed=7), Tanh(), regulator=EnergyShell(4.0, 0.2))
    x0 = np.concatenate([tanh_states(8, 2, 1.0, seed=1), tanh_states(8, 2, 12.0, seed=2)])
    ts, ys = record(eight, x0, 60.0, 0.05, RK4(), every=4)
    distance = np.max(np.abs(energies(eight, ys)[:, -1] - 4.0))
    spread = np.min(np.std(ys[:, ts > 40], axis=1))

    operator = random_skew(3, seed=33)
    kernel = operator.kernel()
    start = tanh_states(3, 2, 3.0, seed=4)
    moved = {}
    for keep in (None, kernel):
        cell = PoissonCell(operator, Tanh(), regulator=EnergyShell(1.5, 0.2, keep=keep))
        _, orbit3 = record(cell, start, 60.0, 0.05, RK4(), every=4)
        change = np.abs((orbit3 - orbit3[:, :1]) @ np.asarray(kernel).T)
        moved[keep is not None] = (np.max(change), energies(cell, orbit3)[:, -1])
    return [
        Claim(
            "d2-surface",
            "With more units the shell makes one energy surface attracting, not a cycle; with a "
            "singular W it moves the Casimirs unless it is projected onto the range of W.",
            (
                at_most(
                    "n = 8: worst |H − H*| at t = 60, from H = 1 and 12",
                    distance,
                    1e-6,
                    "RK4 keeps a fixed offset of its own energy loss",
                ),
                at_least(
                    "n = 8: smallest spread of a unit after t = 40",
                    spread,
                    0.05,
                    "0 would be rest: the motion on the surface goes on",
                ),
                at_least(
                    "n = 3, plain shell: change of the Casimir",
                    moved[False][0],
                    1e-2,
                    "nothing protects it",
                ),
                at_most(
                    "n = 3, keep=kernel(): change of the Casimir", moved[True][0], 1e-12, "rounding"
                ),
            ),
            "adds",
            "Not in the paper.",
            "κ = 0.2, RK4, step 0.05, t = 60.",
        )
    ]


MEASUREMENTS = (cycle, surface)

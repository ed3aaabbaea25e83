"""How long a state is remembered: the derivative of the flow, and running backwards."""

import diffrax
import jax.numpy as jnp
import numpy as np

from .. import plot
from .._activation import Identity, Tanh
from .._cell import PoissonCell
from .._simulate import simulate
from .._skew import DenseSkew
from .._solver import AbstractCellSolver, Strang, Taylor
from .chaos import coupled
from .claim import Claim, at_least, at_most
from .measure import push, record, tanh_states

STEP, CHUNK, CHUNKS = 0.1, 100, 30
DAMPING = 0.1
DETERMINANT_BOUND = 1e-9


def _singular_values(solver: AbstractCellSolver, cell: PoissonCell, x0: np.ndarray):
    """Singular values of dx(t)/dx(0), (chunks + 1, n), and log |det|."""
    n = cell.size
    x, v = jnp.asarray(np.repeat(x0[None], n, axis=0)), jnp.eye(n)
    values, dets = [np.ones(n)], [0.0]
    for _ in range(CHUNKS):
        x, v = push(solver, cell, x, v, jnp.asarray(STEP), CHUNK)
        matrix = np.asarray(v).T
        values.append(np.linalg.svd(matrix, compute_uv=False))
        dets.append(np.linalg.slogdet(matrix)[1])
    return np.array(values), np.array(dets)


def gradients(quick: bool) -> list[Claim]:
    operator = DenseSkew.from_matrix(coupled())
    tanh = PoissonCell(operator, Tanh())
    low, high = tanh_states(8, 1, 0.02, seed=1)[0], tanh_states(8, 1, 8.0, seed=1)[0]
    runs = {
        "linear": _singular_values(Taylor(8), PoissonCell(operator, Identity()), high),
        "tanh, H = 0.02": _singular_values(Strang(), tanh, low),
        "tanh, H = 8": _singular_values(Strang(), tanh, high),
        f"tanh, damping {DAMPING:g}": _singular_values(
            Strang(), PoissonCell(operator, Tanh(), damping=DAMPING), high
        ),
    }
    t = STEP * CHUNK * np.arange(CHUNKS + 1)
    linear, regular, chaotic, damped = (s for s, _ in runs.values())
    volume = np.max(np.abs(runs["tanh, H = 0.02"][1]))

    def draw(figure):
        ax = figure.subplots()
        colors = (plot.GREEN, plot.BLUE, plot.VERMILLION, plot.GREY)
        for (name, (s, _)), color in zip(runs.items(), colors, strict=True):
            ax.fill_between(t, s[:, -1], s[:, 0], color=color, alpha=0.15, lw=0)
            ax.semilogy(t, s[:, 0], color=color, lw=1.8, label=name)
            ax.semilogy(t, s[:, -1], color=color, lw=1.0)
        ax.legend(loc="lower left", frameon=False, fontsize=8)
        ax.set_xlabel(plot.TIME_LABEL)
        ax.set_ylabel(r"singular values of $\partial x(t)/\partial x(0)$")
        ax.set_title("What a state remembers: largest and smallest gradient")

    return [
        Claim(
            "g1-gradients",
            "No information is lost on the way: the derivative of the flow has determinant 1. In "
            "linear networks no gradient vanishes or explodes; in tanh networks at low energy they "
            "grow slowly; in chaos they do both.",
            (
                at_most(
                    "linear, t = 300: worst |singular value − 1|",
                    np.max(np.abs(linear - 1)),
                    1e-9,
                    "exp(W t) is orthogonal",
                ),
                at_most(
                    "tanh, H = 0.02: worst |log det| of the flow's derivative",
                    volume,
                    DETERMINANT_BOUND,
                    "shears keep volume exactly; rounding × steps",
                ),
                at_most(
                    "tanh, H = 0.02, t = 300: largest singular value",
                    regular[-1, 0],
                    30.0,
                    "grows at most linearly: of order 1 + |dΩ/dE| E t",
                ),
                at_least(
                    "tanh, H = 8, t = 300: largest over smallest singular value",
                    chaotic[-1, 0] / chaotic[-1, -1],
                    1e4,
                    "chaos: exp(2 λ t)",
                ),
                at_most(
                    f"damping {DAMPING:g}, t = 300: largest singular value",
                    damped[-1, 0],
                    1e-6,
                    "what skew symmetry avoids: gradients vanish",
                ),
            ),
            "sharpens",
            "Such networks are good at holding on to information over time. Measured: nothing is "
            "lost, but in the chaotic regime (here from H of order 1 on) gradients explode along "
            "some directions and vanish along others.",
            "n = 8, one dense W, |W|₂ = 1; tangents of all eight directions, Strang at h = 0.1 "
            "(linear: Taylor of order 8).",
            draw,
            "Bands from the smallest to the largest singular value.",
        )
    ]


def recall(quick: bool) -> list[Claim]:
    """Run to t1 and back, and compare with where the state had been."""
    t1 = 2500.0
    cell = PoissonCell(DenseSkew.from_matrix(coupled()), Tanh())
    x0 = np.concatenate([tanh_states(8, 4, 0.02, seed=1), tanh_states(8, 4, 8.0, seed=1)])
    _, forth = record(cell, x0, t1, 0.1, Strang(), every=50)
    back = simulate(
        cell, forth[:, -1], t0=t1, t1=0.0, dt=0.1, solver=Strang(), saveat=diffrax.SaveAt(steps=50)
    )
    error = np.linalg.norm(np.asarray(back.ys) - forth[:, -2::-1], axis=-1)
    error = np.maximum(error / np.linalg.norm(x0, axis=1)[:, None], 1e-17)
    elapsed = t1 - np.asarray(back.ts)

    def draw(figure):
        ax = figure.subplots()
        for rows, color, text, at in (
            (error[:4], plot.BLUE, "H = 0.02", (0.6, 1e-12)),
            (error[4:], plot.VERMILLION, "H = 8", (0.48, 1e-6)),
        ):
            ax.semilogy(elapsed, rows.T, color=color, lw=0.9)
            ax.annotate(text, (at[0] * t1, at[1]), color=color)
        ax.set_ylim(1e-17, 10)
        ax.set_xlabel("time run back (model units)")
        ax.set_ylabel("error of the recovered state, relative")
        ax.set_title("How far back a float64 state can be recalled")

    return [
        Claim(
            "g2-recall",
            "Run backwards, the network recovers where it was: for ever on regular orbits, and on "
            "chaotic ones until rounding, growing like exp(λt), has reached the size of the state.",
            (
                at_most(
                    f"H = 0.02: worst relative error after t = {t1:g} back",
                    np.max(error[:4, -1]),
                    1e-9,
                    "rounding × steps, growing linearly",
                ),
                at_most(
                    "H = 8: worst relative error after t = 100 back",
                    np.max(error[4:, np.searchsorted(elapsed, 100)]),
                    1e-6,
                    "rounding × exp(λ t) with λ of order 0.03, early bursts included",
                ),
                at_least(
                    f"H = 8: largest relative error after t = {t1:g} back",
                    np.max(error[4:, -1]),
                    1e-3,
                    "lost: exp(λ t) exceeds 1 / rounding",
                ),
            ),
            "sharpens",
            "The end of claim (e): memory is limited by the largest Lyapunov exponent.",
            "n = 8, Strang at h = 0.1, 25,000 steps there and back, eight states.",
            draw,
            "Four orbits at low energy, four at H = 8.",
        )
    ]


MEASUREMENTS = (gradients, recall)

"""Which activations keep the orbits closed: two units, W = [[0, 1], [-1, 0]]."""

import functools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import plot
from .._activation import (
    ELU,
    ISRU,
    AbstractActivation,
    Arctan,
    AsymmetricTanh,
    Erf,
    FunctionActivation,
    HardTanh,
    Identity,
    LeakyReLU,
    RectifiedTanh,
    ReLU,
    Sigmoid,
    Softplus,
    Softsign,
    Tanh,
)
from .._cell import PoissonCell
from .._skew import BlockSkew
from .._solver import RK4
from .claim import Claim, at_least, at_most, near
from .measure import energies, first_return, record

# Four decimals are what the references are given to; half a unit of the last one.
PERIOD_TOLERANCE = 6e-5
FIELD_BOUND = 1e-14
START = (1.0, 0.5)


class _Run(NamedTuple):
    cell: PoissonCell
    ts: np.ndarray
    ys: np.ndarray
    period: float
    gap: float


def fading() -> FunctionActivation:
    """s = z / (1 + z^2)^2: odd, bounded, of the sign of z, and yet S <= 1/2."""
    return FunctionActivation(
        lambda z: z / (1 + z * z) ** 2,
        lambda z: 0.5 * z * z / (1 + z * z),
        confining=False,
    )


@functools.cache
def _runs(t1: float) -> dict[str, _Run]:
    """Two starts, (1, .5) and (3, 2), with each activation; the first one's return."""
    chosen: dict[str, AbstractActivation] = {
        "tanh": Tanh(),
        "ELU": ELU(),
        "leaky ReLU": LeakyReLU(0.1),
        "asymmetric tanh": AsymmetricTanh(),
        "rectified tanh": RectifiedTanh(),
        "z/(1+z²)²": fading(),
    }
    starts = np.array([START, (3.0, 2.0)])
    runs = {}
    for name, activation in chosen.items():
        cell = PoissonCell(BlockSkew(jnp.ones(1)), activation)
        # Kinks of s cost RK4 its order but not its accuracy at this step.
        ts, ys = record(cell, starts, t1, 0.0025, RK4(), every=4)
        normal = np.asarray(cell(0.0, jnp.asarray(starts[0]), None))
        when, where = first_return(ts, ys[0], normal, points=6)
        runs[name] = _Run(cell, ts, ys, when, float(np.linalg.norm(where - starts[0])))
    return runs


def _portrait(ax, run: _Run, start: int, extent: float, color: str, title: str) -> None:
    plot.level_sets(run.cell, extent=extent, ax=ax)
    plot.phase_portrait(run.cell, run.ys[start], ax=ax, color=color)
    ax.set_xlim(-extent, extent)
    ax.set_ylim(-extent, extent)
    ax.set_aspect("equal", adjustable="box")
    ax.set_title(title, fontsize=9)


def closing(quick: bool) -> list[Claim]:
    runs = _runs(40.0)
    references = {
        "tanh": "8.1319",
        "ELU": "8.2606",
        "leaky ReLU": "27.213",
        "asymmetric tanh": "6.1225",
    }
    checks = []
    for name, text in references.items():
        unit = 10.0 ** -len(text.split(".")[1])
        checks.append(
            near(
                f"{name}: period from (1, 0.5)",
                runs[name].period,
                float(text),
                PERIOD_TOLERANCE * unit / 1e-4,
                "reference to its last digit",
                text,
            )
        )
        checks.append(
            at_most(
                f"{name}: gap after one period",
                runs[name].gap,
                1e-6,
                "RK4 at step 0.0025, kinks included",
            )
        )

    def draw(figure):
        axes = figure.subplots(1, 4)
        for ax, name, color in zip(axes, references, plot.COLORS, strict=False):
            extent = 4.2 if name == "leaky ReLU" else 2.2
            title = f"{name}:\ncloses, T = {runs[name].period:.4g}"
            _portrait(ax, runs[name], 0, extent, color, title)
            if ax is not axes[0]:
                ax.set_ylabel("")

    return [
        Claim(
            "b1-closing",
            "Orbits close for every activation with z·s(z) > 0 and an unbounded potential: being "
            "odd or bounded is sufficient, not necessary.",
            tuple(checks),
            "sharpens",
            "The paper asks for tanh-like activations: odd, bounded, continuous. ELU and leaky "
            "ReLU are neither odd nor bounded, an asymmetric tanh is not odd, and all three close.",
            "Two units, w = 1, start (1, 0.5), RK4, step 0.0025.",
            draw,
            "One orbit each on the contours of its own energy. Note the leaky ReLU's wider axes.",
        )
    ]


def breaking(quick: bool) -> list[Claim]:
    runs = _runs(40.0)
    rectified, fade = runs["rectified tanh"], runs["z/(1+z²)²"]
    at20 = rectified.ys[0, np.searchsorted(rectified.ts, 20.0 - 1e-9), 1]
    speed = np.diff(rectified.ys[0, -2:, 1])[0] / np.diff(rectified.ts[-2:])[0]
    outward = np.diff(np.linalg.norm(fade.ys[1], axis=1)[fade.ts > 10])

    def draw(figure):
        left, middle, right = figure.subplots(1, 3)
        for ax, name, index, extent, title in (
            (left, "rectified tanh", 0, 18, "rectified tanh: escapes"),
            (middle, "z/(1+z²)²", 0, 2.2, "z/(1+z²)² from (1, 0.5):\ncloses"),
            (right, "z/(1+z²)²", 1, 6, "z/(1+z²)² from (3, 2):\nescapes"),
        ):
            color = plot.BLUE if ax is middle else plot.VERMILLION
            _portrait(ax, runs[name], index, extent, color, title)
            if ax is not left:
                ax.set_ylabel("")

    return [
        Claim(
            "b2-rectified",
            "A rectified tanh breaks the closed orbits: the state runs away along one axis.",
            (
                near(
                    "x₂ at t = 20, from (1, 0.5)",
                    at20,
                    -15.86,
                    0.006,
                    "reference to its last digit",
                    "-15.86",
                ),
                at_most("speed of x₂ at t = 40", speed, -1e-3, "below 0: it never turns back"),
                at_least(
                    "returns missed (1 if it never came back by t = 40)",
                    float(np.isnan(rectified.period)),
                    1.0,
                    "no crossing of the section",
                ),
            ),
            "agrees",
            "Activations that are not tanh-like, such as the rectified tanh, break the closed "
            "orbits.",
            "Two units, w = 1, start (1, 0.5), RK4, step 0.0025, t = 40.",
            draw,
            "The rectified tanh leaves; z/(1+z²)² closes from one start and leaves from another.",
        ),
        Claim(
            "b3-fading",
            "Odd, bounded, continuous and of the right sign is not enough: the potential must be "
            "unbounded too.",
            (
                at_most(
                    "z/(1+z²)² from (1, 0.5): gap after one period",
                    fade.gap,
                    1e-8,
                    "RK4 at step 0.0025",
                ),
                at_least(
                    "z/(1+z²)² from (3, 2): |x| at t = 40",
                    np.linalg.norm(fade.ys[1, -1]),
                    5.0,
                    "start |x| = 3.6, no return",
                ),
                at_least(
                    "slowest growth of |x| from t = 10 on, per 0.01",
                    np.min(outward),
                    0.0,
                    "above 0: it never turns back",
                ),
                at_least(
                    "energy of that orbit",
                    energies(fade.cell, fade.ys[1, 0]),
                    0.5,
                    "sup S = 1/2: above it a level set is open",
                ),
            ),
            "corrects",
            "Odd, bounded and continuous is the paper's condition; z/(1+z²)² satisfies it. "
            "Measured, it closes from (1, 0.5) and escapes from (3, 2): its potential is bounded.",
            "As above, with a FunctionActivation.",
        ),
    ]


def conserving(quick: bool) -> list[Claim]:
    """grad H . x' = 0 at random states, for every activation the package has."""
    every = (
        Tanh(),
        Identity(),
        Arctan(),
        Erf(),
        Softsign(),
        ISRU(),
        HardTanh(),
        AsymmetricTanh(),
        ELU(),
        LeakyReLU(0.1),
        RectifiedTanh(),
        ReLU(),
        Softplus(),
        Sigmoid(),
        fading(),
    )
    rng = np.random.default_rng(0)
    lower = np.tril(rng.normal(size=(8, 8)), -1)
    x = jnp.asarray(3 * rng.normal(size=(100, 8)))
    w = jnp.asarray(lower - lower.T)

    @eqx.filter_jit
    def worst(activations, x):
        def one(activation):
            force = jax.grad(lambda x: jnp.sum(activation.potential(x)))
            g = jax.vmap(force)(x)
            v = activation(x) @ w.T
            size = jnp.linalg.norm(g, axis=1) * jnp.linalg.norm(v, axis=1)
            return jnp.max(jnp.abs(jnp.sum(g * v, axis=1)) / jnp.maximum(size, 1e-300))

        return [one(a) for a in activations]

    rates = [float(r) for r in worst(every, x)]
    return [
        Claim(
            "b4-any-activation",
            "The energy H = Σ S(xᵢ) is conserved for any activation, closed orbits or not: "
            "∇H · x′ = sᵀ W s = 0.",
            (
                at_most(
                    f"worst |∇H · x′| / (|∇H| |x′|), {len(every)} activations, 100 states",
                    max(rates),
                    FIELD_BOUND,
                    "rounding of sums of 8 terms, n = 8",
                ),
            ),
            "sharpens",
            "The paper derives invariants for tanh-like activations; the energy exists for all of "
            "them. What the activation decides is whether its level sets are compact.",
            "∇H by automatic differentiation of each activation's potential, x′ = W s(x).",
        )
    ]


MEASUREMENTS = (closing, breaking, conserving)

"""What one step keeps: frequencies, Casimirs, time reversal, and the two forms of the network."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import plot
from .._activation import Identity, Tanh
from .._cell import AntisymmetricCell, PoissonCell
from .._invariants import casimir_drift, reversibility_error
from .._skew import BipartiteSkew
from .._solver import RK4, AbstractCellSolver, DiscreteGradient, ImplicitMidpoint, Strang
from .claim import Claim, at_least, at_most
from .measure import energies, march, random_skew, record, tanh_states

STEPS = (0.1, 0.5, 1.0, 1.5)
LAW_BOUND = 1e-12


def _turns(solver: AbstractCellSolver, cell: PoissonCell, dt: float) -> tuple[np.ndarray, ...]:
    """Angles of one step's eigenvalues, ascending, and their moduli."""
    matrix = march(solver, cell, np.eye(cell.size), dt, 1, 1)[:, 0].T
    values: Any = np.linalg.eigvals(matrix)
    values = values[values.imag > 0]
    values = values[np.argsort(np.angle(values))]
    return np.angle(values), np.abs(values)


@functools.cache
def _networks() -> tuple[PoissonCell, PoissonCell]:
    """A dense and a bipartite linear network of eight units, |W|_2 = 1."""
    coupling = np.random.default_rng(4).normal(size=(4, 4))
    coupling = coupling / np.linalg.norm(coupling, 2)
    return (
        PoissonCell(random_skew(8, seed=4), Identity()),
        PoissonCell(BipartiteSkew(coupling), Identity()),
    )


def frequencies(quick: bool) -> list[Claim]:
    dense, bipartite = _networks()
    w, b = (np.asarray(c.operator.frequencies()) for c in (dense, bipartite))
    worst = {"midpoint": 0.0, "discrete gradient": 0.0, "Strang": 0.0, "RK4": 0.0}
    general = 0.0
    measured = {}
    for h in STEPS:
        tangent = 2 * np.arctan(w * h / 2)
        sine = 2 * np.arcsin(b * h / 2)
        midpoint = _turns(ImplicitMidpoint(), dense, h)[0]
        gradient = _turns(DiscreteGradient(), dense, h)[0]
        strang = _turns(Strang(), bipartite, h)[0]
        worst["midpoint"] = max(worst["midpoint"], np.max(np.abs(midpoint - tangent)))
        worst["discrete gradient"] = max(
            worst["discrete gradient"], np.max(np.abs(gradient - tangent))
        )
        worst["Strang"] = max(worst["Strang"], np.max(np.abs(strang - sine)))
        on_dense = _turns(Strang(), dense, h)[0]
        general = max(general, np.max(np.abs(on_dense - 2 * np.arcsin(w * h / 2))))
        size = _turns(RK4(), dense, h)[1] ** 2
        law = 1 - (w * h) ** 6 / 72 + (w * h) ** 8 / 576
        # Angles of RK4 are in the order of w as long as w h < 2.
        worst["RK4"] = max(worst["RK4"], np.max(np.abs(size - law)))
        measured[h] = (midpoint / h / w, strang / h / b, on_dense / h / w)

    def draw(figure):
        ax = figure.subplots()
        x = np.linspace(0.01, 1.6, 200)
        ax.plot(x, 2 * np.arctan(x / 2) / x, color=plot.BLUE, lw=1.2)
        ax.plot(x, 2 * np.arcsin(x / 2) / x, color=plot.VERMILLION, lw=1.2)
        for h, (midpoint, strang, on_dense) in measured.items():
            ax.plot(w * h, midpoint, "o", color=plot.BLUE, ms=4)
            ax.plot(b * h, strang, "s", color=plot.VERMILLION, ms=4)
            ax.plot(w * h, on_dense, "^", color=plot.GREY, ms=4)
        ax.annotate(
            "Strang, two colours: sin law", (0.95, 1.055), ha="right", color=plot.VERMILLION
        )
        ax.annotate(
            "midpoint, discrete gradient: tan law", (0.9, 0.915), ha="right", color=plot.BLUE
        )
        ax.annotate("Strang, dense W: no such law", (1.05, 1.01), color="#555555")
        ax.set_xlabel("$w h$ (radians per step)")
        ax.set_ylabel(r"frequency of the solver over $w$")
        ax.set_title("What a step does to a frequency")

    return [
        Claim(
            "e3-frequencies",
            "One step turns a linear mode by a known angle: tan(Ωh/2) = wh/2 for the midpoint rule "
            "and the discrete gradient, sin(Ωh/2) = wh/2 for Strang with two colours.",
            (
                at_most(
                    "implicit midpoint, dense W: error of the angle",
                    worst["midpoint"],
                    LAW_BOUND,
                    "exact; Newton's method to rounding",
                ),
                at_most(
                    "discrete gradient, dense W: error of the angle",
                    worst["discrete gradient"],
                    LAW_BOUND,
                    "exact",
                ),
                at_most(
                    "Strang, bipartite W: error of the angle", worst["Strang"], LAW_BOUND, "exact"
                ),
                at_least(
                    "Strang, dense W: distance from the sin law",
                    general,
                    1e-3,
                    "the law needs two colours",
                ),
                at_most(
                    "RK4: error of the energy factor 1 − (wh)⁶/72 + (wh)⁸/576",
                    worst["RK4"],
                    LAW_BOUND,
                    "exact",
                ),
            ),
            "adds",
            "Not in the paper.",
            f"Linear networks, n = 8, |W|₂ = 1, eigenvalues of one step at h = {STEPS}.",
            draw,
            "Lines: the laws. Symbols: eigenvalues of one step.",
        )
    ]


def forms(quick: bool) -> list[Claim]:
    operator = random_skew(3, seed=6)
    cell = PoissonCell(operator, Tanh())
    x0 = tanh_states(3, 4, 2.0, seed=6)
    _, ys = record(cell, x0, 100.0, 0.1, Strang(), every=10)
    casimir = float(jnp.max(casimir_drift(cell, x0, jnp.asarray(ys[:, 1:]))))
    eight = PoissonCell(random_skew(8, seed=7), Tanh())
    start = tanh_states(8, 1, 4.0, seed=6)[0]
    back = float(reversibility_error(Strang(), eight, jnp.asarray(start), 0.1))

    bias = 0.3 * np.random.default_rng(9).normal(size=8)
    rnn = AntisymmetricCell(eight.operator, Tanh(), bias=bias)
    W = np.asarray(eight.operator.as_matrix())
    y0 = start[None]
    _, hidden = record(rnn, y0, 100.0, 0.1, Strang(), every=10)
    z0 = y0 @ W.T + bias
    _, poisson = record(eight, z0, 100.0, 0.1, Strang(), every=10)
    apart = np.max(np.abs(hidden @ W.T + bias - poisson))
    h = energies(rnn, hidden)
    return [
        Claim(
            "e4-structure",
            "Splittings keep every Casimir and undo themselves; the antisymmetric form "
            "y′ = s(W y + b) is the Poisson form in other coordinates, step by step.",
            (
                at_most(
                    "Strang, n = 3: worst change of c·x over t = 100",
                    casimir,
                    1e-12,
                    "rounding times steps",
                ),
                at_most("Strang, n = 8: a step forward and one back", back, 1e-14, "rounding"),
                at_most(
                    "W y + b of the antisymmetric run against the Poisson run, 1000 steps",
                    apart,
                    1e-11,
                    "rounding, spread by the dynamics",
                    "1.1e-13",
                ),
                at_most(
                    "antisymmetric form: worst energy error, Strang at h = 0.1",
                    np.max(np.abs(h / h[0, 0] - 1)),
                    5e-3,
                    "bounded oscillation of size h²",
                ),
            ),
            "adds",
            "The paper treats both forms; the map x = W y + b between them carries over to the "
            "solvers exactly.",
            "Tanh, dense random W, |W|₂ = 1, h = 0.1, t = 100.",
        )
    ]


def spectrum(quick: bool) -> list[Claim]:
    """The eigenvalues of W diag(s'(x)) at random states."""
    worst, shown = 0.0, {}
    for n in (2, 3, 4, 8, 32):
        cell = PoissonCell(random_skew(n, seed=n), Tanh())
        states = 2 * np.random.default_rng(n).normal(size=(20, n))
        jacobian = jax.jit(jax.vmap(jax.jacfwd(lambda x, cell=cell: cell(0.0, x, None))))
        values: Any = np.linalg.eigvals(np.asarray(jacobian(jnp.asarray(states))))
        worst = max(worst, np.max(np.abs(values.real)) / np.max(np.abs(values)))
        shown[n] = values

    def draw(figure):
        ax = figure.subplots()
        for column, (n, values) in enumerate(shown.items()):
            flat = values.ravel()
            ax.plot(flat.real + column, flat.imag, "_", color=plot.COLORS[column], ms=12, mew=0.7)
            ax.annotate(f"n = {n}", (column, 1.08), ha="center", color=plot.COLORS[column])
        ax.set_xlim(-0.6, 4.6)
        ax.set_ylim(-1.1, 1.25)
        ax.set_xticks(range(5), ["Re = 0"] * 5)
        ax.set_ylabel("imaginary part (rad per time unit)")
        ax.set_title("Eigenvalues of the Jacobian at 20 random states each")

    return [
        Claim(
            "b5-spectrum",
            "The Jacobian W diag(s′(x)) has a purely imaginary spectrum at every state.",
            (
                at_most(
                    "largest |real part| over largest |eigenvalue|, n = 2, 3, 4, 8, 32",
                    worst,
                    1e-12,
                    "exactly 0; rounding of a nonsymmetric eigenvalue problem",
                ),
            ),
            "sharpens",
            "This is the usual argument for stable gradients. It holds at each instant; "
            "see f1-chaos for what it does not imply.",
            "Jacobians of the cell by forward-mode differentiation at x ~ N(0, 4).",
            draw,
            "Each column is one network; every mark lies on the imaginary axis.",
        )
    ]


MEASUREMENTS = (spectrum, frequencies, forms)

"""Where orbits stop being regular: tangent growth, low-energy modes, decoupled pairs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from .. import plot
from .._activation import Tanh
from .._cell import PoissonCell
from .._exact import backbone
from .._skew import DenseSkew
from .._solver import RK4, Strang, Taylor
from .claim import Claim, at_least, at_most, near
from .measure import random_skew, record, tangent_growth, tanh_states

STEP, CHUNK = 0.1, 100
BATCH = 16
# Growth of log |v| over the second half of a run: log 2 where it is linear in time.
REGULAR, CHAOTIC = 3.0, 10.0


def coupled() -> np.ndarray:
    return np.asarray(random_skew(8, seed=7).as_matrix())


def pairs() -> np.ndarray:
    """Four pairs that do not act on each other."""
    w = np.zeros((8, 8))
    for i, frequency in enumerate((1.0, 0.83, 0.61, 0.37)):
        w[2 * i, 2 * i + 1], w[2 * i + 1, 2 * i] = frequency, -frequency
    return w


def bipartite() -> np.ndarray:
    coupling = np.random.default_rng(4).normal(size=(4, 4))
    zero = np.zeros((4, 4))
    w = np.block([[zero, coupling], [-coupling.T, zero]])
    return w / np.linalg.norm(w, 2)


def _growth(w: np.ndarray, energy: float, t1: float, batch: int = BATCH) -> np.ndarray:
    # One dense operator for all W: the structure is in its values, so it compiles once.
    cell = PoissonCell(DenseSkew.from_matrix(w), Tanh())
    x0 = tanh_states(len(w), batch, energy, seed=1)
    return tangent_growth(Strang(), cell, x0, STEP, CHUNK, round(t1 / (STEP * CHUNK)))


def _second_half(logs: np.ndarray) -> np.ndarray:
    return logs[:, -1] - logs[:, logs.shape[1] // 2]


@functools.cache
def _eight(t1: float) -> dict[str, np.ndarray]:
    return {
        "dense, H = 0.02": _growth(coupled(), 0.02, t1),
        "dense, H = 8": _growth(coupled(), 8.0, t1),
        "bipartite, H = 8": _growth(bipartite(), 8.0, t1),
        "separate pairs, H = 8": _growth(pairs(), 8.0, t1),
    }


def exponents(quick: bool) -> list[Claim]:
    t1 = 3000.0 if quick else 20_000.0
    runs = _eight(t1)
    late = {name: _second_half(logs) for name, logs in runs.items()}
    mean = float(np.mean(runs["dense, H = 8"][:, -1]) / t1)
    other = PoissonCell(DenseSkew.from_matrix(coupled()), Tanh())
    x0 = tanh_states(8, BATCH, 8.0, seed=1)
    rk4 = tangent_growth(RK4(), other, x0, 0.05, 200, round(3000 / 10))
    check = float(np.mean(rk4[:, -1]) / 3000)
    far = 20_000.0
    high = _growth(coupled(), 256.0, far)
    product = float(np.mean(high[:, -1]) / far) * 256.0

    def draw(figure):
        ax = figure.subplots()
        colors = (plot.BLUE, plot.VERMILLION, plot.ORANGE, plot.GREEN)
        shown = int(1000 / (STEP * CHUNK)) + 1
        for (name, logs), color in zip(runs.items(), colors, strict=True):
            t = STEP * CHUNK * np.arange(logs.shape[1])[:shown]
            ax.plot(t, logs[:4, :shown].T, color=color, lw=0.8, alpha=0.5)
            middle = np.median(logs, axis=0)[:shown]
            ax.plot(t, middle, color=color, lw=2, label=name)
        ax.legend(loc="upper left", frameon=False, fontsize=8)
        ax.set_xlabel(plot.TIME_LABEL)
        ax.set_ylabel(r"growth of a small push, $\ln |v(t)|/|v(0)|$")
        ax.set_title("Eight units: a straight line here is chaos")

    return [
        Claim(
            "f1-chaos",
            "From four units on orbits need not be periodic, and at energies of order one most are "
            "chaotic: a small push grows exponentially, although every Jacobian's spectrum is "
            "imaginary.",
            (
                at_least(
                    "dense W, n = 8, H = 8: smallest log growth in the second half",
                    np.min(late["dense, H = 8"]),
                    CHAOTIC,
                    "regular orbits: about ln 2",
                ),
                at_least(
                    "dense W, n = 8, H = 8: mean largest exponent",
                    mean,
                    0.01,
                    "0 for regular orbits",
                ),
                near(
                    "the same with RK4 at h = 0.05, over Strang's",
                    check / mean,
                    1.0,
                    0.25,
                    "the flow's own, not the solver's; spread between orbits over t = 3000",
                ),
                at_most(
                    "dense W, n = 8, H = 0.02: largest log growth in the second half",
                    np.max(late["dense, H = 0.02"]),
                    REGULAR,
                    "quasi-periodic: about ln 2",
                ),
                at_most(
                    "separate pairs, H = 8: largest log growth in the second half",
                    np.max(late["separate pairs, H = 8"]),
                    REGULAR,
                    "integrable: about ln 2",
                ),
                at_least(
                    "bipartite W, H = 8: smallest log growth in the second half",
                    np.min(late["bipartite, H = 8"]),
                    CHAOTIC,
                    "chaotic like dense W",
                ),
                near(
                    "exponent × H at H = 256",
                    product,
                    1.15,
                    0.5,
                    "falls like c / H; c differs between W",
                    "1.0 to 1.3",
                ),
            ),
            "corrects",
            "The paper infers stable gradients and lasting oscillations for any size. Oscillations "
            "last, but for n ≥ 4 they are not closed orbits, and gradients are stable only at low "
            "energy or between uncoupled pairs.",
            f"One tangent vector each for {BATCH} states, Strang at h = 0.1, t = {t1:g}, "
            "derivatives of `simulate` by forward mode.",
            draw,
            "Thin: single orbits. Thick: the median of sixteen.",
        )
    ]


def mixed(quick: bool) -> list[Claim]:
    t1 = 5000.0 if quick else 20_000.0
    w = np.asarray(random_skew(4, seed=4).as_matrix())
    late = _second_half(_growth(w, 8.0, t1, batch=32))
    chaotic = float(np.mean(late > CHAOTIC))
    regular = float(np.mean(late < REGULAR))
    return [
        Claim(
            "f2-mixed",
            "Four units are mixed: at one and the same energy some orbits are chaotic and some are "
            "not.",
            (
                at_least(
                    "share of chaotic orbits, H = 8",
                    chaotic,
                    0.05,
                    "a fixed W ranges from 0 to 0.9",
                ),
                at_least("share of regular orbits, H = 8", regular, 0.05, "as above"),
            ),
            "corrects",
            "As in f1-chaos.",
            f"One W, 32 random states, t = {t1:g}.",
        )
    ]


def modes(quick: bool) -> list[Claim]:
    operator = random_skew(4, seed=3)
    cell = PoissonCell(operator, Tanh())
    W = np.asarray(operator.as_matrix())
    vectors = np.linalg.eigh(-1j * W)[1][:, 2:]  # those of the +w
    errors, shifts = [], []
    levels = (0.02, 0.01)
    x0 = np.concatenate([tanh_states(4, 2, h, seed=2) for h in levels])
    ts, ys = record(cell, x0, 2000.0, 0.1, Taylor(10), every=10)
    # Weights that fade at both ends average the ripple of the other modes away.
    weight = np.sin(np.pi * np.arange(ts.size) / (ts.size - 1)) ** 2
    predict = jax.jit(backbone)
    for x, y in zip(x0, ys, strict=True):
        omega, shifted = (np.asarray(v) for v in predict(jnp.asarray(W), jnp.asarray(x)))
        amplitude = y @ vectors.conj()
        # One sample a time unit: unwrap relative to the linear frequency.
        slow = np.unwrap(np.angle(amplitude * np.exp(-1j * omega * ts[:, None])), axis=0)
        moved = np.array([np.polyfit(ts, s, 1, w=np.sqrt(weight))[0] for s in slow.T])
        errors.append(np.max(np.abs(moved - (shifted - omega)) / np.abs(shifted - omega)))
        shifts.append(moved)

    return [
        Claim(
            "f3-modes",
            "At low energy the motion is quasi-periodic: each mode keeps its own frequency, "
            "shifted in proportion to the energies of all modes.",
            (
                at_most(
                    "worst relative error of the frequency shift at H = 0.02",
                    max(errors[:2]),
                    0.05,
                    "next order in the energy: jaxdyn.backbone",
                ),
                at_most("the same at H = 0.01", max(errors[2:]), 0.025, "half of it"),
                at_least(
                    "largest shift measured at H = 0.02 (rad per time unit)",
                    np.max(np.abs(shifts[:2])),
                    1e-3,
                    "0 for a linear network",
                ),
            ),
            "adds",
            "Not in the paper.",
            "n = 4, phases of the linear modes along Taylor orbits over t = 2000.",
        )
    ]


MEASUREMENTS = (exponents, mixed, modes)

"""Do skew-symmetric networks oscillate for ever? Invariants, closed orbits, exact solutions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from .. import plot
from .._activation import Identity, Tanh
from .._cell import PoissonCell
from .._exact import equilibrium_frequency, harmonics, monodromy, orbit, period
from .._skew import BlockSkew
from .._solver import Taylor
from .claim import Claim, at_least, at_most, near
from .measure import energies, first_return, push, random_skew, record, tanh_states

SIZES = (2, 3, 4, 8, 32)
PAIR_FREQUENCY = 1.7
PAIR_ENERGIES = (0.5, 1.0, 2.0, 5.0)
PAIR_PERIODS = ("4.67263954107", "5.73329369783", "7.99371060505", "15.02671881642")
HARMONICS = ("1.1615360953", "0.2098437358", "0.0481891735", "0.0111922087")
DRIFT_BOUND = 1e-11
PERIOD_BOUND = 1e-10
RETURN_BOUND = 1e-9


def invariants(quick: bool) -> list[Claim]:
    """Linear and tanh networks of every size keep their energy and Casimirs and never settle."""
    t1 = 50.0 if quick else 1000.0
    solver = Taylor(8)
    drift = {Identity: [], Tanh: []}
    casimir, slowest, linear, curves = 0.0, np.inf, 0.0, {}
    for n in SIZES:
        operator = random_skew(n, seed=n)
        W = np.asarray(operator.as_matrix())
        for activation in drift:
            cell = PoissonCell(operator, activation())
            x0 = tanh_states(n, 4, 2.0 if n < 32 else 8.0, seed=n)
            ts, ys = record(cell, x0, t1, 0.05, solver, every=20)
            h = energies(cell, ys)
            drift[activation].append(np.max(np.abs(h / h[:, :1] - 1)))
            if activation is Tanh:
                curves[n] = (ts, np.abs(h[0] / h[0, 0] - 1))
                # Speed over the largest |W| |s(x)| it could have: 0 only at a point of rest.
                g = np.tanh(ys)
                speed = np.linalg.norm(g @ W.T, axis=-1)
                slowest = min(slowest, np.min(speed / np.linalg.norm(g, axis=-1)))
                if n % 2:
                    c = np.asarray(operator.kernel())
                    casimir = max(casimir, np.max(np.abs((ys - ys[:, :1]) @ c.T)))
            else:
                # W = V (i w) V^H: the exact flow from the spectrum.
                w, v = np.linalg.eigh(-1j * W)
                turned = np.exp(1j * w * ts[:, None]) * (x0 @ v.conj())[:, None]
                exact = (turned @ v.T).real
                linear = max(linear, np.max(np.abs(exact - ys)) / np.max(np.abs(exact)))
    sizes = ", ".join(map(str, SIZES))

    def draw(figure):
        ax = figure.subplots()
        for (n, (ts, error)), color in zip(curves.items(), plot.COLORS, strict=False):
            ax.semilogy(ts, np.maximum(error, 1e-16), color=color, lw=1, label=f"n = {n}")
        ax.legend(loc="upper center", ncols=len(curves), frameon=False)
        ax.set_xlabel(plot.TIME_LABEL)
        ax.set_ylabel(r"energy error $|H/H_0 - 1|$")
        ax.set_ylim(5e-17, 1e-11)
        ax.set_title("tanh networks of every size keep their energy to rounding")

    return [
        Claim(
            "a1-invariants",
            "Skew-symmetric weights make the network oscillate for ever: the energy is constant, "
            "so no orbit comes to rest, in linear and tanh networks alike.",
            (
                at_most(
                    f"tanh, n = {sizes}: worst energy drift over t = {t1:g}",
                    max(drift[Tanh]),
                    DRIFT_BOUND,
                    "rounding: 1e-11 is the accuracy asked of Taylor at |W| = 1",
                ),
                at_most(
                    "linear: worst energy drift", max(drift[Identity]), DRIFT_BOUND, "as above"
                ),
                at_most(
                    "linear: distance from the matrix exponential exp(W t), relative",
                    linear,
                    1e-10,
                    "rounding times |W| t",
                ),
                at_most("n = 3: change of the Casimir c·x", casimir, 1e-11, "rounding times steps"),
                at_least(
                    "tanh: slowest speed met, |W s| / |s|",
                    slowest,
                    1e-4,
                    "0 would be a point of rest",
                ),
            ),
            "agrees",
            "Skew-symmetric weights are what makes continuous-time networks oscillate instead of "
            "settling on a fixed point, and tanh-like activations leave invariants of motion.",
            f"Dense random W, |W|₂ = 1, n = {sizes}, four random states each, Taylor of order 8, "
            "step 0.05.",
            draw,
            "Energy error of one orbit per size.",
        )
    ]


def _starts() -> np.ndarray:
    """Where the closed form is at t = 0: x2 = 0 and log cosh x1 = H."""
    x1 = np.arccosh(np.exp(np.asarray(PAIR_ENERGIES)))
    return np.stack([x1, np.zeros_like(x1)], axis=1)


@functools.cache
def _pair_orbits() -> tuple[PoissonCell, np.ndarray, np.ndarray]:
    """Two tanh units at four energies over one period of the slowest and a bit."""
    cell = PoissonCell(BlockSkew(jnp.asarray([PAIR_FREQUENCY])), Tanh())
    return cell, *record(cell, _starts(), 20.0, 0.02, Taylor(10))


def pair(quick: bool) -> list[Claim]:
    """Two units: closed orbits, their exact periods, and a centre rather than a limit cycle."""
    cell, ts, ys = _pair_orbits()
    exact = np.asarray(period(jnp.asarray(PAIR_ENERGIES), PAIR_FREQUENCY))
    normals = PAIR_FREQUENCY * np.tanh(ys[:, 0, ::-1]) * np.array([1.0, -1.0])
    returns = [first_return(ts, y, v) for y, v in zip(ys, normals, strict=True)]
    times = np.array([t for t, _ in returns])
    gap = max(np.linalg.norm(x - y[0]) for (_, x), y in zip(returns, ys, strict=True))
    formula = np.asarray(
        orbit(jnp.asarray(ts)[None, :], jnp.asarray(PAIR_ENERGIES)[:, None], PAIR_FREQUENCY)
    )
    off = np.max(np.abs(formula - ys))

    # The linearised flow over the measured period of H = 1, each column a pushed unit vector.
    x0 = jnp.asarray(np.repeat(ys[1:2, 0], 2, axis=0))
    steps = 400
    _, columns = push(
        Taylor(6), cell, x0, jnp.asarray(np.eye(2)), jnp.asarray(times[1] / steps), steps
    )
    measured = np.asarray(columns).T
    expected = np.asarray(jax.jit(lambda x: monodromy(x, PAIR_FREQUENCY))(x0[0]))

    def draw(figure):
        left, right = figure.subplots(1, 2)
        plot.level_sets(cell, extent=6.5, levels=np.linspace(0.25, 8, 14), ax=left)
        plot.phase_portrait(cell, ys, ax=left)
        left.set_title("Every orbit of two tanh units closes")
        h = np.linspace(0, 5.5, 100)
        right.plot(h, period(jnp.asarray(h), PAIR_FREQUENCY), color=plot.GREY, lw=1.2)
        for e, t, color in zip(PAIR_ENERGIES, times, plot.COLORS, strict=False):
            right.plot(e, t, "o", color=color, ms=6)
        right.annotate("$T = (4/w)\\,K(m)$", (2.9, 12.2), color="#555555", ha="right")
        right.set_xlabel("energy $H$")
        right.set_ylabel("period (model units)")
        right.set_title("and its period grows with its energy")
        right.set_ylim(0, None)

    checks = [
        at_most(
            "worst relative error of the period, H = 0.5 to 5",
            np.max(np.abs(times / exact - 1)),
            PERIOD_BOUND,
            "exact formula (4/w) K(m), jaxdyn.period",
        ),
    ]
    for e, t, text in zip(PAIR_ENERGIES, times, PAIR_PERIODS, strict=True):
        tolerance = 2e-10 * float(text)
        checks.append(
            near(
                f"period at H = {e:g}, w = {PAIR_FREQUENCY}",
                t,
                float(text),
                tolerance,
                "reference ± 2e-10, relative",
                text,
            )
        )
    checks += [
        at_most("distance from the start after one period", gap, RETURN_BOUND, "rounding"),
        at_most("distance from the closed form over the whole run", off, 1e-9, "rounding × w t"),
    ]
    return [
        Claim(
            "a2-pair",
            "Two tanh units run on closed orbits whose shape and period are known exactly.",
            tuple(checks),
            "agrees",
            "Two-unit networks follow closed orbits.",
            "W = [[0, w], [-w, 0]], w = 1.7, Taylor of order 10, step 0.02; the return to the "
            "section through the start is found on a polynomial through 12 samples.",
            draw,
            "Left: orbits of four energies on the contours of H. Right: measured periods (dots) "
            "and the exact formula.",
        ),
        Claim(
            "a3-centre",
            "The closed orbits form a continuous family, one per energy, neutrally stable: a "
            "centre, not a limit cycle in the strict sense, which is isolated.",
            (
                at_most(
                    "distance of the linearised flow over a period from I − T′ f ∇Hᵀ",
                    np.max(np.abs(measured - expected)),
                    1e-8,
                    "exact formula, jaxdyn.monodromy",
                ),
                at_most(
                    "distance of the trace from 2 (both multipliers 1)",
                    abs(np.trace(measured) - 2),
                    1e-8,
                    "exact: an isolated cycle would have a multiplier other than 1",
                ),
                at_least(
                    "off-diagonal size of the linearised flow (one Jordan block)",
                    np.linalg.norm(measured - np.eye(2)),
                    0.1,
                    "0 only if the period did not depend on the energy",
                ),
                at_least(
                    "period at H = 5 over period at H = 0.5",
                    times[3] / times[0],
                    3.0,
                    "1 for isochronous orbits; exact ratio 3.216",
                    "3.21590",
                ),
            ),
            "corrects",
            "The paper calls these orbits stable “limit cycles”. Measured, a small push in energy "
            "neither decays nor grows: it moves the state to the neighbouring orbit, which has "
            "another period. A true limit cycle needs one more term: see d1-shell.",
            "Tangent vectors carried along the flow by forward-mode differentiation of `simulate` "
            "over one measured period, H = 1.",
        ),
    ]


def pair_harmonics(quick: bool) -> list[Claim]:
    """The Fourier series of tanh x2 along the orbit of H = 2."""
    samples = 256
    cell = PoissonCell(BlockSkew(jnp.asarray([PAIR_FREQUENCY])), Tanh())
    length = float(period(jnp.asarray(PAIR_ENERGIES), PAIR_FREQUENCY)[2])
    # The same batch of four as before, for which the solver is compiled already.
    _, ys = record(cell, _starts(), length * 1000 / samples, length / samples, Taylor(10))
    ys = ys[PAIR_ENERGIES.index(2.0)]
    series = np.fft.rfft(np.tanh(ys[:samples, 1])) / (samples / 2)
    sines = series.imag  # x = sum a_j sin(j phase) has the coefficient -i a_j
    exact = np.asarray(jax.jit(lambda h: harmonics(h, PAIR_FREQUENCY, k=4))(2.0))
    checks = [
        at_most(
            "worst error of the first four odd harmonics",
            np.max(np.abs(sines[1:8:2] - exact)),
            1e-10,
            "exact formula, jaxdyn.harmonics",
        ),
    ]
    for j, text in zip((1, 3, 5, 7), HARMONICS, strict=True):
        checks.append(
            near(
                f"amplitude of harmonic {j}", sines[j], float(text), 1e-9, "reference ± 1e-9", text
            )
        )
    rest = max(np.max(np.abs(series[0::2])), np.max(np.abs(series.real)))
    checks.append(at_most("largest even harmonic or cosine", rest, 1e-11, "exactly 0 by symmetry"))

    def draw(figure):
        left, right = figure.subplots(1, 2)
        turn = jnp.linspace(0.0, 1.0, samples + 1)[None]
        levels = jnp.asarray([[0.1], [2.0], [8.0]])
        shown = orbit(turn * period(levels, PAIR_FREQUENCY), levels, PAIR_FREQUENCY)
        for h, y, color in zip(
            levels[:, 0],
            np.tanh(shown)[..., 1],
            (plot.SKY, plot.BLUE, plot.VERMILLION),
            strict=True,
        ):
            left.plot(turn[0], y, color=color, label=f"H = {h:g}")
        left.legend(loc="lower right", fontsize=8)
        left.set_xlabel("phase (periods)")
        left.set_ylabel(r"$\tanh x_2$")
        left.set_title("From a sine to a square wave")
        j = np.arange(1, 20)
        height = np.maximum(np.abs(series[1:20]), 1e-17)
        right.bar(j, height, 0.6, color=[plot.BLUE if k % 2 else plot.GREY for k in j])
        right.set_yscale("log")
        right.set_ylim(1e-17, 10)
        right.set_xticks(j[::2])
        right.set_xlabel("harmonic")
        right.set_ylabel("amplitude at H = 2")
        right.set_title("odd harmonics only")

    return [
        Claim(
            "a4-harmonics",
            "The orbit of two tanh units holds odd sine harmonics only, with known amplitudes.",
            tuple(checks),
            "adds",
            "The paper does not give the spectrum.",
            "One period of H = 2 at 256 samples, discrete Fourier transform.",
            draw,
            "Left: tanh x₂ over one period. Right: amplitudes at H = 2; even harmonics (grey) "
            "are rounding.",
        )
    ]


def triple(quick: bool) -> list[Claim]:
    """Three units: every orbit closes, or rests at tanh x = l c."""
    count = 8 if quick else 32
    operator = random_skew(3, seed=33)
    cell = PoissonCell(operator, Tanh())
    W = np.asarray(operator.as_matrix())
    axis = np.array([-W[1, 2], W[0, 2], -W[0, 1]])
    x0 = tanh_states(3, count, 2.0, seed=5)
    x0 = x0 * np.linspace(0.3, 1.4, count)[:, None]
    level = np.array([-0.8, 0.3, 0.9])[:, None] / np.max(np.abs(axis))
    rest = np.arctanh(level * axis)
    # Beside each point of rest, a small orbit at right angles to the Casimir direction.
    side = np.cross(axis, [1.0, 0.0, 0.0])
    small = rest + 1e-4 * side / np.linalg.norm(side)
    starts = np.concatenate([x0, small, rest])
    ts, ys = record(cell, starts, 60.0, 0.05, Taylor(10))
    gaps, times = [], []
    for y in ys[: count + 3]:
        t, x = first_return(ts, y, W @ np.tanh(y[0]))
        times.append(t)
        gaps.append(np.linalg.norm(x - y[0]))
    still = np.max(np.abs(ys[count + 3 :] - rest[:, None]))
    near_rest = 2 * np.pi / np.array(times[count:])
    expected = np.asarray(jax.jit(equilibrium_frequency)(jnp.asarray(W), jnp.asarray(level[:, 0])))

    def draw(figure):
        ax = figure.add_subplot(projection="3d")
        for i in np.linspace(0, count - 1, 8).astype(int):
            y = ys[i]
            stop = np.searchsorted(ts, times[i]) + 1
            ax.plot(*y[:stop].T, color=plot.COLORS[i % 7], lw=1.2)
        line = np.arctanh(np.linspace(-0.95, 0.95, 101)[:, None] * axis / np.max(np.abs(axis)))
        ax.plot(*line.T, color=plot.GREY, lw=1, ls="--", label="points of rest")
        ax.legend(loc="upper left", frameon=False, fontsize=8)
        ax.set_xlabel("$x_1$", labelpad=-6)
        ax.set_ylabel("$x_2$", labelpad=-6)
        ax.set_zlabel("$x_3$", labelpad=-6)
        ax.tick_params(labelsize=7, pad=-2)
        ax.set_title("Three tanh units: every orbit closes")

    return [
        Claim(
            "a5-triple",
            "Three units always close or rest: the Casimir cuts the energy surface in a closed "
            "curve, whatever the weights.",
            (
                at_most(
                    f"worst gap after one return, {count + 3} orbits",
                    np.max(gaps),
                    RETURN_BOUND,
                    "rounding; NaN if one does not come back",
                ),
                at_most(
                    "movement of three points of rest tanh x = l c over t = 60",
                    still,
                    1e-12,
                    "rounding",
                ),
                at_most(
                    "worst relative error of the frequency beside them",
                    np.max(np.abs(near_rest / expected - 1)),
                    1e-6,
                    "exact formula, jaxdyn.equilibrium_frequency; amplitude 1e-4 squared × 10",
                ),
            ),
            "sharpens",
            "The paper shows closed orbits in examples; for three units it is a theorem, points of "
            "rest included.",
            f"One random W, {count} states of energy 0.2 to 4, three points of rest and small "
            "orbits beside them, Taylor of order 10, step 0.05.",
            draw,
            "Closed orbits around the line of points of rest.",
        )
    ]


MEASUREMENTS = (invariants, pair, pair_harmonics, triple)

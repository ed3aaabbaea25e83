"""All there is to say of one trajectory of a cell: numbers, a verdict, and figures."""

import dataclasses
import math
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._cell import AbstractCell
from .._simulate import simulate
from .fixed_points import fixed_points
from .frequencies import Frequencies, frequencies
from .indicators import Indicator, gali, verdict
from .lyapunov import LyapunovSpectrum, lyapunov_spectrum
from .section import PoincareSection, poincare_section

# |W|_2 h of exponents (by splitting) and of orbits (by Taylor's series, to rounding).
CHAOS_STEP, ORBIT_STEP = 0.1, 0.25
# Of the sampled orbit; a power of two for its spectrum.
SAMPLES = 4096
TONES = 5
# The turns of the fastest mode that a portrait shows.
TURNS = 60


@dataclasses.dataclass(frozen=True)
class Analysis:
    """What was measured of the trajectory from `x0` over the time `t1`.

    `unit`, the one that moves most, whose tones these are and whose mean the section is at; `ts`
    and `states` (t, n), sampled evenly; `energies` (t,), `drift` of them.
    """

    cell: AbstractCell
    x0: Array
    t1: float
    spectrum: LyapunovSpectrum
    alignment: Indicator
    verdict: str
    ts: Float[np.ndarray, " t"]
    states: Float[np.ndarray, "t n"]
    energies: Float[np.ndarray, " t"]
    unit: int
    tones: Frequencies | None
    section: PoincareSection
    at_rest: Any

    @property
    def conserves(self) -> bool:
        """Whether the energy stayed what it was."""
        return float(np.ptp(self.energies)) <= 1e-6 * max(abs(self.energies[0]), 1e-300)

    def record(self) -> dict[str, Any]:
        """What JSON can hold."""
        exponents, error = (np.asarray(v) for v in (self.spectrum.exponents, self.spectrum.error))
        tones = self.tones
        return {
            "units": self.cell.size,
            "t1": float(self.spectrum.times[-1]),
            "x0": np.asarray(self.x0).tolist(),
            "energy": float(self.energies[0]),
            "energy_drift": float(np.max(np.abs(self.energies / self.energies[0] - 1))),
            "exponents": exponents.tolist(),
            "exponent_errors": error.tolist(),
            "exponent_sum": float(self.spectrum.sum),
            "zero_exponents": int(self.spectrum.zeros),
            "gali_2": float(self.alignment.last),
            "verdict": self.verdict,
            "unit": self.unit,
            "frequencies": [] if tones is None else np.asarray(tones.omega).tolist(),
            "amplitudes": [] if tones is None else np.asarray(tones.amplitude).tolist(),
            "section_crossings": int(self.section.found),
            "fixed_points": self.at_rest if isinstance(self.at_rest, str) else self.at_rest.note,
        }


def analyse(cell: AbstractCell, x0: Array, t1: float | None = None) -> Analysis:
    """Everything about the trajectory from `x0`; over 2000 / |W|_2 unless `t1` says otherwise.

    **Raises:** RuntimeError when it diverges.
    """
    norm = float(np.max(np.asarray(cell.operator.frequencies()), initial=0.0)) or 1.0
    t1 = 2000.0 / norm if t1 is None else t1
    spectrum = lyapunov_spectrum(cell, x0, t1, CHAOS_STEP / norm)
    alignment = gali(cell, x0, t1, CHAOS_STEP / norm)
    span = min(t1, SAMPLES * ORBIT_STEP / norm)
    sol = simulate(
        cell,
        x0,
        n_steps=SAMPLES,
        dt=span / SAMPLES,
        solver=_accurate(cell),
        saveat=diffrax.SaveAt(t0=True, steps=1),
    )
    states = np.asarray(sol.ys)
    unit = int(np.argmax(states.std(axis=0)))
    try:
        tones = frequencies(states[:-1, unit], span / SAMPLES, min(TONES, cell.size + 1))
    except ValueError:
        tones = None
    section = poincare_section(
        cell, x0, t1, ORBIT_STEP / norm, normal=unit, offset=float(states[:, unit].mean()),
        throw=False,
    )  # fmt: skip
    try:
        at_rest: Any = fixed_points(cell)
    except ValueError as error:
        at_rest = str(error)
    return Analysis(
        cell=cell,
        x0=x0,
        t1=t1,
        spectrum=spectrum,
        alignment=alignment,
        verdict=str(verdict(spectrum)),
        ts=span / SAMPLES * np.arange(SAMPLES + 1),
        states=states,
        energies=np.asarray(jax.vmap(cell.energy)(jnp.asarray(states))),
        unit=unit,
        tones=tones,
        section=section,
        at_rest=at_rest,
    )


def _accurate(cell: AbstractCell) -> Any:
    from .._solver import RK4, Taylor

    try:
        Taylor(16).check(cell)
    except ValueError:
        return RK4()
    return Taylor(16)


def figures(found: Analysis) -> dict[str, bytes]:
    """PNG files by their names."""
    from .._figure import png

    return {
        "portrait.png": png(lambda f: _portrait(f, found), (7.2, 3.8)),
        "energy.png": png(lambda f: _energy(f, found), (7.2, 2.8)),
        "spectrum.png": png(lambda f: _spectrum(f, found), (7.2, 3.2)),
        "section.png": png(lambda f: _section(f, found), (4.6, 4.2)),
        "exponents.png": png(lambda f: _exponents(f, found), (7.2, 3.4)),
    }


def _pair(found: Analysis) -> tuple[int, int]:
    """The unit that moves most, and the one that drives it most."""
    spread = found.states.std(axis=0)
    drive = np.abs(np.asarray(found.cell.operator.as_matrix())[found.unit]) * spread
    drive[found.unit] = -1.0
    return found.unit, int(np.argmax(drive))


def _portrait(figure: Any, found: Analysis) -> None:
    from .. import plot

    left, right = figure.subplots(1, 2, width_ratios=(1, 1.5))
    first, second = _pair(found)
    norm = float(np.max(np.asarray(found.cell.operator.frequencies()), initial=0.0)) or 1.0
    shown = found.ts <= TURNS * 2 * math.pi / norm
    left.plot(found.states[shown, first], found.states[shown, second], lw=0.6, color=plot.BLUE)
    left.set_xlabel(f"$x_{{{first + 1}}}$")
    left.set_ylabel(f"$x_{{{second + 1}}}$")
    left.set_aspect("equal", adjustable="datalim")
    few = found.ts <= TURNS / 4 * 2 * math.pi / norm
    for i in dict.fromkeys((first, second)):
        right.plot(found.ts[few], found.states[few, i], lw=1.0, label=f"$x_{{{i + 1}}}$",
                   color=plot.COLORS[i == second])  # fmt: skip
    right.set_xlabel(plot.TIME_LABEL)
    right.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)


def _energy(figure: Any, found: Analysis) -> None:
    from .. import plot

    ax = figure.subplots()
    if found.conserves:
        plot.energy(found.cell, found.ts, found.states, ax=ax)
        return
    ax.plot(found.ts, found.energies, lw=1.0, color=plot.BLUE)
    ax.set_xlabel(plot.TIME_LABEL)
    ax.set_ylabel("energy $H$")


def _spectrum(figure: Any, found: Analysis) -> None:
    from .. import plot

    ax = figure.subplots()
    signal = found.states[:-1, found.unit]
    plot.spectrum(signal, float(found.ts[1]), ax=ax, pad=4)
    omega, amplitude = ax.lines[0].get_data()
    top = amplitude[1:].max()
    if found.tones is not None:
        real = np.asarray(found.tones.amplitude) > 1e-6 * top
        w, a = (np.asarray(v)[real] for v in (found.tones.omega, found.tones.amplitude))
        ax.plot(w, a, "o", ms=4, color=plot.VERMILLION, label=f"the {len(w)} strongest tones")
        ax.legend(frameon=False)
    ax.set_xlim(0, 1.2 * omega[amplitude >= 1e-4 * top].max())
    ax.set_ylim(1e-7 * top, 3 * top)
    ax.set_ylabel(f"amplitude of $x_{{{found.unit + 1}}}$")


def _section(figure: Any, found: Analysis) -> None:
    from .. import plot

    ax = figure.subplots()
    count, (first, second) = int(found.section.count), _pair(found)
    points = np.asarray(found.section.points)[:count]
    others = [i for i in range(found.cell.size) if i != first]
    a = second
    b = next((i for i in others if i != second), None)
    values = points[:, b] if b is not None else np.asarray(found.section.times)[:count]
    ax.plot(points[:, a], values, ".", ms=3, color=plot.BLUE)
    ax.set_xlabel(f"$x_{{{a + 1}}}$")
    ax.set_ylabel(f"$x_{{{b + 1}}}$" if b is not None else plot.TIME_LABEL)
    ax.set_title(f"{count} crossings of $x_{{{first + 1}}}$ = its mean, upwards")


def _exponents(figure: Any, found: Analysis) -> None:
    from .. import plot

    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    times, history = np.asarray(found.spectrum.times), np.asarray(found.spectrum.history)
    for i in range(history.shape[1]):
        left.plot(times, history[:, i], lw=0.9, color=plot.COLORS[i % len(plot.COLORS)])
    left.axhline(0, color=plot.GREY, lw=0.6)
    left.set_xlabel(plot.TIME_LABEL)
    left.set_ylabel("Lyapunov exponents, so far")
    numbers = np.arange(1, history.shape[1] + 1)
    right.errorbar(numbers, found.spectrum.exponents, found.spectrum.error, fmt="o", ms=4,
                   color=plot.BLUE, capsize=2)  # fmt: skip
    right.axhline(0, color=plot.GREY, lw=0.6)
    right.set_xlabel("number")
    right.set_title(found.verdict)

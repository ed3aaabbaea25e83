"""The figures of a fit: curve, spectrum, phase portrait, energy."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from .. import plot
from .._cell import PoissonCell
from .._figure import png
from .result import Fit
from .signals import Signal

# Periods of the strongest tone that a curve can show and still be read.
MOST_PERIODS = 40
# The run whose energy is drawn: as many times as long as the data, unless that takes more steps.
LONGER, MOST_STEPS, ENERGY_SAMPLES = 10, 1_000_000, 1000
# Channels in spectrum.png, and the ratio of the largest amplitude there to the smallest.
MOST_SPECTRA, SPECTRUM_RANGE = 3, 1e5
# Samples a period from which on lines through them look like curves.
DENSE = 30


def figures(fit: Fit) -> dict[str, bytes]:
    """PNG files by their names: fit.png, spectrum.png, phase.png and energy.png."""
    rows = min(fit.signal.n_channels, plot.MOST_CHANNELS)
    zooms = _periods(fit.signal.duration, fit) > MOST_PERIODS
    height = 2.6 + 0.5 * rows
    spectra = min(fit.signal.n_channels, MOST_SPECTRA)
    return {
        "fit.png": png(lambda figure: _fit(figure, fit, zooms), (7.2, height * (1 + zooms))),
        "spectrum.png": png(lambda figure: _spectrum(figure, fit), (7.2, 1.6 + 1.8 * spectra)),
        "phase.png": png(lambda figure: _phase(figure, fit), (7.2, 3.8)),
        "energy.png": png(lambda figure: _energy(figure, fit), (7.2, 3.2)),
    }


def _periods(duration: float, fit: Fit) -> float:
    return duration * _strongest(fit) / (2 * np.pi)


def _strongest(fit: Fit) -> float:
    return float(fit.metrics["frequencies"][0])


def _fit(figure: Any, fit: Fit, zooms: bool) -> None:
    """All of it, and below, when that is too dense, the periods around the end of the data."""
    axes = figure.subplots(1 + zooms, 1, squeeze=False)[:, 0]
    plot.fit(fit, ax=axes[0])
    if zooms:
        half = 2 * np.pi / _strongest(fit) * MOST_PERIODS / 4
        ts, end = fit.signal.ts, fit.fitted.ts[-1]
        plot.fit(fit, ax=axes[1])
        axes[1].get_legend().remove()
        axes[1].set_title("the same, closer", loc="left")
        axes[1].set_xlim(max(ts[0], end - half), min(ts[-1], end + half))


def _even(signal: Signal) -> tuple[Float[np.ndarray, " t"], Float[np.ndarray, "t m"]]:
    """Times at equal steps and the data there, with lines across what is missing."""
    ts = signal.ts
    if signal.dt is None:
        ts = np.linspace(ts[0], ts[-1], signal.n_samples)
    columns = [
        np.interp(ts, signal.ts[mask], values[mask])
        for values, mask in zip(signal.values.T, signal.mask.T, strict=True)
    ]
    return ts, np.stack(columns, axis=1)


def _amplitudes(fit: Fit) -> Float[np.ndarray, "k m"]:
    """Of the tones at the oscillator's frequencies in a long run, by least squares."""
    oscillator = fit.oscillator
    dt = 0.25 / float(np.max(np.asarray(oscillator.cell.operator.frequencies())))
    generated = oscillator.generate(oscillator.t0 + 4095 * dt, dt)
    angles = np.outer(generated.ts - generated.ts[0], fit.metrics["frequencies"])
    waves = np.column_stack([np.cos(angles), np.sin(angles), np.ones(len(angles))])
    found = np.linalg.lstsq(waves, generated.values.astype(np.float64))[0]
    k = angles.shape[1]
    return np.hypot(found[:k], found[k : 2 * k])


def _spectrum(figure: Any, fit: Fit) -> None:
    """Data and fit through the same window, and the tones that the oscillator goes on to have."""
    ts, data = _even(fit.fitted)
    dt = (ts[-1] - ts[0]) / (len(ts) - 1)
    found = np.asarray(fit.oscillator(ts), np.float64)
    frequencies, sizes = np.asarray(fit.metrics["frequencies"]), _amplitudes(fit)
    rows = min(fit.signal.n_channels, MOST_SPECTRA)
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    whole = fit.fitted.dt is not None and fit.fitted.is_complete
    right = 0.0
    for c, ax in enumerate(axes):
        style = {"linewidth": 3.0, "color": plot.GREY, "alpha": 0.6}
        name = "data" if whole else "data, interpolated"
        plot.spectrum(data[:, c], dt, ax=ax, pad=8, label=name, **style)
        plot.spectrum(found[:, c], dt, ax=ax, pad=8, label="fit", linewidth=1.2)
        omega, amplitude = ax.lines[0].get_data()
        top = max(amplitude[1:].max(), sizes[:, c].max())
        bottom = top / SPECTRUM_RANGE
        seen = sizes[:, c] > bottom
        stems = frequencies[seen], sizes[seen, c]
        ax.vlines(stems[0], bottom, stems[1], color=plot.GREEN, linewidth=1.0)
        label = "tones of the oscillator, in the long run"
        ax.plot(*stems, "o", color=plot.GREEN, markersize=4, label=label)
        # As far as there is something to see, in the data or in the oscillator.
        right = max(
            right, 1.2 * omega[amplitude >= 0.02 * top].max(), 1.1 * stems[0].max(initial=0.0)
        )
        ax.set_ylim(bottom, 3 * top)
        if rows > 1:
            ax.set_ylabel(f"amplitude, {fit.signal.channels[c]}")
            ax.set_xlabel("")
    unit = fit.signal.time_unit
    unit = "time unit" if unit == "model time" else unit
    axes[-1].set_xlabel(f"angular frequency (rad per {unit})")
    axes[-1].set_xlim(0, min(right, np.pi / dt))
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=3, frameon=False)


def _phase(figure: Any, fit: Fit) -> None:
    """The signal in the plane of two channels, or of one and its past, and two units."""
    left, right = figure.subplots(1, 2)
    data, oscillator = fit.fitted, fit.oscillator
    period = 2 * np.pi / _strongest(fit)
    span = min(data.duration, MOST_PERIODS * period)
    start = data.ts[0]
    fine = np.linspace(start, start + span, 6000)
    seen = data.ts <= start + span
    states = oscillator.states(fine)
    found = np.asarray(oscillator.readout.batch(states), np.float64)
    names = fit.signal.channels
    dense = np.sum(seen) * period / span > DENSE
    grey = {"color": plot.GREY, "linewidth": 2.6 if dense else 1.0, "alpha": 0.55, "label": "data"}
    if data.n_channels > 1:
        values = np.where(data.mask, data.values, np.nan)[seen]
        left.plot(values[:, 0], values[:, 1], marker=".", markersize=4, **grey)
        left.plot(found[:, 0], found[:, 1], color=plot.BLUE, linewidth=0.9, label="generated")
        left.set_xlabel(names[0])
        left.set_ylabel(names[1])
    else:
        lag = period / 4
        values, mask = data.values[:, 0], data.mask[:, 0]
        now = seen & mask & (data.ts >= start + lag)
        before = np.interp(data.ts - lag, data.ts[mask], values[mask])
        left.plot(values[now], before[now], marker=".", markersize=4, **grey)
        later = fine >= start + lag
        past = np.interp(fine - lag, fine, found[:, 0])
        left.plot(found[later, 0], past[later], color=plot.BLUE, linewidth=0.9, label="generated")
        left.set_xlabel(names[0])
        unit = "" if fit.signal.time_unit == "model time" else f" {fit.signal.time_unit}"
        left.set_ylabel(f"the same, {lag:.3g}{unit} earlier")
    left.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    states = np.asarray(states)
    plot.phase_portrait(
        oscillator.cell, states, _leading(oscillator.cell, states), ax=right, linewidth=0.9
    )
    right.set_title("two units of the network")


def _leading(cell: Any, states: Float[np.ndarray, "t n"]) -> tuple[int, int]:
    """The unit that moves most, and the one that drives it most."""
    spread = states.std(axis=0)
    first = int(np.argmax(spread))
    drive = np.abs(np.asarray(cell.operator.as_matrix())[first]) * spread
    drive[first] = -1.0
    second = int(np.argmax(drive))
    return min(first, second), max(first, second)


def _energy(figure: Any, fit: Fit) -> None:
    """The error of the energy in a long run; with a shell, the distance to it."""
    oscillator, duration = fit.oscillator, fit.signal.duration
    longer = min(LONGER, MOST_STEPS * oscillator.step / duration)
    ts = oscillator.t0 + np.linspace(0, longer * duration, ENERGY_SAMPLES + 1)
    states = oscillator.states(ts)
    ax, cell = figure.subplots(), oscillator.cell
    ax.axvspan(fit.signal.ts[0], fit.signal.ts[-1], color=plot.GREY, alpha=0.15, linewidth=0)
    ax.text(fit.signal.ts[-1], 0.97, " the data", transform=ax.get_xaxis_transform(), va="top")
    plot.energy(cell, ts, states, ax=ax)
    regulator = cell.regulator if isinstance(cell, PoissonCell) else None
    if regulator is not None and regulator.energy > 0:
        shell = float(regulator.energy)
        h = np.asarray(jax.vmap(cell.energy)(states))
        floor = float(np.finfo(h.dtype).eps) / 2
        ax.lines[-1].set_ydata(np.maximum(np.abs(h - shell) / shell, floor))
        ax.set_ylabel(r"distance to the shell, $|H - E|\,/\,E$")
        ax.relim()
        ax.autoscale_view()
    ax.set_xlim(ts[0], ts[-1])
    ax.set_xlabel(plot.time_label(fit.signal.time_unit))
    ax.set_title(f"energy over a run {longer:.3g} times as long as the data")

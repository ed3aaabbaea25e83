"""Pictures of networks: every function draws on an `ax`, makes one when given None, and returns it.

matplotlib is imported when something is drawn, not before. The colours are those of Okabe and Ito
(Color Universal Design, 2008), which colour-blind readers can tell apart.
"""

from itertools import pairwise
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from ._cell import AbstractCell, PoissonCell, cast

BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, YELLOW, BLACK = "#E69F00", "#56B4E9", "#F0E442", "#000000"
COLORS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
GREY = "#8A8A8A"

TIME_LABEL = "time (model units)"
MARKS = {
    "fold": "s",
    "fold or branch": "s",
    "branch point": "D",
    "period doubling": "^",
    "torus": "o",
    "Hopf": "*",
}
# Channels that one pair of axes has room for.
MOST_CHANNELS = 6


def phase_portrait(
    cell: AbstractCell, sol: Any, units: tuple[int, int] = (0, 1), *, ax: Any = None, **line: Any
) -> Any:
    """Orbits in the plane of two units, a dot where each one starts.

    **Arguments:**

    - `cell`: the cell that was integrated.
    - `sol`: what `simulate` returned, or states (t, n) or (b, t, n).
    - `units`: which two units span the plane.
    - `ax`: matplotlib axes, or None for new ones.
    - `line`: passed to `ax.plot`, for instance `color`, `linewidth`, `label` (of the first orbit).

    **Returns:** the axes.

    **Raises:** ValueError when `units` are no units of the cell or `sol` holds no states of it.
    """
    ys = _states(cell, sol)
    if len(units) != 2 or not all(0 <= u < cell.size for u in units):
        raise ValueError(f"`units` must be two of 0..{cell.size - 1}, got {units!r}.")
    first, second = units
    ax = _axes(ax)
    label = line.pop("label", None)
    for i, y in enumerate(ys):
        style = {"color": COLORS[i % len(COLORS)], "linewidth": 1.4} | line
        (drawn,) = ax.plot(y[:, first], y[:, second], label=label if i == 0 else None, **style)
        ax.plot(y[0, first], y[0, second], "o", color=drawn.get_color(), markersize=3.5)
    ax.set_xlabel(rf"$x_{{{first + 1}}}$")
    ax.set_ylabel(rf"$x_{{{second + 1}}}$")
    ax.set_aspect("equal", adjustable="datalim")
    return ax


def energy(cell: AbstractCell, ts: Any, sol: Any, *, ax: Any = None, **line: Any) -> Any:
    r"""The relative error of the energy, $|H(t) - H(0)| / H(0)$, over time on a logarithmic axis.

    H(0) is that of the first saved state. What is exactly 0 is drawn at half the rounding unit.

    **Arguments:** `cell`; `ts`, save times (t,), or None to take those of `sol`; `sol`, what
    `simulate` returned, or states (t, n) or (b, t, n); `ax`; `line`, passed to `ax.plot`.

    **Returns:** the axes.

    **Raises:** ValueError when the times and the states do not belong together.
    """
    ys = _states(cell, sol)
    if ts is None:
        if not isinstance(sol, diffrax.Solution):
            raise ValueError("`ts` may be None only when `sol` is a solution that holds its times.")
        ts = sol.ts
    ts = np.asarray(ts)
    if ts.shape != ys.shape[1:2]:
        raise ValueError(
            f"`ts` must have shape ({ys.shape[1]},), one time per saved state; got {ts.shape}."
        )
    cell = cast(cell, ys.dtype)
    h = np.asarray(jax.vmap(jax.vmap(cell.energy))(jnp.asarray(ys)))
    floor = float(np.finfo(ys.dtype).eps) / 2
    error = np.abs(h - h[:, :1]) / np.maximum(h[:, :1], np.finfo(ys.dtype).tiny)
    return _energy_error(ts, np.maximum(error, floor), ax, line)


def _energy_error(ts: np.ndarray, error: np.ndarray, ax: Any, line: dict) -> Any:
    ax = _axes(ax)
    label = line.pop("label", None)
    for i, row in enumerate(error):
        style = {"color": COLORS[i % len(COLORS)], "linewidth": 1.0} | line
        ax.plot(ts, row, label=label if i == 0 else None, **style)
    ax.set_yscale("log")
    ax.set_xlabel(TIME_LABEL)
    ax.set_ylabel(r"energy error $|H - H_0|\,/\,H_0$")
    return ax


def level_sets(
    cell: PoissonCell,
    *,
    extent: float | int = 3.0,
    levels: Any = 12,
    ax: Any = None,
    **contour: Any,
) -> Any:
    """Contours of the energy of two units: the curves that orbits follow.

    **Arguments:** `cell`, a PoissonCell of two units; `extent`, the half width of the square that
    is drawn; `levels`, how many contours or which; `ax`; `contour`, passed to `ax.contour`.

    **Returns:** the axes.

    **Raises:** ValueError for another number of units, or an `extent` that is not positive.
    """
    if cell.size != 2:
        raise ValueError(f"`cell` must have two units to draw its level sets, got {cell.size}.")
    if not extent > 0:
        raise ValueError(f"`extent` must be > 0, got {extent!r}.")
    line = np.linspace(-extent, extent, 201)
    potential = np.asarray(cell.activation.potential(jnp.asarray(line, jnp.result_type(float))))
    ax = _axes(ax)
    style = {"colors": GREY, "linewidths": 0.6, "alpha": 0.7} | contour
    ax.contour(line, line, potential[None, :] + potential[:, None], levels=levels, **style)
    ax.set_xlabel("$x_1$")
    ax.set_ylabel("$x_2$")
    ax.set_aspect("equal")
    return ax


def spectrum(signal: Any, dt: float | int, *, pad: int = 1, ax: Any = None, **line: Any) -> Any:
    """The amplitude spectrum of a sampled signal under a Hann window, on a logarithmic axis.

    **Arguments:** `signal`, samples (t,), at least 4; `dt`, the time between them in model units;
    `pad`, how many times finer the grid of frequencies is than 2 pi / duration, for a smooth curve
    from few samples; `ax`; `line`, passed to `ax.plot`. The frequency axis is angular, as the
    frequencies of W are.

    **Returns:** the axes.

    **Raises:** ValueError for another shape, values that are not finite, or `dt` or `pad` not
    positive.
    """
    signal = np.asarray(signal, np.float64)
    if signal.ndim != 1 or signal.size < 4 or not np.all(np.isfinite(signal)):
        raise ValueError(f"`signal` must be at least 4 finite samples, got shape {signal.shape}.")
    if not dt > 0:
        raise ValueError(f"`dt` must be > 0, got {dt!r}.")
    if pad < 1:
        raise ValueError(f"`pad` must be an integer >= 1, got {pad!r}.")
    window = np.hanning(signal.size)
    amplitude = (
        2 * np.abs(np.fft.rfft((signal - signal.mean()) * window, pad * signal.size)) / window.sum()
    )
    omega = 2 * np.pi * np.fft.rfftfreq(pad * signal.size, dt)
    ax = _axes(ax)
    ax.semilogy(omega, amplitude, **({"color": BLUE, "linewidth": 1.0} | line))
    ax.set_xlabel("angular frequency (rad per time unit)")
    ax.set_ylabel("amplitude")
    return ax


def fit(fit: Any, *, ax: Any = None) -> Any:
    """A fit: the data, the fitted curve, and the forecast over the held-out tail, which is shaded.

    One channel is drawn in its own units. Several, up to 6, are drawn one below the other, each
    scaled to the same height, with its least and largest value at the axis.

    **Arguments:** `fit`, what `jaxdyn.fit` returned; `ax`, matplotlib axes, or None for new ones.

    **Returns:** the axes, with a legend above them.
    """
    signal = fit.signal
    ts, end = signal.ts, fit.fitted.ts[-1]
    shown = min(signal.n_channels, MOST_CHANNELS)
    data = np.where(signal.mask, signal.values.astype(np.float64), np.nan)[:, :shown]
    fine = np.linspace(ts[0], ts[-1], int(np.clip(4 * signal.n_samples, 1000, 20_000)))
    curve = np.asarray(fit.oscillator(fine), np.float64)[:, :shown]
    ax = _axes(ax)
    if shown > 1:
        low = np.minimum(np.nanmin(data, axis=0), curve.min(axis=0))
        high = np.maximum(np.nanmax(data, axis=0), curve.max(axis=0))
        base = 1.25 * np.arange(shown)[::-1]
        data, curve = ((v - low) / (high - low) + base for v in (data, curve))
        names = [name if len(name) <= 16 else f"{name[:15]}…" for name in signal.channels[:shown]]
        ax.set_yticks(
            np.ravel([base, base + 0.5, base + 1]),
            [*(f"{v:.3g}" for v in low), *names, *(f"{v:.3g}" for v in high)],
        )
        if signal.n_channels > shown:
            ax.set_ylabel(f"{shown} of {signal.n_channels} channels")
    else:
        ax.set_ylabel(signal.channels[0])
    if end < ts[-1]:
        ax.axvspan(end, ts[-1], color=GREY, alpha=0.15, linewidth=0, label="held out")
    # Missing samples break the line; dots show samples that stand alone.
    dots = {"marker": ".", "markersize": 5 if signal.n_samples <= 500 else 1}
    for c in range(shown):
        ahead = fine >= end
        for part, y, style in (
            ("data", (ts, data), {"color": GREY, "linewidth": 2.6, "alpha": 0.55, **dots}),
            ("fit", (fine[~ahead], curve[~ahead]), {"color": BLUE, "linewidth": 1.1}),
            ("forecast", (fine[ahead], curve[ahead]), {"color": VERMILLION, "linewidth": 1.1}),
        ):
            if part != "forecast" or end < ts[-1]:
                ax.plot(y[0], y[1][:, c], label=part if c == 0 else None, **style)
    ax.margins(x=0)
    ax.set_xlabel(time_label(signal.time_unit))
    ax.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False, borderaxespad=0.2
    )
    return ax


def family(family: Any, *, unit: int | None = None, ax: Any = None, **line: Any) -> Any:
    """A branch of periodic orbits, solid where they are stable and dashed where they are not, with
    a mark and a legend for each kind of bifurcation on it.

    **Arguments:**

    - `family`: what `jaxdyn.orbit_family` returned, drawn as period over energy, or
      `jaxdyn.cycle_family`, drawn over its parameter.
    - `unit`: for limit cycles, the unit whose lowest and highest value are drawn instead of the
      period.
    - `ax`: matplotlib axes, or None for new ones; `line`: passed to `ax.plot`.

    **Returns:** the axes.

    **Raises:** TypeError for another `family`; ValueError for a `unit` that it does not have.
    """
    from ._analysis import CycleFamily, OrbitFamily

    if not isinstance(family, CycleFamily | OrbitFamily):
        raise TypeError(
            "`family` must be what jaxdyn.orbit_family or jaxdyn.cycle_family returned, got "
            f"{type(family).__name__}."
        )
    cycles = isinstance(family, CycleFamily)
    curves = (family.period,)
    if cycles and _is_unit(unit, family.x.shape[1]):
        curves = (family.lowest[:, unit], family.highest[:, unit])
    elif unit is not None:
        raise ValueError(
            f"`unit` must be one of the units of a CycleFamily, or None for the period; got {unit}."
        )
    along = np.asarray(family.parameter if cycles else family.energy)
    stable = np.asarray(family.stable)
    ax = _axes(ax)
    for values in map(np.asarray, curves):
        at, height, solid = list(along), list(values), list(stable)
        marked, lengths = [], np.asarray(family.arclength)
        # From the last one on, so that what is inserted moves nothing that is still to come.
        for point in sorted(family.bifurcations, key=lambda p: -p.arclength):
            i = int(np.searchsorted(lengths, point.arclength))
            y = float(np.interp(point.arclength, lengths, values))
            if unit is None:
                y = point.period
            elif point.kind == "Hopf":
                y = float(point.x[unit])
            at.insert(i, point.at)
            height.insert(i, y)
            solid.insert(i, None)
            marked.append((point, y))
        # A piece between two orbits is as stable as the one of them that is no bifurcation.
        pieces = [b if a is None else a if b is None else a and b for a, b in pairwise(solid)]
        start = 0
        for i in range(1, len(pieces) + 1):
            if i == len(pieces) or pieces[i] != pieces[start]:
                dashes = "-" if pieces[start] else "--"
                style = {"color": BLUE, "linewidth": 1.4, "linestyle": dashes} | line
                ax.plot(at[start : i + 1], height[start : i + 1], **style)
                line.pop("label", None)
                start = i
        for point, y in marked:
            named = point.kind not in ax.get_legend_handles_labels()[1]
            ax.plot(
                point.at,
                y,
                MARKS[point.kind],
                color=VERMILLION,
                markersize=6,
                zorder=3,
                label=point.kind if named else None,
            )
    ax.set_xlabel("parameter" if cycles else "energy $H$")
    ax.set_ylabel("period (model units)" if unit is None else rf"range of $x_{{{unit + 1}}}$")
    if family.bifurcations:
        ax.legend(frameon=False)
    return ax


def _is_unit(unit: Any, n: int) -> bool:
    return isinstance(unit, int) and not isinstance(unit, bool) and 0 <= unit < n


def time_label(unit: str) -> str:
    """What to write at an axis of times in `unit`."""
    return TIME_LABEL if unit == "model time" else f"time ({unit})"


def _states(cell: AbstractCell, sol: Any) -> np.ndarray:
    ys = np.asarray(sol.ys if isinstance(sol, diffrax.Solution) else sol)
    if ys.ndim not in (2, 3) or ys.shape[-1] != cell.size or ys.dtype.kind != "f":
        raise ValueError(
            f"`sol` must hold states (t, {cell.size}) or (b, t, {cell.size}) of the cell; got "
            f"shape {ys.shape}, dtype {ys.dtype}."
        )
    return ys if ys.ndim == 3 else ys[None]


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(4.8, 3.6), layout="constrained")[1]

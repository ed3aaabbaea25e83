"""What a loss sees of a model: its states and outputs at the sample times of a window."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._cell import AbstractCell
from .._solver import AbstractCellSolver, materialise
from .oscillator import Readout
from .signals import Signal

# A gap longer than this many median gaps is filled with samples that count for nothing.
LONGEST_GAP = 1.5


class Window(eqx.Module):
    """A stretch of a signal made ready for training: standardised, without long gaps.

    `gaps` (t - 1,) between samples, in time units; `targets` (t, m) with mean 0 and variance 1 in
    each channel; `weights` (t, m), 0 where nothing was measured, with sum 1, so that
    sum(weights (y - targets)^2) is a mean square.
    """

    gaps: Float[Array, " i"]
    targets: Float[Array, "t m"]
    weights: Float[Array, "t m"]
    dt: float | None = eqx.field(static=True)

    @property
    def times(self) -> Float[Array, " t"]:
        """Since the first sample."""
        return jnp.concatenate([jnp.zeros(1, self.gaps.dtype), jnp.cumsum(self.gaps)])


@dataclasses.dataclass(frozen=True)
class Scaling:
    """The mean and the standard deviation of each channel, (m,)."""

    mean: np.ndarray
    scale: np.ndarray

    @staticmethod
    def of(signal: Signal) -> "Scaling":
        weights = signal.mask.astype(np.float64)
        count = weights.sum(0)
        mean = (weights * signal.values).sum(0) / count
        variance = (weights * (signal.values - mean) ** 2).sum(0) / count
        return Scaling(mean, np.sqrt(variance))

    def undo(self, readout: Readout) -> Readout:
        """The readout of the signal from that of the standardised signal."""
        return Readout(
            readout.matrix * self.scale[:, None], readout.offset * self.scale + self.mean
        )

    def apply(self, readout: Readout) -> Readout:
        return Readout(
            readout.matrix / self.scale[:, None], (readout.offset - self.mean) / self.scale
        )


def windows(
    signal: Signal, scaling: Scaling, parts: list[slice], weights: np.ndarray | None
) -> list[Window]:
    """The signal as windows that share their times and differ in which samples count.

    `weights` (t', m) or None is how much each sample counts, t' at least as many as the signal has.
    """
    ts, values = signal.ts, (signal.values - scaling.mean) / scaling.scale
    counts = signal.mask.astype(np.float64)
    if weights is not None:
        counts = counts * weights[: len(ts)]
    gaps = np.diff(ts)
    pieces = np.maximum(1, np.ceil(gaps / (LONGEST_GAP * np.median(gaps)))).astype(int)
    if signal.dt is not None:
        pieces[:] = 1
    at = np.concatenate([[0], np.cumsum(pieces)])
    spread = np.zeros((at[-1] + 1, values.shape[1]))
    spread[at] = values
    out = []
    for part in parts:
        counted = np.zeros_like(spread)
        counted[at[part]] = counts[part]
        out.append(
            Window(
                gaps=jnp.asarray(np.repeat(gaps / pieces, pieces)),
                targets=jnp.asarray(spread),
                weights=jnp.asarray(counted / counted.sum()),
                dt=signal.dt,
            )
        )
    return out


def flow(
    cell: AbstractCell,
    x0: Float[Array, " n"],
    gaps: Float[Array, " i"],
    solver: AbstractCellSolver,
    substeps: int,
) -> Float[Array, "t n"]:
    r"""The states at the start and after each gap, (i + 1, n), with `substeps` steps in each gap.

    Its derivative is that of the flow itself, not of the solver's arithmetic: the variational
    equation $\delta' = \partial_x f \, \delta + \partial_\theta f \, d\theta$ along the states, by
    the classical Runge-Kutta method with the state between two steps from their cubic Hermite
    polynomial. At the longest step of training, |W|_2 h = .3, it is right to 1e-4, all that an
    optimiser asks of a direction, and several times cheaper than the derivative of a Taylor series.
    """
    dts = jnp.repeat(gaps / substeps, substeps)
    states = _march(materialise(cell), x0, dts, solver=solver)
    return states[::substeps]


@eqx.filter_custom_jvp
def _march(cell, x0, dts, *, solver):
    """The states before and after every step, (steps + 1, n)."""
    t = jnp.zeros((), x0.dtype)

    def step(x, dt):
        x = solver.advance(cell, t, dt, x, None)
        return x, x

    _, states = jax.lax.scan(step, x0, dts)
    return jnp.concatenate([x0[None], states])


@_march.def_jvp
def _march_jvp(primals, tangents, *, solver):
    cell, x0, dts = primals
    cell_dot, x0_dot, _ = tangents
    states = _march(cell, x0, dts, solver=solver)
    trained, static = eqx.partition(cell, eqx.is_inexact_array)
    cell_dot = _filled(cell_dot, trained)
    t = jnp.zeros((), x0.dtype)

    def field(trained, x):
        return eqx.combine(trained, static)(t, x, None)

    def slope(x, x_dot):
        return jax.jvp(field, (trained, x), (cell_dot, x_dot))[1]

    rates = jax.vmap(field, in_axes=(None, 0))(trained, states)
    before, after = states[:-1], states[1:]
    between = (before + after) / 2 + dts[:, None] / 8 * (rates[:-1] - rates[1:])

    def step(x_dot, along):
        dt, start, middle, end = along
        k1 = slope(start, x_dot)
        k2 = slope(middle, x_dot + dt / 2 * k1)
        k3 = slope(middle, x_dot + dt / 2 * k2)
        k4 = slope(end, x_dot + dt * k3)
        x_dot = x_dot + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return x_dot, x_dot

    x0_dot = _filled(x0_dot, x0)
    _, moved = jax.lax.scan(step, x0_dot, (dts, before, between, after))
    return states, jnp.concatenate([x0_dot[None], moved])


def _filled(tangent: Any, primal: Any) -> Any:
    """A tangent with zeros where nothing moves."""
    return jax.tree.map(
        lambda leaf, dot: jnp.zeros_like(leaf) if dot is None and leaf is not None else dot,
        primal,
        tangent,
        is_leaf=lambda leaf: leaf is None,
    )


def least_squares_readout(
    states: Float[Array, "t n"],
    targets: Float[Array, "t m"],
    weights: Float[Array, "t m"],
    ridge: float,
) -> Readout:
    """For each channel, min over its row C, d of sum(w (C x + d - target)^2) / sum(w) +
    ridge v |C|^2, v the variance of the states, averaged over the units."""
    everything = jnp.sum(weights)
    shared = jnp.sum(weights, axis=1) / jnp.where(everything > 0, everything, 1.0)
    middle = shared @ states
    centred = states - middle[None]
    size = jnp.sqrt(shared @ jnp.mean(centred**2, axis=1))
    size = jnp.where(size > 0, size, 1.0)
    columns = jnp.concatenate([centred / size, jnp.ones_like(states[:, :1])], axis=1)
    penalty = jnp.full(columns.shape[1], ridge).at[-1].set(0.0)

    def channel(target, weight):
        total = jnp.sum(weight)
        weight = weight / jnp.where(total > 0, total, 1.0)
        weighted = columns * weight[:, None]
        gram = columns.T @ weighted + jnp.diag(penalty)
        # A channel without a sample in this window has nothing to say: its readout is 0.
        gram = jnp.where(total > 0, gram, jnp.eye(gram.shape[0], dtype=gram.dtype))
        return jax.scipy.linalg.solve(gram, weighted.T @ target, assume_a="pos")

    solved = jax.vmap(channel, in_axes=1)(targets, weights)
    matrix = solved[:, :-1] / size
    return Readout(matrix, solved[:, -1] - matrix @ middle)


class Run(eqx.Module):
    """One model on one window: what losses are made of.

    `states` (t, n) and `outputs` (t, m) at the samples; `targets` and `weights` (t, m) as in the
    window; `times` (t,) since the first sample.
    """

    cell: AbstractCell
    states: Float[Array, "t n"]
    readout: Readout
    window: Window
    settings: "Settings"

    @property
    def outputs(self) -> Float[Array, "t m"]:
        return self.readout.batch(self.states)

    @property
    def targets(self) -> Float[Array, "t m"]:
        return self.window.targets

    @property
    def weights(self) -> Float[Array, "t m"]:
        return self.window.weights

    @property
    def times(self) -> Float[Array, " t"]:
        return self.window.times

    def flow(self, x0: Float[Array, " n"], gaps: Float[Array, " i"]) -> Float[Array, "t n"]:
        """States of the same cell from another start, over other gaps."""
        settings = self.settings
        return flow(self.cell, x0, gaps, settings.solver, settings.substeps)

    def refitted(self, states: Float[Array, "t n"]) -> Readout:
        """The readout for other states at the same samples."""
        if not self.settings.project:
            return self.readout
        return least_squares_readout(states, self.targets, self.weights, self.settings.ridge)


class Settings(eqx.Module):
    """How models are run: static, the same for every restart."""

    solver: AbstractCellSolver = eqx.field(static=True)
    substeps: int = eqx.field(static=True)
    project: bool = eqx.field(static=True)
    ridge: float = eqx.field(static=True)


def run(model: Any, window: Window, settings: Settings) -> Run:
    """The model on the window; with `settings.project` its readout is the least-squares one."""
    solver, substeps = settings.solver, settings.substeps
    states = flow(model.cell, model.x0, window.gaps, solver, substeps)
    readout = model.readout
    if settings.project:
        readout = least_squares_readout(states, window.targets, window.weights, settings.ridge)
    return Run(model.cell, states, readout, window, settings)

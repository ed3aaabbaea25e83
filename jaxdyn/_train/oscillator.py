"""The model that a fit returns: a network, a state it starts from, and what is read from it."""

import math
from pathlib import Path
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._cell import AbstractCell, PoissonCell, cast, check_constant
from .._model_file import load_module, register, save_module
from .._simulate import simulate
from .._solver import RK4, AbstractCellSolver, Taylor
from .._types import is_traced
from .signals import Signal
from .signals.checks import count as whole
from .signals.checks import number
from .tones import find_tones

# Steps of |W|_2 h: where Taylor's series of order 16 is at rounding, and where RK4's error per
# radian, (|W| h)^4 / 120, is 1e-8.
EXACT_STEPS = (0.25, 0.03)


class Readout(eqx.Module):
    """y = C x + d: what is seen of a network. `matrix` C is (m, n), `offset` d is (m,)."""

    matrix: Float[Array, "m n"]
    offset: Float[Array, " m"]

    def __init__(self, matrix: Any, offset: Any = None):
        check_constant(matrix, "matrix")
        if np.ndim(matrix) != 2:
            raise ValueError(f"`matrix` must have shape (m, n), got {np.shape(matrix)}.")
        self.matrix = _floats(matrix)
        if offset is None:
            offset = jnp.zeros(self.matrix.shape[0], self.matrix.dtype)
        check_constant(offset, "offset")
        if np.shape(offset) != self.matrix.shape[:1]:
            raise ValueError(
                f"`offset` must have shape ({self.matrix.shape[0]},), one number per row of "
                f"`matrix`; got {np.shape(offset)}."
            )
        self.offset = jnp.asarray(offset, self.matrix.dtype)

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " m"]:
        return self.matrix @ x + self.offset

    def batch(self, x: Float[Array, "t n"]) -> Float[Array, "t m"]:
        """Of many states at once."""
        return x @ self.matrix.T + self.offset[None]


class Oscillator(eqx.Module):
    r"""A network that generates a signal: $x' = \mathrm{cell}(x)$, $x(t_0) = x_0$, $y = C x + d$.

    With a skew-symmetric cell the energy is conserved, so that the signal neither dies out nor
    blows up however long it runs (Casoni et al., arXiv 2504.13951). Made by [`jaxdyn.fit`][], or by
    hand from its parts.

    **Arguments:**

    - `x0`: the state at `t0`, (n,).
    - `cell`: an autonomous cell of n units (without an input_matrix).
    - `readout`: a [`jaxdyn.Readout`][] from n units to m channels; default: the state itself.
    - `t0`: the time of `x0`, in time units of the signal.
    - `step`: the longest step of the integration; default: .25 / |W|_2, at which Taylor's series
      of order 16 is exact to rounding (.03 / |W|_2 for cells that Taylor cannot serve). Needed
      under jit, where |W|_2 has no value.
    - `channels`: the names of the m channels; default: y1, y2, ...
    - `time_unit`: what times are measured in.

    **Raises:** TypeError or ValueError that names the argument that does not fit.
    """

    x0: Float[Array, " n"]
    cell: AbstractCell
    readout: Readout
    t0: float = eqx.field(static=True)
    step: float = eqx.field(static=True)
    channels: tuple[str, ...] = eqx.field(static=True)
    time_unit: str = eqx.field(static=True)

    def __init__(
        self,
        x0: Any,
        cell: AbstractCell,
        readout: Readout | None = None,
        *,
        t0: float | int = 0.0,
        step: float | int | None = None,
        channels: tuple[str, ...] | None = None,
        time_unit: str = "model time",
    ):
        if not isinstance(cell, AbstractCell):
            raise TypeError(f"`cell` must be a cell such as jaxdyn.PoissonCell, got {cell!r}.")
        if cell.input_matrix is not None:
            raise ValueError("`cell` must be autonomous: build it without input_matrix.")
        check_constant(x0, "x0")
        if np.shape(x0) != (cell.size,):
            raise ValueError(
                f"`x0` must have shape ({cell.size},), one number per unit; got {np.shape(x0)}."
            )
        self.x0 = _floats(x0)
        self.cell = cast(cell, self.x0.dtype)
        if readout is None:
            readout = Readout(jnp.eye(cell.size, dtype=self.x0.dtype))
        if not isinstance(readout, Readout):
            raise TypeError(f"`readout` must be a jaxdyn.Readout, got {readout!r}.")
        if readout.matrix.shape[1] != cell.size:
            raise ValueError(
                f"`readout` reads {readout.matrix.shape[1]} units, the cell has {cell.size}."
            )
        self.readout = jax.tree.map(lambda a: a.astype(self.x0.dtype), readout)
        self.t0 = real("t0", t0)
        self.step = default_step(self.cell) if step is None else real("step", step, above=0.0)
        m = readout.matrix.shape[0]
        self.channels = tuple(channels or (f"y{i + 1}" for i in range(m)))
        if len(self.channels) != m:
            raise ValueError(f"`channels` must be {m} names, got {self.channels}.")
        self.time_unit = str(time_unit)

    @property
    def size(self) -> int:
        """The number of units n."""
        return self.cell.size

    def states(self, ts: Any, *, solver: diffrax.AbstractSolver | None = None) -> Array:
        """The states (t, n) at increasing times `ts` (t,), before or after `t0`.

        **Arguments:** `ts`, in the time units of the signal; `solver`, as in `simulate`; default:
        [`jaxdyn.Taylor`][] of order 16, exact to rounding, or RK4 for cells that it cannot serve.

        **Raises:** ValueError when `ts` is not increasing, finite and 1-D.
        """
        times = _times(ts)
        solver = default_solver(self.cell) if solver is None else solver
        ahead = times >= self.t0
        parts = []
        if not np.all(ahead):
            parts.append(self._march(times[~ahead][::-1], solver)[::-1])
        if np.any(ahead):
            parts.append(self._march(times[ahead], solver))
        return jnp.concatenate(parts)

    def _march(self, times: np.ndarray, solver: diffrax.AbstractSolver) -> Array:
        """States at times that lead away from t0. A step divides a uniform gap, where there is one,
        so that samples need no steps of their own."""
        since = times - self.t0
        gap = np.abs(np.diff(since))
        step = self.step
        if since.size == 1 and since[0] != 0:
            step = abs(since[0]) / math.ceil(abs(since[0]) / step)
        elif gap.size and np.ptp(gap) <= 1e-6 * gap[0]:
            step = gap[0] / math.ceil(gap[0] / step - 1e-9)
        end = float(since[-1])
        if end == 0.0:
            return self.x0[None]
        saveat = diffrax.SaveAt(ts=jnp.asarray(since))
        if gap.size and np.ptp(gap) <= 1e-6 * gap[0] and abs(since[0]) <= 1e-9 * gap[0]:
            every = round(gap[0] / step)
            n_steps = every * (since.size - 1)
            sol = simulate(
                self.cell,
                self.x0,
                n_steps=n_steps,
                dt=math.copysign(step, end),
                solver=solver,
                saveat=diffrax.SaveAt(t0=True, steps=every),
            )
        else:
            sol = simulate(self.cell, self.x0, t1=end, dt=step, solver=solver, saveat=saveat)
        return jnp.asarray(sol.ys)

    def __call__(self, ts: Any, *, solver: diffrax.AbstractSolver | None = None) -> Array:
        """The signal (t, m) at increasing times `ts` (t,); arguments as for `states`."""
        return self.readout.batch(self.states(ts, solver=solver))

    def generate(
        self, t1: float | int, dt: float | int, *, t0: float | int | None = None
    ) -> Signal:
        """The signal every `dt` from `t0` (default: the oscillator's own) until `t1`.

        **Raises:** ValueError when `dt` is not positive or `t1` does not lie after `t0`.
        """
        start = self.t0 if t0 is None else real("t0", t0)
        dt, t1 = real("dt", dt, above=0.0), real("t1", t1)
        if t1 < start + dt:
            raise ValueError(f"`t1` must be at least one step after {start:g}, got {t1!r}.")
        count = math.floor((t1 - start) / dt * (1 + 1e-12)) + 1
        ts = start + dt * np.arange(count)
        return Signal(
            values=np.asarray(self(ts)),
            ts=ts,
            mask=np.ones((count, len(self.channels)), bool),
            name="generated",
            channels=self.channels,
            time_unit=self.time_unit,
        )

    def energy(self, ts: Any = None) -> Array:
        """H at `t0`, a scalar, or at times `ts`, (t,)."""
        if ts is None:
            return self.cell.energy(self.x0)
        return jax.vmap(self.cell.energy)(self.states(ts))

    def frequencies(self, count: int | None = None) -> np.ndarray:
        """The angular frequencies of what it generates, strongest first, shape (at most count,).

        They are measured on 4096 samples of a long run, so they hold for the nonlinear network at
        its energy, other than those of W, and include overtones and combinations.

        **Arguments:** `count`, the most to look for; default n // 2.
        """
        # Four times as fast as |W|_2 asks for, or overtones would come back as aliases.
        dt = 0.25 / spectral_norm(self.cell)
        signal = self.generate(self.t0 + 4095 * dt, dt)
        count = max(1, self.size // 2) if count is None else whole("count", count, 1)
        # Tones that are left in shift the others, the more the stronger they are.
        return find_tones(signal, count + 2).omega[:count]

    def multiplier(self) -> float:
        r"""What a cell with an [`jaxdyn.EnergyShell`][] keeps of an energy kick in one period.

        $\exp(-\kappa \oint |g|^2 dt)$ over one period of the strongest tone on the shell. For two
        units it is the nontrivial Floquet multiplier of the limit cycle.

        **Raises:** ValueError for a cell without a shell.
        """
        cell = self.cell
        if not isinstance(cell, PoissonCell) or cell.regulator is None:
            raise ValueError("`cell` has no EnergyShell; fit with shell=..., or give it one.")
        start = self.at_energy(float(cell.regulator.energy))
        period = 2 * np.pi / start.frequencies(1)[0]
        # The trapezoidal rule over a period is as good as the period for two units.
        count = 512
        states = start.states(start.t0 + period / count * np.arange(count))
        g = jax.vmap(cell.activation)(states)
        speed = jnp.mean(jnp.sum(jax.vmap(cell.regulator.direction)(g) * g, axis=1))
        return float(jnp.exp(-cell.regulator.rate * speed * period))

    def at_energy(self, energy: float | int) -> "Oscillator":
        """The same oscillator from the state s x0, s > 0, that has this energy.

        **Raises:** ValueError for an energy that is not positive, or that no multiple of x0 has.
        """
        energy = real("energy", energy, above=0.0)
        size = jax.jit(lambda s: self.cell.energy(s * self.x0))
        low, high = 0.0, 1.0
        while float(size(high)) < energy:
            low, high = high, 2 * high
            if high > 1e12:
                raise ValueError(f"`energy` {energy:g} is not reached by any multiple of x0.")
        for _ in range(200):
            middle = (low + high) / 2
            if not low < middle < high:
                break
            low, high = (middle, high) if float(size(middle)) < energy else (low, middle)
        return eqx.tree_at(lambda o: o.x0, self, high * self.x0)

    def save(self, path: str | Path) -> None:
        """Writes the oscillator to one file; see [`jaxdyn.Oscillator.load`][]."""
        save_module(path, self)

    @staticmethod
    def load(path: str | Path, *, like: "Oscillator | None" = None) -> "Oscillator":
        """Reads what `save` wrote, in JAX's default precision. Nothing in the file is ever run.

        **Arguments:** `path`; `like`, an oscillator of the same structure, needed when a part of
        it is a class or function that jaxdyn does not know.

        **Raises:** ValueError for a file that is damaged, truncated, extended, foreign or written
        by a newer version; OSError when it cannot be read.
        """
        # Without x64 an array of float64 becomes one of float32, as everywhere in JAX.
        with jax.enable_x64(True):
            model = load_module(path, like=like, expect=Oscillator)
        return default_precision(model)


register(Readout, Oscillator)


def default_solver(cell: AbstractCell, order: int = 16) -> AbstractCellSolver:
    """Taylor where the activation has a recurrence, else RK4."""
    try:
        Taylor(order).check(cell)
    except ValueError:
        return RK4()
    return Taylor(order)


def default_step(cell: AbstractCell) -> float:
    if is_traced(cell):
        raise ValueError("`step` must be given under jit, grad or vmap: |W|_2 has no value there.")
    norm = spectral_norm(cell)
    return longest_step(default_solver(cell), EXACT_STEPS) / norm if norm > 0 else 1.0


def longest_step(solver: AbstractCellSolver, limits: tuple[float, float]) -> float:
    """|W|_2 h at most: the first limit for Taylor's series, the second for other methods."""
    return limits[0] if isinstance(solver, Taylor) else limits[1]


def default_precision(model: Any) -> Any:
    """The model with arrays of JAX's own precision, whatever they were computed in."""
    return jax.tree.map(
        lambda leaf: jnp.asarray(np.asarray(leaf)) if eqx.is_array(leaf) else leaf, model
    )


def real(name: str, value: Any, **bounds: float) -> float:
    """`value` as a float within bounds, as `number` has it; it may be an array of no axes."""
    return number(
        name, value.item() if np.shape(value) == () and hasattr(value, "item") else value, **bounds
    )


def _floats(value: Any) -> Array:
    array = jnp.asarray(value)
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)


def spectral_norm(cell: AbstractCell) -> float:
    """|W|_2, a number."""
    frequencies = np.asarray(cell.operator.frequencies())
    return float(frequencies.max(initial=0.0))


def _times(ts: Any) -> np.ndarray:
    if is_traced(ts):
        raise ValueError("`ts` must be known when the oscillator is called; close over it.")
    try:
        times = np.asarray(ts, np.float64)
    except (TypeError, ValueError) as e:
        raise TypeError(f"`ts` must be finite times of shape (t,), got {ts!r}.") from e
    if times.ndim != 1 or times.size == 0 or not np.all(np.isfinite(times)):
        raise ValueError(f"`ts` must be finite times of shape (t,), got shape {times.shape}.")
    if np.any(np.diff(times) <= 0):
        raise ValueError("`ts` must increase from one time to the next.")
    return times

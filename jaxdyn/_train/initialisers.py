"""Where a fit starts from: one oscillator for each restart."""

import abc
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

from .._activation import AbstractActivation, Tanh
from .._cell import AbstractCell, EnergyShell, PoissonCell
from .._exact import orbit, period
from .._simulate import simulate
from .._skew import AbstractSkewOperator, DenseSkew
from .._solver import RK4
from .oscillator import Oscillator, Readout, real
from .signals import Signal
from .signals.checks import real_array
from .tones import find_tones

# Steps in which the orbit of a pair is measured, and how many it may take to come round.
ORBIT_STEP, ORBIT_STEPS = 0.01, 20_000


class AbstractInitialiser(eqx.Module):
    """Makes the oscillators that a fit starts from."""

    @abc.abstractmethod
    def __call__(
        self, signal: Signal, units: int, restarts: int, *, key: Array, shell: float | None
    ) -> list[Oscillator]:
        """`restarts` oscillators of one structure with `units` units for the signal, at its first
        sample. With `shell` their cells have an EnergyShell of that rate at the energy of x0."""


class FrequenciesFirst(AbstractInitialiser):
    r"""Pairs of units, each at a frequency of the signal from the start.

    The tones of the signal are found first. Each pair of units is a two-unit network of its own,
    whose period at energy H is known exactly, $T = (4/w) K(1 - e^{-2H})$ for tanh, so its weight w
    is chosen to give the tone's period at that energy, however nonlinear the pair is. Pairs beyond
    the number of tones start at the same tones with other energies: their overtones have other
    ratios, so that the readout can cancel overtones. Restarts differ in the energies, spread
    evenly over decades, and in the phases. Training is then free to couple the pairs.

    **Arguments:**

    - `energy`: the least and the largest energy of a pair over the restarts; a small one makes a
      nearly linear network, one of order 1 a strongly nonlinear one.
    - `omega`: the frequencies (k,) in radians per time unit, strongest first; default: found.
    - `coupling`: the size of random couplings between the pairs, as a fraction of the largest
      weight.
    - `activation`: a confining one; its law of the period is measured where it is not tanh.
    - `operator`: the class of W, which must hold 2 x 2 blocks, such as DenseSkew or BlockSkew.

    **Raises:** ValueError or TypeError for numbers out of range and activations that do not
    confine.
    """

    energy: tuple[float, float] = eqx.field(static=True)
    omega: tuple[float, ...] | None = eqx.field(static=True)
    coupling: float = eqx.field(static=True)
    activation: AbstractActivation
    operator: type[AbstractSkewOperator] = eqx.field(static=True)

    def __init__(
        self,
        *,
        energy: tuple[float | int, float | int] = (1e-4, 1.0),
        omega: Any = None,
        coupling: float | int = 0.0,
        activation: AbstractActivation | None = None,
        operator: type[AbstractSkewOperator] = DenseSkew,
    ):
        if np.shape(energy) != (2,):
            raise TypeError(f"`energy` must be a pair, 0 < least <= largest <= 50, got {energy!r}.")
        low, high = (real("energy", h) for h in energy)
        if not (0 < low <= high <= 50):
            raise ValueError(f"`energy` must be 0 < least <= largest <= 50, got {energy!r}.")
        self.energy = low, high
        if omega is not None:
            omega = tuple(float(w) for w in np.ravel(real_array("omega", omega)))
            if not omega or not all(w > 0 and math.isfinite(w) for w in omega):
                raise ValueError(f"`omega` must be finite frequencies > 0, got {omega!r}.")
        self.omega = omega
        self.coupling = real("coupling", coupling, least=0.0)
        self.activation = _confining(activation)
        self.operator = _class(operator)

    def __call__(
        self, signal: Signal, units: int, restarts: int, *, key: Array, shell: float | None
    ) -> list[Oscillator]:
        pairs = units // 2
        found = self.omega or find_tones(signal, pairs).omega
        tones = np.asarray(found)[:pairs]
        omega = tones[np.arange(pairs) % len(tones)]
        levels = np.geomspace(self.energy[1], self.energy[0], restarts)
        if restarts == 1:
            levels = np.sqrt([self.energy[0] * self.energy[1]])
        keys = jr.split(key, (restarts, 3))
        spread = np.asarray(jax.vmap(lambda k: jr.uniform(k, (pairs,)))(keys[:, 0]))
        phases = np.asarray(jax.vmap(lambda k: jr.uniform(k, (pairs,)))(keys[:, 1]))
        noise = np.asarray(jax.vmap(lambda k: jr.normal(k, (units, units)))(keys[:, 2]))
        # Energies of the pairs of one restart lie within a factor e of its level.
        energies = levels[:, None] * np.exp(spread - 0.5)
        weights, states = _pairs_at(self.activation, energies, phases, omega)
        out = []
        for r in range(restarts):
            W = np.zeros((units, units))
            first = np.arange(0, 2 * pairs, 2)
            W[first, first + 1] = weights[r]
            largest = weights[r].max()
            W += self.coupling * largest * np.triu(noise[r], 1) / math.sqrt(units)
            if units % 2:
                # A unit without a partner and without couplings would never hear of the others.
                W[:-1, -1] += 1e-3 * largest * noise[r][:-1, -1]
            x0 = np.zeros(units)
            x0[: 2 * pairs] = states[r].reshape(-1)
            operator = self.operator.from_matrix(jnp.asarray(W - W.T))
            cell = _cell(operator, self.activation, x0, shell)
            out.append(_oscillator(x0, cell, signal))
        return out


class Random(AbstractInitialiser):
    """Random skew weights and states, blind to the signal but for its fastest tone.

    **Arguments:**

    - `scale`: |W|_2, the fastest frequency of the networks, in radians per time unit; default: 1.2
      times the fastest of the signal's tones.
    - `amplitude`: the standard deviation of the initial states.
    - `activation`, `operator`: as for [`jaxdyn.initialisers.FrequenciesFirst`][].

    **Raises:** ValueError or TypeError for numbers that are not positive.
    """

    scale: float | None = eqx.field(static=True)
    amplitude: float = eqx.field(static=True)
    activation: AbstractActivation
    operator: type[AbstractSkewOperator] = eqx.field(static=True)

    def __init__(
        self,
        *,
        scale: float | int | None = None,
        amplitude: float | int = 0.5,
        activation: AbstractActivation | None = None,
        operator: type[AbstractSkewOperator] = DenseSkew,
    ):
        self.scale = None if scale is None else real("scale", scale, above=0.0)
        self.amplitude = real("amplitude", amplitude, above=0.0)
        self.activation = _confining(activation)
        self.operator = _class(operator)

    def __call__(
        self, signal: Signal, units: int, restarts: int, *, key: Array, shell: float | None
    ) -> list[Oscillator]:
        scale = self.scale
        if scale is None:
            scale = 1.2 * float(find_tones(signal, max(1, units // 2)).omega.max())
        out = []
        for key_w, key_x in jr.split(key, (restarts, 2)):
            operator = self.operator.random(units, key=key_w, scale=scale)
            x0 = self.amplitude * np.asarray(jr.normal(key_x, (units,)))
            cell = _cell(operator, self.activation, x0, shell)
            out.append(_oscillator(x0, cell, signal))
        return out


class FromOscillator(AbstractInitialiser):
    """An oscillator that exists already, such as that of another fit, as it is and shaken.

    The first restart starts from the oscillator itself, carried to the time of the first sample;
    the others from copies whose weights and state are multiplied by 1 + spread N(0, 1).

    **Arguments:** `oscillator`; `spread` >= 0.

    **Raises:** TypeError or ValueError for anything else; in `fit`, ValueError when `units` or the
    channels of the signal are not those of the oscillator.
    """

    oscillator: Oscillator
    spread: float = eqx.field(static=True)

    def __init__(self, oscillator: Oscillator, *, spread: float | int = 0.01):
        if not isinstance(oscillator, Oscillator):
            raise TypeError(f"`oscillator` must be a jaxdyn.Oscillator, got {oscillator!r}.")
        self.oscillator, self.spread = oscillator, real("spread", spread, least=0.0)

    def __call__(
        self, signal: Signal, units: int, restarts: int, *, key: Array, shell: float | None
    ) -> list[Oscillator]:
        model = self.oscillator
        if units != model.size:
            raise ValueError(f"`units` must be {model.size}, as the oscillator has; got {units}.")
        if signal.n_channels != len(model.channels):
            raise ValueError(
                f"`signal` has {signal.n_channels} channels, the oscillator {len(model.channels)}."
            )
        x0 = np.asarray(model.states(signal.ts[:1])[0], np.float64)
        cell = jax.tree.map(lambda a: jnp.asarray(a, float), model.cell)
        if shell is not None:
            if not isinstance(cell, PoissonCell):
                raise ValueError("`shell` is for oscillators with a PoissonCell.")
            energy = cell.energy(jnp.asarray(x0))
            keep = None if cell.regulator is None else cell.regulator.keep
            cell = PoissonCell(
                cell.operator,
                cell.activation,
                bias=cell.bias,
                damping=cell.damping,
                regulator=EnergyShell(energy, jnp.asarray(shell), keep=keep),
            )
        first = _oscillator(x0, cell, signal, model.readout)
        out = [first]
        for k in jr.split(key, restarts)[1:]:
            leaves, structure = jax.tree.flatten(eqx.filter(first, eqx.is_inexact_array))
            shaken = [
                leaf * (1 + self.spread * jr.normal(kk, leaf.shape, leaf.dtype))
                for leaf, kk in zip(leaves, jr.split(k, len(leaves)), strict=True)
            ]
            static = eqx.filter(first, eqx.is_inexact_array, inverse=True)
            out.append(eqx.combine(jax.tree.unflatten(structure, shaken), static))
        return out


def _class(operator: Any) -> type[AbstractSkewOperator]:
    if not (isinstance(operator, type) and issubclass(operator, AbstractSkewOperator)):
        raise TypeError(f"`operator` must be a class such as jaxdyn.DenseSkew, got {operator!r}.")
    return operator


def _confining(activation: AbstractActivation | None) -> AbstractActivation:
    activation = Tanh() if activation is None else activation
    if not isinstance(activation, AbstractActivation):
        raise TypeError(f"`activation` must be one such as jaxdyn.Tanh(), got {activation!r}.")
    if not activation.confining:
        raise ValueError(
            f"`activation` must confine, or orbits do not close and nothing oscillates; "
            f"{type(activation).__name__} does not. Use jaxdyn.Tanh()."
        )
    return activation


def _cell(
    operator: AbstractSkewOperator,
    activation: AbstractActivation,
    x0: np.ndarray,
    shell: float | None,
) -> AbstractCell:
    if shell is None:
        return PoissonCell(operator, activation)
    energy = jnp.sum(activation.potential(jnp.asarray(x0)))
    return PoissonCell(operator, activation, regulator=EnergyShell(energy, jnp.asarray(shell)))


def _oscillator(
    x0: np.ndarray, cell: AbstractCell, signal: Signal, readout: Readout | None = None
) -> Oscillator:
    if readout is None:
        readout = Readout(jnp.zeros((signal.n_channels, len(x0))))
    return Oscillator(
        x0,
        cell,
        readout,
        t0=float(signal.ts[0]),
        step=1.0,
        channels=signal.channels,
        time_unit=signal.time_unit,
    )


def _pairs_at(
    activation: AbstractActivation, energies: np.ndarray, phases: np.ndarray, omega: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The weights (r, p) that give pairs of these energies (r, p) the frequencies omega (p,), and
    their states (r, p, 2) at these phases (r, p), in turns."""
    if isinstance(activation, Tanh):
        h = jnp.asarray(energies)
        weights = np.asarray(period(h, 1.0)) * omega / (2 * np.pi)
        times = jnp.asarray(phases * 2 * np.pi / omega)
        return weights, np.asarray(orbit(times, h, jnp.asarray(weights)))
    states, turns = _measured_orbits(activation, energies.ravel())
    weights = turns.reshape(energies.shape) * omega / (2 * np.pi)
    # The state at a phase: the saved one before it, and one shorter step.
    at = phases.ravel() * turns
    before = np.floor(at / ORBIT_STEP).astype(int)
    start = states[np.arange(len(turns)), before]
    cell = _unit_pair(activation)
    rest = jnp.asarray(at - before * ORBIT_STEP)
    t = jnp.zeros(())
    moved = jax.vmap(lambda x, h: RK4().advance(cell, t, h, x, None))(jnp.asarray(start), rest)
    return weights, np.asarray(moved).reshape(*energies.shape, 2)


def _unit_pair(activation: AbstractActivation) -> PoissonCell:
    return PoissonCell(DenseSkew.from_matrix(jnp.array([[0.0, 1.0], [-1.0, 0.0]])), activation)


def _measured_orbits(
    activation: AbstractActivation, energies: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Orbits of a pair with weight 1 from (x, 0), x > 0, at these energies, and their periods."""
    import diffrax

    cell = _unit_pair(activation)
    low, high = np.zeros_like(energies), np.ones_like(energies)
    potential = jax.jit(activation.potential)
    while np.any(short := np.asarray(potential(jnp.asarray(high))) < energies):
        high = np.where(short, 2 * high, high)
    for _ in range(60):
        middle = (low + high) / 2
        below = np.asarray(potential(jnp.asarray(middle))) < energies
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    x0 = jnp.stack([jnp.asarray(high), jnp.zeros(len(high))], axis=1)
    steps = 1024
    while True:
        saveat = diffrax.SaveAt(t0=True, steps=True)
        sol = simulate(cell, x0, n_steps=steps, dt=ORBIT_STEP, solver=RK4(), saveat=saveat)
        states = np.asarray(sol.ys)
        angle = -np.unwrap(np.arctan2(states[..., 1], states[..., 0]), axis=1)
        if np.all(angle[:, -1] > 2 * np.pi):
            break
        if steps >= ORBIT_STEPS:
            raise ValueError(
                "`energy` is so large that orbits of this activation do not come round within "
                f"{steps * ORBIT_STEP:g} time units; give smaller energies."
            )
        steps *= 2
    # The first sample past a whole turn, and Newton's method back to the turn itself.
    past = np.argmax(angle > 2 * np.pi, axis=1)
    x, back = jnp.asarray(states[np.arange(len(past)), past]), jnp.zeros(len(past))
    t = jnp.zeros(())
    for _ in range(4):
        moved = jax.vmap(lambda x, h: RK4().advance(cell, t, h, x, None))(x, back)
        slope = jax.vmap(lambda x: cell(t, x, None))(moved)
        back = back - moved[:, 1] / slope[:, 1]
    return states, past * ORBIT_STEP + np.asarray(back)

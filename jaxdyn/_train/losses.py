"""What a fit makes small. A loss is a vector of residuals; its value is their sum of squares.

That one form serves gradient descent and Levenberg-Marquardt alike. Losses add and scale:
`Trajectory() + 0.1 * LogSpectral()`.
"""

import abc
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .oscillator import real
from .rollout import Run
from .signals import Signal
from .tones import find_tones


class AbstractLoss(eqx.Module):
    """A vector of residuals of a run; its sum of squares is what training makes small.

    Outputs and targets are standardised (mean 0 and variance 1 in each channel), so a loss of 1 is
    a model that knows nothing but the mean, whatever the units of the data.
    """

    @abc.abstractmethod
    def residuals(self, run: Run, variables: Any) -> Float[Array, " r"]:
        """The residuals, shape (r,)."""

    def prepared(self, signal: Signal) -> "AbstractLoss":
        """This loss with what it takes from the training data filled in."""
        return self

    def variables(self, run: Run) -> Any:
        """Further unknowns that are trained along with the model: a PyTree of arrays, or None."""
        return None

    def __call__(self, run: Run, variables: Any = None) -> Float[Array, ""]:
        variables = self.variables(run) if variables is None else variables
        return jnp.sum(self.residuals(run, variables) ** 2)

    @property
    def robust(self) -> bool:
        """Whether outliers must not rule the readout, which is then trained and not solved for."""
        return False

    def judge(self, run: Run) -> Float[Array, ""]:
        """What restarts are chosen by, on a run that gives weight to the judged samples only."""
        return self(run)

    def __add__(self, other: "AbstractLoss") -> "AbstractLoss":
        if not isinstance(other, AbstractLoss):
            return NotImplemented
        return Sum((self, other))

    def __mul__(self, factor: float | int) -> "AbstractLoss":
        return Scaled(self, factor)

    __rmul__ = __mul__


class Sum(AbstractLoss):
    """The sum of several losses; `a + b` makes one."""

    terms: tuple[AbstractLoss, ...]

    def prepared(self, signal: Signal) -> "AbstractLoss":
        return Sum(tuple(term.prepared(signal) for term in self.terms))

    def variables(self, run: Run) -> Any:
        return tuple(term.variables(run) for term in self.terms)

    @property
    def robust(self) -> bool:
        return any(term.robust for term in self.terms)

    def judge(self, run: Run) -> Float[Array, ""]:
        return sum((term.judge(run) for term in self.terms), jnp.zeros((), run.states.dtype))

    def residuals(self, run: Run, variables: Any) -> Float[Array, " r"]:
        pairs = zip(self.terms, variables, strict=True)
        return jnp.concatenate([term.residuals(run, own) for term, own in pairs])


class Scaled(AbstractLoss):
    """`factor` times a loss, factor >= 0; `factor * loss` makes one."""

    loss: AbstractLoss
    factor: float = eqx.field(static=True)

    def __init__(self, loss: AbstractLoss, factor: float | int):
        self.loss, self.factor = _loss(loss), real("factor", factor, least=0.0)

    def prepared(self, signal: Signal) -> "AbstractLoss":
        return Scaled(self.loss.prepared(signal), self.factor)

    def variables(self, run: Run) -> Any:
        return self.loss.variables(run)

    @property
    def robust(self) -> bool:
        return self.loss.robust

    def judge(self, run: Run) -> Float[Array, ""]:
        return self.factor * self.loss.judge(run)

    def residuals(self, run: Run, variables: Any) -> Float[Array, " r"]:
        return self.factor**0.5 * self.loss.residuals(run, variables)


class Trajectory(AbstractLoss):
    r"""The mean squared error over the window, $\sum w (\hat y - y)^2$ with $\sum w = 1$."""

    def residuals(self, run: Run, variables: Any) -> Float[Array, " r"]:
        return (jnp.sqrt(run.weights) * (run.outputs - run.targets)).ravel()


class MultiHorizon(AbstractLoss):
    r"""The mean over several horizons of the mean squared error up to that horizon.

    Early samples count more, so that a model that loses step late still learns from where it is
    right: the error landscape is smoother in the frequencies than that of the whole window.

    **Arguments:**

    - `horizons`: fractions of the window, each in (0, 1].

    **Raises:** ValueError for fractions outside that range, or none.
    """

    horizons: tuple[float, ...] = eqx.field(static=True)

    def __init__(self, horizons: Sequence[float | int] = (0.25, 0.5, 1.0)):
        self.horizons = _each("horizons", horizons, "fractions in (0, 1]")
        if max(self.horizons) > 1:
            raise ValueError(f"`horizons` must be fractions in (0, 1], got {horizons!r}.")

    def residuals(self, run: Run, variables: Any) -> Float[Array, " r"]:
        fraction = run.times / run.times[-1]
        error = run.outputs - run.targets
        parts = []
        for horizon in self.horizons:
            weights = jnp.where(fraction[:, None] <= horizon, run.weights, 0.0)
            total = jnp.sum(weights)
            weights = weights / jnp.where(total > 0, total, 1.0) / len(self.horizons)
            parts.append((jnp.sqrt(weights) * error).ravel())
        return jnp.concatenate(parts)

    def judge(self, run: Run) -> Float[Array, ""]:
        return Trajectory().judge(run)


class MultipleShooting(AbstractLoss):
    r"""The mean squared error of segments that start from states of their own, which must join.

    The window is cut into segments of equal numbers of samples. Each is run from a state that is
    trained along with the model, and the end of one must meet the start of the next:
    $\sum w (\hat y - y)^2 + \mathrm{continuity} \cdot \overline{(x_j(\text{end}) -
    x_{j+1}(\text{start}))^2}$. Short segments keep gradients tame where orbits part fast (Bock
    1983). The model itself keeps x0 and is judged by one run from it.

    **Arguments:**

    - `segments`: how many, at least 2 and at most one for each 2 samples.
    - `continuity`: the weight of the second term, > 0.

    **Raises:** ValueError for other numbers.
    """

    segments: int = eqx.field(static=True)
    continuity: float = eqx.field(static=True)

    def __init__(self, segments: int = 4, continuity: float | int = 1.0):
        if isinstance(segments, bool) or not isinstance(segments, int) or segments < 2:
            raise ValueError(f"`segments` must be an integer >= 2, got {segments!r}.")
        self.segments, self.continuity = segments, real("continuity", continuity, above=0.0)

    def variables(self, run: Run) -> Any:
        """The starts of all segments but the first, from one run of the model."""
        return run.states[self._length(run) :: self._length(run)][: self.segments - 1]

    def residuals(self, run: Run, variables: Any) -> Float[Array, " r"]:
        length, t = self._length(run), run.states.shape[0]
        # Steps over no time at all fill the last segment.
        gaps = jnp.concatenate([run.window.gaps, jnp.zeros(self.segments * length - t + 1)])
        starts = jnp.concatenate([run.states[:1], variables])
        states = jax.vmap(run.flow)(starts, gaps.reshape(self.segments, length))
        joined = states[:, :-1].reshape(-1, states.shape[-1])[:t]
        outputs = run.refitted(joined).batch(joined)
        fitted = jnp.sqrt(run.weights) * (outputs - run.targets)
        jump = states[:-1, -1] - variables
        return jnp.concatenate(
            [fitted.ravel(), ((self.continuity / jump.size) ** 0.5 * jump).ravel()]
        )

    def judge(self, run: Run) -> Float[Array, ""]:
        return Trajectory().judge(run)

    def _length(self, run: Run) -> int:
        t = run.targets.shape[0]
        if t < 2 * self.segments:
            raise ValueError(
                f"`segments` = {self.segments} need at least {2 * self.segments} samples, the "
                f"window has {t}; give fewer segments."
            )
        length = -(-t // self.segments)
        if length * (self.segments - 1) >= t:
            raise ValueError(
                f"`segments` = {self.segments} do not divide {t} samples into as many segments of "
                "equal length; give fewer."
            )
        return length


class LogSpectral(AbstractLoss):
    r"""The mean squared difference of log power spectra, $\ln((P + \epsilon) / (\hat P +
    \epsilon))$.

    Compares what a signal is made of, not its phases: what to ask of a noisy or chaotic signal,
    whose exact course no model can follow. P is the periodogram of a channel under a Hann window.

    **Arguments:**

    - `floor`: epsilon, as a fraction of the target's largest power.

    **Raises:** ValueError when `floor` is not > 0, or (in `fit`) for a signal that is sampled
    irregularly or has samples missing.
    """

    floor: float = eqx.field(static=True)

    def __init__(self, floor: float | int = 1e-4):
        self.floor = real("floor", floor, above=0.0)

    def prepared(self, signal: Signal) -> "AbstractLoss":
        if signal.dt is None or not signal.is_complete:
            raise ValueError(
                "`loss`: LogSpectral needs a signal with uniform times and without missing "
                "samples; use Trajectory, or interpolate first."
            )
        return self

    def residuals(self, run: Run, variables: Any) -> Float[Array, " r"]:
        # The window spans what counts; what does not is 0 in both.
        counted = run.weights > 0
        index = jnp.arange(run.outputs.shape[0])[:, None]
        first = jnp.argmax(counted, axis=0)[None]
        length = jnp.max(jnp.where(counted, index, 0), axis=0)[None] + 1 - first
        phase = (index - first).astype(run.outputs.dtype) + 0.5
        hann = jnp.where(counted, jnp.sin(jnp.pi * phase / length.astype(phase.dtype)) ** 2, 0.0)

        def power(y):
            spectrum = jnp.fft.rfft(hann * y, axis=0)
            return jnp.real(spectrum) ** 2 + jnp.imag(spectrum) ** 2

        wanted, found = power(run.targets), power(run.outputs)
        floor = self.floor * jnp.max(wanted, axis=0, keepdims=True)
        floor = jnp.where(floor > 0, floor, 1.0)
        difference = jnp.log((found + floor) / (wanted + floor))
        return difference.ravel() / difference.size**0.5


class Frequency(AbstractLoss):
    r"""The mean squared relative error of frequencies, by the phase they gain across the window.

    For each frequency w the outputs are demodulated by exp(-i w t) in the first and in the second
    half of the window (Hann windows); the angle between the two, over w times the distance of the
    halves, is the relative error of the frequency. It is blind beyond half a turn: for models whose
    frequencies are nearly right, as [`jaxdyn.initialisers.FrequenciesFirst`][] makes them.

    **Arguments:**

    - `omega`: the frequencies (k,) in radians per time unit, > 0; default: the tones of the signal.
    - `count`: with the default, how many tones at most.

    **Raises:** ValueError for frequencies that are not finite and positive.
    """

    omega: tuple[float, ...] | None = eqx.field(static=True)
    count: int = eqx.field(static=True)

    def __init__(self, omega: Sequence[float | int] | None = None, *, count: int = 3):
        self.omega = None if omega is None else _each("omega", omega, "frequencies")
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"`count` must be an integer >= 1, got {count!r}.")
        self.count = count

    def prepared(self, signal: Signal) -> "AbstractLoss":
        if self.omega is not None:
            return self
        return Frequency(find_tones(signal, self.count).omega.tolist())

    def residuals(self, run: Run, variables: Any) -> Float[Array, " r"]:
        assert self.omega is not None, "prepared() fills it in"
        omega = jnp.asarray(self.omega, run.outputs.dtype)
        counted = jnp.sum(run.weights, axis=1) > 0
        last = jnp.max(jnp.where(counted, run.times, 0.0))
        first = jnp.min(jnp.where(counted, run.times, last))
        span = jnp.where(last > first, last - first, 1.0)
        fraction = (run.times - first) / span

        def demodulated(start):
            inside = (fraction >= start) & (fraction <= start + 0.5)
            hann = jnp.where(inside, jnp.sin(2 * jnp.pi * (fraction - start)) ** 2, 0.0)
            angle = jnp.outer(omega, run.times)
            outputs = hann[:, None] * run.outputs
            return jnp.cos(angle) @ outputs, jnp.sin(angle) @ outputs

        (c0, s0), (c1, s1) = demodulated(0.0), demodulated(0.5)
        # The product of the second and the conjugate of the first, strong channels counting most.
        real, imag = jnp.sum(c0 * c1 + s0 * s1, axis=1), jnp.sum(s0 * c1 - c0 * s1, axis=1)
        silent = real**2 + imag**2 == 0
        angle = jnp.arctan2(jnp.where(silent, 0.0, imag), jnp.where(silent, 1.0, real))
        return angle / (omega * (span / 2) * omega.size**0.5)


class Energy(AbstractLoss):
    r"""The mean of $((H(x(t)) - H^*) / H^*)^2$ over the run: how far the energy is from where it
    should be.

    With an `energy` it asks for that one, and so for how nonlinear a network is used. Without, H*
    is the energy at the start, which only damped, driven or regulated cells leave.

    **Arguments:**

    - `energy`: H* > 0, or None.
    """

    energy: float | None = eqx.field(static=True)

    def __init__(self, energy: float | int | None = None):
        self.energy = None if energy is None else real("energy", energy, above=0.0)

    def residuals(self, run: Run, variables: Any) -> Float[Array, " r"]:
        energies = jax.vmap(run.cell.energy)(run.states)
        wanted = energies[0] if self.energy is None else self.energy
        counted = (jnp.sum(run.weights, axis=1) > 0).astype(energies.dtype)
        return counted * (energies / wanted - 1) / jnp.maximum(jnp.sum(counted), 1.0) ** 0.5


class Huber(AbstractLoss):
    r"""The trajectory's error with outliers counting linearly, so that they do not rule the fit.

    $\sum w \rho(\hat y - y)$ with $\sum w = 1$, $\rho(e) = e^2$ for $|e| \le \delta$ and
    $2 \delta |e| - \delta^2$ beyond (Huber 1964).

    **Arguments:**

    - `delta`: > 0, in standard deviations of the channel.
    """

    delta: float = eqx.field(static=True)

    def __init__(self, delta: float | int = 0.1):
        self.delta = real("delta", delta, above=0.0)

    @property
    def robust(self) -> bool:
        return True

    def residuals(self, run: Run, variables: Any) -> Float[Array, " r"]:
        error = run.outputs - run.targets
        size = jnp.abs(error)
        large = size > self.delta
        # sqrt(rho), which has the slope of the error where the two meet.
        root = jnp.sqrt(jnp.where(large, 2 * self.delta * size - self.delta**2, 1.0))
        return (jnp.sqrt(run.weights) * jnp.where(large, jnp.sign(error) * root, error)).ravel()


def _loss(loss: Any) -> AbstractLoss:
    if not isinstance(loss, AbstractLoss):
        raise TypeError(f"`loss` must be a loss such as Trajectory(), got {loss!r}.")
    return loss


def _each(name: str, values: Any, what: str) -> tuple[float, ...]:
    """At least one number > 0."""
    if np.ndim(values) != 1:
        raise TypeError(f"`{name}` must be a list of {what}, got {values!r}.")
    if len(values) == 0:
        raise ValueError(f"`{name}` must be at least one of {what}, got none.")
    return tuple(real(name, value, above=0.0) for value in values)

"""One network for many signals, that infers from a stretch of each the state it starts from."""

import math
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
from jaxtyping import Array, Float, Int

from .._cell import AbstractCell
from .._model_file import load_module, register, save_module
from .job import ORDER
from .oscillator import Oscillator, Readout, default_precision, default_solver
from .rollout import flow

# Levenberg-Marquardt on the state of one signal, for every doubling of what is seen of it.
BEGIN_STEPS = 10


class Perceptron(eqx.Module):
    """z -> A z + W_2 tanh(W_1 z + b_1): a linear map and a correction by one hidden layer."""

    linear: Float[Array, "n z"]
    inner: Float[Array, "h z"]
    bias: Float[Array, " h"]
    outer: Float[Array, "n h"]

    def __call__(self, z: Float[Array, " z"]) -> Float[Array, " n"]:
        return self.linear @ z + self.outer @ jnp.tanh(self.inner @ z + self.bias)


class EncodedOscillator(eqx.Module):
    r"""A network that continues signals it has not seen: x0 is inferred from a context window.

    The encoder maps the `context` samples of a window, $z$, to the state at the first of them,
    $x_0 = A z + W_2 \tanh(W_1 z + b_1)$; cell and readout are shared by all signals. `prior` is how
    firmly that state is believed in against the samples, $\sigma \Sigma^{-1/2}$ with the noise
    $\sigma$ and the covariance $\Sigma$ of the states. Made by [`jaxdyn.fit_encoder`][].

    Called with a window (context, m), sampled every `dt`, it returns the
    [`jaxdyn.Oscillator`][] that runs through the window and on.
    """

    cell: AbstractCell
    readout: Readout
    encoder: Perceptron
    prior: Float[Array, "n n"]
    mean: Float[Array, " m"]
    scale: Float[Array, " m"]
    context: int = eqx.field(static=True)
    dt: float = eqx.field(static=True)
    step: float = eqx.field(static=True)
    channels: tuple[str, ...] = eqx.field(static=True)
    time_unit: str = eqx.field(static=True)

    def __call__(self, window: Any, *, t0: float | int = 0.0, refine: int = 10) -> Oscillator:
        r"""The oscillator that continues a window.

        **Arguments:**

        - `window`: the samples (context, m), or (context,) of one channel, the last of which is
          where the forecast starts.
        - `t0`: the time of its first sample.
        - `refine`: the most steps of Levenberg-Marquardt towards the most probable state,
          $\min |\hat y - y|^2 + |\mathrm{prior} (x_0 - x_0^{enc})|^2$; 0 takes what the encoder
          says.

        **Raises:** ValueError for a window of another shape or with values that are not finite.
        """
        values = np.asarray(window, np.float64)
        values = values[:, None] if values.ndim == 1 else values
        if values.shape != (self.context, len(self.channels)):
            raise ValueError(
                f"`window` must have shape ({self.context}, {len(self.channels)}), the samples "
                f"before the forecast; got {np.shape(window)}."
            )
        if not np.all(np.isfinite(values)):
            raise ValueError("`window` must be finite: the encoder needs every sample.")
        if isinstance(refine, bool) or not isinstance(refine, int) or refine < 0:
            raise ValueError(f"`refine` must be an integer >= 0, got {refine!r}.")
        target = (jnp.asarray(values, self.mean.dtype) - self.mean[None]) / self.scale[None]
        x0 = self.encoder(target.ravel())
        if refine:
            x0 = refined(self, x0, target, refine)
        readout = Readout(
            self.readout.matrix * self.scale[:, None],
            self.readout.offset * self.scale + self.mean,
        )
        return Oscillator(
            x0,
            self.cell,
            readout,
            t0=t0,
            step=self.step,
            channels=self.channels,
            time_unit=self.time_unit,
        )

    def states(self, x0: Float[Array, " n"], count: int) -> Float[Array, "t n"]:
        """The states at `count` samples from a state on, differentiable."""
        gaps = jnp.full(count - 1, self.dt, x0.dtype)
        solver = default_solver(self.cell, ORDER)
        substeps = max(1, math.ceil(self.dt / self.step - 1e-9))
        return flow(self.cell, x0, gaps, solver, substeps)

    def run(self, x0: Float[Array, " n"], count: int) -> Float[Array, "t m"]:
        """The standardised outputs at `count` samples from a state on."""
        return self.readout.batch(self.states(x0, count))

    def save(self, path: str | Path) -> None:
        """Writes the model to one file; see [`jaxdyn.EncodedOscillator.load`][]."""
        save_module(path, self)

    @staticmethod
    def load(path: str | Path) -> "EncodedOscillator":
        """Reads what `save` wrote, as [`jaxdyn.Oscillator.load`][] does, with the same errors."""
        with jax.enable_x64(True):
            model = load_module(path, expect=EncodedOscillator)
        return default_precision(model)


register(Perceptron, EncodedOscillator)


@eqx.filter_jit
def refined(
    model: EncodedOscillator, guess: Array, target: Array, steps: int, counts: Array | None = None
) -> Array:
    """The most probable state, by the samples that count, from what was believed before."""

    def residuals(x0, _):
        missed = model.run(x0, target.shape[0]) - target
        if counts is not None:
            missed = jnp.where(counts[:, None], missed, 0.0)
        return jnp.concatenate([missed.ravel(), model.prior @ (x0 - guess)])

    method = optx.LevenbergMarquardt(rtol=1e-12, atol=1e-12, linear_solver=lx.QR())
    return optx.least_squares(residuals, method, guess, max_steps=steps + 1, throw=False).value


@eqx.filter_jit
def begun(
    model: EncodedOscillator,
    guesses: Float[Array, "k n"],
    targets: Float[Array, "k t m"],
    seen: Int[Array, ""],
) -> Float[Array, "k n"]:
    """The states from which runs are nearest to the first `seen` samples of each signal."""
    counts = jnp.arange(targets.shape[1]) < seen
    return jax.vmap(lambda x0, z: refined(model, x0, z, BEGIN_STEPS, counts))(guesses, targets)

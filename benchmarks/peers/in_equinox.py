"""Networks trained to forecast: a neural ODE with diffrax, GRU and LSTM cells of equinox.

Each takes samples (t, m), `dt` apart, and returns a `Forecast`; their training is described in
forecast_training.py. They compute in float32 whatever the precision outside.
"""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

from ..forecast_training import Forecast, Peer, fit_and_forecast, stretches

LATENT, WIDTH, DEPTH = 8, 32, 2
HIDDEN = 32


def missing() -> str | None:
    return None


def neural_ode(
    values: np.ndarray, dt: float, n_ahead: int, *, seconds: float, key: Array
) -> Forecast:
    """z' = MLP(z) from a trainable z(0), read out linearly; time in twentieths of the window.

    Trained on a horizon that grows from a tenth of the window to all of it.
    """
    with jax.enable_x64(False):
        model = NeuralODE(values.shape[1], len(values), key)
        peer = Peer(model, NeuralODE.predict, NeuralODE.lesson, free=True)
        return fit_and_forecast(peer, values, n_ahead, seconds=seconds, key=key)


def gru(values: np.ndarray, dt: float, n_ahead: int, *, seconds: float, key: Array) -> Forecast:
    return _recurrent(eqx.nn.GRUCell, values, n_ahead, seconds, key)


def lstm(values: np.ndarray, dt: float, n_ahead: int, *, seconds: float, key: Array) -> Forecast:
    return _recurrent(eqx.nn.LSTMCell, values, n_ahead, seconds, key)


def _recurrent(cell, values, n_ahead, seconds, key) -> Forecast:
    with jax.enable_x64(False):
        model = Recurrent(cell, values.shape[1], key)
        peer = Peer(model, Recurrent.predict, stretches, free=False)
        return fit_and_forecast(peer, values, n_ahead, seconds=seconds, key=key)


class NeuralODE(eqx.Module):
    """Tsit5 with rtol 1e-4, atol 1e-6; the augmented state has LATENT components."""

    field: eqx.nn.MLP
    readout: eqx.nn.Linear
    start: Array
    dt: float = eqx.field(static=True)

    def __init__(self, m: int, t: int, key: Array):
        keys = jr.split(key, 3)
        self.field = eqx.nn.MLP(LATENT, LATENT, WIDTH, DEPTH, jnp.tanh, key=keys[0])
        self.readout = eqx.nn.Linear(LATENT, m, key=keys[1])
        self.start = jr.normal(keys[2], (LATENT,))
        self.dt = 20 / t

    def predict(self, values: Array, teacher: Array) -> Array:
        ts = self.dt * jnp.arange(len(values), dtype=values.dtype)
        sol = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, z, args: self.field(z)),
            diffrax.Tsit5(),
            ts[0],
            ts[-1],
            jnp.asarray(self.dt, values.dtype),
            self.start,
            saveat=diffrax.SaveAt(ts=ts),
            stepsize_controller=diffrax.PIDController(rtol=1e-4, atol=1e-6),
            max_steps=16 * len(values),
            throw=False,
        )
        return jax.vmap(self.readout)(sol.ys)

    @staticmethod
    def lesson(progress: Array, key: Array, t: int) -> tuple[Array, Array]:
        horizon = jnp.clip(0.1 + 0.9 * progress / 0.4, 0.0, 1.0)
        return (jnp.arange(t) < horizon * t).astype(progress.dtype), jnp.zeros(t, bool)


class Recurrent(eqx.Module):
    """The next sample is this one plus what is read out of the cell's state."""

    cell: Any
    readout: eqx.nn.Linear
    first: Array

    def __init__(self, cell: Any, m: int, key: Array):
        keys = jr.split(key)
        self.cell = cell(m, HIDDEN, key=keys[0])
        self.readout = eqx.nn.Linear(HIDDEN, m, key=keys[1])
        self.first = jnp.zeros(m)

    def predict(self, values: Array, teacher: Array) -> Array:
        zeros = jnp.zeros(HIDDEN)
        two = isinstance(self.cell, eqx.nn.LSTMCell)

        def step(state, last):
            state = self.cell(last, state)
            return state, last + self.readout(state[0] if two else state)

        return free_run(step, (zeros, zeros) if two else zeros, self.first, values, teacher)


def free_run(step, state, first: Array, values: Array, teacher: Array) -> Array:
    """step(state, sample) -> (state, next sample), fed `values` where `teacher` is true.

    Before the first of them stands `first`.
    """

    def advance(carry, at):
        state, own = carry
        value, measured = at
        state, ahead = step(state, jnp.where(measured, value, own))
        return (state, ahead), ahead

    before = jnp.concatenate([first[None], values[:-1]])
    measured = jnp.concatenate([jnp.ones(1, bool), teacher[:-1]])
    return jax.lax.scan(advance, (state, first), (before, measured))[1]

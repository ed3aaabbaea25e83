"""How every trained peer of the forecast benchmark is trained: the same budget and procedure.

All in float32, on standardised samples, with Adam and gradients clipped to norm 1. For half of the
budget three learning rates in turn, a third each, on the first nine tenths of the window, judged by
the error of a free run over the last tenth; for the other half the best of them goes on with the
whole window, its rate decaying to zero along a cosine, and is kept if the free run over the last
tenth is then no worse. Compilation is not counted in the budget.
"""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array

RATES = (1e-2, 3e-3, 1e-3)


class Forecast(NamedTuple):
    """The window (t, m) as the model has it, what follows (n_ahead, m), and what that took.

    `free`: the window is one run from a fitted initial state; else each of its samples is forecast
    from the measured ones before it.
    """

    fitted: np.ndarray
    ahead: np.ndarray
    parameters: int
    seconds: float
    compile_seconds: float | None
    free: bool


class Peer(NamedTuple):
    """A model, and how it is run and taught.

    `predict(model, values, teacher)` forecasts every one of `values` (t, m), from those before it
    where `teacher` (t,) is true and from its own forecasts where it is not. `lesson(progress, key,
    t)` gives the weights (t,) of the samples in the loss and `teacher`; progress is in [0, 1].
    """

    model: Any
    predict: Callable[[Any, Array, Array], Array]
    lesson: Callable[[Array, Array, int], tuple[Array, Array]]
    free: bool


class _Progress(NamedTuple):
    model: Any
    moments: Any


def fit_and_forecast(
    peer: Peer, values: np.ndarray, n_ahead: int, *, seconds: float, key: Array
) -> Forecast:
    """Trains `peer` on `values` (t, m) for so many seconds, then lets it run on."""
    mean, scale = np.mean(values, axis=0), np.std(values, axis=0)
    data = jnp.asarray((values - mean) / scale, jnp.float32)
    t = len(data)
    known = round(0.9 * t)
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())
    # A gradient that is not finite changes nothing.
    adam = optax.apply_if_finite(adam, max_consecutive_errors=1_000_000)
    weights, static = eqx.partition(peer.model, eqx.is_inexact_array)

    def predict(weights, data, teacher):
        return peer.predict(eqx.combine(weights, static), data, teacher)

    def error(weights, data, importance, teacher):
        squares = jnp.mean((predict(weights, data, teacher) - data) ** 2, axis=1)
        # What is not finite must stay so, whatever its weight.
        return jnp.sum(squares * importance) / jnp.sum(importance)

    @jax.jit
    def step(now, data, counted, progress, rate, key):
        importance, teacher = peer.lesson(progress, key, t)
        loss, gradient = jax.value_and_grad(error)(now.model, data, importance * counted, teacher)
        update, moments = adam.update(gradient, now.moments)
        model = jax.tree.map(lambda w, u: w - rate * u, now.model, update)
        return _Progress(model, moments), loss

    @jax.jit
    def judge(weights, data):
        later = jnp.arange(t) >= known
        return error(weights, data, later.astype(data.dtype), ~later)

    @jax.jit
    def run(weights, data):
        zeros = jnp.zeros((n_ahead, data.shape[1]), data.dtype)
        teacher = jnp.arange(t + n_ahead) < t
        return predict(weights, jnp.concatenate([data, zeros]), teacher)

    start = time.perf_counter()
    fresh = _Progress(weights, adam.init(weights))
    one = jnp.asarray(0.0, jnp.float32)
    first = (jnp.arange(t) < known).astype(data.dtype)
    step = step.lower(fresh, data, first, one, one, key).compile()
    judge, run = judge.lower(weights, data).compile(), run.lower(weights, data).compile()
    compiled = time.perf_counter() - start

    def train(now, rate, counted, budget, begin, end):
        """From progress `begin` to `end`."""
        start, steps, fraction = time.perf_counter(), 0, 0.0
        while fraction < 1:
            decay = 1.0 if end < 1 else 0.5 * (1 + math.cos(math.pi * fraction))
            progress = begin + (end - begin) * fraction
            numbers = (jnp.asarray(x, jnp.float32) for x in (progress, rate * decay))
            now, loss = step(now, data, counted, *numbers, jr.fold_in(key, steps))
            loss.block_until_ready()
            steps += 1
            fraction = (time.perf_counter() - start) / budget
        return now

    start = time.perf_counter()
    tried = {rate: train(fresh, rate, first, seconds / 6, 0.0, 0.5) for rate in RATES}
    errors = {rate: float(judge(now.model, data)) for rate, now in tried.items()}
    best = min(RATES, key=lambda rate: errors[rate] if math.isfinite(errors[rate]) else math.inf)
    ended = train(tried[best], best, jnp.ones_like(first), seconds / 2, 0.5, 1.0)
    # The end of training may be its worst moment.
    last = float(judge(ended.model, data))
    if not last <= errors[best]:
        ended = tried[best]
    spent = time.perf_counter() - start
    out = np.asarray(run(ended.model, data), np.float64) * scale + mean
    parameters = sum(leaf.size for leaf in jax.tree.leaves(weights))
    return Forecast(out[:t], out[t:], parameters, spent, compiled, peer.free)


def stretches(progress: Array, key: Array, t: int) -> tuple[Array, Array]:
    """Fed measured samples throughout at first; then free stretches, which grow to a quarter of the
    window, take turns with a twentieth of it that is measured, from a random sample on.
    """
    length = t / 4 * jnp.clip((progress - 0.25) / 0.5, 0.0, 1.0)
    place = jnp.arange(t) + jr.randint(key, (), 0, t)
    return jnp.ones(t, progress.dtype), jnp.mod(place, t / 20 + length) < t / 20

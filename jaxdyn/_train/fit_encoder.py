"""Fits one network to many signals, together with the encoder of their states."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import optimistix as optx
from jaxtyping import Array, Float

from .encoder import EncodedOscillator, Perceptron, begun
from .fit import fit
from .job import LARGEST_POLISH
from .oscillator import Oscillator, Readout, default_precision, default_step, real
from .signals import Signal
from .training import finite_or_zero

RIDGE = 1e-6
LEARNING_RATE = 2e-3
# Levenberg-Marquardt on several signals at once: how long, and up to how much work a step.
SHARED_STEPS = 50
# Steps of training in one call of the compiled program.
ROUND = 50


def fit_encoder(
    signals: Any,
    *,
    dt: float | int | None = None,
    context: int,
    ahead: int | None = None,
    units: int = 16,
    hidden: int = 64,
    steps: int = 1000,
    batch: int = 32,
    validation: float | int = 0.2,
    start: Any = None,
    key: Array,
    progress: bool = False,
) -> EncodedOscillator:
    r"""Fits one network to many signals, together with an encoder of where each starts.

    The network starts from a fit of one of the signals, and is then polished on several of them at
    once by Levenberg-Marquardt, each with a state of its own. The encoder's linear part starts from
    the regression of states on windows along those runs, with the noise that they leave in the
    signals (a Wiener filter). The encoder is then trained by Adam with a cosine schedule on random
    windows of all the signals, on the mean squared error over the `context` samples that it sees
    and `ahead` more that it does not; what did best on the validation windows is kept.

    **Arguments:**

    - `signals`: at least one signal, each (t,) or (t, m) with `dt`, or a `Signal`; of one uniform
      sampling and complete. Lengths may differ.
    - `context`, `ahead`: samples that the encoder sees, and that it has to foretell; default as
      many as it sees.
    - `units`: n; `hidden`: the width of the encoder.
    - `steps`, `batch`: of training, and windows in each.
    - `validation`: the last part of each signal, a fraction in [0, 1), whose forecasts the encoder
      is not trained on but judged by (the dynamics are fitted to it all the same); signals too
      short to be cut are trained on whole, and with none that is not, or 0, what training ends with
      is kept.
    - `start`: the oscillator to start from, of these channels; default: `jaxdyn.fit` of the signal
      with the largest variance.
    - `key`: a JAX random key; the same key gives the same result.
    - `progress`: show a bar.

    **Returns:** an [`jaxdyn.EncodedOscillator`][].

    **Raises:** ValueError or TypeError that names the argument; RuntimeError when forecasts diverge
    throughout.
    """
    given = _checked_signals(signals, dt)
    m, step = given[0].n_channels, given[0].dt
    assert step is not None
    for name, value, least in (
        ("context", context, 2),
        ("units", units, 2),
        ("hidden", hidden, 1),
        ("steps", steps, 0),
        ("batch", batch, 1),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"`{name}` must be an integer >= {least}, got {value!r}.")
    ahead = context if ahead is None else ahead
    if isinstance(ahead, bool) or not isinstance(ahead, int) or ahead < 1:
        raise ValueError(f"`ahead` must be an integer >= 1, got {ahead!r}.")
    length = context + ahead
    short = min(s.n_samples for s in given)
    if length > short:
        raise ValueError(
            f"`context` and `ahead` make windows of {length} samples, the shortest signal has "
            f"{short}; give smaller ones."
        )
    if start is not None and not isinstance(start, Oscillator):
        raise TypeError(f"`start` must be a jaxdyn.Oscillator or None, got {start!r}.")
    if start is not None and (start.size != units or len(start.channels) != m):
        raise ValueError(
            f"`start` has {start.size} units and {len(start.channels)} channels, not {units} and "
            f"{m}."
        )
    validation = real("validation", validation, least=0.0)
    if validation >= 1:
        raise ValueError(f"`validation` must be a fraction in [0, 1), got {validation!r}.")
    with jax.enable_x64(True):
        key_fit, key_net, key_batch = jr.split(key, 3)
        lead = max(range(len(given)), key=lambda i: float(given[i].values.var()))
        first = start or fit(given[lead], units=units, holdout=0, key=key_fit).oscillator
        first = jax.tree.map(lambda a: jnp.asarray(a, float), first)
        model = _start(given, first, given[lead], context, hidden, key_net)
        model, starts, targets = _shared(model, given, lead, fitted=start is None)
        model = dataclasses.replace(model, step=default_step(model.cell))
        model = _informed(model, starts, targets)
        training, judging = _windows(model, given, length, validation)
        model = _trained(model, training, judging, steps, batch, key_batch, progress)
    return default_precision(model)


def _checked_signals(signals: Any, dt: float | int | None) -> list[Signal]:
    if isinstance(signals, Signal) or not isinstance(signals, Sequence | np.ndarray | jax.Array):
        raise TypeError(f"`signals` must be a list of signals, got {type(signals).__name__}.")
    given = [s if isinstance(s, Signal) else Signal.of(s, dt=dt) for s in signals]
    if not given:
        raise ValueError("`signals` must hold at least one signal.")
    for i, s in enumerate(given):
        if s.dt is None or not s.is_complete:
            raise ValueError(f"`signals`[{i}] must have uniform times and no missing samples.")
        if s.n_channels != given[0].n_channels or abs(s.dt / (given[0].dt or 1.0) - 1) > 1e-6:
            raise ValueError(
                f"`signals`[{i}] must have the channels and the sampling of the first: "
                f"{given[0].n_channels} every {given[0].dt:g}; got {s.n_channels} every {s.dt:g}."
            )
    return given


def _start(
    given: list[Signal],
    start: Oscillator,
    lead: Signal,
    context: int,
    hidden: int,
    key: Array,
) -> EncodedOscillator:
    everything = np.concatenate([s.values for s in given]).astype(np.float64)
    mean, scale = everything.mean(0), everything.std(0)
    n, m = start.size, len(mean)
    # Its own states and outputs: it need not belong to any of the signals.
    states = np.asarray(start.states(lead.ts))
    z = (np.asarray(start.readout.batch(jnp.asarray(states))) - mean) / scale
    missed = min(1.0, float(np.sqrt(np.mean((z - (lead.values - mean) / scale) ** 2))))
    linear, _ = _regression(jnp.asarray(states)[None], jnp.asarray(z)[None], context, missed)
    return EncodedOscillator(
        cell=start.cell,
        readout=Readout(
            start.readout.matrix / scale[:, None], (start.readout.offset - mean) / scale
        ),
        encoder=Perceptron(
            linear=linear,
            inner=jr.normal(key, (hidden, context * m)) / math.sqrt(context * m),
            bias=jnp.zeros(hidden),
            outer=jnp.zeros((n, hidden)),
        ),
        prior=jnp.zeros((n, n)),
        mean=jnp.asarray(mean),
        scale=jnp.asarray(scale),
        context=context,
        dt=float(lead.dt or 0.0),
        step=start.step,
        channels=lead.channels,
        time_unit=lead.time_unit,
    )


def _regression(
    states: Float[Array, "k t n"], outputs: Float[Array, "k t m"], context: int, noise: float
) -> tuple[Float[Array, "n z"], Float[Array, "n n"]]:
    """The linear map from noisy windows of outputs to the state at their start that is best in the
    mean square, and the covariance of those states."""
    count = states.shape[1] - context + 1
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(outputs), context, axis=1)
    windows = windows.swapaxes(2, 3).reshape(-1, context * outputs.shape[2])
    starts = np.asarray(states)[:, :count].reshape(len(windows), -1)
    gram = windows.T @ windows / len(windows)
    gram += (RIDGE * np.trace(gram) / len(gram) + noise**2) * np.eye(len(gram))
    linear = np.linalg.solve(gram, windows.T @ starts / len(windows)).T
    return jnp.asarray(linear), jnp.asarray(starts.T @ starts / len(windows))


def _shared(
    model: EncodedOscillator, given: list[Signal], lead: int, *, fitted: bool
) -> tuple[EncodedOscillator, Float[Array, "k n"], Float[Array, "k t m"]]:
    """Cell and readout polished on as many of the signals at once as that can bear; the states that
    these start from, and these signals, standardised.

    One signal that the network was `fitted` to already needs a state only.
    """
    size = sum(leaf.size for leaf in jax.tree.leaves((model.cell, model.readout)))
    length = min(s.n_samples for s in given)
    n, outputs = model.cell.size, length * len(model.channels)

    def work(count: int) -> float:
        return float(count * outputs) * (size + count * n) ** 2

    count = len(given)
    while count > 1 and work(count) > LARGEST_POLISH:
        count -= 1
    chosen = np.linspace(0, len(given) - 1, count).round().astype(int) if count > 1 else [lead]
    targets = jnp.asarray(np.stack([_standard(model, given[i])[:length] for i in chosen]))
    # Each state from the head of its signal first, then from more and more of it: a state that is
    # a little wrong is out of step at the end.
    starts = jax.vmap(lambda z: model.encoder(z[: model.context].ravel()))(targets)
    seen = model.context
    while seen < 2 * length:
        starts = begun(model, starts, targets, jnp.asarray(seen))
        seen *= 2
    if work(count) > LARGEST_POLISH or (fitted and count == 1):
        return model, starts, targets
    return *_polished(model, starts, targets), targets


def _standard(model: EncodedOscillator, signal: Signal) -> np.ndarray:
    return (signal.values - np.asarray(model.mean)) / np.asarray(model.scale)


@eqx.filter_jit
def _polished(
    model: EncodedOscillator, guesses: Float[Array, "k n"], targets: Float[Array, "k t m"]
) -> tuple[EncodedOscillator, Float[Array, "k n"]]:
    def unpacked(params):
        return eqx.tree_at(lambda o: (o.cell, o.readout), model, eqx.combine(params, static))

    params, static = eqx.partition((model.cell, model.readout), eqx.is_inexact_array)

    def residuals(free, _):
        params, starts = free
        moved = unpacked(params)
        outputs = jax.vmap(lambda x0: moved.run(x0, targets.shape[1]))(starts)
        return (outputs - targets).ravel()

    method = optx.LevenbergMarquardt(rtol=1e-12, atol=1e-12, linear_solver=lx.QR())
    found = optx.least_squares(
        residuals, method, (params, guesses), max_steps=SHARED_STEPS, throw=False
    )
    return unpacked(found.value[0]), found.value[1]


def _informed(
    model: EncodedOscillator, starts: Float[Array, "k n"], targets: Float[Array, "k t m"]
) -> EncodedOscillator:
    """The model with the encoder and the prior that belong to its runs through the signals."""
    states = jax.vmap(lambda x0: model.states(x0, targets.shape[1]))(starts)
    outputs = jax.vmap(model.readout.batch)(states)
    noise = float(jnp.sqrt(jnp.mean((outputs - targets) ** 2)))
    linear, covariance = _regression(states, outputs, model.context, noise)
    n = model.cell.size
    floor = RIDGE * jnp.trace(covariance) / n * jnp.eye(n)
    inverse = jnp.linalg.inv(jnp.linalg.cholesky(covariance + floor))
    return eqx.tree_at(lambda m: (m.encoder.linear, m.prior), model, (linear, noise * inverse))


def _windows(
    model: EncodedOscillator, given: list[Signal], length: int, validation: float
) -> tuple[Float[Array, "w t m"], Float[Array, "v t m"]]:
    """Windows of all signals to train on, and those whose forecast lies in the last part of each,
    to judge by; a signal too short for both has the former only."""
    stride = max(1, model.context // 8)

    def cut(values: np.ndarray) -> np.ndarray:
        if len(values) < length:
            return np.zeros((0, length, values.shape[1]))
        windows = np.lib.stride_tricks.sliding_window_view(values, length, axis=0)
        return windows.swapaxes(1, 2)[::stride]

    training, judging = [], []
    for signal in given:
        values = _standard(model, signal)
        known = len(values) - round(validation * len(values))
        ahead = cut(values[max(0, known - model.context) :])
        if validation == 0 or known < length or not len(ahead):
            training.append(cut(values))
            continue
        training.append(cut(values[:known]))
        judging.append(ahead)
    judged = np.concatenate(judging) if judging else training[0][:0]
    return jnp.asarray(np.concatenate(training)), jnp.asarray(judged)


def _trained(
    model: EncodedOscillator,
    windows: Float[Array, "w t m"],
    judging: Float[Array, "v t m"],
    steps: int,
    batch: int,
    key: Array,
    progress: bool,
) -> EncodedOscillator:
    # The encoder alone: what it gets wrong must not be made good by wrong dynamics.
    spec = jax.tree.map(lambda _: False, model)
    trained = jax.tree.map(lambda _: True, model.encoder)
    params, static = eqx.partition(model, eqx.tree_at(lambda o: o.encoder, spec, trained))
    import optax

    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, max(steps, 1))),
    )
    state = optimiser.init(params)
    rounds = math.ceil(steps / ROUND)
    bar = None
    if progress:
        from tqdm import tqdm

        bar = tqdm(total=rounds * ROUND, desc="encoder", unit="step")
    judged = judging.shape[0] > 0
    best, lowest = params, _score(params, static, judging) if judged else math.inf
    for key_round in jr.split(key, rounds):
        keys = jr.split(key_round, ROUND)
        params, state, losses = _round(params, static, optimiser, state, windows, keys, batch)
        score = _score(params, static, judging) if judged else -math.inf
        if score <= lowest or not judged:
            best, lowest = params, score
        if bar is not None:
            bar.update(ROUND)
            bar.set_postfix_str(f"loss {float(jnp.mean(losses)):.2e}")
    if bar is not None:
        bar.close()
    if judged and not math.isfinite(lowest):
        raise RuntimeError(
            "the encoder's forecasts diverged throughout; give start=... with smaller energies, or "
            "more `context`."
        )
    return eqx.combine(best, static)


def _score(params: Any, static: Any, windows: Array) -> float:
    error = float(_error(params, static, windows))
    return error if math.isfinite(error) else math.inf


@eqx.filter_jit
def _error(params, static, windows):
    """The mean squared error of windows, of what the encoder sees and what it does not."""
    model = eqx.combine(params, static)

    def one(window):
        x0 = model.encoder(window[: model.context].ravel())
        return jnp.mean((model.run(x0, window.shape[0]) - window) ** 2)

    return jnp.mean(jax.vmap(one)(windows))


@eqx.filter_jit
def _round(params, static, optimiser, state, windows, keys, batch):
    import optax

    def step(carry, key):
        params, state = carry
        chosen = windows[jr.randint(key, (batch,), 0, windows.shape[0])]
        value, gradient = jax.value_and_grad(_error)(params, static, chosen)
        gradient, _ = finite_or_zero(gradient)
        # optax's schedules need it, whatever promotion the user has set.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimiser.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), value

    (params, state), losses = jax.lax.scan(step, (params, state), keys)
    return params, state, losses

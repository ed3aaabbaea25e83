"""One network for many signals: what it foretells of those that it has not seen."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jaxdyn as jd

FREQUENCY, DT, CONTEXT = 1.7, 0.12, 30


def pair(energy: float, phase: float, frequency: float = FREQUENCY) -> jd.Oscillator:
    """Two tanh units seen through one channel: each energy has a period of its own."""
    W = jnp.array([[0.0, frequency], [-frequency, 0.0]])
    cell = jd.PoissonCell(jd.DenseSkew.from_matrix(W), jd.Tanh())
    return jd.Oscillator(jd.orbit(phase, energy, frequency), cell, jd.Readout([[1.0, 0.4]]))


def pair_signal(energy: float, phase: float, samples: int = 120) -> np.ndarray:
    return np.asarray(pair(energy, phase)(DT * np.arange(samples)))


def fitted(**settings) -> jd.EncodedOscillator:
    rng = np.random.default_rng(1)
    cases = [(1.0, 0.5), *rng.uniform((0.3, 0.0), (2.5, 5.0), (5, 2))]
    options = dict(context=CONTEXT, units=2, steps=1000, hidden=32, key=jr.key(0)) | settings
    if "start" not in options:
        # Near the first signal, with another frequency: a whole `fit` would do no more.
        options["start"] = pair(1.0, 0.5, 1.05 * FREQUENCY)
    signals = [jd.signals.Signal.of(pair_signal(*case), dt=DT) for case in cases]
    with jax.numpy_dtype_promotion("standard"):
        return jd.fit_encoder(signals, **options)


@pytest.fixture(scope="module")
def model() -> jd.EncodedOscillator:
    return fitted()


def forecast_error(
    model: jd.EncodedOscillator, energy: float, phase: float, refine: int, samples: int = 300
) -> float:
    true = pair_signal(energy, phase, samples)
    found = np.asarray(model(true[:CONTEXT], refine=refine)(DT * np.arange(samples)))
    return float(np.sqrt(np.mean((found - true)[CONTEXT:] ** 2) / true.var()))


@pytest.mark.parametrize(("energy", "phase"), [(0.45, 0.3), (1.1, 2.0), (2.2, 4.1)])
def test_it_continues_signals_of_unseen_energies(model, energy, phase):
    # The weights are identified to rounding, so what is left is how well the state is inferred:
    # 1e-9 when refined (measured, 2 to 10e-9).
    assert forecast_error(model, energy, phase, 20) < 1e-6


def test_the_weights_are_those_of_the_teacher(model):
    assert abs(float(model.cell.operator.frequencies()[0]) - FREQUENCY) < 1e-6


def test_training_makes_the_encoder_better(model):
    untrained = fitted(steps=0)
    cases = [(0.45, 0.3), (1.1, 2.0), (2.2, 4.1), (0.8, 1.0)]
    ahead = 2 * CONTEXT
    before = np.mean([forecast_error(untrained, *case, 0, ahead) for case in cases])
    after = np.mean([forecast_error(model, *case, 0, ahead) for case in cases])
    assert after < 0.5 * before, (before, after)


def test_noise_does_not_blow_it_up():
    """Two close tones at 5 dB, a context shorter than their beat. Least squares that is told the
    true frequencies follows the noise, 0.31 (measured); a belief in what states are likely does
    better, 0.24 by the encoder and 0.27 refined."""
    context, dt = 40, 0.3
    tones = jd.signals.tones([1.0, 1.15], n_samples=600, dt=dt)
    noisy = tones.with_noise(5, key=jr.key(2))
    with jax.numpy_dtype_promotion("standard"):
        model = jd.fit_encoder(
            [noisy.window(0, 400)], context=context, units=4, steps=50, key=jr.key(0)
        )
    ts = dt * np.arange(2 * context)
    angles = np.outer(ts, [1.0, 1.15])
    columns = np.concatenate([np.cos(angles), np.sin(angles), np.ones((len(ts), 1))], 1)
    errors = []
    for at in range(400, 520, 20):
        window, truth = noisy.values[at : at + context], tones.values[at + 40 : at + 80]
        told = columns[40:] @ np.linalg.lstsq(columns[:40], window)[0]
        found = [np.asarray(model(window, refine=r)(ts[40:])) for r in (0, 20)]
        errors.append([np.mean((f - truth) ** 2) for f in (*found, told)])
    inferred, refined, told = np.mean(errors, 0)
    assert inferred < told and refined < told


def test_the_same_key_gives_the_same_model(model):
    for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(fitted()), strict=True):
        np.testing.assert_array_equal(a, b)


def test_it_starts_at_the_given_time(model):
    window = pair_signal(1.0, 0.0)[:CONTEXT]
    here, there = model(window), model(window, t0=7.0)
    ts = DT * np.arange(5)
    np.testing.assert_allclose(here(ts), there(7.0 + ts), atol=1e-12)


def test_it_survives_the_disk(model, tmp_path):
    model.save(tmp_path / "model.eqx")
    again = jd.EncodedOscillator.load(tmp_path / "model.eqx")
    window = pair_signal(1.0, 0.0)[:CONTEXT]
    np.testing.assert_array_equal(model(window).x0, again(window).x0)
    with pytest.raises(ValueError, match="EncodedOscillator"):
        jd.Oscillator.load(tmp_path / "model.eqx")


@pytest.mark.parametrize(
    ("window", "options", "names"),
    [
        (np.ones((CONTEXT - 1, 1)), {}, "window"),
        (np.ones((CONTEXT, 2)), {}, "window"),
        (np.full(CONTEXT, np.nan), {}, "window"),
        (np.ones(CONTEXT), {"refine": -1}, "refine"),
    ],
)
def test_a_bad_window_is_refused(model, window, options, names):
    with pytest.raises(ValueError, match=f"`{names}`"):
        model(window, **options)


GOOD = [np.sin(0.3 * np.arange(100)), np.cos(0.3 * np.arange(120))]


@pytest.mark.parametrize(
    ("signals", "options", "error", "names"),
    [
        (GOOD[0], {}, ValueError, "values"),
        (jd.signals.Signal.of(GOOD[0], dt=DT), {}, TypeError, "signals"),
        ([], {}, ValueError, "signals"),
        ([GOOD[0], np.stack(GOOD[:1] * 2, 1)], {}, ValueError, "signals"),
        ([jd.signals.Signal.of(GOOD[0], dt=1.0), *GOOD], {}, ValueError, "signals"),
        ([np.where(np.arange(100) == 3, np.nan, GOOD[0])], {}, ValueError, "values"),
        (GOOD, {"context": 1}, ValueError, "context"),
        (GOOD, {"context": 70}, ValueError, "context"),
        (GOOD, {"ahead": 0}, ValueError, "ahead"),
        (GOOD, {"units": 1}, ValueError, "units"),
        (GOOD, {"steps": -1}, ValueError, "steps"),
        (GOOD, {"batch": 0}, ValueError, "batch"),
        (GOOD, {"hidden": 0}, ValueError, "hidden"),
        (GOOD, {"validation": 1.0}, ValueError, "validation"),
        (GOOD, {"start": "fit"}, TypeError, "start"),
    ],
)
def test_bad_input_is_refused(signals, options, error, names):
    settings = dict(dt=DT, context=CONTEXT, units=2, key=jr.key(0)) | options
    with pytest.raises(error, match=f"`{names}`"):
        jd.fit_encoder(signals, **settings)


def test_a_start_of_another_size_is_refused():
    cell = jd.PoissonCell(jd.DenseSkew.random(4, key=jr.key(0)), jd.Tanh())
    start = jd.Oscillator(jnp.ones(4), cell, jd.Readout(jnp.ones((1, 4))))
    with pytest.raises(ValueError, match="`start`"):
        jd.fit_encoder(GOOD, dt=DT, context=CONTEXT, units=2, start=start, key=jr.key(0))

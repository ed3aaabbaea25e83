"""Fits of signals whose makers are known, and what a fit tells of itself.

A new program compiles for seconds. What can be shown on the signal SMALL shares its programs.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import jaxdyn as jd
from jaxdyn import initialisers as i
from jaxdyn import losses as l
from jaxdyn import signals as s
from jaxdyn._train.forecasters import last_value
from jaxdyn._train.stages import Plan

KEY = jr.key(0)
# Two channels whose scales differ 300-fold.
AMPLITUDE = np.array([[1.0, 0.5], [100.0, 300.0]])
SMALL = s.tones([1.0, 2.3], channels=2, amplitude=AMPLITUDE, n_samples=100, dt=0.2)
WEAK = i.FrequenciesFirst(energy=(0.01, 0.1))
STRONG = i.FrequenciesFirst(energy=(0.5, 1.0))
ONE = s.tones([2.0], n_samples=60, dt=0.2)
W = 1.7


def small(signal=SMALL, **options):
    """One program for all that differ in numbers only."""
    settings = {"units": 4, "restarts": 2, "polish": 10, "init": WEAK, "key": KEY}
    return jd.fit(signal, **{**settings, **options})


def descended(signal=SMALL, **options):
    settings = {"steps": 60, "polish": 0, "validation": 0}
    return small(signal, **{**settings, **options})


def same(a, b):
    """Bit by bit."""
    leaves = zip(*(jax.tree.leaves(f.oscillator) for f in (a, b)), strict=True)
    return (
        all(np.array_equal(x, y) for x, y in leaves)
        and np.array_equal(a.losses, b.losses)
        and np.array_equal(a.history.loss, b.history.loss, equal_nan=True)
        and np.array_equal(a.history.score, b.history.score, equal_nan=True)
    )


@pytest.fixture(scope="module")
def plain():
    return small()


# What a fit is for


def test_a_teacher_of_two_units_is_identified():
    """At H = 2 a period of 7.99, seen through one channel for three of them."""
    pair = jd.DenseSkew.from_matrix(jnp.array([[0.0, W], [-W, 0.0]]))
    cell = jd.PoissonCell(pair, jd.Tanh())
    teacher = jd.Oscillator(jd.orbit(0.3, 2.0, W), cell, jd.Readout([[1.0, 0.5]]))
    dt = 0.12
    values = np.asarray(teacher(dt * np.arange(200)))
    fit = jd.fit(values, dt=dt, units=2, restarts=4, validation=0, holdout=0, key=jr.key(1))
    assert fit.held_out is None and fit.metrics["forecast_rmse"] is None
    assert fit.metrics["naive_rmse"]["last_value"] is None and fit.metrics["samples"] == 200
    ts = dt * np.arange(100 * 200)
    truth = np.asarray(teacher(ts))
    error = np.sqrt(np.mean((np.asarray(fit.oscillator(ts)) - truth) ** 2))
    assert error < 0.01 * np.std(truth)
    for energy in (0.5, 1.0, 4.0):
        (omega,) = fit.oscillator.at_energy(energy).frequencies()
        assert 2 * np.pi / omega == pytest.approx(float(jd.period(energy, W)), rel=0.02)


def test_three_tones_run_on():
    signal = s.tones([1.0, 2.3, 3.7], channels=2)
    fit = jd.fit(signal, units=8, restarts=4, polish=5, validation=0, key=KEY)
    assert fit.loss <= 1e-8
    ts = 20 * np.sort(np.random.default_rng(0).uniform(0, 100, 2000))
    truth = s.tones([1.0, 2.3, 3.7], channels=2, ts=ts).values
    assert np.mean((np.asarray(fit.oscillator(ts)) - truth) ** 2) <= 1e-3
    np.testing.assert_allclose(np.sort(fit.metrics["frequencies"][:3]), [1.0, 2.3, 3.7], atol=1e-5)
    np.testing.assert_allclose(fit.oscillator.energy(ts[::200]), fit.metrics["energy"], rtol=1e-9)
    assert fit.metrics["forecast_rmse"] < 1e-3 < fit.metrics["naive_rmse"]["seasonal"]


# What it says of itself


def test_metrics_are_what_they_say(plain):
    fit, metrics = plain, plain.metrics
    fitted, ahead = SMALL.values[:80], SMALL.values[80:]
    assert (fit.fitted.n_samples, fit.held_out.n_samples) == (80, 20)
    found = np.asarray(fit.oscillator(SMALL.ts))
    assert metrics["mse"] == fit.loss
    # Both to what the longer of two runs rounds to, in units of hundreds.
    mse = np.mean((found[:80] - fitted) ** 2)
    assert metrics["mse"] == pytest.approx(mse, rel=1e-5)
    rmse = np.sqrt(np.mean((found[80:] - ahead) ** 2))
    assert metrics["forecast_rmse"] == pytest.approx(rmse, rel=1e-5)
    naive = np.sqrt(np.mean((last_value(fitted, 20) - ahead) ** 2))
    assert metrics["naive_rmse"]["last_value"] == pytest.approx(naive, rel=1e-12)
    assert set(metrics["naive_rmse"]) == {"last_value", "seasonal", "autoregression"}
    assert metrics["mse_median"] == np.median(fit.losses)
    assert metrics["forecast_samples"] == 20 and metrics["samples"] == 80
    # 6 weights, 4 numbers of x0, a readout of 8 and 2.
    assert metrics["parameters"] == 20 and metrics["units"] == 4
    assert metrics["energy"] == pytest.approx(float(fit.oscillator.energy()))
    assert metrics["best_restart"] == fit.best and metrics["restarts"] == 2
    np.testing.assert_array_equal(metrics["frequencies"], fit.oscillator.frequencies())
    assert 0 < metrics["seconds"] < 600
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_channels_of_different_scale_are_fitted_alike(plain):
    error = np.asarray(plain.oscillator(SMALL.ts)) - SMALL.values
    relative = np.std(error, axis=0) / np.std(SMALL.values, axis=0)
    assert np.all(relative < 1e-3)
    assert plain.oscillator.channels == SMALL.channels and plain.oscillator.t0 == 0


def test_the_restart_with_the_best_validation_wins(plain):
    polish = [stage == "polish" for stage in plain.history.stage]
    scores = plain.history.score[polish]
    assert plain.best == np.unravel_index(np.argmin(scores), scores.shape)[1]
    # The best is refitted for as many rounds as were best for it; the other is not.
    rounds = 1 + int(np.argmin(scores[:, plain.best]))
    assert plain.history.stage == ("polish", "polish", *["refit"] * rounds)
    again = plain.history.score[2:]
    assert np.all(np.isnan(again[:, 1 - plain.best])) and np.all(np.isfinite(again[:, plain.best]))
    assert plain.history.iteration.tolist() == [5, 10, *(5 * np.arange(1, rounds + 1))]


def test_losses_are_mean_squares_in_units_of_the_data():
    """A readout that is refitted to 80 samples by NumPy, from the states of the fit."""
    fit = descended()
    states = np.asarray(fit.oscillator.states(SMALL.ts[:80]))
    design = np.concatenate([states, np.ones((80, 1))], axis=1)
    C = np.linalg.lstsq(design, SMALL.values[:80], rcond=None)[0]
    wanted = np.mean((design @ C - SMALL.values[:80]) ** 2)
    assert fit.losses[fit.best] == pytest.approx(wanted, rel=1e-3)
    assert fit.losses[fit.best] == np.min(fit.losses)


def test_repr_and_save(plain, tmp_path):
    assert repr(plain).startswith("Fit('tones', 4 units, loss ")
    assert "best of 2 restarts" in repr(plain)
    plain.save(tmp_path / "model.eqx")
    back = jd.Oscillator.load(tmp_path / "model.eqx")
    np.testing.assert_array_equal(back(SMALL.ts), plain.oscillator(SMALL.ts))


def test_history_as_a_table(plain):
    head, *rows = plain.history.to_csv().splitlines()
    assert head == "stage,iteration,restarts,loss_best,loss_median,score_best,score_median"
    assert [row.split(",")[:3] for row in rows] == [
        ["polish", "5", "2"],
        ["polish", "10", "2"],
        *(["refit", str(k), "1"] for k in plain.history.iteration[2:]),
    ]
    assert float(rows[0].split(",")[5]) == pytest.approx(np.min(plain.history.score[0]))


def test_the_same_key_gives_the_same_bits(plain):
    assert same(plain, small())
    other = small(key=jr.key(7))
    assert not np.array_equal(plain.oscillator.x0, other.oscillator.x0)
    # A key of the old kind means the same numbers.
    assert same(plain, small(key=jax.random.PRNGKey(0)))


def test_in_single_precision_only_the_oscillator_is(plain):
    with jax.enable_x64(False):
        fit = small()
        values = np.asarray(fit.oscillator(SMALL.ts))
    leaves = jax.tree.leaves(fit.oscillator)
    assert {leaf.dtype for leaf in leaves} == {np.dtype("float32")}
    for mine, exact in zip(leaves, jax.tree.leaves(plain.oscillator), strict=True):
        np.testing.assert_allclose(mine, exact, rtol=1e-6)
    assert np.max(np.abs(values - SMALL.values)[:, 1]) < 1e-3 * 400
    assert fit.loss == plain.loss


# Signals of all kinds


def test_missing_samples_and_weights(plain):
    """What counts for nothing may be anything."""
    mask = np.random.default_rng(0).random(SMALL.values.shape) > 0.2
    wrong = np.where(mask, SMALL.values, 1e3)
    masked = small(s.Signal.of(wrong, ts=SMALL.ts, mask=mask))
    error = np.asarray(masked.oscillator(SMALL.ts)) - SMALL.values
    assert np.all(np.std(error, axis=0) < 1e-2 * np.std(SMALL.values, axis=0))
    with_nan = np.where(mask, SMALL.values, np.nan)
    assert same(masked, small(with_nan, dt=0.2, mask=mask))

    weights = np.ones(100)
    weights[20:25] = 0
    spoilt = SMALL.values.copy()
    spoilt[20:25] *= 1.3
    weighted = small(spoilt, dt=0.2, weights=weights)
    error = np.asarray(weighted.oscillator(SMALL.ts)) - SMALL.values
    assert np.all(np.std(error, axis=0) < 1e-2 * np.std(SMALL.values, axis=0))
    assert small(spoilt, dt=0.2).loss > 100 * plain.loss


def test_irregular_times():
    ts = 4 + np.sort(np.random.default_rng(1).uniform(0, 20, 100))
    signal = s.tones([1.0, 2.3], channels=2, amplitude=AMPLITUDE, ts=ts)
    fit = descended(signal)
    error = np.asarray(fit.oscillator(ts)) - signal.values
    assert np.all(np.std(error, axis=0) < 1e-2 * np.std(signal.values, axis=0))
    naive = fit.metrics["naive_rmse"]
    assert naive["last_value"] > 0 and naive["seasonal"] is naive["autoregression"] is None
    assert fit.oscillator.t0 == ts[0]


def test_holdout_and_validation_as_numbers_of_samples(plain):
    assert same(plain, small(holdout=20, validation=16))


# Stages


def test_descent_from_random_weights_with_a_growing_horizon():
    schedule = optax.exponential_decay(0.05, 100, 0.3)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))
    fit = descended(init=i.Random(), steps=230, horizon=0.3, optimiser=optimiser, patience=50)
    assert fit.history.stage == ("descent",) * 5
    np.testing.assert_array_equal(fit.history.iteration, [50, 100, 150, 200, 230])
    assert np.min(fit.history.loss[-1]) < 0.5 * np.min(fit.history.loss[0])


def test_the_horizon_grows_to_all_in_the_first_half():
    plan = Plan("descent", 120, optax.sgd(0.1), 0.2)
    horizons = np.concatenate([plan.horizons(k) for k in range(plan.rounds)])
    assert horizons.shape == (120,) and horizons[0] == pytest.approx(0.2)
    np.testing.assert_allclose(horizons[60:], 1)
    np.testing.assert_allclose(np.diff(horizons[:60]), 0.8 / 60, rtol=1e-9)


def test_descent_then_polish_and_a_callback_that_stops():
    told = []

    def stop(progress):
        told.append(progress)
        return progress.stage == "descent"

    fit = small(steps=150, patience=9, callback=stop)
    assert [(p.stage, p.iteration, p.steps) for p in told] == [
        ("descent", 50, 150),
        ("polish", 5, 10),
        ("polish", 10, 10),
    ]
    assert fit.history.stage == ("descent", "polish", "polish")
    last = told[-1]
    assert last.scores.shape == (2,) and last.best == np.argmin(last.scores) == fit.best
    # Scores are the best so far.
    assert np.all(last.scores <= told[0].scores)
    assert np.all(last.scores <= np.min(fit.history.score, axis=0))


def test_patience_ends_a_stage_that_does_not_improve():
    """A learning rate of 0 improves nothing: so many rounds, and no more."""
    still = optax.sgd(0.0)
    for patience in (1, 3):
        fit = descended(steps=500, optimiser=still, patience=patience)
        assert len(fit.history.stage) == patience


def test_tolerance_ends_a_stage():
    fit = descended(steps=500, tolerance=0.5)
    assert len(fit.history.stage) == 0  # good enough where it starts
    assert np.all(np.isfinite(fit.losses))


def test_a_restart_that_diverges_is_left_out():
    fit = descended(optimiser=optax.sgd(1e200), steps=50)
    assert np.isfinite(fit.loss) and fit.oscillator.energy() < 1


def test_a_horizon_that_sees_no_sample_is_passed_over():
    """Steps whose gradient is not a number are left out, and spoil nothing that comes later."""
    late = s.Signal.of(SMALL.values, ts=SMALL.ts, mask=np.arange(100) >= 20)
    fit = descended(late, horizon=0.1)
    assert np.all(np.isfinite(fit.history.score)) and np.all(np.isfinite(fit.history.loss))


def test_what_is_shown(capsys):
    descended(progress=True)
    shown = capsys.readouterr().err
    assert "descent" in shown and "60/60" in shown and "best restart" in shown


def test_the_caller_keeps_his_settings():
    config = jax.config.jax_enable_x64, jax.config.jax_numpy_dtype_promotion
    descended()
    assert config == (jax.config.jax_enable_x64, jax.config.jax_numpy_dtype_promotion)


# Models of all kinds


def test_no_stage_returns_the_start():
    options = {"units": 2, "restarts": 2, "init": STRONG, "key": KEY}
    fit = jd.fit(ONE, **options, shell=0.2, steps=0, polish=0, holdout=0, validation=0)
    start = STRONG(ONE, 2, 2, key=KEY, shell=0.2)[fit.best]
    np.testing.assert_array_equal(fit.oscillator.x0, start.x0)
    found, given = fit.oscillator.cell.regulator, start.cell.regulator
    np.testing.assert_allclose([found.energy, found.rate], [given.energy, 0.2], rtol=1e-14)
    assert fit.history.stage == () and np.all(np.isfinite(fit.losses))


def test_a_shell_is_trained_and_stays_one():
    fit = small(ONE, units=2, shell=0.2, validation=0, holdout=0, polish=5, init=STRONG)
    regulator = fit.oscillator.cell.regulator
    assert float(regulator.rate) > 0 and float(regulator.energy) > 0
    assert float(regulator.rate) != 0.2
    assert 0 < fit.oscillator.multiplier() < 1
    # 1 weight, 2 numbers of x0, 2 of the shell, a readout of 2 and 1.
    assert fit.metrics["parameters"] == 8


def test_a_rate_that_training_would_make_negative():
    """Its logarithm is trained: steps far too long leave it positive."""
    far = optax.sgd(1e3)
    fit = descended(ONE, units=2, shell=1e-3, holdout=0, init=STRONG, optimiser=far, steps=50)
    regulator = fit.oscillator.cell.regulator
    assert float(regulator.rate) > 0 and float(regulator.energy) > 0


def test_a_readout_that_is_trained():
    start = descended().oscillator
    moved = dataclasses.replace(
        start, readout=jd.Readout(1.05 * start.readout.matrix, start.readout.offset)
    )
    again = i.FromOscillator(moved, spread=0)
    fit = descended(project=False, init=again, optimiser=optax.adam(1e-2))
    scores = fit.history.score.min(axis=1)
    before = np.mean(((np.asarray(moved(SMALL.ts)) - SMALL.values) / SMALL.values.std(0))[:80] ** 2)
    assert scores[-1] < 0.2 * before
    # The readout is what was trained, not a regression.
    assert fit.metrics["parameters"] == 20


def test_all_other_losses_at_once():
    loss = l.MultiHorizon() + 0.1 * l.LogSpectral() + 0.1 * l.Energy() + l.Frequency(count=2)
    loss = loss + l.Huber() + l.MultipleShooting(3)
    fit = descended(loss=loss, steps=100)
    assert np.nanmin(fit.history.loss) <= np.nanmin(fit.history.loss[0])
    error = np.asarray(fit.oscillator(SMALL.ts[:80])) - SMALL.values[:80]
    assert np.all(np.std(error, axis=0) < 0.1 * np.std(SMALL.values, axis=0))


def test_restarts_are_chosen_by_the_loss_not_by_their_squared_error():
    """Asked for an energy alone, the winner has that energy, however far from the signal it is."""
    fit = descended(loss=l.Energy(2.0), steps=200, validation=0.3, restarts=4)
    scores = np.nanmin(fit.history.score, axis=0)
    assert fit.best == np.argmin(scores)
    assert (fit.metrics["energy"] / 2 - 1) ** 2 == pytest.approx(scores[fit.best], rel=1e-6)


def test_weights_that_outgrow_the_step_are_told_of():
    with pytest.warns(UserWarning, match=r"weights grew .* lower learning rate"):
        descended(loss=l.Energy(200.0), optimiser=optax.adam(0.5), steps=50, init=i.Random())


def test_a_hole_at_the_head_of_a_growing_horizon():
    mask = np.ones(100, bool)
    mask[:15] = False
    holed = s.Signal.of(SMALL.values, dt=0.2, mask=mask)
    fit = descended(holed, horizon=0.1, optimiser=optax.adam(1e-2))
    assert np.all(np.isfinite(fit.losses))


def test_a_block_operator_stays_one_and_the_least_size():
    init = i.FrequenciesFirst(operator=jd.BlockSkew)
    fit = descended(ONE, units=2, init=init)
    assert isinstance(fit.oscillator.cell.operator, jd.BlockSkew)
    assert fit.loss < 1e-6 and fit.oscillator.size == 2


def test_from_another_fit(plain):
    fit = descended(init=i.FromOscillator(plain.oscillator), steps=50)
    assert fit.losses[0] <= 1.01 * plain.losses[plain.best] + 1e-6


def test_all_restarts_diverged():
    pumped = jd.PoissonCell(jd.DenseSkew.random(2, key=KEY), jd.Identity(), damping=-1e3)
    wild = i.FromOscillator(jd.Oscillator(jnp.ones(2), pumped, jd.Readout(jnp.ones((1, 2)))))
    with pytest.raises(RuntimeError, match="every restart diverged; scale the signal"):
        descended(ONE, units=2, init=wild)


def test_outliers_do_not_rule_a_robust_fit():
    clean = jd.signals.tones([1.0, 2.3], n_samples=200, dt=0.1)
    rng = np.random.default_rng(0)
    values = clean.values + 15.0 * (rng.random(clean.values.shape) < 0.05)
    init = jd.initialisers.FrequenciesFirst(omega=[1.0, 2.3], energy=(1e-3, 1e-2))
    error = {}
    for name, loss in (("plain", None), ("robust", jd.losses.Huber(delta=0.02))):
        fit = jd.fit(
            values, dt=0.1, units=4, restarts=2, init=init, loss=loss, polish=20, holdout=0,
            validation=0, key=jr.key(0),
        )  # fmt: skip
        found = np.asarray(fit.oscillator(clean.ts))
        error[name] = np.sqrt(np.mean((found - clean.values) ** 2))
    # The mean of the outliers alone is .75; the signal has rms 1.
    assert error["robust"] < 0.1 < 0.5 < error["plain"], error


def test_a_tail_that_was_not_measured_is_refused_before_anything_is_computed():
    signal = jd.signals.tones([1.0, 2.3], n_samples=200, dt=0.1)
    for name, gap in (("holdout", slice(160, None)), ("validation", slice(128, 160))):
        mask = np.ones(200, bool)
        mask[gap] = False
        with pytest.raises(ValueError, match=f"`{name}`"):
            jd.fit(signal.values, dt=0.1, mask=mask, units=4, key=jr.key(0))


def test_a_forecaster_that_cannot_serve_the_samples_is_none():
    signal = jd.signals.tones([1.0, 2.3], channels=2, n_samples=200, dt=0.1)
    mask = np.stack([np.arange(200) % 2 == 0, np.arange(200) % 2 == 1], axis=1)
    fit = jd.fit(
        signal.values, dt=0.1, mask=mask, units=4, restarts=2, polish=0, steps=0, key=jr.key(0)
    )
    assert fit.metrics["naive_rmse"]["autoregression"] is None
    assert fit.metrics["forecast_rmse"] < 1.0


def test_a_line_search_is_an_optimiser_too():
    optax = pytest.importorskip("optax")
    signal = jd.signals.tones([1.0, 2.3], n_samples=120, dt=0.15)
    fit = jd.fit(
        signal, units=4, restarts=2, init=jd.initialisers.Random(), optimiser=optax.lbfgs(),
        steps=50, polish=0, holdout=0, key=jr.key(0),
    )  # fmt: skip
    assert np.nanmin(fit.history.score[-1]) < np.inf

"""The naive forecasters against closed forms, and what they refuse."""

import numpy as np
import pytest

from jaxdyn._train.forecasters import (
    HUGE,
    autoregression,
    fit_autoregression,
    last_value,
    season,
    seasonal,
)

RAMP = np.arange(12.0).reshape(6, 2)


def sinusoids(t, omegas, m=1):
    """Sums of sinusoids whose phases and amplitudes differ from channel to channel."""
    k = np.arange(t)[:, None]
    return sum(
        np.sin(w * k + i + np.arange(m)) * (1 + np.arange(m) * i) for i, w in enumerate(omegas)
    )


def process(t, lags, intercept, noise=1.0):
    """An autoregression driven by white noise, after a thousand samples to forget its start."""
    rng = np.random.default_rng(0)
    lags, intercept = np.asarray(lags), np.asarray(intercept)
    y = np.zeros((t + 1000, len(intercept)))
    for k in range(len(lags), len(y)):
        y[k] = intercept + sum(A @ y[k - 1 - i] for i, A in enumerate(lags))
        y[k] += noise * rng.standard_normal(len(intercept))
    return y[1000:]


def test_last_value():
    np.testing.assert_array_equal(last_value(RAMP, 3), [[10, 11]] * 3)
    mask = np.ones(RAMP.shape, bool)
    mask[4:, 0] = False
    missing = np.where(mask, RAMP, np.nan)
    np.testing.assert_array_equal(last_value(missing, 2, mask=mask), [[6, 11]] * 2)


def test_seasonal_repeats_the_last_whole_period():
    np.testing.assert_array_equal(seasonal(RAMP, 5, 3)[:, 0], [6, 8, 10, 6, 8])
    np.testing.assert_array_equal(seasonal(RAMP, 7, 6)[:, 1], [1, 3, 5, 7, 9, 11, 1])
    np.testing.assert_array_equal(seasonal(RAMP, 2, 1), last_value(RAMP, 2))


def test_seasonal_interpolates_between_samples():
    # Samples at 0..5; period 2.5: the seventh is at 3.5, the eighth at 4.5, the ninth at 3.
    np.testing.assert_allclose(seasonal(RAMP, 3, 2.5)[:, 0], [7.0, 9.0, 6.0])
    # Within the error of linear interpolation, (2 pi / P)^2 / 8, for ever: the phase is kept.
    y = sinusoids(200, [2 * np.pi / 30.7])
    exact = sinusoids(5200, [2 * np.pi / 30.7])[200:]
    assert np.max(np.abs(seasonal(y, 5000, 30.7) - exact)) <= (2 * np.pi / 30.7) ** 2 / 8


def test_seasonal_fills_what_is_missing_with_the_mean_of_its_phase():
    values = np.array([[1.0], [2.0], [3.0], [5.0], [6.0], [7.0]])
    mask = np.array([[True], [True], [True], [True], [False], [True]])
    np.testing.assert_allclose(seasonal(values, 3, 3, mask=mask)[:, 0], [5, 2, 7])
    never = mask.copy()
    never[1] = False
    mean = values[never].mean()
    np.testing.assert_allclose(seasonal(values, 3, 3, mask=never)[:, 0], [5, mean, 7])


@pytest.mark.parametrize("period", [11.0, 30.7, 52.25])
def test_season_of_a_sinusoid(period):
    y = 7 + sinusoids(400, [2 * np.pi / period], m=2)
    # The ends of the window bias the maximum.
    assert abs(season(y) / period - 1) < 0.02
    mask = np.random.default_rng(0).random(y.shape) < 0.8
    assert abs(season(np.where(mask, y, np.nan), mask=mask) / period - 1) < 0.02


def test_season_of_what_does_not_come_again():
    assert season(np.ones((9, 1))) == 4.5
    assert 1 <= season(np.arange(20.0)[:, None]) <= 20


def test_autoregression_recovers_the_coefficients_of_a_process():
    y = process(20_000, [[[1.5]], [[-0.8]]], [0.3])
    model = fit_autoregression(y)
    # Akaike's criterion overestimates the order with a probability that does not vanish.
    assert 2 <= model.order < 40
    np.testing.assert_allclose(model.lags[:2, 0, 0], [1.5, -0.8], atol=0.05)
    fixed = fit_autoregression(y, max_order=2)
    # Standard error: sqrt((1 - 0.8^2) / 20000) = 0.004.
    np.testing.assert_allclose(fixed.lags[:, 0, 0], [1.5, -0.8], atol=0.02)
    np.testing.assert_allclose(fixed.intercept / (1 - 1.5 + 0.8), y.mean(), atol=0.05)
    assert fixed.order == 2 and fixed.parameters == 3


def test_a_vector_process_is_recovered():
    A = np.array([[0.6, 0.3], [-0.5, 0.4]])
    scale = np.array([1e3, 1e-3])
    model = fit_autoregression(process(20_000, [A], [1.0, -2.0]) * scale, max_order=1)
    np.testing.assert_allclose(model.lags[0] / (scale[:, None] / scale), A, atol=0.03)
    np.testing.assert_allclose(model.intercept / scale, [1, -2], atol=0.08)
    assert model.parameters == 6


def test_autoregression_solves_the_normal_equations():
    """numpy's lstsq on a design written out by hand."""
    y = process(60, [[[1.5]], [[-0.8]]], [0.2])[:, 0]
    X = np.stack([np.ones(58), y[1:-1], y[:-2]], axis=1)
    c, a1, a2 = np.linalg.solve(X.T @ X, X.T @ y[2:])
    model = fit_autoregression(y[:, None], max_order=2)
    first = c + a1 * y[-1] + a2 * y[-2]
    second = c + a1 * first + a2 * y[-1]
    ahead = autoregression(y[:, None], 2, max_order=2)[:, 0]
    np.testing.assert_allclose(ahead, [first, second], rtol=1e-12)
    fitted = model.fitted(y[:, None])[:, 0]
    np.testing.assert_allclose(fitted[5], c + a1 * y[4] + a2 * y[3], rtol=1e-12)


def test_a_sinusoid_needs_two_lags():
    y = 3 + sinusoids(400, [0.21])
    model = fit_autoregression(y)
    assert model.order == 2
    np.testing.assert_allclose(model.lags[:, 0, 0], [2 * np.cos(0.21), -1], atol=1e-10)
    exact = 3 + sinusoids(800, [0.21])[400:]
    np.testing.assert_allclose(autoregression(y, 400, max_order=2), exact, atol=1e-8)


def test_tones_in_several_channels():
    omegas = [0.31, 0.52, 0.83]
    y, exact = sinusoids(300, omegas, m=2), sinusoids(600, omegas, m=2)[300:]
    np.testing.assert_allclose(autoregression(y, 300), exact, atol=1e-6)


def test_missing_samples_cost_rows_and_are_bridged():
    y, exact = sinusoids(400, [0.21], m=2), sinusoids(450, [0.21], m=2)[400:]
    mask = np.ones(y.shape, bool)
    mask[50:53] = False
    mask[[120, 399], [0, 1]] = False
    holes = np.where(mask, y, np.nan)
    model = fit_autoregression(holes, mask=mask)
    np.testing.assert_allclose(model.forecast(holes, 50, mask=mask), exact, atol=1e-8)
    np.testing.assert_allclose(model.fitted(holes, mask=mask)[10:], y[10:], atol=1e-8)


def test_many_channels_get_an_autoregression_each():
    y = sinusoids(40, [0.7], m=30)
    model = fit_autoregression(y, max_order=4)
    off = model.lags * (1 - np.eye(30))
    assert np.all(off == 0) and model.parameters == 30 * (1 + model.order)
    exact = sinusoids(60, [0.7], m=30)[40:]
    np.testing.assert_allclose(model.forecast(y, 20), exact, atol=1e-8)


def test_what_blows_up_stays_finite():
    y = 1.5 ** np.arange(40)[:, None]
    ahead = autoregression(y, 5000)
    assert np.all(np.isfinite(ahead)) and np.max(ahead) == HUGE
    assert np.isfinite(np.sqrt(np.mean(ahead**2)))


def test_a_constant_stays_constant():
    np.testing.assert_allclose(autoregression(np.full((20, 2), 4.0), 9), 4.0, rtol=1e-12)
    np.testing.assert_allclose(autoregression(np.full((3, 1), -2, np.int32), 2), -2.0)


NAN = np.where(np.arange(12).reshape(6, 2) == 3, np.nan, RAMP)
NONE = np.tile([True, False], (6, 1))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: last_value(np.arange(5.0), 1), r"\(t, 1\)"),
        (lambda: last_value(RAMP.astype(complex), 1), "complex"),
        (lambda: last_value(RAMP[:0], 1), "shape"),
        (lambda: last_value(NAN, 1), "give `mask`"),
        (lambda: autoregression(NAN, 1), "give `mask`"),
        (lambda: last_value(RAMP, 0), "at least 1"),
        (lambda: seasonal(RAMP, True, 2), "whole number"),
        (lambda: seasonal(RAMP, 1, 0.5), "`period`"),
        (lambda: seasonal(RAMP, 1, 6.5), r"\[1, 6\]"),
        (lambda: seasonal(RAMP, 1, np.nan), "`period`"),
        (lambda: seasonal(RAMP, 1, 2, mask=NONE), r"channels \[1\]"),
        (lambda: season(RAMP, mask=np.ones(6, bool)), "`mask`"),
        (lambda: last_value(RAMP, 1, mask=np.ones((6, 2))), "bool"),
        (lambda: autoregression(RAMP[:2], 1), "at least 3 samples"),
        (lambda: autoregression(RAMP, 1, 0), "`max_order`"),
        (lambda: autoregression(RAMP, 0), "`n_ahead`"),
        (
            lambda: autoregression(RAMP, 1, mask=np.arange(12).reshape(6, 2) % 4 < 2),
            "neighbouring",
        ),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()

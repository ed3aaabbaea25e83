"""What the forecast benchmark compares is computed as it says."""

import os

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

# Benchmarks set this to "nan" when imported, which processes started by other tests would inherit.
os.environ.setdefault("EQX_ON_ERROR", "raise")

from benchmarks import forecast
from benchmarks.forecast_training import Forecast, stretches
from benchmarks.peers import in_equinox, in_linax


@pytest.fixture
def outside_code():
    """linax and equinox mix ranks and types."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def test_linoss_step_by_step_is_linax_in_parallel(outside_code):
    why = in_linax.missing()
    if why is not None:
        pytest.skip(why)
    model = in_linax.LinOSS(2, jr.key(3))
    values = jr.normal(jr.key(1), (20, 2))
    stepped = model.predict(values, jnp.ones(20, bool))
    parallel = eqx.filter_jit(model.in_parallel)(values)
    np.testing.assert_allclose(stepped, parallel, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", [in_equinox.neural_ode, in_equinox.lstm])
def test_a_peer_forecasts_in_the_units_of_the_signal(outside_code, method):
    k = np.arange(60)[:, None]
    values = np.sin(0.3 * k + np.arange(2)) * [1e3, 1e-3] + [1e4, 1.0]
    found = method(values, 0.1, 7, seconds=0.3, key=jr.key(0))
    assert found.fitted.shape == (60, 2) and found.ahead.shape == (7, 2)
    assert found.fitted.dtype == np.float64 and found.seconds >= 0.3 and found.parameters > 1000
    assert np.all(np.abs((found.ahead - [1e4, 1.0]) / [1e3, 1e-3]) < 30)


def test_a_free_run_is_fed_its_own_forecasts():
    def double(state, last):
        return state + 1, 2 * last

    values, first = jnp.asarray([[1.0], [10.0], [0.0], [0.0]]), jnp.asarray([3.0])
    fed = jnp.asarray([True, True, False, False])
    found = in_equinox.free_run(double, jnp.zeros(()), first, values, fed)
    np.testing.assert_array_equal(found[:, 0], [6, 2, 20, 40])


def test_lessons_begin_with_measured_samples_and_end_with_free_stretches(outside_code):
    _, teacher = stretches(jnp.asarray(0.1), jr.key(0), 400)
    assert bool(jnp.all(teacher))
    _, teacher = stretches(jnp.asarray(1.0), jr.key(0), 400)
    assert 0.1 < float(jnp.mean(teacher)) < 0.25


def test_errors_are_relative_and_running():
    truth = np.tile([[1.0], [-1.0]], (4, 1))
    case = forecast.Case(truth[:4], truth, 1.0, {"half": 2, "1x": 4})
    ahead = truth[4:] + np.array([[0.0], [0.5], [0.0], [np.nan]])
    found = Forecast(truth[1:4] + 0.1, ahead, 1, 0.0, None, free=False)
    measured = forecast.measure(case, found)
    assert measured["fit"] == pytest.approx(0.1)
    assert measured["half"] == pytest.approx(0.5 / 2**0.5) and measured["1x"] == np.inf


def test_a_method_that_cannot_run_is_named(monkeypatch):
    monkeypatch.setattr(in_linax, "missing", lambda: "linax (pip install linax)")
    monkeypatch.setattr(forecast, "jd", object())
    methods, skipped = forecast.available()
    assert "LinOSS" not in methods and "GRU" in methods and forecast.OURS not in methods
    assert "linax (pip install linax)" in skipped

"""Properties of activations on states that hypothesis chooses."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import jaxdyn as jd

ACTIVATIONS = [
    jd.Tanh(),
    jd.Identity(),
    jd.Arctan(),
    jd.Erf(),
    jd.Softsign(),
    jd.ISRU(0.3),
    jd.HardTanh(),
    jd.AsymmetricTanh(),
    jd.ELU(1.7),
    jd.LeakyReLU(0.3),
    jd.RectifiedTanh(),
    jd.ReLU(),
    jd.Softplus(),
    jd.Sigmoid(),
]
RELAXING = [activation for activation in ACTIVATIONS if activation.relaxes]
EPS = np.finfo(np.float64).eps


def name(activation):
    return type(activation).__name__


def states(bound):
    # Subnormal numbers are flushed to zero on some devices, and s of the smallest normal one may be
    # subnormal.
    numbers = st.floats(-bound, bound).map(lambda v: v if abs(v) > 1e-300 else 0.0)
    return arrays(np.float64, 6, elements=numbers)


@jax.jit
def observe(activation, x0, x1):
    return (
        activation(x0),
        activation(x1),
        activation.potential(x0),
        activation.potential(x1),
        activation.discrete_gradient(x0, x1),
        activation.discrete_gradient(x1, x0),
        activation.discrete_gradient(-x0, -x1),
    )


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=name)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(x0=states(1e4), x1=states(1e4))
def test_discrete_gradient_is_a_mean_of_s(activation, x0, x1):
    s0, s1, p0, p1, mean, reverse, mirrored = (np.asarray(a) for a in observe(activation, x0, x1))
    # S(x1) - S(x0), to the rounding of either side
    slack = 16 * EPS * (np.abs(p0) + np.abs(p1)) + 1e-300
    assert np.all(np.abs(mean * (x1 - x0) - (p1 - p0)) <= slack)
    # All of these are increasing: the mean lies between the ends.
    low, high = np.minimum(s0, s1), np.maximum(s0, s1)
    wide = 16 * EPS * np.maximum(np.abs(low), np.abs(high)) + 1e-300
    assert np.all((mean >= low - wide) & (mean <= high + wide))
    np.testing.assert_allclose(reverse, mean, rtol=16 * EPS, atol=np.max(wide))
    if activation.odd:
        np.testing.assert_array_equal(mirrored, -mean)
    if activation.confining:
        assert np.all(p0 >= 0) and np.all(p1 >= 0)
        assert np.all((s0 > 0) == (x0 > 0)) and np.all((s0 < 0) == (x0 < 0))


@jax.jit
def relax_twice(activation, x, first, second):
    moved = activation.relax(x, first)
    return (
        moved,
        activation.relax(moved, second),
        activation.relax(x, first + second),
        activation.relax(moved, -first),
    )


@pytest.mark.parametrize("activation", RELAXING, ids=name)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(x=states(100.0), first=states(20.0), second=states(20.0))
def test_relaxation_is_a_flow(activation, x, first, second):
    moved, twice, once, back = (np.asarray(a) for a in relax_twice(activation, x, first, second))
    # tau and x enter exponentials with their rounding; the flow stretches it by a bounded factor.
    slack = 128 * EPS * (1 + np.abs(first) + np.abs(second) + np.abs(x))
    np.testing.assert_array_less(
        np.abs(twice - once), slack * np.maximum(np.abs(once), np.abs(twice)) + 1e-300
    )
    grown = np.maximum(np.abs(x), np.abs(back))
    np.testing.assert_array_less(np.abs(back - x), slack * grown + 1e-300)
    assert np.all(np.sign(moved) * np.sign(x) >= 0)
    forward = first >= 0
    settles = np.abs(moved) <= np.abs(x) * (1 + 16 * EPS)
    assert np.all(settles[forward])

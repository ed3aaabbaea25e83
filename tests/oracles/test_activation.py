"""Activations against extended precision, DOP853 and Cauchy's integral."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from scipy.integrate import solve_ivp

from jaxdyn import (
    ELU,
    ISRU,
    Arctan,
    AsymmetricTanh,
    Erf,
    HardTanh,
    Identity,
    LeakyReLU,
    RectifiedTanh,
    ReLU,
    Sigmoid,
    Softplus,
    Softsign,
    Tanh,
)

LD = np.longdouble
extended = pytest.mark.skipif(np.finfo(LD).eps > 1e-18, reason="longdouble is double here")

ROOT_PI = np.sqrt(LD("3.14159265358979323846264338327950288"))


def erf(x):
    """A series of positive terms up to 4, a continued fraction beyond."""
    a = np.abs(x)
    near, far = np.minimum(a, 4), np.maximum(a, 4)
    term = total = near
    for n in range(1, 90):
        term = term * 2 * near * near / (2 * n + 1)
        total = total + term
    fraction = far
    for n in range(60, 0, -1):
        fraction = far + n / LD(2) / fraction
    inner = 2 / ROOT_PI * total * np.exp(-near * near)
    outer = 1 - np.exp(-far * far) / ROOT_PI / fraction
    return np.sign(x) * np.where(a < 4, inner, outer)


def logistic(x):
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


def sech2(x):
    e = np.exp(-2 * np.abs(x))
    return 4 * e / (1 + e) ** 2


def isru_root(x):
    return np.sqrt(1 + LD(0.7) * x * x)


# activation, s, s', and where the relaxation is known: the flow of x' = -s(x)
CASES = [
    (Tanh(), np.tanh, sech2, lambda x, t: np.arcsinh(np.exp(-t) * np.sinh(x))),
    (Identity(), lambda x: x, np.ones_like, lambda x, t: x * np.exp(-t)),
    (Arctan(), np.arctan, lambda x: 1 / (1 + x * x), None),
    (Erf(), erf, lambda x: 2 / ROOT_PI * np.exp(-x * x), None),
    (Softsign(), lambda x: x / (1 + np.abs(x)), lambda x: 1 / (1 + np.abs(x)) ** 2, None),
    (ISRU(0.7), lambda x: x / isru_root(x), lambda x: isru_root(x) ** -3, None),
    (
        HardTanh(),
        lambda x: np.clip(x, -1, 1),
        lambda x: np.where(np.abs(x) > 1, LD(0), LD(1)),
        lambda x, t: np.sign(x) * hard_tanh_flow(np.abs(x), t),
    ),
    (
        AsymmetricTanh(),
        lambda x: np.where(x < 0, 3 * np.tanh(x / 2), np.tanh(x)),
        lambda x: np.where(x < 0, 1.5 * sech2(x / 2), sech2(x)),
        lambda x, t: np.where(
            x < 0,
            2 * np.arcsinh(np.exp(-1.5 * t) * np.sinh(np.minimum(x, 0) / 2)),
            np.arcsinh(np.exp(-t) * np.sinh(np.maximum(x, 0))),
        ),
    ),
    (
        ELU(),
        lambda x: np.where(x < 0, np.expm1(np.minimum(x, 0)), x),
        lambda x: np.where(x < 0, np.exp(np.minimum(x, 0)), 1),
        lambda x, t: np.where(
            x < 0, -np.log1p(np.exp(-t) * np.expm1(-np.minimum(x, 0))), x * np.exp(-t)
        ),
    ),
    (
        LeakyReLU(),
        lambda x: np.where(x < 0, LD(0.1) * x, x),
        lambda x: np.where(x < 0, LD(0.1), LD(1)),
        lambda x, t: x * np.exp(-np.where(x < 0, LD(0.1), LD(1)) * t),
    ),
    (
        ReLU(),
        lambda x: np.maximum(x, 0),
        lambda x: np.where(x < 0, LD(0), LD(1)),
        lambda x, t: np.where(x < 0, x, x * np.exp(-t)),
    ),
    (
        RectifiedTanh(),
        lambda x: np.tanh(np.maximum(x, 0)),
        lambda x: np.where(x < 0, LD(0), sech2(x)),
        lambda x, t: np.where(x < 0, x, np.arcsinh(np.exp(-t) * np.sinh(np.maximum(x, 0)))),
    ),
    (Sigmoid(), logistic, lambda x: logistic(x) * logistic(-x), None),
    (
        Softplus(),
        lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
        logistic,
        None,
    ),
]
IDS = [type(case[0]).__name__ for case in CASES]
RELAXING = [case for case in CASES if case[3] is not None]


def hard_tanh_flow(a, t):
    shifted = np.where(a > 1, a - 1, np.log(np.where((a > 0) & (a <= 1), a, 1))) - t
    moved = np.where(shifted > 0, 1 + shifted, np.exp(np.minimum(shifted, 0)))
    return np.where(a == 0, 0, moved)


def gauss_nodes(n=16):
    """Gauss-Legendre on [0, 1], polished to extended precision."""
    x = np.polynomial.legendre.leggauss(n)[0].astype(LD)
    for _ in range(3):
        below, value = np.ones_like(x), x
        for k in range(2, n + 1):
            below, value = value, ((2 * k - 1) * x * value - (k - 1) * below) / LD(k)
        slope = n * (x * value - below) / (x * x - 1)
        x = x - value / slope
    return (x + 1) / 2, 1 / ((1 - x * x) * slope * slope)


NODES, WEIGHTS = gauss_nodes()
# Between these every s of the list is analytic in a wide neighbourhood, kinks are at the ends, and
# e^x is resolved where it is not negligible.
EDGES = [-2e4, -4e3, -1e3, -400, *range(-200, -20, 20), -20, -10, -6, -4, -3, -2, -1, 0]
EDGES = [*EDGES, *(-e for e in EDGES[-2::-1])]


def integral(s, x0, x1):
    lo, hi = np.minimum(x0, x1), np.maximum(x0, x1)
    total = np.zeros_like(lo)
    for left, right in pairwise(EDGES):
        a, b = np.clip(LD(left), lo, hi), np.clip(LD(right), lo, hi)
        for node, weight in zip(NODES, WEIGHTS, strict=True):
            total = total + weight * (b - a) * s(a + node * (b - a))
    return np.where(x0 <= x1, total, -total)


def segment_mean(activation, s, x0, x1):
    """The mean of s, and the size to measure its error by.

    Odd functions are folded to the right of 0, where nothing cancels, so that the mean itself is
    the size; for the others the size is the mean of |s|.
    """
    x0, x1 = x0.astype(LD), x1.astype(LD)
    d = np.where(x0 == x1, 1, x1 - x0)
    if activation.odd:
        exact = integral(s, np.abs(x0), np.abs(x1)) / d
        size = np.abs(exact)
    else:
        exact = integral(s, x0, x1) / d
        size = integral(lambda z: np.abs(s(z)), x0, x1) / d
    equal = x0 == x1
    return np.where(equal, s(x0), exact), np.where(equal, np.abs(s(x0)), size)


def segments(dtype, n=400):
    """Midpoints and lengths of every size, ends at 0, ends that nearly mirror each other."""
    rng = np.random.default_rng(0)
    m = 10 ** rng.uniform(-7, 2, n) * rng.choice([-1, 1], n)
    d = 10 ** rng.uniform(-9, 2.3, n) * rng.choice([-1, 1], n)
    x0, x1 = m - d / 2, m + d / 2
    x0[:40], x1[40:80] = 0, 0
    x0[80:120] = -x1[80:120] * (1 + 10 ** rng.uniform(-7, 0, 40))
    x0[120:140] = x1[120:140]
    hard = [0, 1e-12, -1e-12, 1, -1, 1e4, -1e4, 0.9999, 30.0]
    pairs = np.array([(a, b) for a in hard for b in hard])
    return np.concatenate([x0, pairs[:, 0]]).astype(dtype), np.concatenate(
        [x1, pairs[:, 1]]
    ).astype(dtype)


def errors(got, exact, size, dtype):
    """In rounding units of `size`; zero where that is below the dtype's range."""
    size = np.where(size > 1e3 * np.finfo(dtype).tiny, size, np.inf)
    return np.max(np.abs(np.asarray(got).astype(LD) - exact) / size) / np.finfo(dtype).eps


@extended
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("activation", "s", "slope", "_"), CASES, ids=IDS)
def test_value_potential_derivative_and_discrete_gradient(activation, s, slope, _, dtype):
    x0, x1 = segments(dtype)
    everything = jax.jit(
        lambda a, b: (
            activation(b),
            activation.potential(b),
            activation.derivative(b),
            activation.discrete_gradient(a, b),
        )
    )
    value, potential, derivative, mean = everything(x0, x1)
    x = x1.astype(LD)
    exact = s(x)
    # Worst measured over 20,000 segments, jax 0.12 (0.10): value 3.5 (3.5), potential 6.0 (6.5),
    # discrete gradient 4.5 (6.0).
    assert errors(value, exact, np.abs(exact), dtype) < 5
    exact = integral(s, np.zeros_like(x), x)
    assert errors(potential, exact, np.abs(exact), dtype) < 8
    exact, size = segment_mean(activation, s, x0, x1)
    assert errors(mean, exact, size, dtype) < 8
    # Exponentials of |x| <= 100 carry the rounding of x.
    exact = slope(x)
    assert errors(derivative, exact, exact * (1 + np.abs(x)), dtype) < 8


@extended
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("activation", "s", "slope", "_"), CASES, ids=IDS)
def test_derivatives_of_the_discrete_gradient(activation, s, slope, _, dtype):
    x0, x1 = segments(dtype)
    both = jax.jit(
        jax.grad(lambda a, b: jnp.sum(activation.discrete_gradient(a, b)), argnums=(0, 1))
    )
    g0, g1 = (np.asarray(g).astype(LD) for g in both(x0, x1))
    assert np.all(np.isfinite(g0)) and np.all(np.isfinite(g1))
    a, b = x0.astype(LD), x1.astype(LD)
    d = b - a
    eps = np.finfo(dtype).eps
    # Long segments: the difference quotient of extended precision, good to 1e-19 |s| / d.
    long = (np.abs(d) > 1e-3) & (np.abs(a) <= 100) & (np.abs(b) <= 100)
    mean, _ = segment_mean(activation, s, x0, x1)
    step = np.where(long, d, 1)
    # Measured: 98 eps in float64 (where a series of tanh takes over); in float32 14, and 128 for
    # softplus, whose value is near 100.
    error = [np.abs(g0 - (mean - s(a)) / step), np.abs(g1 - (s(b) - mean) / step)]
    assert np.max(np.where(long, error, 0)) < 300 * eps
    # Short ones away from kinks: half the slope, to first order in d.
    away = np.minimum(np.abs(a), np.abs(np.abs(a) - 1)) > 1e-3
    short = (np.abs(d) < 1e-6) & away
    error = [np.abs(g0 - slope(a) / 2), np.abs(g1 - slope(a) / 2)]
    assert np.max(np.where(short, error, 0)) < 1e-6 + 20 * eps


@extended
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    ("activation", "s", "_", "flow"), RELAXING, ids=[type(c[0]).__name__ for c in RELAXING]
)
def test_relaxation_is_the_closed_form(activation, s, _, flow, dtype):
    x = np.array([0, 1e-12, 1e-3, 0.3, 1, 1.5, 4, 30, 1e3, 1e4])
    tau = np.array([0, 1e-9, 0.1, 1, 5, 60, 1e3, 1e4])
    tau = np.concatenate([-tau[1:], tau])
    x, tau = (z.ravel() for z in np.meshgrid(np.concatenate([x, -x]), tau))
    x, tau = x.astype(dtype), tau.astype(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        exact = flow(x.astype(LD), tau.astype(LD))
    got = jax.jit(activation.relax)(x, tau)
    inside = np.abs(exact) < 0.1 * np.finfo(dtype).max
    assert np.all(np.isfinite(np.asarray(got)[inside]))
    # x - tau is rounded once, and an exponential of it taken.
    size = np.abs(exact) * (1 + np.abs(tau)) + np.where(np.abs(exact) > 1, np.abs(x), 0)
    got, exact, size = np.asarray(got)[inside], exact[inside], size[inside]
    assert errors(got, exact, size, dtype) < 8


@pytest.mark.parametrize(
    ("activation", "s", "_", "flow"), RELAXING, ids=[type(c[0]).__name__ for c in RELAXING]
)
def test_relaxation_solves_the_equation(activation, s, _, flow):
    x0 = np.array([-2.5, -1.2, -0.4, 0.7, 1.8, 3.0])
    for tau in (1.7, -0.9):
        solved = solve_ivp(
            lambda t, x: -np.asarray(s(x), float), (0, tau), x0, "DOP853", rtol=1e-11, atol=1e-12
        )
        # rtol, times what a kink adds when a step crosses it
        np.testing.assert_allclose(activation.relax(x0, tau), solved.y[:, -1], rtol=1e-7)


SERIES = [
    (Tanh(), np.tanh),
    (Identity(), lambda z: z),
    (Arctan(), np.arctan),
    (Sigmoid(), lambda z: 1 / (1 + np.exp(-z))),
    (Softplus(), lambda z: np.log(1 + np.exp(z))),
    (Erf(), lambda z: scipy.special.erf(z.astype(complex))),
    (ISRU(0.7), lambda z: z / np.sqrt(1 + LD(0.7) * z * z)),
]


@pytest.mark.core
@pytest.mark.parametrize(("activation", "s"), SERIES, ids=[type(c[0]).__name__ for c in SERIES])
def test_series_is_the_cauchy_integral(activation, s):
    order, radius, points = 16, 1.5, 256
    rng = np.random.default_rng(1)
    x = 0.3 * rng.standard_normal((order + 1, 4)) * 0.5 ** np.arange(order + 1)[:, None]
    x[0] = [0, 0.4, -1.3, 5.0]
    # The terms stay within the strip where every s of the list is analytic.
    assert np.all(np.abs(x[1:]).T @ radius ** np.arange(1, order + 1) < 0.95)
    known, v, aux = [jnp.asarray(x[0])], [], ()
    for k in range(order + 1):
        before = [list(a) for a in aux]
        aux = activation.series(known, v, aux)
        assert all(len(a) == k + 1 for a in aux)
        assert [len(a) for a in before] == [k] * len(before)
        if k < order:
            v, known = [*v, jnp.asarray((k + 1) * x[k + 1])], [*known, jnp.asarray(x[k + 1])]

    turn = np.exp(2j * np.pi * np.arange(points) / points).astype(np.clongdouble)
    path = sum(x[k] * (radius * turn[:, None]) ** k for k in range(order + 1))
    values = s(path)
    for k in range(order + 1):
        exact = np.mean(values * turn[:, None] ** -k, axis=0).real
        got = np.asarray(aux[0][k]) * radius**k
        # Relative to Cauchy's bound on the coefficient; measured: 3e-15.
        np.testing.assert_allclose(got, exact.astype(float), rtol=0, atol=2e-14)

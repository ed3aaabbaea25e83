"""Activations: what they promise besides accuracy (for that see oracles/test_activation.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdyn as jd

ANALYTIC = [
    jd.Tanh(),
    jd.Identity(),
    jd.Arctan(),
    jd.Erf(),
    jd.ISRU(2.5),
    jd.Sigmoid(),
    jd.Softplus(),
]
KINKED = [
    jd.Softsign(),
    jd.HardTanh(),
    jd.AsymmetricTanh(),
    jd.ELU(0.6),
    jd.LeakyReLU(),
    jd.RectifiedTanh(),
    jd.ReLU(),
]
ALL = [*ANALYTIC, *KINKED, jd.FunctionActivation(jnp.tanh, limit=40.0)]
CLOSED_FORM = {
    "Tanh",
    "Identity",
    "HardTanh",
    "AsymmetricTanh",
    "ELU",
    "LeakyReLU",
    "RectifiedTanh",
    "ReLU",
}


def name(activation):
    return type(activation).__name__


# One shape for what runs op by op, so that few operations are compiled.
SPREAD = jnp.linspace(-3.3, 3.1, 25)  # with neither 0 nor a kink


every = pytest.mark.parametrize("activation", ALL, ids=name)
dtypes = pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])


@pytest.mark.core
@dtypes
@every
def test_derivatives_belong_together(activation, dtype):
    x = SPREAD.astype(dtype)

    @jax.jit
    def both(x):
        grad = jax.vmap(jax.grad(activation.potential))(x), jax.vmap(jax.grad(activation))(x)
        return grad, (activation(x), activation.derivative(x))

    by_grad, given = both(x)
    for a, b in zip(by_grad, given, strict=True):
        assert a.dtype == b.dtype == dtype
        # rounding of a few operations on numbers of order 3
        np.testing.assert_allclose(a, b, rtol=0, atol=40 * jnp.finfo(dtype).eps)


@every
def test_potential_starts_at_zero(activation):
    assert activation.potential(jnp.asarray(0.0)) == 0


@every
def test_flags(activation):
    x = jnp.asarray([1e-3, 0.1, 1.0, 7.0, 30.0])
    left, right = activation(-x), activation(x)
    assert activation.odd == bool(jnp.all(left == -right))
    sector = bool(jnp.all(right > 0) & jnp.all(left < 0))
    assert activation.confining == sector  # none of these has a bounded potential


@dtypes
@every
def test_every_derivative_is_finite(activation, dtype):
    big = 30.0 if isinstance(activation, jd.FunctionActivation) else 1e4
    points = [0.0, 1e-12, -1.0, 0.5, -big]
    x0, x1 = (z.ravel() for z in np.meshgrid(points, points))
    x0, x1 = jnp.asarray(x0, dtype), jnp.asarray(x1, dtype)

    def mean(a, b):
        return jnp.sum(activation.discrete_gradient(a, b))

    def total(f):
        return lambda z: jnp.sum(f(z))

    first = jax.grad(mean, argnums=(0, 1))
    everything = [
        activation(x0),
        activation.potential(x0),
        activation.derivative(x0),
        *first(x0, x1),
        *(jax.grad(total(f))(x0) for f in (activation, activation.potential)),
        jax.grad(total(activation.derivative))(x0),
    ]
    if dtype == jnp.float64 and not isinstance(activation, jd.FunctionActivation):
        second = jax.grad(lambda a, b: jnp.sum(first(a, b)[1]), argnums=(0, 1))
        everything += second(x0, x1)
    for array in everything:
        assert jnp.all(jnp.isfinite(array))
    for array in first(-x0, -x1):
        assert jnp.all(jnp.isfinite(array))
    mean = activation.discrete_gradient(x0, x0)
    np.testing.assert_allclose(mean, activation(x0), rtol=4 * jnp.finfo(dtype).eps)


@every
def test_discrete_gradient_at_equal_points_has_half_the_slope(activation):
    x = SPREAD
    g0, g1 = jax.grad(lambda a, b: jnp.sum(activation.discrete_gradient(a, b)), argnums=(0, 1))(
        x, x
    )
    np.testing.assert_allclose(g0, activation.derivative(x) / 2, rtol=1e-14, atol=1e-16)
    np.testing.assert_allclose(g1, activation.derivative(x) / 2, rtol=1e-14, atol=1e-16)


@pytest.mark.core
def test_tanh_discrete_gradient_over_the_range_of_the_theory():
    """Worst relative error 3e-15 over |m|, |d| in [1e-6, 100]; measured here: 6e-16."""
    if np.finfo(np.longdouble).eps > 1e-18:
        pytest.skip("longdouble is double here")
    rng = np.random.default_rng(5)
    m, d = 10 ** rng.uniform(-6, 2, (2, 4000)) * rng.choice([-1, 1], (2, 4000))
    x0, x1 = m - d / 2, m + d / 2
    a, b = np.abs(x0).astype(np.longdouble), np.abs(x1).astype(np.longdouble)
    sign = np.where(a < b, 1, -1)
    a, b = np.minimum(a, b), np.maximum(a, b)

    def log_cosh_ratio(a, b):
        # log(cosh b / cosh a) = log1p((cosh b - cosh a) / cosh a), in extended range
        return np.log1p(2 * np.sinh((a + b) / 2) * np.sinh((b - a) / 2) / np.cosh(a))

    exact = sign * log_cosh_ratio(a, b) / (x1.astype(np.longdouble) - x0)
    got = np.asarray(jax.jit(jd.Tanh().discrete_gradient)(x0, x1))
    assert np.max(np.abs(got / exact - 1)) < 3e-15


@pytest.mark.parametrize("activation", [jd.Tanh(), jd.Erf(), jd.ELU(), jd.HardTanh()], ids=name)
def test_small_states_keep_their_digits(activation):
    # S is x^2 s'(0) / 2 to first order in x; 1e-150 is near the square root of the smallest double.
    x = jnp.asarray([1e-150, -1e-150, 1e-12, -1e-12])
    slope = activation.derivative(jnp.zeros(()))
    np.testing.assert_allclose(activation.potential(x), slope * x * x / 2, rtol=1e-11)
    small = jnp.asarray([1e-300, -1e-300])
    np.testing.assert_allclose(activation(small), slope * small, rtol=1e-15)
    np.testing.assert_allclose(
        activation.discrete_gradient(small, 3 * small), slope * 2 * small, rtol=1e-15
    )


def test_large_states_do_not_overflow():
    x = jnp.asarray([1e4, -1e4])
    np.testing.assert_allclose(jd.Tanh().potential(x), 1e4 - np.log(2), rtol=1e-15)
    np.testing.assert_allclose(jd.Arctan().potential(x), 5e3 * np.pi - np.log(1e4) - 1, rtol=1e-12)
    np.testing.assert_allclose(jd.Erf().potential(x), 1e4 - 1 / np.sqrt(np.pi), rtol=1e-15)
    np.testing.assert_allclose(
        jd.Softplus().potential(x), [5e7 + np.pi**2 / 12, -(np.pi**2) / 12], rtol=1e-15
    )
    np.testing.assert_allclose(jd.Sigmoid().potential(x), [1e4 - np.log(2), -np.log(2)], rtol=1e-15)


@pytest.mark.core
@every
def test_relax_or_refuse(activation):
    assert activation.relaxes == (name(activation) in CLOSED_FORM)
    x = SPREAD.at[0].set(0.0)
    if not activation.relaxes:
        with pytest.raises(ValueError, match=r"no closed-form flow.*RK4, Taylor"):
            activation.relax(x, 0.1)
        return
    np.testing.assert_allclose(activation.relax(x, 0), x, rtol=4e-16)
    # its generator, at tau = 0 and where tau is a tracer
    _, speed = jax.jvp(jax.jit(lambda tau: activation.relax(x, tau)), (0.0,), (1.0,))
    np.testing.assert_allclose(speed, -activation(x), rtol=1e-14)
    # what two units do at two times of their own
    np.testing.assert_array_equal(
        activation.relax(x, jnp.full(25, 0.3)), activation.relax(x, jnp.asarray(0.3))
    )
    # the linearisation, also at 0, where |x| has no derivative
    slope = jax.vmap(jax.grad(lambda z: activation.relax(z, 0.4)))(x)
    nonzero = x != 0
    moved = activation.relax(x, 0.4)
    exact = jnp.exp(-0.4 * activation.derivative(jnp.zeros(())))
    rest = activation(x) == 0
    ratio = activation(moved) / jnp.where(rest, 1, activation(x))
    expected = jnp.where(rest & nonzero, 1, jnp.where(nonzero, ratio, exact))
    np.testing.assert_allclose(slope, expected, rtol=1e-13)


@dtypes
@pytest.mark.parametrize("activation", [a for a in ALL if name(a) in CLOSED_FORM], ids=name)
def test_relaxation_has_finite_derivatives(activation, dtype):
    points = [0.0, 1e-12, 1.0, 20.0, 1e4]
    x, tau = (z.ravel() for z in np.meshgrid(points, [-50.0, -1.0, 0.0, 3.0, 1e4]))
    gradient = jax.grad(lambda x, tau: jnp.sum(activation.relax(x, tau)), argnums=(0, 1))
    for side in (x, -x):
        for g in gradient(jnp.asarray(side, dtype), jnp.asarray(tau, dtype)):
            assert jnp.all(jnp.isfinite(g))


def test_relax_checks_tau():
    for bad in (1j, None, "1.0", True):
        with pytest.raises(TypeError):
            jd.Tanh().relax(jnp.ones(3), bad)
    with pytest.raises(ValueError, match="tau must be a scalar or have the shape of x"):
        jd.Tanh().relax(jnp.ones(3), jnp.ones(2))
    # It takes the dtype of x, also where the two would not mix.
    for tau in (2, np.int64(2), np.float64(2.0), np.full(3, 2.0)):
        assert jd.Tanh().relax(jnp.ones(3, jnp.float32), tau).dtype == jnp.float32


@pytest.mark.parametrize("activation", KINKED, ids=name)
def test_no_series_where_not_analytic(activation):
    with pytest.raises(ValueError, match=r"no Taylor recurrence; use RK4, Strang or diffrax.Tsit5"):
        activation.series([jnp.ones(2)], [], ())


@dtypes
@every
def test_series_keeps_dtype_and_starts_with_the_value(activation, dtype):
    if activation in KINKED:
        return
    x, v, aux = [jnp.asarray([0.3, -1.0], dtype)], [], ()
    for k in range(3):
        aux = activation.series(x, v, aux)
        v = [*v, jnp.asarray([1.0, 2.0], dtype)]
        x = [*x, v[-1] / (k + 1)]
    np.testing.assert_allclose(aux[0][0], activation(x[0]), rtol=4 * jnp.finfo(dtype).eps)
    # d/dt s(x) at t = 0
    np.testing.assert_allclose(
        aux[0][1], activation.derivative(x[0]) * v[0], rtol=20 * jnp.finfo(dtype).eps
    )
    assert all(c.dtype == dtype for series in aux for c in series)


@pytest.mark.core
@every
def test_shapes_vmap_and_jit(activation):
    x0, x1 = SPREAD.reshape(5, 5), SPREAD[::-1].reshape(5, 5)
    for f, args in [
        (activation, (x0,)),
        (activation.potential, (x0,)),
        (activation.discrete_gradient, (x0, x1)),
    ]:
        plain = f(*args)
        assert plain.shape == (5, 5)
        # Fused code rounds otherwise.
        np.testing.assert_allclose(jax.jit(jax.vmap(f))(*args), plain, rtol=1e-14, atol=1e-16)
    np.testing.assert_allclose(
        activation.discrete_gradient(x0, 0.1),
        activation.discrete_gradient(x0, jnp.full((5, 5), 0.1)),
        rtol=1e-15,
    )
    assert activation.potential(0.3).shape == ()
    # It is a PyTree, and may be an argument of jax.jit.
    jitted = jax.jit(lambda f, x: f.potential(x))
    np.testing.assert_allclose(jitted(activation, x0), activation.potential(x0), rtol=1e-14)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    x = jnp.asarray([0.01, -0.3, 20.0], dtype)
    for activation in (jd.Tanh(), jd.Softsign()):
        got = activation.potential(x)
        assert got.dtype == dtype
        exact = activation.potential(x.astype(jnp.float32))
        np.testing.assert_allclose(got.astype(jnp.float32), exact, rtol=jnp.finfo(dtype).eps)


@pytest.mark.core
@pytest.mark.parametrize(
    "bad",
    [3, True, 1j, np.arange(3), np.array([True]), np.ones(2, complex), "1.0", None],
    ids=repr,
)
def test_only_real_floats_are_accepted(bad):
    for call in (
        jd.Tanh(),
        jd.ELU().potential,
        jd.Erf().derivative,
        lambda x: jd.Tanh().discrete_gradient(x, 0.5),
        lambda x: jd.Tanh().discrete_gradient(0.5, x),
        lambda x: jd.Tanh().relax(x, 0.1),
    ):
        with pytest.raises(TypeError):
            call(bad)


def test_integer_message_says_what_to_do():
    with pytest.raises(TypeError, match=r"x must be a real floating-point array.*jnp.asarray"):
        jd.Tanh()(np.arange(3))


def test_discrete_gradient_checks_shapes():
    with pytest.raises(ValueError, match=r"x0 and x1 must have the same shape.*\(3,\) and \(2,\)"):
        jd.Tanh().discrete_gradient(jnp.ones(3), jnp.ones(2))


@pytest.mark.parametrize(
    ("cls", "argument"),
    [
        (jd.ISRU, "alpha"),
        (jd.ELU, "alpha"),
        (jd.AsymmetricTanh, "gain"),
        (jd.AsymmetricTanh, "width"),
        (jd.LeakyReLU, "slope"),
    ],
)
def test_hyper_parameters_are_checked(cls, argument):
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=argument):
            cls(**{argument: bad})
    for bad in ("a", None, jnp.ones(2)):
        with pytest.raises(TypeError, match=argument):
            cls(**{argument: bad})
    # static Python floats, whatever number they come from
    made = cls(**{argument: np.float32(2)})
    assert type(getattr(made, argument)) is float
    assert jax.tree.leaves(made) == []
    assert made == cls(**{argument: 2})


def test_zero_hyper_parameters():
    assert not jd.LeakyReLU(0.0).confining
    with pytest.raises(ValueError, match="alpha must be positive"):
        jd.ELU(0.0)

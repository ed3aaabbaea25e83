"""The activation made from a function of the user's own."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdyn as jd


def test_agrees_with_tanh():
    made, exact = jd.FunctionActivation(jnp.tanh), jd.Tanh()
    x0 = jnp.linspace(-20, 20, 101)
    x1 = jnp.clip(jnp.roll(x0, 37) * 0.9, -20, 20)
    # measured: 1e-15
    np.testing.assert_allclose(made.potential(x0), exact.potential(x0), rtol=1e-14)
    np.testing.assert_allclose(
        made.discrete_gradient(x0, x1), exact.discrete_gradient(x0, x1), atol=1e-14
    )
    assert made.odd and made.confining and not made.relaxes


def test_potential_of_the_user():
    made = jd.FunctionActivation(jnp.tanh, lambda x: jnp.log(jnp.cosh(x)) + 5.0)
    x = jnp.asarray([-3.0, 0.0, 2.0, 25.0])
    np.testing.assert_allclose(made.potential(x), jd.Tanh().potential(x), rtol=1e-14)
    step = x + jnp.asarray([1e-9, 0.1, -5.0, 1.0])
    np.testing.assert_allclose(
        made.discrete_gradient(x, step), jd.Tanh().discrete_gradient(x, step), rtol=1e-14
    )


def test_kinked_function_needs_a_potential():
    def ramp(x):
        return jnp.where(x > 0.3, x - 0.3, 0.0 * x) + 0.1 * x

    def area(x):
        return jnp.where(x > 0.3, (x - 0.3) ** 2 / 2, 0.0 * x) + 0.05 * x**2

    with pytest.raises(ValueError, match=r"quadrature with an error of .* Pass potential="):
        jd.FunctionActivation(ramp)
    made = jd.FunctionActivation(ramp, area)
    x0, x1 = jnp.asarray([-1.0, 0.29, 0.2]), jnp.asarray([2.0, 0.31, 0.25])
    exact = (area(x1) - area(x0)) / (x1 - x0)
    np.testing.assert_allclose(made.discrete_gradient(x0, x1), exact, rtol=1e-13)
    with pytest.raises(ValueError, match="not smooth"):
        made.series([x0], [], ())


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda z: z / (1 + z * z) ** 2, False),  # odd, sector, bounded potential
        (lambda z: jnp.where(z < 0, z, z / (1 + z * z) ** 2), False),  # on one side only
        (lambda z: jnp.where(z > 0, z, z / (1 + z * z) ** 2), False),
        (lambda z: z / (1 + z * z), True),  # grows like a logarithm
        (lambda z: jnp.tanh(z - 0.1), False),
        (lambda z: jnp.where(z < 0, 3 * jnp.tanh(z / 2), jnp.tanh(z)), True),
        (jax.nn.sigmoid, False),
        (jnp.sin, False),
    ],
)
def test_confining_is_judged(fn, expected):
    made = jd.FunctionActivation(fn, limit=15.0, accuracy=1e-2)
    assert made.confining is expected
    stated = jd.FunctionActivation(fn, confining=not expected, limit=15.0, accuracy=1e-2)
    assert stated.confining is not expected


@pytest.mark.core
@pytest.mark.parametrize(
    ("fn", "order"), [(jnp.tanh, 8), (lambda z: z / jnp.sqrt(1 + 2.5 * z * z), 4)]
)
def test_series_by_jet(fn, order):
    made = jd.FunctionActivation(fn)
    exact = jd.Tanh() if fn is jnp.tanh else jd.ISRU(2.5)
    x, v, a, b = [jnp.asarray([0.0, 0.4, -1.0])], [], (), ()
    for k in range(order + 1):
        a, b = made.series(x, v, a), exact.series(x, v, b)
        v = [*v, 0.3 * x[-1] + 1 / (k + 2)]
        x = [*x, v[-1] / (k + 1)]
    # measured: 3e-15 on coefficients of order one
    np.testing.assert_allclose(a[0], b[0], atol=3e-14)


def test_series_refuses_what_jet_does_not_know():
    x = jnp.asarray([0.3])
    for fn in (jnp.arctan, jax.nn.softplus):
        made = jd.FunctionActivation(fn)
        aux = made.series([x], [], ())
        with pytest.raises(ValueError, match=r"jax.experimental.jet .* use RK4, Strang"):
            made.series([x, x], [x], aux)


def test_range_is_kept():
    made = jd.FunctionActivation(jnp.tanh, limit=3.0)
    made.potential(jnp.asarray([3.0, -3.0]))
    for call in (made.potential, lambda x: made.discrete_gradient(0 * x, x)):
        with pytest.raises(Exception, match=r"over \|x\| <= 3.0 only"):
            jax.block_until_ready(jax.jit(call)(jnp.asarray([3.1])))


def test_trainable_function():
    class Scaled(eqx.Module):
        rate: jax.Array

        def __call__(self, x):
            return jnp.tanh(self.rate.astype(x.dtype) * x)

    made = jd.FunctionActivation(Scaled(jnp.asarray(1.3)))
    x = jnp.asarray([0.5, -2.0])

    def energy(made):
        return jnp.sum(made.potential(x))

    gradient = jax.jit(jax.grad(energy))(made).fn.rate
    exact = jax.grad(lambda w: jnp.sum(jd.Tanh().potential(w * x)) / w)(1.3)
    np.testing.assert_allclose(gradient, exact, rtol=1e-13)
    assert not made.odd  # a step of training may break it

    def build(rate, **options):
        return energy(jd.FunctionActivation(Scaled(rate), **options))

    with pytest.raises(ValueError, match="confining must be given"):
        jax.jit(build)(1.3)
    np.testing.assert_allclose(
        jax.grad(lambda w: build(w, confining=True))(jnp.asarray(1.3)), exact, rtol=1e-13
    )


@pytest.mark.parametrize(
    ("fn", "options", "error", "message"),
    [
        (3, {}, TypeError, "fn must be a function"),
        (None, {}, TypeError, "fn must be a function"),
        ("tanh", {}, TypeError, "fn must be a function"),
        (jnp.sum, {}, ValueError, "shape and dtype"),
        (lambda x: 1.0, {}, ValueError, "shape and dtype"),
        (lambda x: x.astype(jnp.float32), {}, ValueError, "shape and dtype"),
        (lambda x: (x, x), {}, ValueError, "shape and dtype"),
        (lambda x, y: x, {}, ValueError, "fn must take one array"),
        (lambda x: x - jnp.mean(x), {}, ValueError, "each element by itself"),
        (lambda x: 1 / x, {}, ValueError, r"fn\(0\) must be finite"),
        (lambda x: jnp.sqrt(x + 1), {}, ValueError, "finite within limit"),
        (jnp.tanh, {"potential": 3}, TypeError, "potential must be a function"),
        (jnp.tanh, {"potential": jnp.sum}, ValueError, "potential must return"),
        (jnp.tanh, {"potential": jnp.square}, ValueError, "must have the derivative fn"),
        (jnp.tanh, {"limit": 0.0}, ValueError, "limit must be positive"),
        (jnp.tanh, {"limit": float("inf")}, ValueError, "limit must be finite"),
        (jnp.tanh, {"limit": 2000.0}, ValueError, "a smaller limit="),
        (jnp.tanh, {"accuracy": -1.0}, ValueError, "accuracy must be positive"),
    ],
)
def test_bad_input(fn, options, error, message):
    with pytest.raises(error, match=message):
        jd.FunctionActivation(fn, **options)

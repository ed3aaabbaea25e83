"""Cells: vector field, energy, Casimirs, energy rate, input in every form."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jaxdyn as jd

ACTIVATIONS = [jd.Tanh(), jd.ReLU(), jd.Sigmoid(), jd.ELU()]


def test_vector_fields_are_the_formulas():
    n, m = 4, 2
    w = jd.DenseSkew.random(n, key=jr.key(0))
    b, u_matrix, damping = jnp.linspace(0.1, 0.4, n), jr.normal(jr.key(1), (n, m)), 0.3
    x, u = jr.normal(jr.key(2), (n,)), jnp.array([0.5, -1.0])
    options = dict(bias=b, input_matrix=u_matrix, damping=damping)
    matrix, g = w.as_matrix(), jnp.tanh(x)
    energy = jnp.sum(jnp.log(jnp.cosh(x)))

    shell = jd.EnergyShell(1.5, 0.2)
    poisson = jd.PoissonCell(w, jd.Tanh(), **options, regulator=shell)
    want = matrix @ g + u_matrix @ u + b - damping * g - 0.2 * (energy - 1.5) * g
    np.testing.assert_allclose(poisson(0.0, x, u), want, rtol=0, atol=1e-15)

    antisymmetric = jd.AntisymmetricCell(w, jd.Tanh(), **options)
    want = jnp.tanh(matrix @ x - damping * x + u_matrix @ u + b)
    np.testing.assert_allclose(antisymmetric(0.0, x, u), want, rtol=0, atol=1e-15)
    want = jnp.sum(jnp.log(jnp.cosh(matrix @ x + b)))
    np.testing.assert_allclose(antisymmetric.energy(x), want, rtol=1e-14)


@pytest.mark.core
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
def test_energy_is_conserved_by_any_activation(activation):
    """grad H . x' = 0, and energy_rate is that derivative once something drives or damps."""
    w = jd.DenseSkew.random(5, key=jr.key(3))
    x, u = jr.normal(jr.key(4), (5,)), jnp.array([0.7])
    extras = dict(bias=jnp.ones(5), input_matrix=jnp.ones((5, 1)), damping=jnp.linspace(0, 1, 5))
    shell = jd.EnergyShell(1.0, 0.3) if activation.confining else None
    bare = [jd.PoissonCell(w, activation), jd.AntisymmetricCell(w, activation)]
    full = [
        jd.PoissonCell(w, activation, **extras, regulator=shell),
        jd.AntisymmetricCell(w, activation, **extras),
    ]
    for cell, args in [*((c, None) for c in bare), *((c, u) for c in full)]:
        derivative = jax.grad(cell.energy)(x) @ cell(0.0, x, args)
        rate = cell.energy_rate(0.0, x, args)
        np.testing.assert_allclose(rate, derivative, rtol=0, atol=1e-14)
    for cell in bare:
        assert abs(cell.energy_rate(0.0, x, None)) < 1e-15
    for cell in full:
        assert abs(cell.energy_rate(0.0, x, u)) > 1e-3


def test_casimirs():
    """One for odd n, and c.x' = 0; none for an invertible W."""
    cell = jd.PoissonCell(jd.DenseSkew.random(5, key=jr.key(5)), jd.Tanh())
    x = jr.normal(jr.key(6), (5,))
    assert cell.casimirs(x).shape == (1,)
    np.testing.assert_allclose(cell.casimirs(cell(0.0, x, None)), 0.0, atol=1e-15)
    even = jd.PoissonCell(jd.DenseSkew.random(4, key=jr.key(5)), jd.Tanh())
    assert even.casimirs(x[:4]).shape == (0,)
    antisymmetric = jd.AntisymmetricCell(cell.operator, jd.Tanh(), bias=jnp.ones(5))
    np.testing.assert_allclose(
        antisymmetric.casimirs(x), cell.operator.kernel() @ jnp.ones(5), atol=1e-14
    )


def test_shell_attracts_and_keeps_what_it_is_told():
    w = jd.DenseSkew.random(5, key=jr.key(7))
    x = jr.normal(jr.key(8), (5,))
    for keep in (None, w.kernel()):
        cell = jd.PoissonCell(w, jd.Tanh(), regulator=jd.EnergyShell(1.5, 0.5, keep=keep))
        end = jd.simulate(cell, x, t1=200.0, dt=0.1, solver=jd.RK4()).ys[0]
        # The shell attracts like exp(-rate |g|^2 t): long gone. RK4 at h = .1 holds it to 1e-7.
        assert cell.energy(end) == pytest.approx(1.5, abs=1e-6)
        moved = jnp.max(jnp.abs(cell.casimirs(end) - cell.casimirs(x)))
        assert (moved < 1e-12) == (keep is not None)


@pytest.mark.core
def test_input_forms_agree():
    """A constant, a callable and a diffrax path that say the same thing give the same field."""
    cell = jd.PoissonCell(
        jd.DenseSkew.random(3, key=jr.key(9)), jd.Tanh(), input_matrix=jnp.eye(3)[:, :2]
    )
    x, u, t = jnp.ones(3), jnp.array([0.2, -0.4]), jnp.asarray(0.5)
    path = diffrax.LinearInterpolation(ts=jnp.array([0.0, 1.0]), ys=jnp.stack([u, u]))
    want = cell(t, x, u)
    for args in (lambda t: u, path):
        np.testing.assert_allclose(cell(t, x, args), want, rtol=0, atol=1e-16)
    np.testing.assert_allclose(eqx.filter_jit(cell)(t, x, path), want, rtol=0, atol=1e-16)


def test_gradients_keep_skewness():
    """A gradient step on every parameter, and W is still exactly skew."""
    cell = jd.PoissonCell(
        jd.DenseSkew.random(4, key=jr.key(10)),
        jd.Tanh(),
        bias=jnp.zeros(4),
        damping=0.1,
        regulator=jd.EnergyShell(1.0, 0.1),
    )
    x = jr.normal(jr.key(11), (4,))
    grads = eqx.filter_grad(lambda c: jnp.sum(c(0.0, x, None) ** 2))(cell)
    assert all(jnp.any(g != 0) for g in jax.tree.leaves(grads))
    moved = eqx.apply_updates(cell, jax.tree.map(lambda g: -0.1 * g, grads))
    w = moved.operator.as_matrix()
    assert jnp.all(w == -w.T) and jnp.any(w != cell.operator.as_matrix())

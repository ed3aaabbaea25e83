"""What must hold for every network and every state."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxdyn as jd

SEEDS = st.integers(0, 2**31 - 1)
STEPS = st.floats(0.01, 0.5)
# One size a test: a new size is a new compilation, which proves nothing more.
fast = settings(max_examples=25, deadline=None)


@jax.jit
def strang(w, x, dt):
    cell = jd.PoissonCell(w, jd.Tanh())
    return jd.Strang().advance(cell, jnp.zeros(()), dt, x, None)


@jax.jit
def energy_kept(w, x, dt):
    cell = jd.PoissonCell(w, jd.Tanh())
    x1 = jd.DiscreteGradient().advance(cell, jnp.zeros(()), dt, x, None)
    return cell.energy(x), cell.energy(x1)


def draw(seed, n, scale):
    return jd.DenseSkew.random(n, key=jr.key(seed)), scale * jr.normal(jr.key(seed + 1), (n,))


@given(SEEDS, STEPS, st.floats(0.01, 20.0))
@fast
def test_strang_step_is_undone(seed, dt, scale):
    w, x = draw(seed, 6, scale)
    there = strang(w, x, jnp.asarray(dt))
    back = strang(w, there, jnp.asarray(-dt))
    np.testing.assert_allclose(back, x, rtol=0, atol=1e-14 * (1 + scale))


@given(SEEDS, STEPS, st.floats(0.01, 20.0))
@fast
def test_odd_activations_are_equivariant(seed, dt, scale):
    w, x = draw(seed, 6, scale)
    minus = strang(w, -x, jnp.asarray(dt))
    np.testing.assert_allclose(
        minus, -strang(w, x, jnp.asarray(dt)), rtol=0, atol=1e-14 * (1 + scale)
    )


@pytest.mark.core
@given(SEEDS, STEPS, st.floats(0.01, 20.0))
@fast
def test_discrete_gradient_keeps_energy(seed, dt, scale):
    w, x = draw(seed, 6, scale)
    h0, h1 = energy_kept(w, x, jnp.asarray(dt))
    # One step: rounding of a sum of six potentials and of Newton's last iterate.
    np.testing.assert_allclose(h1, h0, rtol=2e-14, atol=1e-16)


@given(SEEDS, st.floats(0.05, 3.0))
@fast
def test_euler_never_loses_energy(seed, dt):
    """H(x + h W s(x)) >= H(x) for a convex H, at any step."""
    w, x = draw(seed, 6, 2.0)
    cell = jd.PoissonCell(w, jd.Tanh())
    x1 = x + dt * cell(0.0, x, None)
    gain = cell.energy(x1) - cell.energy(x)
    assert gain >= -1e-15
    assert gain <= dt**2 / 2 * 6 * np.linalg.norm(w.as_matrix(), 2) ** 2

"""The installed jax computes what it should: the reproducer of a defect, and our own paths on it.

jit(vmap(matvec -> reduce)) on CPU is silently wrong from 16,385 rows (float64, jax 0.10.2) or
32,769 rows (float32, jax 0.10.0 to 0.10.2), https://github.com/jax-ml/jax/issues/39103; met at
n = 3, not at 2, 4, 8 or 16. Python 3.11 has no newer jax, so there the package must not meet it.
"""

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jaxdyn as jd

OLD = jax.__version_info__ < (0, 11)


@pytest.mark.core
@pytest.mark.parametrize(
    ("dtype", "rows"),
    [
        ("float64", 16_385),
        pytest.param("float32", 32_769, marks=pytest.mark.skipif(OLD, reason="jax issue 39103")),
    ],
)
def test_batched_matvec_then_reduce(dtype, rows):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((3, 3)).astype(dtype)
    x = rng.standard_normal((rows, 3)).astype(dtype)
    got = jax.jit(jax.vmap(lambda x: jnp.sum(jnp.asarray(w) @ x)))(x)
    want = (x.astype(float) @ w.T.astype(float)).sum(axis=1)
    np.testing.assert_allclose(got, want, rtol=0, atol=50 * np.finfo(dtype).eps)


@pytest.mark.core
def test_our_own_paths_on_a_large_batch_of_three_units():
    """A batch beyond the defect's size, float32, against float64: solve, energy, drift."""
    cell = jd.PoissonCell(jd.DenseSkew.random(3, key=jr.key(0)), jd.Tanh())
    x = jr.normal(jr.key(1), (40_000, 3))
    single = x.astype(jnp.float32)
    saveat = diffrax.SaveAt(t1=True, fn=lambda t, x, args: (x, cell.energy(x)))
    options = dict(n_steps=3, dt=0.1, solver=jd.RK4(), saveat=saveat)
    (y, h), (y32, h32) = (jd.simulate(cell, v, **options).ys for v in (x, single))
    np.testing.assert_allclose(y32, y, rtol=0, atol=2e-5)  # 3 steps at |x| < 6, eps = 1.2e-7
    np.testing.assert_allclose(h32, h, rtol=0, atol=2e-5)
    assert jnp.max(jd.energy_drift(cell, single, y32)) < 1e-4

    rnn = jd.AntisymmetricCell(cell.operator, jd.Tanh())
    energy = jax.jit(jax.vmap(rnn.energy))
    np.testing.assert_allclose(energy(single), energy(x), rtol=0, atol=2e-5)

"""Invariants: the measures themselves, on cases whose answer is known."""

import diffrax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jaxdyn as jd

CELL = jd.PoissonCell(jd.DenseSkew.random(5, key=jr.key(0)), jd.Tanh())
X0 = jr.normal(jr.key(1), (2, 5))


@pytest.mark.core
def test_energy_drift_is_the_worst_relative_error():
    ys = jnp.stack([X0, 2 * X0, X0], axis=1)
    got = jd.energy_drift(CELL, X0, ys)
    h = [CELL.energy(x) for x in X0]
    h2 = [CELL.energy(2 * x) for x in X0]
    np.testing.assert_allclose(got, [b / a - 1 for a, b in zip(h, h2, strict=True)], rtol=1e-14)
    np.testing.assert_allclose(jd.energy_drift(CELL, X0[0], ys[0]), got[0], rtol=1e-14)
    assert jd.energy_drift(CELL, jnp.zeros(5), jnp.zeros((1, 5))) == 0


def test_casimir_drift():
    c = CELL.operator.kernel()[0]
    ys = (X0 + 0.3 * c[None])[:, None]
    np.testing.assert_allclose(jd.casimir_drift(CELL, X0, ys), [0.3, 0.3], rtol=1e-13)
    even = jd.PoissonCell(jd.DenseSkew.random(4, key=jr.key(2)), jd.Tanh())
    assert jd.casimir_drift(even, X0[:, :4], ys[..., :4]).tolist() == [0.0, 0.0]


def test_solution_of_simulate():
    sol = jd.simulate(CELL, X0, t1=20.0, dt=0.1, saveat=diffrax.SaveAt(steps=10))
    assert jd.energy_drift(CELL, X0, sol).shape == (2,)
    assert jnp.all(jd.energy_drift(CELL, X0, sol) < 1e-3)
    assert jnp.all(jd.casimir_drift(CELL, X0, sol) < 1e-13)


def test_refuses_what_is_not_states():
    sol = jd.simulate(
        CELL, X0, t1=1.0, dt=0.1, saveat=diffrax.SaveAt(t1=True, fn=lambda t, x, a: x[0])
    )
    with pytest.raises(ValueError, match="`sol` must hold states"):
        jd.energy_drift(CELL, X0, sol)
    with pytest.raises(ValueError, match="`x0` must have shape"):
        jd.energy_drift(CELL, X0[:, :3], X0[:, None, :3])

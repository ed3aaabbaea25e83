"""Threads: the numbers of a plain solve, whatever the batch and the parts it is cut into."""

import threading

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jaxdyn as jd
from jaxdyn._simulate import threads

W = jd.DenseSkew.random(5, key=jr.key(0))
CELL = jd.PoissonCell(W, jd.Tanh(), input_matrix=jnp.ones((5, 1)))
X0 = jr.normal(jr.key(1), (7, 5))
U = jr.normal(jr.key(2), (7, 1))


def solve(x0, engine, args=U, **how):
    how = {"solver": jd.RK4(), "n_steps": 10, "dt": 0.1, **how}
    return jd.simulate(CELL, x0, args=args, engine=engine, **how)


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 7, 20])
def test_every_trajectory_has_its_own_numbers(workers):
    saveat = diffrax.SaveAt(ts=[0.0, 0.33, 1.0])
    plain, shared = solve(X0, None, saveat=saveat), solve(X0, jd.Threads(workers), saveat=saveat)
    assert shared.ys.shape == (7, 3, 5)
    # One unit of rounding of numbers up to 4: another size of batch, another product kernel.
    assert jnp.max(jnp.abs(plain.ys)) < 4
    np.testing.assert_allclose(shared.ys, plain.ys, rtol=0, atol=2.0**-51)
    assert jnp.array_equal(shared.ts, plain.ts)
    assert jnp.array_equal(shared.stats["num_steps"], plain.stats["num_steps"])
    assert jnp.all(shared.result == diffrax.RESULTS.successful)


def test_parts_are_solved_at_once(monkeypatch):
    """Three parts of three of seven trajectories, the last two overlapping. Each waits for all."""
    everyone, starts, part = threading.Barrier(3, timeout=60), [], threads._part

    def met(arrays, start, *rest):
        starts.append(int(start))
        everyone.wait()
        return part(arrays, start, *rest)

    monkeypatch.setattr(threads, "_part", met)
    solve(X0, jd.Threads(3))
    assert sorted(starts) == [0, 3, 4]


@pytest.mark.parametrize("where", ["args", "saveat"])
def test_what_closes_over_a_tracer_is_refused(where):
    """One that no argument shows."""

    def loss(a):
        how = {"args": lambda t: a * jnp.sin(t)[None]}
        if where == "saveat":
            how = {"saveat": diffrax.SaveAt(t1=True, fn=lambda t, x, args: a * x)}
        return jnp.sum(solve(X0, jd.Threads(2), **how).ys)

    with pytest.raises(ValueError, match="Threads` cannot run inside jit, grad or vmap"):
        jax.grad(loss)(1.3)


def test_saved_function_sees_its_own_input():
    saveat = diffrax.SaveAt(t1=True, fn=lambda t, x, args: {"u": args, "t": t})
    shared = solve(X0, jd.Threads(3), saveat=saveat)
    assert jnp.array_equal(shared.ys["u"][:, 0], U)
    assert jnp.allclose(shared.ys["t"], 1.0)


def test_one_state_and_shared_input():
    alone = solve(X0[0], jd.Threads(2), args=U[0])
    assert jnp.array_equal(alone.ys, solve(X0[0], None, args=U[0]).ys)
    together = solve(X0, jd.Threads(2), args=lambda t: jnp.sin(t)[None])
    plain = solve(X0, None, args=lambda t: jnp.sin(t)[None])
    np.testing.assert_allclose(together.ys, plain.ys, rtol=0, atol=4e-16)


def test_precision_of_the_caller():
    with jax.enable_x64(False):
        cell = jd.PoissonCell(jd.DenseSkew.random(4, key=jr.key(0)), jd.Tanh())
        x0 = jr.normal(jr.key(1), (6, 4))
        shared = jd.simulate(cell, x0, n_steps=3, dt=0.1, engine=jd.Threads(2))
        assert shared.ys.dtype == jnp.float32


def test_failures_stand_with_their_trajectory():
    x0 = X0.at[4].set(1e200)
    cell = jd.PoissonCell(W, jd.Identity())
    how = {"n_steps": 60, "dt": 1e6, "solver": jd.RK4(), "engine": jd.Threads(3)}
    shared = jd.simulate(cell, x0 * 1e-200, throw=False, **how)
    plain = jd.simulate(cell, x0 * 1e-200, throw=False, **{**how, "engine": None})
    assert jnp.array_equal(shared.result == plain.result, jnp.ones(7, bool))
    assert not jnp.all(shared.result == diffrax.RESULTS.successful)
    with pytest.raises(eqx.EquinoxRuntimeError, match="infinite or NaN"):
        jd.simulate(cell, x0 * 1e-200, **how)

"""Tiles: the numbers, inputs and gradients of single trajectories, whatever the batch."""

import functools

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jaxdyn as jd
from jaxdyn._simulate.tiles import even, tile_size

W = jd.DenseSkew.random(4, key=jr.key(0))
CELL = jd.PoissonCell(W, jd.Tanh(), input_matrix=jr.normal(jr.key(3), (4, 2)))
# Three tiles of 64 of a splitting; the last shares 42 trajectories with the one before it.
X0 = jr.normal(jr.key(1), (150, 4))
U = jr.normal(jr.key(2), (150, 2))
SOLVERS = {"Strang": jd.Strang(), "Taylor": jd.Taylor(10)}
SAVEAT = diffrax.SaveAt(ts=[0.0, 0.33, 1.0])
WEIGHTS = jr.normal(jr.key(4), (150, 3, 4))


def solve(x0, u, cell=CELL, **how):
    return jd.simulate(cell, x0, args=u, **{"n_steps": 20, "dt": 0.05, **how})


@pytest.fixture(params=SOLVERS)
def solver(request):
    return SOLVERS[request.param]


def test_every_trajectory_has_its_own_numbers(solver):
    assert tile_size(solver, CELL, X0, None) is not None
    tiled = solve(X0, U, solver=solver, saveat=SAVEAT)
    alone = jax.vmap(lambda x, u: solve(x, u, solver=solver, saveat=SAVEAT).ys)(X0, U)
    assert tiled.ys.shape == (150, 3, 4)
    # A few units of rounding: one trajectory may take another product kernel.
    np.testing.assert_allclose(tiled.ys, alone, rtol=0, atol=4e-15)
    assert tiled.stats["num_steps"].shape == (150,)
    assert jnp.all(tiled.result == diffrax.RESULTS.successful)


def test_saved_function_sees_its_own_input(solver):
    saveat = diffrax.SaveAt(ts=[0.5, 1.0], fn=lambda t, x, args: {"u": args, "t": t})
    saved = solve(X0, U, solver=solver, saveat=saveat).ys
    assert jnp.array_equal(saved["u"], jnp.stack([U, U], 1))
    np.testing.assert_allclose(saved["t"], np.tile([0.5, 1.0], (150, 1)))


@functools.cache
def gradient_alone(solver):
    """Of one trajectory after the other, compiled once."""

    @eqx.filter_grad
    def alone(given):
        cell, x0, u = given
        ys = jax.vmap(lambda x, u: solve(x, u, cell, solver=solver, saveat=SAVEAT).ys)(x0, u)
        return jnp.sum(WEIGHTS * ys)

    return jax.tree.leaves(alone((CELL, X0, U)))


@pytest.mark.parametrize("adjoint", [None, jd.ReversibleAdjoint(), jd.ReversibleAdjoint(3)])
def test_gradients_are_the_sum_over_trajectories(solver, adjoint):
    @eqx.filter_grad
    def tiled(given):
        cell, x0, u = given
        return jnp.sum(
            WEIGHTS * solve(x0, u, cell, solver=solver, adjoint=adjoint, saveat=SAVEAT).ys
        )

    got, want = jax.tree.leaves(tiled((CELL, X0, U))), gradient_alone(solver)
    assert len(got) == len(want) == 4
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * float(jnp.max(jnp.abs(b))))


def test_forward_mode_goes_through_tiles(solver):
    tangent = jr.normal(jr.key(5), X0.shape)
    _, got = jax.jvp(lambda x: solve(x, U, solver=solver).ys, (X0,), (tangent,))
    h = 1e-6
    plus, minus = (solve(X0 + s * h * tangent, U, solver=solver).ys for s in (1, -1))
    np.testing.assert_allclose(got, (plus - minus) / (2 * h), rtol=0, atol=1e-8)


def test_progress_counts_all_tiles(capfd):
    quiet = solve(X0, U)
    shown = solve(X0, U, progress=True)
    jax.effects_barrier()
    np.testing.assert_array_equal(quiet.ys, shown.ys)
    shares = [line.split("%")[0] for line in capfd.readouterr().err.split("\r") if "%" in line]
    numbers = [float(share.split()[-1].lstrip("|")) for share in shares]
    assert numbers == sorted(numbers) and numbers[-1] == 100


def test_failures_are_told_apart_across_tiles():
    """A linear network that Euler's step, as Taylor(1), blows up where it does not start at 0."""
    cell = jd.PoissonCell(W, jd.Identity())
    x0 = jnp.zeros((150, 4)).at[149].set(1.0)
    how = {"solver": jd.Taylor(1), "dt": 10.0, "n_steps": 2000}
    sol = jd.simulate(cell, x0, throw=False, **how)
    assert jnp.array_equal(sol.result == diffrax.RESULTS.successful, jnp.arange(150) < 149)
    with pytest.raises(Exception, match="infinite or NaN"):
        jd.simulate(cell, x0, **how)


@pytest.mark.parametrize("batch", [65, 100, 128, 130, 1000, 1025])
def test_tiles_are_even(batch):
    size = even(batch, 64)
    assert size <= 64 and size % 16 == 0
    # No more tiles than are needed, and none of them only to fill up.
    assert -(-batch // size) == -(-batch // 64)
    assert -(-batch // size) * size - batch < size

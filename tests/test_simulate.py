"""simulate: every route gives the same numbers, and saves what it was asked for."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optimistix as optx
import pytest

import jaxdyn as jd

SaveAt = diffrax.SaveAt
N, B = 4, 3
CELL = jd.PoissonCell(jd.DenseSkew.random(N, key=jr.key(0)), jd.Tanh())
X0 = jr.normal(jr.key(1), (B, N))
DRIVEN = jd.PoissonCell(
    CELL.operator, jd.Tanh(), input_matrix=jr.normal(jr.key(2), (N, 2)), bias=0.1 * jnp.ones(N)
)


def steps_by_hand(solver, cell, x, dt, count, args=None, t0=0.0):
    """The plain loop, one trajectory, that simulate must reproduce."""
    out = [x]
    advance = eqx.filter_jit(solver.advance)
    for k in range(count):
        x = advance(cell, jnp.asarray(t0 + k * dt), jnp.asarray(dt), x, args)
        out.append(x)
    return jnp.stack(out)


@pytest.mark.core
def test_batch_single_and_hand_loop_agree():
    hand = jnp.stack([steps_by_hand(jd.Strang(), CELL, x, 0.1, 10) for x in X0])
    sol = jd.simulate(CELL, X0, t1=1.0, dt=0.1, saveat=SaveAt(t0=True, steps=True))
    assert sol.ys.shape == (B, 11, N)
    np.testing.assert_allclose(sol.ys, hand, rtol=0, atol=1e-14)
    np.testing.assert_allclose(sol.ts, np.linspace(0, 1, 11), rtol=0, atol=1e-15)
    one = jd.simulate(CELL, X0[1], t1=1.0, dt=0.1)
    assert one.ys.shape == (1, N) and one.ts.shape == (1,)
    np.testing.assert_allclose(one.ys[0], hand[1, -1], rtol=0, atol=1e-14)


def test_saves_on_and_off_the_grid():
    """Off the grid a save is a shortened step from the last grid point, and disturbs nothing."""
    dt = 0.1
    grid = steps_by_hand(jd.Strang(), CELL, X0[0], dt, 20)
    ts = [0.0, 0.05, 0.1, 0.73, 0.74, 1.9, 2.0]
    sol = jd.simulate(CELL, X0[0], t1=2.0, dt=dt, saveat=SaveAt(ts=ts, t1=True))
    assert sol.ts.shape == (8,)
    for t, y in zip(np.array(sol.ts), sol.ys, strict=True):
        k = int(np.floor(t / dt + 1e-9))
        side = jnp.asarray(t - k * dt)
        want = jd.Strang().advance(CELL, side, side, grid[k], None) if side > 1e-9 else grid[k]
        np.testing.assert_allclose(y, want, rtol=0, atol=1e-14)


def test_saves_far_apart_and_uneven():
    """Log-spaced saves: rows of very different length, and many more steps than saves."""
    ts = np.array([0.3, 0.4, 7.0, 7.1, 50.0])
    sol = jd.simulate(CELL, X0, t1=50.0, dt=0.1, saveat=SaveAt(ts=ts))
    for i, t in enumerate(ts):
        alone = jd.simulate(CELL, X0, n_steps=round(t / 0.1), dt=0.1).ys[:, 0]
        np.testing.assert_allclose(sol.ys[:, i], alone, rtol=0, atol=1e-13)


def test_last_step_is_shortened():
    sol = jd.simulate(CELL, X0[0], t1=1.03, dt=0.1, saveat=SaveAt(steps=True, t1=True))
    assert sol.ts.shape == (11,) and float(sol.ts[-1]) == 1.03
    grid = steps_by_hand(jd.Strang(), CELL, X0[0], 0.1, 10)
    h = jnp.asarray(1.03 - 1.0)
    end = jd.Strang().advance(CELL, h, h, grid[-1], None)
    np.testing.assert_allclose(sol.ys[-1], end, rtol=0, atol=1e-14)
    every_third = jd.simulate(CELL, X0[0], t1=1.0, dt=0.1, saveat=SaveAt(steps=3, t1=True))
    np.testing.assert_allclose(every_third.ts, [0.3, 0.6, 0.9, 1.0], rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(solver=jd.Taylor(8)),
        dict(solver=diffrax.Tsit5()),
        dict(solver=jd.Taylor(8), stepsize_controller=diffrax.PIDController(rtol=1e-8, atol=1e-8)),
    ],
    ids=["scan", "taylor", "diffrax", "adaptive"],
)
def test_t1_equal_t0_returns_x0(options):
    for x in (X0, X0[0]):
        sol = jd.simulate(CELL, x, t0=2.0, t1=2.0, dt=0.1, **options)
        np.testing.assert_array_equal(sol.ys[..., 0, :], x)


def test_backwards_undoes_forwards():
    there = jd.simulate(CELL, X0, t1=5.0, dt=0.1).ys[:, 0]
    back = jd.simulate(CELL, there, t0=5.0, t1=0.0, dt=0.1)
    np.testing.assert_allclose(back.ys[:, 0], X0, rtol=0, atol=1e-13)  # 100 steps of rounding
    saved = jd.simulate(CELL, there, t0=5.0, t1=0.0, dt=0.1, saveat=SaveAt(ts=[4.0, 0.0]))
    forward = jd.simulate(CELL, X0, t1=4.0, dt=0.1).ys[:, 0]
    np.testing.assert_allclose(saved.ys[:, 0], forward, rtol=0, atol=1e-13)


def test_fn_saves_what_it_returns():
    def fn(t, x, args):
        return {"energy": CELL.energy(x), "t": t}

    sol = jd.simulate(CELL, X0, t1=1.0, dt=0.1, saveat=SaveAt(ts=[0.0, 0.5, 1.0], fn=fn))
    assert sol.ys["energy"].shape == (B, 3)
    np.testing.assert_allclose(sol.ys["t"], np.tile([0.0, 0.5, 1.0], (B, 1)), atol=1e-15)
    np.testing.assert_allclose(sol.ys["energy"][:, 0], jax.vmap(CELL.energy)(X0), atol=1e-15)
    one = jd.simulate(CELL, X0[0], t1=1.0, dt=0.1, saveat=SaveAt(ts=[0.0, 1.0], fn=fn))
    np.testing.assert_allclose(one.ys["energy"], sol.ys["energy"][0, ::2], atol=1e-15)


def test_diffrax_solvers_batched_as_one_system():
    """A batch with explicit fixed steps is one diffrax solve; it gives each its own numbers."""
    saveat = SaveAt(ts=[0.0, 0.5, 1.0], fn=lambda t, x, args: x[:2])
    both = jd.simulate(CELL, X0, t1=1.0, dt=0.1, solver=diffrax.Tsit5(), saveat=saveat)
    assert both.ys.shape == (B, 3, 2) and both.ts.shape == (3,)
    for i in range(B):
        alone = jd.simulate(CELL, X0[i], t1=1.0, dt=0.1, solver=diffrax.Tsit5(), saveat=saveat)
        np.testing.assert_allclose(both.ys[i], alone.ys, rtol=0, atol=1e-14)
    implicit = jd.simulate(CELL, X0, t1=1.0, dt=0.02, solver=diffrax.Kvaerno5(),
        stepsize_controller=diffrax.PIDController(rtol=1e-9, atol=1e-9))  # fmt: skip
    np.testing.assert_allclose(implicit.ys[:, 0, :2], both.ys[:, -1], rtol=0, atol=1e-6)


def test_adaptive_dense_and_events():
    controller = diffrax.PIDController(rtol=1e-10, atol=1e-10)
    options = dict(t1=10.0, dt=0.1, solver=jd.Taylor(12), stepsize_controller=controller)
    want = jd.simulate(CELL, X0, t1=10.0, dt=0.01, solver=jd.Taylor(12), saveat=SaveAt(ts=[3.3]))
    sol = jd.simulate(CELL, X0, saveat=SaveAt(ts=[3.3, 10.0]), **options)
    assert sol.ts.shape == (2,)
    np.testing.assert_allclose(sol.ys[:, 0], want.ys[:, 0], rtol=0, atol=1e-9)
    dense = jd.simulate(CELL, X0[0], saveat=SaveAt(dense=True), **options)
    np.testing.assert_allclose(dense.evaluate(3.3), want.ys[0, 0], rtol=0, atol=1e-9)

    event = diffrax.Event(lambda t, y, args, **kwargs: y[0], optx.Newton(1e-12, 1e-12))
    hit = jd.simulate(CELL, X0, event=event, **options)
    crossed = hit.result == diffrax.RESULTS.event_occurred
    assert bool(jnp.any(crossed))
    assert hit.ts.shape == (B, 1)
    np.testing.assert_allclose(hit.ys[crossed, 0, 0], 0.0, atol=1e-9)


@pytest.mark.core
def test_inputs_shared_and_per_trajectory():
    """(m,) is shared, (b, m) is one each; as constants, callables, paths, stacks of paths."""
    u = jr.normal(jr.key(3), (B, 2))
    ts = jnp.linspace(0.0, 1.0, 5)

    def run(cell, x, args):
        return jd.simulate(cell, x, t1=1.0, dt=0.1, args=args).ys

    each = jnp.stack([run(DRIVEN, X0[i], u[i]) for i in range(B)])
    stacked = eqx.filter_vmap(diffrax.LinearInterpolation)(
        jnp.tile(ts, (B, 1)), jnp.tile(u[:, None], (1, 5, 1))
    )
    wide = diffrax.LinearInterpolation(ts=ts, ys=jnp.tile(u, (5, 1, 1)))
    for args in (u, lambda t: u, wide, stacked):
        np.testing.assert_allclose(run(DRIVEN, X0, args), each, rtol=0, atol=1e-14)
    shared = jnp.stack([run(DRIVEN, X0[i], u[0]) for i in range(B)])
    for args in (u[0], lambda t: u[0]):
        np.testing.assert_allclose(run(DRIVEN, X0, args), shared, rtol=0, atol=1e-14)


def test_driven_time_starts_at_t0():
    def u(t):
        return jnp.stack([jnp.sin(t), jnp.cos(t)])

    got = jd.simulate(DRIVEN, X0[0], t0=3.0, t1=4.0, dt=0.1, args=u).ys[0]
    want = steps_by_hand(jd.Strang(), DRIVEN, X0[0], 0.1, 10, u, t0=3.0)[-1]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-14)


@pytest.mark.core
def test_float32_stays_float32():
    x = X0.astype(jnp.float32)
    for solver in (jd.Strang(), jd.Taylor(6), jd.DiscreteGradient(), diffrax.Tsit5()):
        sol = jd.simulate(CELL, x, t1=1.0, dt=0.1, solver=solver)
        assert sol.ys.dtype == jnp.float32 and sol.ts.dtype == jnp.float32
        want = jd.simulate(CELL, X0, t1=1.0, dt=0.1, solver=solver).ys
        np.testing.assert_allclose(sol.ys, want, rtol=0, atol=2e-6)  # 10 steps, eps = 1.2e-7
    assert jd.simulate(CELL, [1, 2, 3, 4], t1=1, dt=0.1).ys.dtype == jnp.float64


def test_save_times_in_float32_count_as_on_the_grid():
    """100 is 2000 steps of .05, though float32 cannot say .05 exactly."""
    ts = jnp.linspace(0, 100, 201, dtype=jnp.float32)
    x = X0.astype(jnp.float32)
    sol = jd.simulate(CELL, x, t1=100.0, dt=0.05, saveat=SaveAt(ts=ts))
    alone = jd.simulate(CELL, x, n_steps=2000, dt=0.05).ys[:, 0]
    np.testing.assert_array_equal(sol.ys[:, -1], alone)


def test_differentiable_in_dt_x0_and_parameters():
    def loss(dt, x, cell):
        return jnp.sum(jd.simulate(cell, x, n_steps=30, dt=dt).ys ** 3)

    args = (jnp.asarray(0.1), X0, CELL)
    reverse = eqx.filter_grad(lambda p: loss(*p))(args)
    eps = 1e-6
    central = (loss(0.1 + eps, X0, CELL) - loss(0.1 - eps, X0, CELL)) / (2 * eps)
    assert float(reverse[0]) == pytest.approx(float(central), rel=1e-6)
    forward = jax.jacfwd(loss, argnums=(0, 1))(*args)
    for a, b in zip(forward, reverse[:2], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)
    jitted = eqx.filter_jit(eqx.filter_grad(lambda p: loss(*p)))(args)
    np.testing.assert_allclose(jitted[1], reverse[1], rtol=0, atol=1e-13)


def test_vmap_over_cells():
    cells = eqx.filter_vmap(lambda k: jd.PoissonCell(jd.DenseSkew.random(N, key=k), jd.Tanh()))(
        jr.split(jr.key(5), 3)
    )
    got = eqx.filter_vmap(lambda c: jd.simulate(c, X0, t1=1.0, dt=0.1).ys)(cells)
    for i in range(3):
        one = jax.tree.map(lambda leaf, i=i: leaf[i] if eqx.is_array(leaf) else leaf, cells)
        alone = jd.simulate(one, X0, t1=1.0, dt=0.1).ys
        np.testing.assert_allclose(got[i], alone, rtol=0, atol=1e-14)


def test_progress_bar_changes_nothing(capfd):
    quiet = jd.simulate(CELL, X0, t1=30.0, dt=0.1).ys
    shown = jd.simulate(CELL, X0, t1=30.0, dt=0.1, progress=True).ys
    jax.effects_barrier()
    np.testing.assert_array_equal(quiet, shown)
    assert "100" in capfd.readouterr().err


def test_failure_is_reported_per_trajectory():
    """Euler blows up a linear network; only the trajectory that starts away from 0 fails."""
    cell = jd.PoissonCell(CELL.operator, jd.Identity())
    x = jnp.stack([jnp.zeros(N), jnp.ones(N)])
    options = dict(n_steps=2000, dt=10.0, solver=diffrax.Euler())
    sol = jd.simulate(cell, x, throw=False, **options)
    assert (sol.result == diffrax.RESULTS.successful).tolist() == [True, False]
    with pytest.raises(Exception, match="infinite or NaN"):
        jd.simulate(cell, x, **options)


def test_default_solver():
    x = X0[0]
    shell = jd.PoissonCell(CELL.operator, jd.Tanh(), regulator=jd.EnergyShell(1.0, 0.1))
    for cell, solver in ((CELL, jd.Strang()), (shell, jd.RK4())):
        default = jd.simulate(cell, x, t1=1.0, dt=0.1).ys
        np.testing.assert_array_equal(
            default, jd.simulate(cell, x, t1=1.0, dt=0.1, solver=solver).ys
        )


@pytest.mark.core
def test_results_are_diffrax_results():
    sol = jd.simulate(CELL, X0[0], t1=1.0, dt=0.1)
    assert sol.result == diffrax.RESULTS.successful
    assert diffrax.is_successful(sol.result)
    assert int(sol.stats["num_steps"]) == 10
    short = jd.simulate(CELL, X0, t1=100.0, dt=0.1, saveat=SaveAt(ts=[0.5]))
    assert short.stats["num_steps"].tolist() == [5] * B  # nothing after the last save


def test_implicit_diffrax_solver_at_fixed_steps():
    got = jd.simulate(CELL, X0, t1=1.0, dt=0.1, solver=diffrax.Kvaerno5()).ys
    want = jd.simulate(CELL, X0, t1=1.0, dt=0.1, solver=jd.Taylor(12)).ys
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


def test_drift_of_a_failed_solve_is_nan():
    options = dict(saveat=SaveAt(steps=True), throw=False, max_steps=5, solver=diffrax.Tsit5())
    controller = diffrax.PIDController(rtol=1e-8, atol=1e-8)
    sol = jd.simulate(CELL, X0, t1=100.0, dt=0.1, stepsize_controller=controller, **options)
    assert jnp.all(jnp.isnan(jd.energy_drift(CELL, X0, sol)))

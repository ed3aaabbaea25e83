"""Oscillators against DOP853, simulate and the closed forms of two units."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import jaxdyn as jd

N, T0 = 4, 3.0
CELL = jd.PoissonCell(jd.DenseSkew.random(N, key=jr.key(0), scale=1.5), jd.Tanh())
X0 = jr.normal(jr.key(1), (N,))
C, D = np.random.default_rng(0).standard_normal((2, N)), np.array([0.3, -1.0])
MODEL = jd.Oscillator(X0, CELL, jd.Readout(C, D), t0=T0, channels=("a", "b"), time_unit="s")
IRREGULAR = np.array([-4.0, -1.3, -1.2, 2.9, 3.0, 3.1, 7.7, 12.0])


def dop853(cell, x0, ts, t0=T0):
    """States at times before and after t0."""
    field = jax.jit(lambda x: cell(0.0, x, None))
    out = []
    for t in ts:
        span = (t0, t)
        y = solve_ivp(
            lambda _, x: np.asarray(field(x)),
            span,
            np.asarray(x0),
            "DOP853",
            rtol=1e-12,
            atol=1e-13,
        ).y[:, -1]
        out.append(np.asarray(x0) if t == t0 else y)
    return np.stack(out)


def pair(w=1.7, energy=2.0, shell=None):
    """Two units of frequency w with the energy, from a point that is no turning point."""
    W = jd.DenseSkew.from_matrix(jnp.array([[0.0, w], [-w, 0.0]]))
    regulator = None if shell is None else jd.EnergyShell(*shell)
    cell = jd.PoissonCell(W, jd.Tanh(), regulator=regulator)
    return jd.Oscillator(jd.orbit(0.3, energy, w), cell)


@pytest.mark.parametrize(
    "ts",
    [
        IRREGULAR,
        T0 + 0.5 * np.arange(9),
        np.linspace(-3.0, 2.0, 6),
        np.array([T0]),
        np.array([9.1]),
    ],
    ids=["irregular", "from t0", "before t0", "at t0", "one later"],
)
def test_states_are_exact_before_and_after_t0(ts):
    wanted = dop853(CELL, X0, ts)
    np.testing.assert_allclose(MODEL.states(ts), wanted, rtol=0, atol=1e-10)
    np.testing.assert_allclose(MODEL(ts), wanted @ C.T + D, rtol=0, atol=1e-9)


def test_agrees_with_simulate():
    ts = T0 + 0.1 * np.arange(50)
    sol = jd.simulate(CELL, X0, dt=0.1, n_steps=49, solver=jd.Taylor(16), saveat=_steps())
    np.testing.assert_allclose(MODEL.states(ts), sol.ys, rtol=0, atol=1e-11)
    # Another solver, and a cell that Taylor's series does not serve.
    np.testing.assert_allclose(MODEL(ts, solver=jd.RK4()), MODEL(ts), rtol=0, atol=1e-2)
    hard = jd.PoissonCell(CELL.operator, jd.HardTanh())
    wanted = dop853(hard, X0, ts[-1:])
    np.testing.assert_allclose(
        jd.Oscillator(X0, hard, t0=T0).states(ts)[-1:], wanted, rtol=0, atol=1e-5
    )


def _steps():
    import diffrax

    return diffrax.SaveAt(t0=True, steps=1)


def test_generate():
    signal = MODEL.generate(T0 + 1.05, 0.1)
    np.testing.assert_allclose(signal.ts, T0 + 0.1 * np.arange(11), atol=1e-12)
    np.testing.assert_array_equal(signal.values, MODEL(signal.ts))
    assert signal.channels == ("a", "b") and signal.time_unit == "s" and signal.is_complete
    earlier = MODEL.generate(0.0, 0.25, t0=-1.0)
    np.testing.assert_allclose(earlier.ts, [-1, -0.75, -0.5, -0.25, 0])
    # An end that is a whole number of steps away counts, whatever rounding says.
    assert MODEL.generate(T0 + 0.3, 0.1).n_samples == 4


@pytest.mark.parametrize("energy", [0.01, 0.5, 2.0])
def test_frequency_of_two_units_is_that_of_the_closed_form(energy):
    model = pair(energy=energy)
    found = model.frequencies()
    assert found.shape == (1,)
    period = float(jd.period(energy, 1.7))
    # Overtones that are not asked for shift it; by 1.2e-8 at H = 2.
    np.testing.assert_allclose(found[0], 2 * np.pi / period, rtol=3e-8)
    np.testing.assert_allclose(model.frequencies(3) * period / (2 * np.pi), [1, 3, 5], rtol=1e-6)


def test_energy():
    ts = np.linspace(-20, 40, 7)
    start = float(np.sum(np.log(np.cosh(X0))))
    assert float(MODEL.energy()) == pytest.approx(start, rel=1e-13)
    np.testing.assert_allclose(MODEL.energy(ts), start, rtol=1e-11)


@pytest.mark.parametrize("energy", [1e-6, 0.3, 40.0])
def test_at_energy(energy):
    other = MODEL.at_energy(energy)
    assert float(other.energy()) == pytest.approx(energy, rel=1e-12)
    ratio = np.asarray(other.x0 / X0)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-12)
    assert ratio[0] > 0 and other.channels == MODEL.channels


@pytest.mark.parametrize("energy, rate, w", [(1.5, 0.2, 1.3), (0.4, 0.05, 2.0)])
def test_multiplier_of_two_units_is_exact(energy, rate, w):
    model = pair(w, 0.7, (energy, rate))
    wanted = float(jd.shell_multiplier(energy, rate, w))
    assert model.multiplier() == pytest.approx(wanted, rel=1e-7)
    assert float(jd.shell_multiplier(1.5, 0.2, 1.3)) == pytest.approx(0.1025834765, abs=1e-9)
    with pytest.raises(ValueError, match="no EnergyShell; fit with shell="):
        pair().multiplier()


def test_a_kicked_cycle_returns_at_the_rate_of_its_multiplier():
    """A kick of 2 % in energy: what is left after each period."""
    energy, rate, w = 1.5, 0.05, 1.3
    model = pair(w, energy, (energy, rate))
    kicked = model.at_energy(1.02 * energy)
    times = float(jd.period(energy, w)) * np.arange(6)
    left = np.asarray(kicked.energy(times)) - energy
    assert left[0] == pytest.approx(0.02 * energy)
    np.testing.assert_allclose(left[1:] / left[:-1], model.multiplier(), rtol=0.05)
    # The cycle itself is a cycle.
    states = np.asarray(model.states(times))
    np.testing.assert_allclose(states, np.broadcast_to(states[0], states.shape), atol=1e-9)


def test_save_and_load(tmp_path):
    for model in (MODEL, pair(shell=(1.0, 0.1))):
        model.save(tmp_path / "model.eqx")
        back = jd.Oscillator.load(tmp_path / "model.eqx")
        ts = np.linspace(-1, 7, 5)
        np.testing.assert_array_equal(back(ts), model(ts))
        jax.tree.map(np.testing.assert_array_equal, back, model)


def test_load_refuses_another_module(tmp_path):
    from jaxdyn._model_file import save_module

    save_module(tmp_path / "cell.eqx", CELL)
    with pytest.raises(ValueError, match="Oscillator"):
        jd.Oscillator.load(tmp_path / "cell.eqx")


def test_single_precision(tmp_path):
    MODEL.save(tmp_path / "model.eqx")
    ts = T0 + 0.1 * np.arange(20)
    with jax.enable_x64(False):
        model = jd.Oscillator.load(tmp_path / "model.eqx")
        assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {np.dtype("float32")}
        values = model(ts)
        signal = model.generate(T0 + 2, 0.1)
    assert values.dtype == signal.values.dtype == np.float32
    # Rounding of 20 times 2 steps, of numbers of order 3.
    np.testing.assert_allclose(values, MODEL(ts), rtol=0, atol=2e-5)


def test_lists_and_integers_become_floats():
    W = jd.DenseSkew.from_matrix(jnp.array([[0.0, 1.0], [-1.0, 0.0]]))
    model = jd.Oscillator([1, 0], jd.PoissonCell(W, jd.Tanh()), jd.Readout([[2, 0]], [1]), step=1)
    assert model.x0.dtype == model.readout.matrix.dtype == np.float64
    assert float(model(np.array([0.0]))[0, 0]) == 3
    assert model.channels == ("y1",) and model.size == 2


def test_under_jit_and_grad():
    """With a step given, which |W|_2 has none there to make."""
    ts = T0 + 0.5 * np.arange(5)

    def last(x0):
        return jd.Oscillator(x0, CELL, jd.Readout(C, D), t0=T0, step=0.1)(ts)[-1, 0]

    assert float(jax.jit(last)(X0)) == pytest.approx(float(MODEL(ts)[-1, 0]), rel=1e-10)
    h = 1e-6
    slope = (last(X0.at[0].add(h)) - last(X0.at[0].add(-h))) / (2 * h)
    assert float(jax.grad(last)(X0)[0]) == pytest.approx(float(slope), rel=1e-6)
    with pytest.raises(ValueError, match="`step` must be given under jit"):
        jax.jit(lambda w: jd.Oscillator(X0, jax.tree.map(lambda a: w * a, CELL)).x0)(1.0)
    with pytest.raises(ValueError, match="`ts` must be known"):
        jax.jit(lambda t: MODEL(2 * t))(ts)

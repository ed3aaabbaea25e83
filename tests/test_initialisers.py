"""Where fits start: frequencies, energies and scales as asked, each measured anew."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import jaxdyn as jd
from jaxdyn import initialisers as i
from jaxdyn import signals as s

OMEGA = [1.0, 2.3, 3.7]
SIGNAL = s.tones(OMEGA, channels=2, amplitude=[1.0, 0.7, 0.4], n_samples=300, dt=0.1)
ONE = s.tones([1.0], n_samples=300, dt=0.1)
KEY = jr.key(0)
CONFINING = [
    activation
    for activation in (
        jd.Tanh(),
        jd.Arctan(),
        jd.Erf(),
        jd.Softsign(),
        jd.ISRU(),
        jd.HardTanh(),
        jd.AsymmetricTanh(),
        jd.ELU(),
        jd.LeakyReLU(0.1),
        jd.Identity(),
    )
    if activation.confining
]


def starts(init, units=6, restarts=3, signal=SIGNAL, shell=None, key=KEY):
    return init(signal, units, restarts, key=key, shell=shell)


def turn(model, omega):
    """How far each pair of units is from its state one period 2 pi / omega earlier, (p,)."""
    out = []
    for p, w in enumerate(omega):
        times = model.t0 + np.array([0.0, 2 * np.pi / w])
        states = np.asarray(fine(model).states(times))[:, 2 * p : 2 * p + 2]
        out.append(np.linalg.norm(states[1] - states[0]) / np.linalg.norm(states[0]))
    return np.array(out)


def fine(model):
    """With a step of its own; starts have a placeholder."""
    return jd.Oscillator(model.x0, model.cell, t0=model.t0)


def pair_energies(model):
    each = np.asarray(model.cell.activation.potential(model.x0))
    return each[: 2 * (len(each) // 2)].reshape(-1, 2).sum(1)


@pytest.mark.parametrize("energy", [(1e-4, 1.0), (5.0, 5.0)])
def test_frequencies_first_has_the_tones_at_any_energy(energy):
    for model in starts(i.FrequenciesFirst(energy=energy)):
        assert np.max(turn(model, OMEGA)) < 1e-8
        half = model.t0 + np.array([0.0, np.pi])
        states = np.asarray(fine(model).states(half))[:, :2]
        np.testing.assert_allclose(states[1], -states[0], rtol=1e-7)  # not twice the frequency


@pytest.mark.parametrize("activation", CONFINING, ids=lambda a: type(a).__name__)
def test_other_activations_have_the_tones_too(activation):
    init = i.FrequenciesFirst(energy=(0.01, 1.0), activation=activation)
    for model in starts(init, units=2, restarts=2, signal=ONE):
        field = jax.jit(lambda x, cell=model.cell: cell(0.0, x, None))
        x0, times = np.asarray(model.x0), np.array([0, np.pi, 2 * np.pi])
        flow = lambda t, x, f=field: np.asarray(f(x))  # noqa: E731
        states = solve_ivp(flow, times[[0, 2]], x0, "DOP853", times, rtol=1e-11, atol=1e-13).y
        error = np.linalg.norm(states[:, 2] - x0) / np.linalg.norm(x0)
        # The slope of the asymmetric tanh jumps where units cross 0, which costs RK4 its order.
        assert error < (3e-6 if isinstance(activation, jd.AsymmetricTanh) else 1e-8)
        # Once round in that time, not twice.
        assert np.linalg.norm(states[:, 1] - x0) > 0.5 * np.linalg.norm(x0)
        assert type(model.cell.activation) is type(activation)


def test_energies_are_those_asked_for():
    """Levels spread evenly over the decades, the largest first; pairs within a factor e."""
    models = starts(i.FrequenciesFirst(energy=(1e-3, 10.0)), restarts=5)
    for level, model in zip(10.0 ** np.arange(1, -4, -1), models, strict=True):
        ratio = pair_energies(model) / level
        assert np.all((ratio > np.exp(-0.5) - 1e-9) & (ratio < np.exp(0.5) + 1e-9))
    phases = [np.arctan2(*model.x0[:2]) for model in models]
    assert len({round(float(phase), 3) for phase in phases}) == 5


def test_more_pairs_than_tones_start_at_the_same_tones():
    (model,) = starts(i.FrequenciesFirst(), units=4, restarts=1, signal=ONE)
    assert np.max(turn(model, [1.0, 1.0])) < 1e-8
    energies = pair_energies(model)
    assert abs(np.log(energies[0] / energies[1])) > 1e-3


def test_given_frequencies_are_taken_at_their_word():
    (model,) = starts(i.FrequenciesFirst(omega=[0.7, 5.0]), units=4, restarts=1)
    assert np.max(turn(model, [0.7, 5.0])) < 1e-8


def test_an_odd_unit_is_coupled_to_the_others():
    (model,) = starts(i.FrequenciesFirst(energy=(1e-3, 1e-3)), units=7, restarts=1)
    W = np.asarray(model.cell.operator.as_matrix())
    assert W.shape == (7, 7) and np.all(np.abs(W[:6, 6]) > 0) and np.max(np.abs(W[:6, 6])) < 0.05
    assert float(model.x0[6]) == 0
    # Its couplings, 1e-3 of the largest weight, detune by their square.
    assert np.max(turn(model, OMEGA)) < 1e-2


def test_coupling():
    plain, coupled = (
        starts(i.FrequenciesFirst(coupling=c), restarts=1)[0].cell.operator.as_matrix()
        for c in (0.0, 0.1)
    )
    extra = np.asarray(coupled - plain)
    blocks = np.kron(np.eye(3), np.ones((2, 2))) > 0
    assert np.all(np.asarray(plain)[~blocks] == 0)
    size = 0.1 * float(np.max(np.asarray(plain))) / np.sqrt(6)
    # The rms of 15 normal numbers.
    assert 0.5 < np.sqrt(np.mean(extra[np.triu_indices(6, 1)] ** 2)) / size < 1.6
    np.testing.assert_array_equal(extra, -extra.T)


@pytest.mark.parametrize("operator", [jd.DenseSkew, jd.BlockSkew, jd.SpectralSkew, jd.BandedSkew])
def test_operators(operator):
    init = i.FrequenciesFirst(operator=operator)
    (model,) = starts(init, restarts=1)
    assert type(model.cell.operator) is operator
    (dense,) = starts(i.FrequenciesFirst(), restarts=1)
    found = np.sort(model.cell.operator.frequencies())
    np.testing.assert_allclose(found, np.sort(dense.cell.operator.frequencies()), rtol=1e-10)


@pytest.mark.parametrize(
    "init", [i.FrequenciesFirst(), i.Random(), None], ids=["FrequenciesFirst", "Random", "From"]
)
def test_every_start_fits_the_signal(init):
    """Times, names, an unused readout, one structure for all; and a shell at its own energy."""
    signal = s.Signal.of(SIGNAL.values, ts=SIGNAL.ts + 7, channels=["u", "v"], time_unit="years")
    if init is None:
        init = i.FromOscillator(starts(i.Random(), units=4, restarts=1)[0])
    for shell in (None, 0.3):
        models = starts(init, units=4, signal=signal, shell=shell)
        assert len(models) == 3 and len({jax.tree.structure(m) for m in models}) == 1
        for model in models:
            assert model.t0 == 7 and model.channels == ("u", "v") and model.time_unit == "years"
            assert model.readout.matrix.shape == (2, 4) and model.x0.dtype == np.float64
        first = models[0]
        if shell is None:
            assert first.cell.regulator is None
        else:
            regulator = first.cell.regulator
            assert float(regulator.rate) == 0.3
            assert float(regulator.energy) == pytest.approx(float(first.energy()), rel=1e-12)
        assert not np.array_equal(models[0].x0, models[1].x0)
    again = starts(init, units=4, signal=signal)
    other = starts(init, units=4, signal=signal, key=jr.key(1))
    np.testing.assert_array_equal(again[2].x0, starts(init, units=4, signal=signal)[2].x0)
    assert not np.array_equal(again[2].x0, other[2].x0)


def test_random_scale_and_amplitude():
    models = starts(i.Random(scale=3.0, amplitude=0.1), units=8, restarts=30)
    for model in models:
        assert float(model.cell.operator.frequencies().max()) == pytest.approx(3.0, rel=1e-6)
    # 240 normal numbers: 1 +- 4 / sqrt(480).
    assert np.std([m.x0 for m in models]) == pytest.approx(0.1, rel=0.2)
    (model,) = starts(i.Random(), restarts=1)
    assert float(model.cell.operator.frequencies().max()) == pytest.approx(1.2 * 3.7, rel=1e-6)


def test_from_oscillator_goes_on_where_it_was():
    cell = jd.PoissonCell(jd.DenseSkew.random(4, key=KEY), jd.Tanh())
    model = jd.Oscillator(jnp.ones(4), cell, jd.Readout(np.ones((2, 4)), [1.0, 2.0]), t0=-3.0)
    signal = s.Signal.of(SIGNAL.values, ts=SIGNAL.ts + 5)
    same, *shaken = starts(i.FromOscillator(model, spread=0.02), units=4, signal=signal)
    ts = np.linspace(5, 15, 30)
    again = eqx.tree_at(lambda o: o.cell, model, same.cell)
    np.testing.assert_array_equal(again(ts), model(ts))
    moved = jd.Oscillator(same.x0, same.cell, same.readout, t0=same.t0)
    np.testing.assert_allclose(moved(ts), model(ts), rtol=0, atol=1e-10)
    for other in shaken:
        ratios = jax.tree.map(
            lambda a, b: np.ravel(a / b), *(eqx.filter(m, eqx.is_array) for m in (other, same))
        )
        ratio = np.concatenate(jax.tree.leaves(ratios))
        assert 0.005 < np.std(ratio) < 0.04 and np.max(np.abs(ratio - 1)) < 0.1
    first, second, _ = starts(i.FromOscillator(model, spread=0), units=4, signal=signal)
    np.testing.assert_array_equal(first.x0, second.x0)

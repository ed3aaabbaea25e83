"""Plotting functions draw what they were given, on the axes they were given."""

import diffrax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

import jaxdyn as jd
from jaxdyn import plot


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def cell():
    return jd.PoissonCell(jd.BlockSkew(jnp.ones(1)), jd.Tanh())


@pytest.fixture(scope="module")
def states():
    ts = np.linspace(0, 10, 41)
    return ts, np.asarray(jd.orbit(jnp.asarray(ts)[None], jnp.asarray([[0.5], [2.0]])))


def test_phase_portrait(cell, states):
    _, ys = states
    _, ax = plt.subplots()
    assert plot.phase_portrait(cell, ys, ax=ax, label="orbit") is ax
    # One line and one starting dot per trajectory.
    assert len(ax.lines) == 4
    np.testing.assert_array_equal(ax.lines[2].get_xydata(), ys[1])
    assert ax.get_xlabel() == "$x_{1}$" and ax.get_legend_handles_labels()[1] == ["orbit"]
    swapped = plot.phase_portrait(cell, ys[0], units=(1, 0))
    assert swapped is not ax and len(swapped.lines) == 2
    np.testing.assert_array_equal(swapped.lines[0].get_xydata(), ys[0][:, ::-1])


def test_energy_is_the_relative_error(cell, states):
    ts, ys = states
    pushed = ys.copy()
    pushed[1, 1:] *= 1.01
    ax = plot.energy(cell, ts, pushed)
    assert ax.get_yscale() == "log" and "time" in ax.get_xlabel()
    h = np.sum(np.log(np.cosh(pushed)), axis=-1)
    expected = np.abs(h[1] / h[1, 0] - 1)
    np.testing.assert_allclose(ax.lines[1].get_ydata()[1:], expected[1:], rtol=1e-10)
    # Exact zeros are lifted onto the axis.
    assert ax.lines[0].get_ydata()[0] == np.finfo(float).eps / 2


def test_energy_takes_the_times_of_a_solution(cell):
    saveat = diffrax.SaveAt(steps=5)
    sol = jd.simulate(cell, jnp.asarray([1.0, 0.5]), t1=2.0, dt=0.1, saveat=saveat)
    ax = plot.energy(cell, None, sol)
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [0.5, 1.0, 1.5, 2.0], rtol=1e-15)


def test_level_sets(cell):
    ax = plot.level_sets(cell, extent=2.0, levels=[0.5, 1.0])
    assert len(ax.collections) == 1
    rings = ax.collections[0].get_paths()
    points = np.concatenate([p.vertices for p in rings])
    h = np.sum(np.log(np.cosh(points)), axis=1)
    # Linear interpolation on a grid of spacing 0.02 errs by 0.02^2 / 8 in H.
    assert np.max(np.min(np.abs(h[:, None] - np.array([0.5, 1.0])), axis=1)) < 1e-4


def test_spectrum_finds_the_tone():
    t = 0.1 * np.arange(2000)
    ax = plot.spectrum(0.7 * np.sin(1.3 * t) + 4.0, 0.1)
    omega, amplitude = ax.lines[0].get_data()
    top = np.argmax(amplitude)
    # Half a bin of 2 pi / 200; the Hann window loses at most 15 % between two bins.
    assert abs(omega[top] - 1.3) <= np.pi / 200 and 0.59 < amplitude[top] <= 0.7 + 1e-3


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda c, t, y: plot.phase_portrait(c, y, units=(0, 2)), "`units`"),
        (lambda c, t, y: plot.phase_portrait(c, y[..., :1]), "`sol`"),
        (lambda c, t, y: plot.energy(c, t[:-1], y), "`ts`"),
        (lambda c, t, y: plot.energy(c, None, y), "`ts`"),
        (lambda c, t, y: plot.level_sets(c, extent=0.0), "`extent`"),
        (lambda c, t, y: plot.spectrum(y, 0.1), "`signal`"),
        (lambda c, t, y: plot.spectrum(y[0, :, 0], 0.0), "`dt`"),
        (lambda c, t, y: plot.spectrum(np.full(9, np.nan), 0.1), "`signal`"),
    ],
)
def test_bad_input(cell, states, call, says):
    with pytest.raises(ValueError, match=says):
        call(cell, *states)


def test_level_sets_need_two_units():
    cell = jd.PoissonCell(jd.BlockSkew(jnp.ones(2)), jd.Tanh())
    with pytest.raises(ValueError, match="two units"):
        plot.level_sets(cell)

"""Plotting functions draw what they were given, on the axes they were given."""

import io

import diffrax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

import jaxdyn as jd
from jaxdyn import plot
from jaxdyn._train.report import figures
from jaxdyn._train.result import History


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


def test_spectrum_on_a_finer_grid_has_the_same_values():
    y = np.sin(0.7 * np.arange(40)) + 1.0
    coarse, fine = (plot.spectrum(y, 0.5, pad=pad).lines[0].get_data() for pad in (1, 8))
    np.testing.assert_allclose(fine[0][::8], coarse[0], rtol=1e-12)
    np.testing.assert_allclose(fine[1][::8], coarse[1], rtol=1e-9, atol=1e-14)


def fitted(channels, held):
    """What `jaxdyn.fit` returns for a signal that an oscillator fits, but for a small error."""
    cell = jd.PoissonCell(jd.BlockSkew(jnp.asarray([1.0, 2.0])), jd.Tanh())
    matrix = np.arange(1.0, 1 + 4 * channels).reshape(channels, 4)
    oscillator = jd.Oscillator(jnp.asarray([0.5, 0.0, 0.2, 0.1]), cell, jd.Readout(matrix))
    ts = 0.2 * np.arange(100)
    values = np.asarray(oscillator(ts)) + 0.01
    mask = np.ones(values.shape, bool)
    mask[10:13, 0] = False
    signal = jd.signals.Signal.of(values, ts=ts, mask=mask, time_unit="s")
    metrics = {"frequencies": oscillator.frequencies().tolist()}
    return jd.Fit(
        oscillator=oscillator,
        loss=1e-4,
        losses=np.array([1e-4]),
        best=0,
        history=History((), np.zeros(0, np.int64), np.zeros((0, 1)), np.zeros((0, 1))),
        metrics=metrics,
        signal=signal,
        fitted=signal.window(0, 100 - held),
    )


def test_fit_of_one_channel_in_its_own_units():
    fit, (_, ax) = fitted(1, 30), plt.subplots()
    assert plot.fit(fit, ax=ax) is ax
    data, curve, forecast = (line.get_xydata() for line in ax.lines)
    assert ax.get_legend_handles_labels()[1] == ["held out", "data", "fit", "forecast"]
    assert ax.get_xlabel() == "time (s)" and ax.get_ylabel() == "x1"
    np.testing.assert_array_equal(np.isnan(data[:, 1]), ~fit.signal.mask[:, 0])
    np.testing.assert_array_equal(data[20:, 1], fit.signal.values[20:, 0])
    # The curve is that of the oscillator; the forecast begins where the fitted data end.
    end = fit.fitted.ts[-1]
    assert curve[-1, 0] < end <= forecast[0, 0] and forecast[-1, 0] == fit.signal.ts[-1]
    expected = fit.oscillator(curve[1:, 0])[:, 0]
    np.testing.assert_allclose(curve[1:, 1], expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(ax.patches[0].get_x(), end)


def test_fit_of_many_channels():
    ax = plot.fit(fitted(8, 30))
    # Six of them, each with its name between its least and its largest value, and apart.
    assert len(ax.lines) == 18 and ax.get_ylabel() == "6 of 8 channels"
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names[6:12] == [f"x{i}" for i in range(1, 7)]
    spans = [np.nanmin(ax.lines[3 * c].get_ydata()) for c in range(6)]
    tops = [np.nanmax(ax.lines[3 * c].get_ydata()) for c in range(6)]
    assert all(low > top for low, top in zip(spans[:-1], tops[1:], strict=True))


def test_fit_without_a_held_out_tail():
    ax = plot.fit(fitted(2, 0))
    assert ax.get_legend_handles_labels()[1] == ["data", "fit"] and not ax.patches


@pytest.mark.parametrize("channels", [1, 2, 8])
def test_figures_of_a_fit(channels):
    drawn = figures(fitted(channels, 30))
    assert list(drawn) == ["fit.png", "spectrum.png", "phase.png", "energy.png"]
    for data in drawn.values():
        image = plt.imread(io.BytesIO(data))
        assert image.shape[1] == 1080 and np.ptp(image) > 0.9


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
        (lambda c, t, y: plot.spectrum(y[0, :, 0], 0.1, pad=0), "`pad`"),
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


def test_family_is_solid_where_stable_and_marks_bifurcations():
    at = jnp.arange(5.0)
    flip = jd.Bifurcation("period doubling", 1.5, 2.6, jnp.zeros(2), 1.5)
    hopf = jd.Bifurcation("Hopf", -0.5, 0.9, jnp.array([0.0, 7.0]), -0.5)
    cycles = jd.CycleFamily(
        parameter=at,
        period=at + 1,
        x=jnp.zeros((5, 2)),
        lowest=-jnp.stack([at, at], 1),
        highest=jnp.stack([at, at], 1),
        multipliers=jnp.array([0.5, 0.9, -1.2, -1.3, -1.4], complex)[:, None],
        residual=at,
        error=at,
        arclength=at,
        bifurcations=(hopf, flip),
        reasons=("", ""),
    )
    ax = plot.family(cycles)
    solid, dashed, *marks = ax.lines
    np.testing.assert_allclose(solid.get_xydata(), [[-0.5, 0.9], [0, 1], [1, 2], [1.5, 2.6]])
    np.testing.assert_allclose(dashed.get_xydata(), [[1.5, 2.6], [2, 3], [3, 4], [4, 5]])
    assert (solid.get_linestyle(), dashed.get_linestyle()) == ("-", "--")
    assert {m.get_label() for m in marks} == {"Hopf", "period doubling"}
    _, ax = plt.subplots()
    assert plot.family(cycles, unit=1, ax=ax) is ax
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[-0.5, 7], [0, 0], [1, -1], [1.5, -1.5]])
    assert len(ax.get_legend().get_texts()) == 2

    orbits = jd.OrbitFamily(at, at, at[:, None], at, jnp.ones((5, 1), complex), at, (), "")
    ax = plot.family(orbits, color="k")
    assert len(ax.lines) == 1 and ax.get_legend() is None and "energy" in ax.get_xlabel()
    with pytest.raises(ValueError, match="`unit`"):
        plot.family(orbits, unit=0)
    for unit in (2, True, -1):
        with pytest.raises(ValueError, match="`unit`"):
            plot.family(cycles, unit=unit)
    with pytest.raises(TypeError, match="`family`"):
        plot.family(at)

"""Crossings of a plane against closed forms, an energy and scipy's events."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import jaxdyn as jd

W = 1.7
PAIR = jd.PoissonCell(jd.DenseSkew(jnp.array([-W])), jd.Tanh())


def test_two_units_cross_once_a_turn():
    """x2 = 0 upwards at t0 + k T, at one point."""
    energy = 1.2
    exact = float(jd.period(energy, W))
    x0 = jd.orbit(0.9, energy, W)
    found = jd.poincare_section(PAIR, x0, 20.3 * exact, 0.1, normal=1)
    count = int(found.count)
    assert count == int(found.found) == 20
    times, points = np.asarray(found.times)[:count], np.asarray(found.points)[:count]
    # Half a turn after x2 = 0 downwards with x1 > 0, at t = 0 of the closed form.
    expected = exact / 2 - 0.9 + exact * np.arange(20)
    np.testing.assert_allclose(times, expected, rtol=0, atol=1e-11)
    assert np.all(np.abs(points[:, 1]) < 1e-15)
    np.testing.assert_allclose(points[:, 0], points[0, 0], atol=1e-12)
    assert np.all(np.isnan(np.asarray(found.points)[count:]))
    down = jd.poincare_section(PAIR, x0, 20.3 * exact, 0.1, normal=1, direction=-1)
    both = jd.poincare_section(PAIR, x0, 20.3 * exact, 0.1, normal=1, direction=0)
    assert int(both.count) == int(down.count) + count
    merged = np.sort(np.concatenate([times, np.asarray(down.times)[: int(down.count)]]))
    np.testing.assert_allclose(np.asarray(both.times)[: int(both.count)], merged, atol=1e-12)


def test_a_start_on_the_plane_is_no_crossing():
    x0 = jd.orbit(0.0, 1.2, W)
    exact = float(jd.period(1.2, W))
    found = jd.poincare_section(PAIR, x0, 1.25 * exact, 0.1, normal=1, direction=0)
    np.testing.assert_allclose(np.asarray(found.times)[:2], [exact / 2, exact], atol=1e-11)
    assert int(found.count) == 2


def test_henon_heiles_against_scipy():
    def field(t, s, args):
        x, y, px, py = s
        return jnp.stack([px, py, -x - 2.0 * x * y, -y - x**2 + y**2])

    start = np.array([0.0, 0.483, 0.27898039, 0.0])
    found = jd.poincare_section(field, start, 100.0, 0.05, normal=[1.0, 0.0, 0.0, 0.0])

    def event(t, s):
        return s[0]

    event.direction = 1
    other = solve_ivp(
        lambda t, s: [s[2], s[3], -s[0] - 2 * s[0] * s[1], -s[1] - s[0] ** 2 + s[1] ** 2],
        (0, 100),
        start,
        "DOP853",
        events=event,
        rtol=1e-13,
        atol=1e-14,
    )
    times = other.t_events[0][other.t_events[0] > 1e-6]
    count = int(found.count)
    assert count == len(times)
    np.testing.assert_allclose(np.asarray(found.times)[:count], times, atol=1e-8)
    points = np.asarray(found.points)[:count]
    assert np.max(np.abs(points[:, 0])) < 1e-12
    x, y, px, py = points.T
    energy = 0.5 * (px**2 + py**2 + x**2 + y**2) + x**2 * y - y**3 / 3
    np.testing.assert_allclose(energy, energy[0], atol=1e-12)


def test_a_batch_and_room_for_few():
    cell = jd.PoissonCell(jd.DenseSkew.random(4, key=jr.key(0)), jd.Tanh())
    x0 = jr.normal(jr.key(1), (3, 4))
    normal = jr.normal(jr.key(2), (4,))
    found = jd.poincare_section(cell, x0, 200.0, 0.1, normal=normal, offset=0.3)
    assert found.points.shape[0] == 3 and np.all(found.count > 3)
    for i, count in enumerate(np.asarray(found.count)):
        points = np.asarray(found.points)[i, :count]
        assert np.max(np.abs(points @ np.asarray(normal) - 0.3)) < 1e-12
        energies = jax.vmap(cell.energy)(jnp.asarray(points))
        np.testing.assert_allclose(energies, float(cell.energy(x0[i])), rtol=1e-11)
    few = jd.poincare_section(cell, x0, 200.0, 0.1, normal=normal, offset=0.3, max_crossings=3)
    assert few.points.shape == (3, 3, 4) and np.array_equal(few.found, found.found)
    np.testing.assert_allclose(few.points, found.points[:, :3], atol=1e-13)
    one = jd.poincare_section(cell, x0[1], 200.0, 0.1, normal=normal, offset=0.3)
    count = int(one.count)
    np.testing.assert_allclose(one.times[:count], found.times[1, :count], atol=1e-9)


def test_what_diverges_or_never_crosses_is_said():
    with pytest.raises(RuntimeError, match="diverged"):
        jd.poincare_section(lambda t, x, args: x**2, jnp.ones(2), 20.0, 0.05, normal=0)
    x0 = jd.orbit(0.0, 0.5, W)
    with pytest.raises(RuntimeError, match="no trajectory crosses"):
        jd.poincare_section(PAIR, x0, 20.0, 0.1, normal=0, offset=50.0)
    quiet = jd.poincare_section(PAIR, x0, 20.0, 0.1, normal=0, offset=50.0, throw=False)
    assert int(quiet.count) == 0 and np.all(np.isnan(quiet.times))


@pytest.mark.parametrize(
    ("change", "error", "names"),
    [
        ({"normal": 2}, ValueError, "normal"),
        ({"normal": [1.0, 0.0, 0.0]}, ValueError, "normal"),
        ({"normal": [0.0, 0.0]}, ValueError, "normal"),
        ({"normal": [np.nan, 1.0]}, ValueError, "normal"),
        ({"normal": "x"}, ValueError, "normal"),
        ({"offset": np.inf}, ValueError, "offset"),
        ({"offset": "here"}, TypeError, "offset"),
        ({"direction": 0.5}, ValueError, "direction"),
        ({"max_crossings": 0}, ValueError, "max_crossings"),
        ({"t1": 0.0}, ValueError, "t1"),
        ({"dt": -0.1}, ValueError, "dt"),
        ({"x0": np.ones(3)}, ValueError, "x0"),
    ],
)
def test_bad_input(change, error, names):
    given = {"field": PAIR, "x0": np.ones(2), "t1": 10.0, "dt": 0.1, "normal": 0} | change
    with pytest.raises(error, match=f"`{names}`"):
        jd.poincare_section(**given)

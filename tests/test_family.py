"""Families of periodic orbits against the closed form, single orbits and the linear modes."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jaxdyn as jd


def tanh_cell(n, seed):
    return jd.PoissonCell(jd.DenseSkew.random(n, key=jr.key(seed)), jd.Tanh())


def test_two_units_follow_the_exact_period():
    cell = jd.PoissonCell(jd.DenseSkew(jnp.array([-1.7])), jd.Tanh())
    family = jd.orbit_family(cell, 0, max_energy=6.0)
    assert family.reason == "max_energy = 6 reached"
    exact = jax.vmap(lambda h: jd.period(h, 1.7))(family.energy)
    np.testing.assert_allclose(family.period, exact, rtol=1e-10)
    assert float(family.energy[0]) < 1e-5 and np.all(np.diff(np.asarray(family.energy)) > 0)
    assert family.stability_indices.shape == (len(family.energy), 0)
    assert np.max(np.asarray(family.residual)) < 1e-9 and family.bifurcations == ()


@pytest.fixture(scope="module")
def branch():
    """The slow mode: it loses its stability at H = 1.756, where another family branches off."""
    cell = tanh_cell(4, 13)
    return cell, jd.orbit_family(cell, 1, max_energy=3.0)


def test_it_begins_at_the_linear_mode(branch):
    cell, family = branch
    values, vectors = np.linalg.eigh(1j * np.asarray(cell.operator.as_matrix()))
    fast, slow = values[-1], values[-2]
    assert float(family.period[0]) == pytest.approx(2 * np.pi / slow, rel=1e-5)
    # While the slow mode turns once the fast one turns by its own frequency.
    first = float(family.stability_indices[0, 0].real)
    assert first == pytest.approx(2 * np.cos(2 * np.pi * fast / slow), abs=1e-4)
    # The backbone: Omega = w (1 - P E) to first order in the energy.
    P = np.sum(np.abs(vectors[:, -2]) ** 4)
    small = np.asarray(family.energy) < 0.01
    omega = 2 * np.pi / np.asarray(family.period)[small]
    predicted = slow * (1 - P * np.asarray(family.energy)[small])
    np.testing.assert_allclose(omega, predicted, rtol=1e-4)
    assert small.sum() >= 2


def test_it_crosses_a_bifurcation_and_never_falls_onto_no_time(branch):
    cell, family = branch
    periods = np.asarray(family.period)
    assert np.all(np.abs(np.diff(np.log(periods))) < 0.5) and periods.min() > 1.0
    assert np.max(np.asarray(family.residual)) < 1e-9
    assert len(family.bifurcations) == 1
    assert family.bifurcations[0].at == pytest.approx(1.7559, abs=1e-3)
    for point in family.bifurcations:
        assert point.kind in ("fold or branch", "period doubling")
        edge = 2.0 if point.kind == "fold or branch" else -2.0
        orbit = jd.periodic_orbit(cell, point.x, point.period, energy=point.at)
        index = np.asarray(jd.floquet(orbit).stability_indices)
        assert np.min(np.abs(index - edge)) < 1e-5
        after = int(np.searchsorted(family.arclength, point.arclength))
        before = after - 1
        inside = sorted([float(family.energy[before]), float(family.energy[after])])
        assert inside[0] - 1e-9 <= point.at <= inside[1] + 1e-9
    # Stability changes hands there, and only there.
    assert bool(family.stable[0]) and not np.all(family.stable)


def test_members_are_the_orbits_that_shooting_finds(branch):
    cell, family = branch
    for i in range(0, len(family.energy), 7):
        orbit = jd.periodic_orbit(
            cell,
            family.x[i],
            1.001 * family.period[i],
            energy=float(family.energy[i]),
            steps=128,
        )
        assert float(orbit.period) == pytest.approx(float(family.period[i]), rel=1e-8)
        index = np.sort_complex(np.asarray(jd.floquet(orbit).stability_indices))
        wanted = np.sort_complex(np.asarray(family.stability_indices[i]))
        np.testing.assert_allclose(index, wanted, atol=1e-6)


def test_from_an_orbit_and_as_a_table(branch):
    cell, family = branch
    orbit = jd.periodic_orbit(cell, family.x[5], family.period[5])
    again = jd.orbit_family(cell, orbit, max_energy=float(family.energy[12]))
    order = np.argsort(np.asarray(family.energy)[:20])
    exact = np.interp(
        np.asarray(again.energy),
        np.asarray(family.energy)[:20][order],
        np.asarray(family.period)[:20][order],
    )
    np.testing.assert_allclose(again.period, exact, rtol=1e-3)
    lines = again.to_csv().splitlines()
    assert lines[0] == "energy,period,arclength,residual,index_1_real,index_1_imag"
    assert len(lines) == len(again.energy) + 1
    assert float(lines[1].split(",")[1]) == float(again.period[0])


def test_float32_gets_as_far():
    cell = jd.PoissonCell(jd.DenseSkew(jnp.array([-1.7], jnp.float32)), jd.Tanh())
    family = jd.orbit_family(cell, 0, max_energy=3.0)
    assert family.reason == "max_energy = 3 reached" and family.period.dtype == jnp.float32
    exact = jax.vmap(lambda h: jd.period(h, 1.7))(family.energy)
    np.testing.assert_allclose(family.period, exact, rtol=1e-4)


def test_three_units_keep_their_casimir():
    cell = tanh_cell(3, 1)
    family = jd.orbit_family(cell, 0, max_energy=2.0)
    (c,) = np.asarray(cell.operator.kernel())
    np.testing.assert_allclose(np.asarray(family.x) @ c, 0.0, atol=1e-9)
    assert family.reason.startswith("max_energy")


@pytest.mark.parametrize(
    ("change", "error", "names"),
    [
        ({"cell": jd.PoissonCell(jd.BlockSkew([1.0]), jd.Tanh(), damping=0.1)}, ValueError, "cell"),
        (
            {"cell": jd.PoissonCell(jd.BlockSkew([1.0]), jd.Tanh(), bias=jnp.ones(2))},
            ValueError,
            "cell",
        ),
        ({"cell": lambda t, x, args: x}, ValueError, "cell"),
        ({"cell": jd.AntisymmetricCell(tanh_cell(3, 0).operator, jd.Tanh())}, ValueError, "cell"),
        ({"start": 2}, ValueError, "start"),
        ({"start": -1}, ValueError, "start"),
        ({"start": "first"}, TypeError, "start"),
        ({"max_energy": 0.0}, ValueError, "max_energy"),
        ({"max_orbits": 1}, ValueError, "max_orbits"),
        ({"step": 0.0}, ValueError, "step"),
        ({"max_step": -1.0}, ValueError, "max_step"),
        ({"step": 0.5, "max_step": 0.1}, ValueError, "step"),
        ({"tol": 0.0}, ValueError, "tol"),
    ],
)
def test_bad_input(change, error, names):
    given = {"cell": tanh_cell(4, 0), "start": 0} | change
    with pytest.raises(error, match=f"`{names}`"):
        jd.orbit_family(**given)

"""Periodic orbits and Floquet multipliers against closed forms and published values."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.integrate import solve_bvp

import jaxdyn as jd


def pair(w, **options):
    """W = [[0, w], [-w, 0]], w traced or not."""
    return jd.PoissonCell(jd.DenseSkew(-jnp.asarray([w])), jd.Tanh(), **options)


def van_der_pol(t, x, args):
    return jnp.stack([x[1], (1.0 - x[0] ** 2) * x[1] - x[0]])


def henon_heiles(t, s, args):
    x, y, px, py = s
    return jnp.stack([px, py, -x - 2.0 * x * y, -y - x**2 + y**2])


def henon_heiles_energy(s):
    x, y, px, py = s
    return 0.5 * (px**2 + py**2 + x**2 + y**2) + x**2 * y - y**3 / 3.0


@pytest.mark.parametrize(("energy", "slope"), [(0.5, 2.04800344), (5.0, 2.35268018)])
def test_two_units(energy, slope):
    """THEORY.md 3.1: period and monodromy, w = 1.7."""
    guess = 1.02 * jd.orbit(0.4, energy, 1.7)
    exact = jd.period(energy, 1.7)
    orbit = jd.periodic_orbit(pair(1.7), guess, 1.05 * exact, energy=energy)
    assert float(orbit.period) == pytest.approx(float(exact), abs=1e-11)
    assert float(orbit.residual) < 1e-11 and float(orbit.error) < 1e-11
    np.testing.assert_allclose(orbit.monodromy, jd.monodromy(orbit.x, 1.7), atol=1e-9)
    found = jd.floquet(orbit)
    assert found.trivial == 2 and found.multipliers.shape == (0,) and bool(found.stable)
    _, states = orbit.states()
    np.testing.assert_allclose(states[-1], states[0], atol=1e-10)
    energies = jax.vmap(orbit.flow.field.energy)(states)
    np.testing.assert_allclose(energies, energy, rtol=1e-11)


def test_period_has_the_exact_gradients():
    """dT/dw = -T/w, and dT/dH of the closed form."""
    guess, exact = jd.orbit(0.4, 1.0, 1.7), jd.period(1.0, 1.7)

    def period(w, energy):
        orbit = jd.periodic_orbit(pair(w), guess, exact, energy=energy, steps=80, throw=False)
        return orbit.period

    by_w, by_energy = jax.grad(period, argnums=(0, 1))(jnp.asarray(1.7), jnp.asarray(1.0))
    assert float(by_w) == pytest.approx(-float(exact) / 1.7, abs=1e-9)
    # THEORY.md 3.1 has 2.18440857.
    assert float(by_energy) == pytest.approx(float(jax.grad(jd.period)(1.0, 1.7)), abs=1e-9)


def test_gradient_by_all_weights_of_a_larger_network():
    """dT/dW against differences, where no closed form is."""
    cell = jd.PoissonCell(jd.DenseSkew.random(4, key=jr.key(2)), jd.Tanh())
    mode = np.linalg.eigh(1j * np.asarray(cell.operator.as_matrix()))
    w, v = mode[0][-1], mode[1][:, -1]
    guess = 0.3 * np.real(v) / np.linalg.norm(np.real(v))

    def period(entries):
        moved = jd.PoissonCell(jd.DenseSkew(entries), jd.Tanh())
        options = {"energy": 0.04, "steps": 60, "throw": False}
        return jd.periodic_orbit(moved, guess, 2 * np.pi / w, **options).period

    entries = cell.operator.entries
    slope = np.asarray(jax.grad(period)(entries))
    h = 1e-5
    for i in range(len(entries)):
        change = jnp.zeros_like(entries).at[i].set(h)
        difference = (period(entries + change) - period(entries - change)) / (2 * h)
        assert slope[i] == pytest.approx(float(difference), abs=1e-6)


def test_the_linear_modes_are_where_families_begin():
    """Lyapunov's centre theorem: at small energy the period is that of the mode, corrected by the
    backbone."""
    cell = jd.PoissonCell(jd.DenseSkew.random(6, key=jr.key(3)), jd.Tanh())
    values, vectors = np.linalg.eigh(1j * np.asarray(cell.operator.as_matrix()))
    for k in (-1, -2, -3):
        amplitude = 0.02
        x = amplitude * np.sqrt(2) * np.real(vectors[:, k])
        orbit = jd.periodic_orbit(cell, x, 2 * np.pi / values[k])
        energies = np.abs(vectors.conj().T @ np.asarray(orbit.x)) ** 2
        P = np.abs(vectors) ** 2
        predicted = values[k] * (1 - np.sum(P[:, k] ** 2) * energies[k])
        # The next order is the square of what this one changes.
        change = 1 - predicted / values[k]
        assert change > 3e-5
        assert 2 * np.pi / float(orbit.period) == pytest.approx(predicted, rel=10 * change**2)
        found = jd.floquet(orbit)
        assert found.stability_indices.shape == (2,)
        # Other modes turn by their own frequencies meanwhile.
        others = [j for j in (-1, -2, -3) if j != k]
        turned = sorted(2 * np.cos(values[others] * float(orbit.period)))
        np.testing.assert_allclose(sorted(np.real(found.stability_indices)), turned, atol=5e-3)


def test_van_der_pol():
    orbit = jd.periodic_orbit(van_der_pol, [2.0, 0.1], 6.4)
    assert float(orbit.period) == pytest.approx(6.663286859323, abs=1e-9)
    found = jd.floquet(orbit)
    assert found.trivial == 1 and found.stability_indices.size == 0 and bool(found.stable)
    assert float(jnp.real(found.multipliers[0])) == pytest.approx(8.597e-4, abs=1e-7)
    # The product of all multipliers is the integral of the divergence.
    _, states = orbit.states()
    divergence = np.mean(1 - np.asarray(states[:-1, 0]) ** 2) * float(orbit.period)
    assert float(jnp.real(found.multipliers[0])) == pytest.approx(np.exp(divergence), rel=1e-8)


def test_shell_multiplier():
    w, energy, rate = 1.3, 1.5, 0.2
    cell = pair(w, regulator=jd.EnergyShell(energy, rate))
    orbit = jd.periodic_orbit(cell, jd.orbit(0.0, 1.3, w), 1.1 * jd.period(energy, w))
    assert float(orbit.period) == pytest.approx(float(jd.period(energy, w)), abs=1e-9)
    (multiplier,) = jd.floquet(orbit).multipliers
    assert float(jnp.real(multiplier)) == pytest.approx(0.1025834765, abs=1e-8)
    assert float(cell.energy(orbit.x)) == pytest.approx(energy, abs=1e-9)


def test_a_limit_cycle_by_collocation():
    """Another method altogether: scipy's solve_bvp on four units with a shell."""
    cell = jd.PoissonCell(
        jd.BlockSkew([1.0, 0.7]), jd.Tanh(), regulator=jd.EnergyShell(1.0, 0.3), bias=None
    )
    guess = jnp.array([1.6, 0.0, 0.0, 0.0])
    orbit = jd.periodic_orbit(cell, guess, float(jd.period(1.0, 1.0)))
    field = jax.jit(jax.vmap(lambda x: cell(0.0, x, None), in_axes=1, out_axes=1))

    def scaled(s, y, p):
        return np.asarray(field(jnp.asarray(y))) * p[0]

    def ends(a, b, p):
        return np.append(b - a, a[1] - float(orbit.x[1]))

    times, states = (np.asarray(v) for v in orbit.states())
    wrong = 1.01 * states.T
    found = solve_bvp(scaled, ends, times / times[-1], wrong, p=[6.9], tol=1e-9, max_nodes=20000)
    assert found.success
    assert found.p[0] == pytest.approx(float(orbit.period), abs=1e-6)
    np.testing.assert_allclose(found.sol(0.0), orbit.x, atol=1e-6)


def test_henon_heiles():
    orbit = jd.periodic_orbit(
        henon_heiles, [0.0, 0.295456, 0.407308431, 0.0], 6.0, invariants=henon_heiles_energy
    )
    np.testing.assert_allclose(orbit.x, [0.0, 0.295456, 0.407308431, 0.0], atol=1e-6)
    found = jd.floquet(orbit)
    assert found.trivial == 2 and bool(found.stable)
    # A symplectic pair on the unit circle.
    assert float(jnp.prod(found.multipliers).real) == pytest.approx(1.0, abs=1e-9)
    np.testing.assert_allclose(jnp.abs(found.multipliers), 1.0, atol=1e-9)
    (index,) = found.stability_indices
    assert float(index.real) == pytest.approx(float(jnp.sum(found.multipliers).real), abs=1e-9)
    assert abs(float(index.real)) < 2


def test_multipliers_that_leave_the_circle_in_fours():
    """A planar rotation beside a linear Hamiltonian field with eigenvalues +-.05 +- .3 i: the
    indices are the complex pair, not their real part twice."""
    a, w = 0.05, 0.3
    A = jnp.array([[a, w, 0.0, 0.0], [-w, a, 0.0, 0.0], [0.0, 0.0, -a, w], [0.0, 0.0, -w, -a]])

    def field(t, x, args):
        return jnp.concatenate([jnp.stack([x[1], -x[0]]), A @ x[2:]])

    orbit = jd.periodic_orbit(
        field, [1.0, 0, 0, 0, 0, 0], 6.0, invariants=lambda x: 0.5 * (x[0] ** 2 + x[1] ** 2)
    )
    found = jd.floquet(orbit)
    out = np.exp(2 * np.pi * complex(a, w))
    index = sorted(np.asarray(found.stability_indices), key=lambda z: z.imag)
    np.testing.assert_allclose(index, [np.conj(out + 1 / out), out + 1 / out], atol=1e-9)
    assert not bool(found.stable)


def test_indices_only_of_pairs_and_invariants_only_if_independent():
    def field(t, x, args):
        return jnp.concatenate([van_der_pol(t, x, args), jnp.stack([0.0 * x[2], -0.1 * x[3]])])

    orbit = jd.periodic_orbit(field, [2.0, 0.1, 0.3, 0.0], 6.5, invariants=lambda x: x[2])
    assert np.all(np.isnan(jd.floquet(orbit).stability_indices))

    def rotations(t, x, args):
        return jnp.stack([x[1], -x[0], 0.6 * x[3], -0.6 * x[2]])

    energy = lambda x: x[0] ** 2 + x[1] ** 2  # noqa: E731
    both = jd.periodic_orbit(
        rotations,
        [1.0, 0.0, 0.0, 0.0],
        6.2,
        invariants=lambda x: jnp.stack([energy(x), energy(x) ** 2]),
    )
    with pytest.raises(ValueError, match="`invariants`"):
        jd.floquet(both)


def test_three_units_with_their_casimir():
    """Every orbit of n = 3 closes; the Casimir of the guess is kept."""
    cell = jd.PoissonCell(jd.DenseSkew.random(3, key=jr.key(4)), jd.Tanh())
    (c,) = np.asarray(cell.operator.kernel())
    guess = jnp.array([0.5, -0.3, 0.6])
    orbit = jd.periodic_orbit(cell, guess, 2 * np.pi)
    assert float(c @ orbit.x) == pytest.approx(float(c @ guess), abs=1e-11)
    assert float(cell.energy(orbit.x)) == pytest.approx(float(cell.energy(guess)), abs=1e-11)
    found = jd.floquet(orbit)
    assert found.trivial == 3 and found.multipliers.shape == (0,)


def test_float32():
    orbit = jd.periodic_orbit(van_der_pol, jnp.array([2.0, 0.1], jnp.float32), 6.4)
    assert orbit.period.dtype == orbit.monodromy.dtype == jnp.float32
    assert float(orbit.period) == pytest.approx(6.663286859323, rel=1e-5)


def test_what_is_no_orbit_is_said():
    with pytest.raises(RuntimeError, match="no periodic orbit"):
        jd.periodic_orbit(lambda t, x, args: jnp.stack([x[1], -0.3 * x[1] - x[0]]), [1.0, 0.0], 6.3)
    lost = jd.periodic_orbit(
        lambda t, x, args: jnp.stack([x[1], -0.3 * x[1] - x[0]]), [1.0, 0.0], 6.3, throw=False
    )
    assert not bool(lost.converged) and lost.reason != "converged"
    with pytest.raises(ValueError, match="`orbit`"):
        jd.floquet(lost)
    # Too short a period to be one: the flow of no time at all returns too.
    short = jd.periodic_orbit(pair(1.0), [1.0, 0.0], 0.01, throw=False)
    assert not bool(short.converged)


@pytest.mark.parametrize(
    ("change", "error", "names"),
    [
        ({"field": 3.0}, TypeError, "field"),
        ({"x_guess": np.ones((2, 2))}, ValueError, "x_guess"),
        ({"x_guess": np.ones(3)}, ValueError, "x_guess"),
        ({"x_guess": [np.inf, 0.0]}, ValueError, "x_guess"),
        ({"x_guess": [0.0, 0.0]}, ValueError, "x_guess"),
        ({"period_guess": 0.0}, ValueError, "period_guess"),
        ({"period_guess": "six"}, TypeError, "period_guess"),
        ({"energy": -1.0}, ValueError, "energy"),
        ({"field": van_der_pol, "energy": 1.0}, ValueError, "energy"),
        ({"field": pair(1.0, damping=0.1), "energy": 1.0}, ValueError, "energy"),
        ({"invariants": 2.0}, TypeError, "invariants"),
        ({"steps": 0}, ValueError, "steps"),
        ({"tol": 0.0}, ValueError, "tol"),
        ({"max_steps": 0}, ValueError, "max_steps"),
        ({"solver": "RK4"}, TypeError, "solver"),
    ],
)
def test_bad_input(change, error, names):
    given = {"field": pair(1.0), "x_guess": [1.0, 0.0], "period_guess": 6.9} | change
    with pytest.raises(error, match=f"`{names}`"):
        jd.periodic_orbit(**given)


def test_floquet_of_something_else():
    with pytest.raises(TypeError, match="`orbit`"):
        jd.floquet(1.0)

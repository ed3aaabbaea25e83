"""Families of limit cycles against closed forms."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jaxdyn as jd

PAIR = jd.DenseSkew(jnp.array([-1.3]))


def shell_of(damping):
    """x' = W g - (d + k (H - H*)) g: the cycle has H = H* - d / k, until d = k H*."""
    return jd.PoissonCell(PAIR, jd.Tanh(), regulator=jd.EnergyShell(1.5, 0.2), damping=damping)


def test_a_damped_shell_shrinks_to_its_hopf_bifurcation():
    start = jd.periodic_orbit(
        shell_of(0.1), [1.5, 0.0], jd.period(1.0, 1.3), solver=jd.RK4(), steps=1000
    )
    family = jd.cycle_family(shell_of, start, 0.1, between=(0.0, 0.5))
    d = np.asarray(family.parameter)
    assert d[0] == pytest.approx(0.0, abs=1e-9) and np.all(np.diff(d) > 0)
    energy = 1.5 - d / 0.2
    np.testing.assert_allclose(jax.vmap(shell_of(0.0).energy)(family.x), energy, atol=1e-8)
    np.testing.assert_allclose(family.period, jax.vmap(lambda h: jd.period(h, 1.3))(energy), 1e-9)
    exact = jax.vmap(lambda h: jd.shell_multiplier(h, 0.2, 1.3))(energy)
    assert family.multipliers.shape == (len(d), 1) and bool(jnp.all(family.stable))
    np.testing.assert_allclose(family.multipliers[:, 0].real, exact, atol=1e-8)
    highest = np.arccosh(np.exp(energy))
    np.testing.assert_allclose(family.highest, np.stack([highest, highest], 1), rtol=1e-4)
    np.testing.assert_allclose(family.lowest, -family.highest, rtol=1e-4)
    (hopf,) = family.bifurcations
    assert hopf.kind == "Hopf" and hopf.arclength > float(family.arclength[-1])
    assert hopf.at == pytest.approx(0.3, abs=1e-9)
    assert hopf.period == pytest.approx(2 * np.pi / 1.3, rel=1e-9)
    np.testing.assert_allclose(hopf.x, 0.0, atol=1e-9)
    assert family.reasons == ("parameter = 0 reached", "Hopf bifurcation at parameter = 0.3")


def langford(p):
    """Its cycle: z = 3 - p, r^2 = z (p - z), period 2 pi / 3.5; born at p = 3 / 2, and torus at
    p = 2, where the trace of the rest, p - 2 z, is 0."""

    def field(t, v, args):
        x, y, z = v
        pull = p - 3.0 + z
        return jnp.stack([pull * x - 3.5 * y, 3.5 * x + pull * y, p * z - x**2 - y**2 - z**2])

    return field


def test_langfords_torus_and_hopf_bifurcations_are_where_they_must_be():
    z = 3.0 - 1.8
    start = jd.periodic_orbit(
        langford(1.8), [np.sqrt(z * (1.8 - z)), 0.0, z], 2 * np.pi / 3.5, steps=100, solver=jd.RK4()
    )
    family = jd.cycle_family(langford, start, 1.8, between=(1.0, 2.4))
    p = np.asarray(family.parameter)
    np.testing.assert_allclose(family.period, 2 * np.pi / 3.5, rtol=1e-9)
    r = np.sqrt((3 - p) * (2 * p - 3))
    exact = [
        np.linalg.eigvals([[0, a], [-2 * a, q - 2 * (3 - q)]]) for a, q in zip(r, p, strict=True)
    ]
    exact = np.exp(2 * np.pi / 3.5 * np.asarray(exact))
    np.testing.assert_allclose(
        np.sort_complex(np.asarray(family.multipliers)), np.sort_complex(exact), atol=1e-7
    )
    np.testing.assert_array_equal(family.stable, p < 2)
    hopf, torus = family.bifurcations
    assert (hopf.kind, torus.kind) == ("Hopf", "torus")
    assert hopf.at == pytest.approx(1.5, abs=1e-9)
    assert hopf.arclength < float(family.arclength[0])
    assert hopf.period == pytest.approx(2 * np.pi / 3.5, rel=1e-9)
    np.testing.assert_allclose(hopf.x, [0, 0, 1.5], atol=1e-9)
    assert torus.at == pytest.approx(2.0, abs=1e-8)
    row = np.searchsorted(family.arclength, torus.arclength)
    assert p[row - 1] < 2 < p[row]
    assert family.reasons[0].startswith("Hopf") and family.reasons[1] == "parameter = 2.4 reached"


def turned_back(p):
    """r' = r (p + 2 r^2 - r^4), theta' = 1: a fold at p = -1, r = 1, and born at p = 0."""

    def field(t, v, args):
        x, y = v
        r2 = x**2 + y**2
        grow = p + 2 * r2 - r2**2
        return jnp.stack([grow * x - y, grow * y + x])

    return field


def test_it_follows_a_branch_around_a_fold():
    start = jd.periodic_orbit(
        turned_back(0.5), [np.sqrt(1 + np.sqrt(1.5)), 0.0], 2 * np.pi, steps=400, solver=jd.RK4()
    )
    family = jd.cycle_family(turned_back, start, 0.5, between=(-2.0, 1.0))
    hopf, fold = family.bifurcations
    assert (hopf.kind, fold.kind) == ("Hopf", "fold")
    assert hopf.at == pytest.approx(0.0, abs=1e-9)
    assert fold.at == pytest.approx(-1.0, abs=1e-9)
    assert np.linalg.norm(fold.x) == pytest.approx(1.0, abs=1e-4)
    r2 = np.sum(np.asarray(family.x) ** 2, axis=1)
    np.testing.assert_allclose(family.parameter, r2**2 - 2 * r2, atol=1e-9)
    np.testing.assert_array_equal(family.stable, r2 > 1)
    exact = np.exp(2 * np.pi * (4 * r2 - 4 * r2**2))
    np.testing.assert_allclose(family.multipliers[:, 0].real, exact, rtol=1e-6, atol=1e-8)


def flipped(p):
    """A circle whose neighbours turn half around it: multipliers -exp(2 pi p), -exp(-2 pi)."""

    def field(t, v, args):
        x, y, u, w = v
        r = jnp.sqrt(x**2 + y**2)
        cos, sin = x / r, y / r
        mean, half = (p - 1) / 2, (p + 1) / 2
        around = jnp.stack(
            [
                (mean + half * cos) * u + (half * sin - 0.5) * w,
                (half * sin + 0.5) * u + (mean - half * cos) * w,
            ]
        )
        pull = 1 - r**2
        return jnp.concatenate([jnp.stack([pull * x - y, pull * y + x]), around])

    return field


def test_a_period_doubling():
    start = jd.periodic_orbit(flipped(-0.2), [1.0, 0, 0, 0], 2 * np.pi, steps=200, solver=jd.RK4())
    family = jd.cycle_family(flipped, start, -0.2, between=(-0.25, 0.1))
    (point,) = family.bifurcations
    assert point.kind == "period doubling" and point.at == pytest.approx(0.0, abs=1e-8)
    p = np.asarray(family.parameter)
    exact = -np.exp(2 * np.pi * p)
    nearest = np.min(np.abs(np.asarray(family.multipliers) - exact[:, None]), axis=1)
    assert nearest.max() < 1e-7
    assert family.reasons == ("parameter = -0.25 reached", "parameter = 0.1 reached")


def pitchfork(p):
    """A circle in the plane u = 0, which u leaves at the rate p."""

    def field(t, v, args):
        x, y, u = v
        pull = 1 - x**2 - y**2
        return jnp.stack([pull * x - y, pull * y + x, p * u - u**3])

    return field


def test_a_branch_point_is_told_from_a_fold():
    start = jd.periodic_orbit(pitchfork(-0.5), [1.0, 0, 0], 2 * np.pi, steps=200, solver=jd.RK4())
    family = jd.cycle_family(pitchfork, start, -0.5, between=(-0.5, 0.3))
    (point,) = family.bifurcations
    assert point.kind == "branch point" and point.at == pytest.approx(0.0, abs=1e-8)
    np.testing.assert_allclose(family.x[:, 2], 0.0, atol=1e-12)


def test_van_der_pol_reaches_a_known_period():
    def of(mu):
        return lambda t, x, args: jnp.stack([x[1], mu * (1 - x[0] ** 2) * x[1] - x[0]])

    start = jd.periodic_orbit(of(0.3), [2.0, 0.0], 6.3, solver=jd.RK4())
    family = jd.cycle_family(of, start, 0.3, between=(0.3, 1.0))
    assert float(family.parameter[-1]) == pytest.approx(1.0, abs=1e-9)
    assert float(family.period[-1]) == pytest.approx(6.663286859323, abs=1e-9)
    assert float(family.multipliers[-1, 0].real) == pytest.approx(8.597e-4, rel=1e-3)
    assert float(family.highest[-1, 0]) == pytest.approx(2.00862, abs=1e-3)


def test_three_units_keep_the_casimir_that_their_shell_keeps():
    W = jd.DenseSkew.random(3, key=jr.key(1))
    keep = W.kernel()

    def of(energy):
        shell = jd.EnergyShell(energy, 0.3, keep=keep)
        return jd.PoissonCell(W, jd.Tanh(), regulator=shell)

    bare = jd.PoissonCell(W, jd.Tanh())
    orbits = jd.orbit_family(bare, 0, max_energy=2.2, max_step=0.05)
    one = int(jnp.argmin(jnp.abs(orbits.energy - 1.0)))
    energy = float(orbits.energy[one])
    start = jd.periodic_orbit(
        of(energy), orbits.x[one], orbits.period[one], solver=jd.RK4(), steps=800
    )
    family = jd.cycle_family(of, start, energy, between=(0.2, 2.0))
    # On the surface H = energy the motion is that of the bare cell.
    np.testing.assert_allclose(jax.vmap(bare.energy)(family.x), family.parameter, atol=1e-9)
    np.testing.assert_allclose(family.x @ keep[0], 0.0, atol=1e-9)
    exact = np.interp(family.parameter, orbits.energy, orbits.period)
    np.testing.assert_allclose(family.period, exact, rtol=1e-4)
    assert family.multipliers.shape[1] == 1 and bool(jnp.all(family.stable))


def test_a_casimir_that_ends_with_the_parameter_is_said():
    W = jd.DenseSkew.random(3, key=jr.key(1))
    keep = W.kernel()

    def of(p):
        shell = jd.EnergyShell(0.5, 0.3, keep=keep)
        operator = jd.DenseSkew(W.entries.at[0].add(p))
        return jd.PoissonCell(operator, jd.Tanh(), regulator=shell)

    turn = 2 * np.pi / float(W.frequencies()[0])
    x0 = W.mv(jnp.array([1.0, 0.5, -0.5]))
    start = jd.periodic_orbit(of(0.0), x0, 1.2 * turn, solver=jd.RK4(), steps=400)
    with pytest.raises(RuntimeError, match="linear invariants change"):
        jd.cycle_family(of, start, 0.0, between=(-0.5, 0.5))


def test_as_a_table_and_in_float32():
    cell = jd.PoissonCell(
        jd.DenseSkew(jnp.array([-1.3], jnp.float32)),
        jd.Tanh(),
        regulator=jd.EnergyShell(jnp.float32(1.5), jnp.float32(0.2)),
    )

    def of(rate):
        return eqx.tree_at(lambda c: c.regulator.rate, cell, rate)

    x0 = jnp.array([2.2, 0.0], jnp.float32)
    start = jd.periodic_orbit(of(jnp.float32(0.2)), x0, 7.0, solver=jd.RK4(), steps=200)
    family = jd.cycle_family(of, start, 0.2, between=(0.1, 0.3))
    assert family.period.dtype == jnp.float32
    np.testing.assert_allclose(family.period, jd.period(1.5, 1.3), rtol=1e-5)
    lines = family.to_csv().splitlines()
    names = "lowest_1,highest_1,lowest_2,highest_2,multiplier_1_real,multiplier_1_imag"
    assert lines[0] == f"parameter,period,arclength,residual,error,{names}"
    assert len(lines) == len(family.parameter) + 1
    assert float(lines[-1].split(",")[0]) == pytest.approx(0.3, rel=1e-5)
    zero = lines[1 + int(np.argmin(np.abs(np.asarray(family.arclength))))].split(",")
    assert float(zero[0]) == pytest.approx(0.2, rel=1e-6) and float(zero[2]) == 0.0


def test_a_network_of_four_units_from_its_birth_to_a_torus():
    weights, uneven, _ = jr.split(jr.key(12), 3)
    W = jd.DenseSkew.random(4, key=weights)
    spread = jr.normal(uneven, (4,))
    spread = 0.3 * (spread - jnp.mean(spread))

    def of(damping):
        shell = jd.EnergyShell(2.5, 0.2)
        return jd.PoissonCell(W, jd.Tanh(), damping=spread + damping, regulator=shell)

    settled = jd.simulate(of(0.3), 0.5 * jnp.ones(4), t1=1000.0, dt=0.05, solver=jd.RK4()).ys[-1]
    start = jd.periodic_orbit(of(0.3), settled, 8.5, solver=jd.RK4(), steps=400)
    family = jd.cycle_family(of, start, 0.3, between=(0.05, 0.6))
    torus, hopf = family.bifurcations
    assert (torus.kind, hopf.kind) == ("torus", "Hopf")
    # At rest the shell pumps with its rate times its energy.
    values = np.linalg.eigvals(np.asarray(W.as_matrix()) - np.diag(spread + hopf.at - 0.2 * 2.5))
    assert np.max(values.real) == pytest.approx(0.0, abs=1e-9)
    turn = np.abs(values.imag[np.argmax(values.real)])
    assert hopf.period == pytest.approx(2 * np.pi / turn, rel=1e-9)
    orbit = jd.periodic_orbit(of(torus.at), torus.x, torus.period, solver=jd.RK4(), steps=400)
    m = np.asarray(jd.floquet(orbit).multipliers)
    assert abs(m[0]) == pytest.approx(1.0, abs=1e-7) and abs(m[0].imag) > 0.1
    np.testing.assert_array_equal(family.stable, np.asarray(family.parameter) > torus.at)


def flipped_twice(p, later=0.01):
    """As `flipped`, with another such pair a little later."""

    def field(t, v, args):
        x, y, u, w = flipped(p)(t, v[:4], args)
        second = flipped(p - later)(t, jnp.concatenate([v[:2], v[4:]]), args)
        return jnp.concatenate([jnp.stack([x, y, u, w]), second[2:]])

    return field


def test_two_that_cross_in_one_step_are_both_found():
    x0 = [1.0, 0, 0, 0, 0, 0]
    start = jd.periodic_orbit(flipped_twice(-0.1), x0, 2 * np.pi, steps=200, solver=jd.RK4())
    family = jd.cycle_family(
        flipped_twice, start, -0.1, between=(-0.1, 0.1), step=0.19, max_step=0.5
    )
    assert [b.kind for b in family.bifurcations] == ["period doubling"] * 2
    np.testing.assert_allclose([b.at for b in family.bifurcations], [0.0, 0.01], atol=1e-8)


def test_two_that_cross_at_the_same_place_are_told_of():
    def of(p):
        return flipped_twice(p, 0.0)

    x0 = [1.0, 0, 0, 0, 0, 0]
    start = jd.periodic_orbit(of(-0.02), x0, 2 * np.pi, steps=200, solver=jd.RK4())
    family = jd.cycle_family(of, start, -0.02, between=(-0.02, 0.02))
    (point,) = family.bifurcations
    assert point.kind == "period doubling" and point.at == pytest.approx(0.0, abs=1e-6)
    assert bool(family.stable[0]) and not bool(family.stable[-1])


def test_a_start_at_a_bifurcation_and_at_a_bound():
    start = jd.periodic_orbit(flipped(0.0), [1.0, 0, 0, 0], 2 * np.pi, steps=200, solver=jd.RK4())
    family = jd.cycle_family(flipped, start, 0.0, between=(-0.05, 0.05))
    (point,) = family.bifurcations
    assert point.kind == "period doubling" and point.at == pytest.approx(0.0, abs=1e-6)
    # 0.1 / 0.67 * 0.67 is not 0.1.
    start = jd.periodic_orbit(flipped(0.1), [1.0, 0, 0, 0], 2 * np.pi, steps=200, solver=jd.RK4())
    family = jd.cycle_family(flipped, start, 0.1, between=(0.1, 0.77), max_cycles=3)
    assert len(family.parameter) == 4 and float(family.parameter[0]) == 0.1
    assert family.reasons == ("parameter = 0.1 reached", "max_cycles = 3 reached")


def beside_a_centre(p):
    """`langford`, and two units that turn for ever beside it: a pair that stays on the circle."""

    def field(t, v, args):
        return jnp.concatenate([langford(p)(t, v[:3], args), jnp.stack([-v[4], v[3]])])

    return field


def test_a_torus_beside_multipliers_that_stay_on_the_circle():
    z = 3.0 - 1.9
    x0 = [np.sqrt(z * (1.9 - z)), 0.0, z, 0.0, 0.0]
    start = jd.periodic_orbit(beside_a_centre(1.9), x0, 2 * np.pi / 3.5, steps=100, solver=jd.RK4())
    family = jd.cycle_family(beside_a_centre, start, 1.9, between=(1.9, 2.1))
    (torus,) = family.bifurcations
    assert torus.kind == "torus" and torus.at == pytest.approx(2.0, abs=1e-5)


def ring(p):
    """Cycles of radius r with (r - 2)^2 + p^2 = 1: a closed loop of them."""

    def field(t, v, args):
        x, y = v
        r = jnp.sqrt(x**2 + y**2)
        grow = 0.1 * (1 - (r - 2) ** 2 - p**2)
        return jnp.stack([grow * x - y, grow * y + x])

    return field


def test_a_branch_that_closes_is_gone_around_once():
    start = jd.periodic_orbit(
        ring(0.5), [2 + np.sqrt(0.75), 0.0], 2 * np.pi, steps=200, solver=jd.RK4()
    )
    family = jd.cycle_family(ring, start, 0.5, between=(-2.0, 2.0))
    assert family.reasons == ("the branch closes",) * 2
    assert [b.kind for b in family.bifurcations] == ["fold", "fold"]
    assert sorted(b.at for b in family.bifurcations) == pytest.approx([-1.0, 1.0], abs=1e-9)
    assert float(family.arclength[0]) == 0.0


def test_a_hopf_bifurcation_beyond_the_bound_is_left_alone():
    def of(p):
        return turned_back(-p)

    start = jd.periodic_orbit(
        of(0.5), [np.sqrt(1 - np.sqrt(0.5)), 0.0], 2 * np.pi, steps=200, solver=jd.RK4()
    )
    family = jd.cycle_family(of, start, 0.5, between=(1e-5, 0.9))
    assert [b.kind for b in family.bifurcations] == [] and np.min(family.parameter) >= 1e-5
    assert family.reasons[0] == "parameter = 1e-05 reached"


def test_steps_are_added_where_the_cycle_asks_for_them():
    def of(mu):
        return lambda t, x, args: jnp.stack([x[1], mu * (1 - x[0] ** 2) * x[1] - x[0]])

    start = jd.periodic_orbit(of(1.0), [2.0, 0.0], 6.66, steps=60)
    family = jd.cycle_family(of, start, 1.0, between=(1.0, 4.0))
    assert np.max(family.error) < 1e-9
    fine = jd.periodic_orbit(of(4.0), family.x[-1], family.period[-1], steps=4000)
    assert float(family.period[-1]) == pytest.approx(float(fine.period), abs=1e-8)


def test_what_is_not_isolated_is_refused():
    pendulum = lambda t, x, args: jnp.stack([x[1], -jnp.sin(x[0])])  # noqa: E731
    energy = lambda x: x[1] ** 2 / 2 - jnp.cos(x[0])  # noqa: E731
    start = jd.periodic_orbit(pendulum, [1.0, 0.0], 6.7, invariants=energy, solver=jd.RK4())
    with pytest.raises(ValueError, match="`start` was made with `invariants`"):
        jd.cycle_family(lambda p: pendulum, start, 0.5, between=(0.0, 1.0))

    def damped(p):
        return lambda t, x, args: jnp.stack([x[1], -jnp.sin(x[0]) - p * x[1]])

    start = jd.periodic_orbit(damped(0.0), [1.0, 0.0], 6.7, solver=jd.RK4())
    with pytest.raises(RuntimeError, match="`start` is no isolated cycle"):
        jd.cycle_family(damped, start, 0.0, between=(-1.0, 1.0))


@pytest.fixture(scope="module")
def orbit():
    return jd.periodic_orbit(
        shell_of(0.1), [1.5, 0.0], jd.period(1.0, 1.3), solver=jd.RK4(), steps=400
    )


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"field_of": shell_of(0.1)}, TypeError, "`field_of` must be a function"),
        ({"field_of": 3}, TypeError, "`field_of` must be a function"),
        ({"field_of": lambda p: 3}, TypeError, "`field_of"),
        ({"field_of": lambda p: lambda t, x, args: x}, RuntimeError, "`start` is no cycle"),
        ({"field_of": lambda p: jd.PoissonCell(PAIR, jd.Tanh())}, ValueError, "orbit_family"),
        ({"start": jnp.ones(2)}, TypeError, "`start`"),
        ({"parameter": 0.7}, ValueError, "`parameter`"),
        ({"parameter": "d"}, TypeError, "`parameter`"),
        ({"parameter": 0.11}, RuntimeError, "`start` is no cycle"),
        ({"between": 0.5}, TypeError, "`between`"),
        ({"between": (0.5, 0.0)}, ValueError, "`between`"),
        ({"between": (0.0, jnp.inf)}, ValueError, "`between`"),
        ({"max_cycles": 1}, ValueError, "`max_cycles`"),
        ({"step": 0.0}, ValueError, "`step`"),
        ({"max_step": -1.0}, ValueError, "`max_step`"),
        ({"step": 0.3, "max_step": 0.2}, ValueError, "`step`"),
        ({"tol": 0.0}, ValueError, "`tol`"),
        ({"tol": 1.0}, ValueError, "`tol`"),
        ({"field_of": lambda p: shell_of(float(p))}, TypeError, "`field_of` .* traced"),
        ({"field_of": lambda p: shell_of(p + 0.01)}, RuntimeError, "`start` is no cycle"),
    ],
)
def test_bad_input(orbit, change, error, says):
    given = {"field_of": shell_of, "start": orbit, "parameter": 0.1, "between": (0.0, 0.5)} | change
    with pytest.raises(error, match=says):
        jd.cycle_family(**given)

"""Solvers: order, structure, equivalences, and life inside plain diffrax."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import jaxdyn as jd
from jaxdyn._cell import SharedInput

SPLITTINGS = [jd.Strang(), jd.Yoshida4(), jd.Suzuki4(), jd.BlanesMoan4(), jd.Yoshida6()]
IMPLICIT = [jd.DiscreteGradient(), jd.ImplicitMidpoint()]
# Coarsest step of the order test: late enough to be asymptotic, early enough for four halvings.
COARSEST = {"Yoshida6": 0.4}


def name(value):
    return type(value).__name__


def plain_cell():
    return jd.PoissonCell(jd.DenseSkew.random(5, key=jr.key(0)), jd.Tanh())


def driven_cell():
    return jd.PoissonCell(
        jd.BipartiteSkew.random(5, key=jr.key(1)),
        jd.Tanh(),
        bias=0.1 * jr.normal(jr.key(2), (5,)),
        input_matrix=jr.normal(jr.key(3), (5, 2)),
        damping=jnp.linspace(0.1, 0.3, 5),
    )


def antisymmetric_cell():
    return jd.AntisymmetricCell(
        jd.DenseSkew.random(5, key=jr.key(4)),
        jd.Tanh(),
        bias=0.1 * jr.normal(jr.key(5), (5,)),
        input_matrix=jr.normal(jr.key(6), (5, 2)),
        damping=0.2,
    )


def shell_cell():
    return jd.PoissonCell(
        jd.DenseSkew.random(4, key=jr.key(7)), jd.Tanh(), regulator=jd.EnergyShell(1.0, 0.5)
    )


def wave(t):
    return jnp.stack([jnp.sin(2 * t), jnp.cos(t)])


@eqx.filter_jit
def march(solver, cell, x, dt, steps, args):
    """`steps` steps (a traced number: one compilation for all step sizes)."""
    prepared = solver.prepare(cell, dt)

    def step(k, x):
        return solver.advance(prepared, k * dt, dt, x, args)

    return jax.lax.fori_loop(0, steps, step, x)


def dop853(cell, x, t1, args):
    field = jax.jit(lambda t, x: cell(t, x, args))
    out = solve_ivp(
        lambda t, x: np.asarray(field(t, x)),
        (0.0, t1),
        np.asarray(x),
        method="DOP853",
        rtol=1e-13,
        atol=1e-14,
    )
    return out.y[:, -1]


ORDERS = [
    *[(s, plain_cell, None) for s in [*SPLITTINGS, *IMPLICIT, jd.RK4(), jd.Taylor(5)]],
    *[(s, driven_cell, wave) for s in [*SPLITTINGS, *IMPLICIT, jd.RK4(), jd.Taylor(4)]],
    (jd.Strang(), antisymmetric_cell, wave),
    (jd.BlanesMoan4(), antisymmetric_cell, wave),
    (jd.Taylor(4), antisymmetric_cell, wave),
    (jd.DiscreteGradient(), shell_cell, None),
    (jd.Taylor(4), shell_cell, None),
]


@pytest.mark.parametrize(
    ("solver", "make", "args"), ORDERS, ids=lambda v: v.__name__ if callable(v) else name(v)
)
def test_order(solver, make, args):
    """Errors against DOP853 fall with the stated order, by regression over halved steps."""
    cell, x, t1 = make(), jnp.linspace(-1.0, 1.5, make().size), 4.0
    exact = dop853(cell, x, t1, args)
    steps = np.round(t1 / COARSEST.get(name(solver), 0.2)).astype(int) * 2 ** np.arange(4)
    errors = np.array(
        [
            np.max(np.abs(march(solver, cell, x, jnp.asarray(t1 / k), int(k), args) - exact))
            for k in steps
        ]
    )
    kept = errors > 3e-12  # DOP853 itself is good to about 1e-13 here
    assert kept.sum() >= 3, errors
    slope = np.polyfit(np.log(t1 / steps[kept]), np.log(errors[kept]), 1)[0]
    assert abs(slope - solver.order(None)) < 0.15, (slope, errors)


@pytest.mark.core
@pytest.mark.parametrize("solver", [jd.Strang(), jd.BlanesMoan4(), jd.ImplicitMidpoint()], ids=name)
def test_poisson_map_and_self_adjoint(solver):
    cell = jd.PoissonCell(jd.DenseSkew.random(6, key=jr.key(8)), jd.Tanh())
    x = jr.normal(jr.key(9), (6,))
    # Rounding of a 6 x 6 product and of one step: a few eps; measured 3e-16.
    assert jd.poisson_defect(solver, cell, x, 0.3) < 1e-14
    assert jd.reversibility_error(solver, cell, x, 0.3) < 1e-14


def test_poisson_defect_sees_what_is_not_a_poisson_map():
    cell = jd.PoissonCell(jd.DenseSkew.random(6, key=jr.key(8)), jd.Tanh())
    x = jr.normal(jr.key(9), (6,))
    for solver, least in ((jd.RK4(), 1e-9), (jd.DiscreteGradient(), 1e-7)):
        assert jd.poisson_defect(solver, cell, x, 0.1) > least
    assert jd.reversibility_error(jd.RK4(), cell, x, 0.1) > 1e-10
    assert jd.reversibility_error(jd.DiscreteGradient(), cell, x, 0.3) < 1e-13


@pytest.mark.parametrize("solver", [*SPLITTINGS, *IMPLICIT], ids=name)
def test_long_run_keeps_energy_and_casimirs(solver):
    """5000 steps of .1 at n = 7: drift far below one oscillation, Casimir to rounding."""
    cell = jd.PoissonCell(jd.DenseSkew.random(7, key=jr.key(10)), jd.Tanh())
    x = jr.normal(jr.key(11), (7,))
    y = march(solver, cell, x, jnp.asarray(0.1), 5000, None)
    drift = abs(cell.energy(y) / cell.energy(x) - 1)
    bound = {
        "DiscreteGradient": 1e-12,  # Newton ends at rounding: 5000 steps of a few eps
        "Strang": 1e-3,  # measured 4e-5 to 4e-4 over seeds
        "ImplicitMidpoint": 1e-3,
        "Yoshida4": 1e-5,
        "Suzuki4": 1e-6,
        "BlanesMoan4": 1e-7,
        "Yoshida6": 1e-8,
    }[name(solver)]
    assert drift < bound
    assert jnp.max(jnp.abs(cell.casimirs(y) - cell.casimirs(x))) < 1e-12


@pytest.mark.core
@pytest.mark.parametrize("solver", [jd.Strang(), jd.BlanesMoan4()], ids=name)
@pytest.mark.parametrize("kind", [jd.PoissonCell, jd.AntisymmetricCell])
@pytest.mark.parametrize("damping", [None, 0.2])
def test_classes_and_blocks_are_the_same_map(solver, kind, damping):
    """A bipartite W moves in two merged classes, the same W as dense in blocks: one map."""
    bipartite = jd.BipartiteSkew.random(11, key=jr.key(12))
    dense = jd.DenseSkew.from_matrix(bipartite.as_matrix())
    x = jr.normal(jr.key(13), (11,))
    options = dict(bias=jnp.linspace(0.0, 0.3, 11), input_matrix=jnp.ones((11, 2)), damping=damping)
    one, other = (
        march(solver, kind(w, jd.Tanh(), **options), x, jnp.asarray(0.2), 20, wave)
        for w in (bipartite, dense)
    )
    # Rounding of 20 steps; a damped pulse is a difference over the damping, so eps / .2 each.
    np.testing.assert_allclose(one, other, rtol=0, atol=2e-14 if damping is None else 2e-13)


@pytest.mark.parametrize("ascending", [True, False])
def test_sweep_is_the_triangular_formula(ascending):
    """A sweep is u = x + h L s(u), x1 = x + h W s(u): checked where blocks are looped (n = 150)."""

    class OneSweep(jd._solver.AbstractSplitting):
        coefficients = (1.0, 0.0) if ascending else (0.0, 1.0)
        method_order = 1

    n, h = 150, 0.3
    cell = jd.PoissonCell(jd.DenseSkew.random(n, key=jr.key(14)), jd.Tanh())
    w, x = np.asarray(cell.operator.as_matrix()), np.linspace(-2, 2, n)
    u = x.copy()
    for i in range(n) if ascending else reversed(range(n)):
        before = slice(0, i) if ascending else slice(i + 1, n)
        u[i] = x[i] + h * w[i, before] @ np.tanh(u[before])
    got = march(OneSweep(), cell, jnp.asarray(x), jnp.asarray(h), 1, None)
    np.testing.assert_allclose(got, x + h * w @ np.tanh(u), rtol=0, atol=1e-14)


def test_antisymmetric_form_is_conjugate():
    """W Phi_B(y) + b = Phi_A(W y + b), to rounding over 1000 steps (THEORY: 1.1e-13)."""
    w = jd.DenseSkew.random(8, key=jr.key(15))
    b = 0.3 * jr.normal(jr.key(16), (8,))
    y = jr.normal(jr.key(17), (8,))
    antisymmetric, poisson = (
        jd.AntisymmetricCell(w, jd.Tanh(), bias=b),
        jd.PoissonCell(w, jd.Tanh()),
    )
    for solver in (jd.Strang(), jd.BlanesMoan4()):
        end = march(solver, antisymmetric, y, jnp.asarray(0.1), 1000, None)
        other = march(solver, poisson, w.mv(y) + b, jnp.asarray(0.1), 1000, None)
        np.testing.assert_allclose(w.mv(end) + b, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("damping", [0.0, 1e-9, 1e-3, 5e-3, 2e-2, 1.0])
def test_damped_antisymmetric_pulse_at_any_damping(damping):
    """One unit pair: a kick is the exact flow y' = s(z - damping y), weak damping or strong."""
    w = jd.BlockSkew(jnp.array([1.0]))
    cell = jd.AntisymmetricCell(w, jd.Tanh(), damping=damping)
    y = jnp.array([0.9, 0.4])
    got = march(jd.BlanesMoan4(), cell, y, jnp.asarray(0.05), 40, None)
    exact = march(jd.Taylor(18), cell, y, jnp.asarray(0.05), 40, None)
    # The method's own error at h = .05, measured 1e-9; a cancellation would show at 1e-9 / 1e-9.
    np.testing.assert_allclose(got, exact, rtol=0, atol=1e-8)


def test_composition_coefficients():
    """Consistent and symmetric: they sum to 1 over both types of sweep, and are palindromes."""
    for solver in SPLITTINGS:
        a = np.array(solver.coefficients)
        assert a.sum() == pytest.approx(1.0, abs=1e-15)
        np.testing.assert_allclose(a, a[::-1])


@pytest.mark.core
def test_one_step_frequencies_of_a_linear_mode():
    """sin(Omega h/2) = w h/2 for Strang, tan(Omega h/2) = w h/2 for the implicit ones."""
    w, h = 1.3, 0.4
    cell = jd.PoissonCell(jd.BlockSkew(jnp.array([w])), jd.Identity())
    for solver, half in (
        (jd.Strang(), np.arcsin(w * h / 2)),
        (jd.ImplicitMidpoint(), np.arctan(w * h / 2)),
        (jd.DiscreteGradient(), np.arctan(w * h / 2)),
    ):
        matrix = jax.jacfwd(lambda x, s=solver: march(s, cell, x, jnp.asarray(h), 1, None))(
            jnp.zeros(2)
        )
        assert np.arccos(np.trace(matrix) / 2) == pytest.approx(2 * half, abs=1e-14)


def test_rk4_loses_energy_at_the_stated_rate():
    w, h = 1.7, 0.3
    cell = jd.PoissonCell(jd.BlockSkew(jnp.array([w])), jd.Identity())
    x = jnp.array([1.0, 0.5])
    factor = cell.energy(march(jd.RK4(), cell, x, jnp.asarray(h), 1, None)) / cell.energy(x)
    assert factor == pytest.approx(1 - (w * h) ** 6 / 72 + (w * h) ** 8 / 576, abs=1e-15)


def test_exact_linear():
    w = jd.DenseSkew.random(6, key=jr.key(18))
    x = jr.normal(jr.key(19), (6,))
    u = jnp.array([0.3, -0.2])
    cell = jd.PoissonCell(
        w, jd.Identity(), bias=jnp.ones(6), input_matrix=jnp.ones((6, 2)), damping=0.1
    )
    for c, args in ((jd.PoissonCell(w, jd.Identity()), None), (cell, u)):
        one = march(jd.ExactLinear(), c, x, jnp.asarray(7.0), 1, args)
        np.testing.assert_allclose(one, dop853(c, x, 7.0, args), rtol=0, atol=1e-11)
        many = march(jd.ExactLinear(), c, x, jnp.asarray(0.07), 100, args)
        np.testing.assert_allclose(one, many, rtol=0, atol=1e-13)


def test_taylor_serves_any_analytic_activation():
    x = jnp.linspace(-1.0, 1.0, 4)
    w = jd.DenseSkew.random(4, key=jr.key(20))
    activations = [jd.Arctan(), jd.Sigmoid(), jd.Softplus(), jd.Erf(), jd.ISRU()]
    for s in [*activations, jd.FunctionActivation(lambda z: jnp.sin(z) + z)]:
        cell = jd.PoissonCell(w, s)
        got = march(jd.Taylor(18), cell, x, jnp.asarray(0.1), 20, None)
        np.testing.assert_allclose(got, dop853(cell, x, 2.0, None), rtol=0, atol=1e-11)


DIFFRAX = [jd.Strang(), jd.DiscreteGradient(), jd.RK4(), jd.Taylor(12)]


@pytest.mark.parametrize("solver", DIFFRAX, ids=name)
def test_in_plain_diffrax(solver):
    """Save times, dense output, backwards in time, forward and reverse gradients."""
    cell = plain_cell()
    x = jnp.linspace(-1.0, 1.5, 5)
    ts = jnp.array([0.0, 0.43, 2.0])

    def solve(x, t0=0.0, t1=2.0, dt=0.1, adjoint=None, **kwargs):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(cell),
            solver,
            t0,
            t1,
            dt,
            x,
            adjoint=adjoint or diffrax.RecursiveCheckpointAdjoint(),
            **kwargs,
        )

    sol = solve(x, saveat=diffrax.SaveAt(ts=ts, dense=True))
    ours = jd.simulate(cell, x, t1=2.0, dt=0.1, solver=solver, saveat=diffrax.SaveAt(ts=ts)).ys
    # diffrax interpolates between steps (cubic Hermite: h^4/384 x'''' ~ 1e-6; Taylor: exactly).
    np.testing.assert_allclose(
        sol.ys, ours, rtol=0, atol=1e-12 if name(solver) == "Taylor" else 1e-5
    )
    np.testing.assert_allclose(sol.ys[2], ours[2], rtol=0, atol=1e-13)
    np.testing.assert_allclose(sol.evaluate(0.43), sol.ys[1], rtol=0, atol=1e-12)
    back = solve(sol.ys[2], t0=2.0, t1=0.0, dt=-0.1).ys[0]
    exact = {"RK4": 1e-5, "Taylor": 1e-12}.get(name(solver), 1e-12)
    np.testing.assert_allclose(back, x, rtol=0, atol=exact)

    def end(x, adjoint):
        return jnp.sum(solve(x, adjoint=adjoint, max_steps=64).ys ** 2)

    def loss(x):
        return jnp.sum(jd.simulate(cell, x, t1=2.0, dt=0.1, solver=solver).ys ** 2)

    gradient = jax.grad(loss)(x)  # checked against finite differences below
    reverse = jax.grad(end)(x, diffrax.RecursiveCheckpointAdjoint())
    np.testing.assert_allclose(reverse, gradient, rtol=0, atol=1e-12)
    if name(solver) == "Strang":
        direct = jax.grad(end)(x, diffrax.DirectAdjoint())
        forward = jax.jacfwd(end)(x, diffrax.ForwardMode())
        np.testing.assert_allclose(direct, gradient, rtol=0, atol=1e-12)
        np.testing.assert_allclose(forward, gradient, rtol=0, atol=1e-12)


def test_adaptive_taylor_meets_its_tolerance():
    cell, x = plain_cell(), jnp.linspace(-1.0, 1.5, 5)
    sol = jd.simulate(
        cell,
        x,
        t1=20.0,
        dt=0.1,
        solver=jd.Taylor(14),
        stepsize_controller=diffrax.PIDController(rtol=1e-10, atol=1e-10),
    )
    assert sol.stats["num_steps"] < 60
    np.testing.assert_allclose(sol.ys[0], dop853(cell, x, 20.0, None), rtol=0, atol=1e-9)


def test_backsolve_adjoint_needs_rk4():
    cell, x = plain_cell(), jnp.linspace(-1.0, 1.5, 5)

    def end(x, solver, adjoint):
        return jnp.sum(jd.simulate(cell, x, t1=1.0, dt=0.02, solver=solver, adjoint=adjoint).ys)

    backsolve = diffrax.BacksolveAdjoint(solver=jd.RK4())
    got = jax.grad(end)(x, jd.RK4(), backsolve)
    np.testing.assert_allclose(got, jax.grad(end)(x, jd.RK4(), None), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"BacksolveAdjoint.*RK4"):
        end(x, jd.Strang(), backsolve)


@pytest.mark.core
@pytest.mark.parametrize("solver", [jd.Strang(), jd.DiscreteGradient(), jd.Taylor(8)], ids=name)
def test_gradients_against_finite_differences(solver):
    w = jd.DenseSkew.random(3, key=jr.key(21))
    x = jnp.array([0.7, -0.4, 1.1])

    def loss(w, x):
        return jnp.sum(march_fixed(solver, jd.PoissonCell(w, jd.Tanh()), x) ** 3)

    def march_fixed(solver, cell, x):
        return jd.simulate(cell, x, n_steps=10, dt=0.1, solver=solver).ys[-1]

    gw, gx = eqx.filter_grad(lambda p: loss(*p))((w, x))
    direction = jr.normal(jr.key(22), (3,))
    eps = 1e-5
    plus, minus = (loss(w, x + s * eps * direction) for s in (1, -1))
    # Central differences: eps^2 + rounding / eps ~ 1e-10.
    assert float((plus - minus) / (2 * eps)) == pytest.approx(float(gx @ direction), abs=1e-8)
    leaves, structure = jax.tree.flatten(w)
    plus, minus = (
        loss(jax.tree.unflatten(structure, [a + s * eps for a in leaves]), x) for s in (1, -1)
    )
    total = sum(jnp.sum(g) for g in jax.tree.leaves(gw))
    assert float((plus - minus) / (2 * eps)) == pytest.approx(float(total), abs=1e-8)


def test_many_classes_go_in_blocks():
    """A W of 40 units with one zero coupling has 39 classes, which would take minutes to unroll."""
    matrix = np.array(jd.DenseSkew.random(40, key=jr.key(23)).as_matrix())
    matrix[0, 1] = matrix[1, 0] = 0.0
    sparse, dense = jd.SparseSkew.from_matrix(matrix), jd.DenseSkew.from_matrix(matrix)
    x = jr.normal(jr.key(24), (40,))
    one, other = (
        march(jd.Strang(), jd.PoissonCell(w, jd.Tanh()), x, jnp.asarray(0.1), 5, None)
        for w in (sparse, dense)
    )
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-14)


def test_implicit_solvers_refuse_what_does_not_fit():
    big = jd.PoissonCell(jd.BandedSkew.random(5000, key=jr.key(25), bandwidth=1), jd.Tanh())
    for solver in IMPLICIT:
        with pytest.raises(ValueError, match=r"5000 x 5000.*jaxdyn\.Strang"):
            jd.simulate(big, jnp.ones(5000), t1=1.0, dt=0.1, solver=solver)


@pytest.mark.parametrize("kind", [jd.PoissonCell, jd.AntisymmetricCell])
def test_looped_blocks_in_a_batch(kind):
    """Beyond 128 units the blocks are looped, outside of the vmap: each member as if alone."""
    n = 150
    options = dict(damping=jnp.linspace(0.1, 0.3, n), input_matrix=jnp.ones((n, 2)))
    cell = kind(jd.DenseSkew.random(n, key=jr.key(26)), jd.Tanh(), **options)
    x = jr.normal(jr.key(27), (2, n))
    batch = jd.simulate(cell, x, n_steps=3, dt=0.1, args=wave).ys[:, 0]
    for i in range(2):
        alone = march(jd.Strang(), cell, x[i], jnp.asarray(0.1), 3, wave)
        np.testing.assert_allclose(batch[i], alone, rtol=0, atol=1e-13)  # rounding of 3 steps


@pytest.mark.parametrize("solver", IMPLICIT, ids=name)
def test_newton_takes_over_where_substitution_is_slow(solver):
    """A step too long for x <- F(x) to halve its update, h |W|_2 / 2 > 1/2, is still solved."""
    cell = jd.PoissonCell(jd.DenseSkew.random(5, key=jr.key(28)), jd.Tanh())
    x, h = 0.5 * jr.normal(jr.key(29), (5,)), jnp.asarray(1.6)
    x1 = march(solver, cell, x, h, 1, None)
    if name(solver) == "DiscreteGradient":
        s = jd.Tanh().discrete_gradient(x, x1)
        assert abs(cell.energy(x1) / cell.energy(x) - 1) < 1e-13
    else:
        s = jnp.tanh((x + x1) / 2)
    np.testing.assert_allclose(x1, x + h * cell.operator.mv(s), rtol=0, atol=1e-14)


@pytest.mark.parametrize("n", [2, 8, 20])
@pytest.mark.parametrize("order", [1, 6])
def test_taylor_of_a_batch_has_the_derivatives_of_one(n, order):
    """W x of a batch is a sum of columns, then one with its own derivative, then a product."""
    cell, solver = (
        jd.PoissonCell(jd.DenseSkew.random(n, key=jr.key(5)), jd.Tanh()),
        jd.Taylor(order),
    )
    x, t, dt = jr.normal(jr.key(6), (n, 3)), jnp.zeros(()), jnp.asarray(0.2)

    def of_a_batch(p):
        formed = solver.form(p[0])
        return jnp.sin(solver.advance_batch(formed, t, dt, p[1], SharedInput(None)))

    def of_one(p):
        return jnp.sin(jax.vmap(lambda x: solver.advance(p[0], t, dt, x, None), -1, -1)(p[1]))

    p = (cell, x)
    tangent = jax.tree.map(jnp.ones_like, eqx.filter(p, eqx.is_array))
    forward = [eqx.filter_jvp(f, (p,), (tangent,))[1] for f in (of_a_batch, of_one)]
    np.testing.assert_allclose(*forward, rtol=0, atol=1e-13 * np.max(np.abs(forward[1])))

    def gradient(f):
        return jax.tree.leaves(eqx.filter_grad(lambda p: jnp.sum(f(p)))(p))

    for got, want in zip(gradient(of_a_batch), gradient(of_one), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-13 * np.max(np.abs(want)))

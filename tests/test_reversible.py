"""Gradients by undoing the steps equal those by automatic differentiation of the stored steps."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jaxdyn as jd
from jaxdyn._cell import SharedInput

SaveAt = diffrax.SaveAt
KEY = jr.key(0)
M = 2
CELLS = {"Poisson": jd.PoissonCell, "antisymmetric": jd.AntisymmetricCell}
OPERATORS = {
    "Dense": jd.DenseSkew.random(9, key=KEY),
    "Circulant": jd.CirculantSkew.random(5, key=KEY),
    "LowRank": jd.LowRankSkew.random(5, key=KEY),
    "Spectral": jd.SpectralSkew.random(5, key=KEY),
    "Banded": jd.BandedSkew.random(5, key=KEY),
    "Bipartite": jd.BipartiteSkew.random(3, key=KEY),
    "Block": jd.BlockSkew.random(4, key=KEY),
    "Sparse": jd.SparseSkew.random(9, key=KEY),
    "Dense of 2": jd.DenseSkew.random(2, key=KEY),
    # So many parts in a step of Yoshida6 that they are looped over.
    "Banded in 5 classes": jd.BandedSkew.random(6, key=KEY, bandwidth=4),
    # So many blocks that they are looped over, and so are the parts of BlanesMoan4.
    "Dense in 17 blocks": jd.DenseSkew.random(130, key=KEY),
}
PAIR = OPERATORS["Dense of 2"]
SMALL = jd.PoissonCell(PAIR, jd.Tanh(), bias=jnp.array([0.3, -0.2]))
X2 = jnp.array([1.0, 0.5])
GRID = 2.0**-36


class Wave(eqx.Module):
    size: jax.Array
    frequency: jax.Array

    def __call__(self, t):
        return self.size * jnp.sin(self.frequency * t + 0.4)


WAVE = Wave(jnp.array([0.7, -0.4]), jnp.array([1.3, 2.1]))
PATH = diffrax.LinearInterpolation(jnp.array([0.0, 0.53, 2.0]), jr.normal(jr.key(3), (3, M)))


def driven(operator, kind=jd.PoissonCell, activation=None):
    n = operator.in_size()
    bias, matrix = 0.3 * jr.normal(jr.key(1), (n,)), jr.normal(jr.key(2), (n, M))
    activation = jd.Tanh() if activation is None else activation
    return kind(operator, activation, bias=bias, input_matrix=matrix)


def problem(cell, u=None, **more):
    """What a solve of two trajectories depends on."""
    x0 = jr.normal(jr.key(4), (2, cell.size))
    p = {"cell": cell, "x0": x0, "dt": jnp.asarray(0.1), **more}
    return p if u is None else {**p, "u": u}


def simulated(p, n_steps=3, solver=None, adjoint=None, make=lambda u: u, **options):
    adjoint = jd.ReversibleAdjoint() if adjoint is None else adjoint
    u = make(p["u"]) if "u" in p else None
    times = {"dt": p["dt"], "t0": p.get("t0", 0.0), "n_steps": n_steps}
    return jd.simulate(
        p["cell"], p["x0"], **times, args=u, solver=solver, adjoint=adjoint, **options
    ).ys


def by_hand(p, n_steps=3, solver=None, each=False, make=lambda u: u):
    """The end of the same splitting written out: one unit after the other, nothing in blocks.

    In an ascending sweep the time moves first, in a descending one last. The antisymmetric form is
    taken at its word, y_i' = s(W_i y + U u + b).
    """
    cell, dt, t0 = p["cell"], p["dt"], p.get("t0", jnp.zeros(()))
    W, s = cell.operator.as_matrix(), cell.activation
    units = np.concatenate([np.arange(cell.size)[c] for c in cell.operator.coloring()])
    a = np.array((jd.Strang() if solver is None else solver).coefficients)
    ascending = np.arange(a.size) % 2 == 0
    order = np.where(ascending[:, None], units, units[::-1])
    parts = jax.tree.map(jnp.asarray, (a, np.cumsum(a) - a * ~ascending, 1.0 * ascending, order))
    poisson = isinstance(cell, jd.PoissonCell)

    def one(x, u):
        u = None if u is None else make(u)

        def part(carry, row):
            (x, k), (a, at, first, order) = carry, row
            drive = cell.drive(t0 + (k + at) * dt, u)
            drive = jnp.zeros_like(x) if drive is None else drive

            def kick(x, i):
                if poisson:
                    return x + a * dt * W[:, i] * s(x[i]), None
                return x.at[i].add(a * dt * s(W[i] @ x + drive[i])), None

            if poisson:
                x = x + first * a * dt * drive
            x, _ = jax.lax.scan(kick, x, order)
            if poisson:
                x = x + (1 - first) * a * dt * drive
            return (x, k), None

        def step(x, k):
            (x, _), _ = jax.lax.scan(part, (x, k), parts)
            return x, None

        return jax.lax.scan(step, x, jnp.arange(n_steps, dtype=float))[0]

    return jax.vmap(one, in_axes=(0, 0 if each else None))(p["x0"], p.get("u"))[:, None]


def gradient(solve, p):
    """Of one loss of all that `solve(p)` saves."""

    def loss(p):
        return sum(jnp.sum(jnp.sin(y + 0.3 * y**2)) for y in jax.tree.leaves(solve(p)))

    return eqx.filter_jit(eqx.filter_grad(loss))(p)


def assert_equal(got, want, tolerance=1e-12):
    """Leaf by leaf, relative to its largest entry, which is not 0: the test would see nothing."""
    leaves, wanted = (jax.tree_util.tree_leaves_with_path(g) for g in (got, want))
    assert len(leaves) == len(wanted)
    for (path, leaf), (_, other) in zip(leaves, wanted, strict=True):
        size = np.max(np.abs(other))
        assert size > 0, path
        off = np.max(np.abs(np.asarray(leaf) - np.asarray(other))) / size
        assert off < tolerance, (jax.tree_util.keystr(path), off)


def check_driven(operator, kind=jd.PoissonCell, solver=None, activation=None, n_steps=3):
    """W, x0, bias, input matrix, an input that closes over numbers, dt and t0."""
    p = problem(driven(operator, kind, activation), (0.7, 1.3), t0=jnp.asarray(0.2))
    p["u"] = tuple(jnp.asarray(v) for v in p["u"])

    def make(u):
        return lambda t: u[0] * jnp.sin(u[1] * t + jnp.array([0.1, 1.0]))

    options = {"solver": solver, "make": make, "n_steps": n_steps}
    got, want = (gradient(lambda p, f=f: f(p, **options), p) for f in (simulated, by_hand))
    assert_equal(got, want)


@pytest.mark.parametrize("name", list(OPERATORS)[:9])
def test_operators(name):
    check_driven(OPERATORS[name])


@pytest.mark.parametrize(
    ("operator", "kind", "solver"),
    [
        ("Dense", "antisymmetric", jd.Strang()),
        ("Bipartite", "antisymmetric", jd.Strang()),
        ("Dense in 17 blocks", "Poisson", jd.BlanesMoan4()),
        ("Banded in 5 classes", "antisymmetric", jd.Yoshida6()),
        ("Dense of 2", "Poisson", jd.Yoshida4()),
    ],
)
def test_methods_and_forms(operator, kind, solver):
    check_driven(OPERATORS[operator], CELLS[kind], solver)


def test_in_several_memos(monkeypatch):
    """Of 2 steps each, and 5 steps."""
    monkeypatch.setattr("jaxdyn._solver.splitting.MEMO_SIZE", 2 * 9 * 2)
    check_driven(OPERATORS["Dense"], n_steps=5)


def test_float32():
    p = problem(driven(OPERATORS["Dense"]), WAVE)
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), p)
    got = gradient(simulated, single)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(got))
    assert_equal(got, gradient(by_hand, p), 1e-5)


@pytest.mark.parametrize("operator", ["Dense", "Dense of 2"])
def test_parameters_of_the_activation(operator):
    class Scaled(eqx.Module):
        rate: jax.Array

        def __call__(self, x):
            return jnp.tanh(self.rate * x)

    check_driven(OPERATORS[operator], activation=jd.FunctionActivation(Scaled(jnp.asarray(1.3))))


@pytest.mark.parametrize(
    ("u", "each", "kind"),
    [
        (jnp.array([0.7, -0.4]), False, "Poisson"),
        (jnp.array([[0.7, -0.4], [0.2, 1.1]]), True, "antisymmetric"),
        (PATH, False, "Poisson"),
    ],
    ids=["constant", "one each", "path"],
)
def test_inputs(u, each, kind):
    p = problem(driven(PAIR, CELLS[kind]), u)
    got = gradient(simulated, p)
    assert_equal(got, gradient(lambda p: by_hand(p, each=each), p))


FORTH, BACK = {"t1": 1.0}, {"t0": 1.0, "t1": 0.25}


@pytest.mark.parametrize(
    ("times", "saveat", "batch"),
    [
        (FORTH, SaveAt(ts=[0.07, 0.23, 0.23, 0.8, 1.0]), (2,)),
        (FORTH, SaveAt(t0=True, steps=1), (2,)),
        (FORTH, SaveAt(t0=True, steps=3, t1=True), ()),
        (BACK, SaveAt(steps=2, t1=True), (2,)),
    ],
    ids=["ts off the grid", "all", "some of one", "backwards in time"],
)
def test_saves(times, saveat, batch):
    """Against the scan that stores what it needs; dt is known, as save times need."""
    p = {"cell": driven(PAIR), "x0": jr.normal(KEY, (*batch, 2)), "u": WAVE}

    def solve(p, adjoint):
        options = {"args": p["u"], "saveat": saveat, "adjoint": adjoint}
        return jd.simulate(p["cell"], p["x0"], dt=0.1, **times, **options).ys

    got = gradient(lambda p: solve(p, jd.ReversibleAdjoint()), p)
    assert_equal(got, gradient(lambda p: solve(p, None), p))


def test_readout():
    """What `fn` closes over, and what it makes of t and of the input, is differentiated too."""
    p = problem(driven(PAIR), WAVE, readout=jnp.array([0.6, -1.2]))

    def solve(p, adjoint):
        def fn(t, x, u):
            return {"y": p["readout"] @ x, "u": u(t)[0] * x[0], "step": jnp.asarray(1)}

        options = {"args": p["u"], "saveat": SaveAt(steps=2, t1=True, fn=fn)}
        times = {"dt": p["dt"], "n_steps": 5}
        ys = jd.simulate(p["cell"], p["x0"], **times, **options, adjoint=adjoint).ys
        return ys["y"], ys["u"]

    got = gradient(lambda p: solve(p, jd.ReversibleAdjoint()), p)
    assert_equal(got, gradient(lambda p: solve(p, None), p))


@pytest.mark.parametrize("length", [{"t1": 0.0}, {"n_steps": 0}], ids=["t1", "n_steps"])
def test_no_length(length):
    """The end is x0, and depends on nothing else."""

    def solve(p):
        options = {"dt": 0.1, "adjoint": jd.ReversibleAdjoint()}
        return jd.simulate(p["cell"], p["x0"], **length, **options).ys

    p = {"cell": SMALL, "x0": jr.normal(KEY, (2, 2))}
    got = gradient(solve, p)
    assert_equal(got["x0"], gradient(lambda x: x, p["x0"]))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(got["cell"]))


@pytest.mark.parametrize(
    ("solver", "tolerance"),
    # Undone to the truncation at |W| h = 0.1, and to what Newton's method leaves.
    [(jd.Taylor(16), 1e-12), (jd.DiscreteGradient(), 1e-11), (jd.ImplicitMidpoint(), 1e-11)],
    ids=["Taylor", "DiscreteGradient", "ImplicitMidpoint"],
)
def test_other_solvers(solver, tolerance):
    p = problem(driven(PAIR), jnp.array([0.7, -0.4]))

    def solve(p, adjoint):
        options = {"args": p["u"], "solver": solver, "adjoint": adjoint}
        return jd.simulate(p["cell"], p["x0"], dt=p["dt"], n_steps=4, **options).ys

    got = gradient(lambda p: solve(p, jd.ReversibleAdjoint()), p)
    assert_equal(got, gradient(lambda p: solve(p, None), p), tolerance)


@pytest.mark.parametrize("operator", ["Dense of 2", "Dense"])
def test_under_vmap(operator):
    """One gradient of x0 and of W for each of two states, as when they are taken one by one."""
    cell = jd.PoissonCell(OPERATORS[operator], jd.Tanh())
    xs = jr.normal(KEY, (2, cell.size))

    def of_one(x):
        def loss(cell, x):
            return jnp.sum(jnp.sin(simulated({"cell": cell, "x0": x, "dt": 0.1}, 6)))

        return jax.grad(loss, argnums=(0, 1))(cell, x)

    got = jax.jit(jax.vmap(of_one))(xs)
    alone = jax.jit(of_one)
    want = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(alone(x) for x in xs))
    assert_equal(got, want)


def test_forward_mode_is_refused():
    with pytest.raises(TypeError, match=r"forward-mode"):
        jax.jvp(lambda x: simulated({"cell": SMALL, "x0": x, "dt": 0.1}), (X2,), (X2,))
    assert "reverse mode only" in " ".join(jd.ReversibleAdjoint.__doc__.split())


def test_memory_does_not_grow_with_the_steps():
    """Once there are more than one memo is for, here 910."""
    x0 = jr.normal(KEY, (4, 9))
    cell = jd.PoissonCell(OPERATORS["Dense"], jd.Tanh())

    def bytes_of(n_steps):
        def loss(cell, x):
            return jnp.sum(simulated({"cell": cell, "x0": x, "dt": 0.1}, n_steps) ** 2)

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(cell, x0).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = bytes_of(1_000), bytes_of(100_000)
    assert abs(many - few) <= 0.01 * few


@pytest.fixture(scope="module")
def chaotic():
    """A cell and a state of energy 8, n = 8: undone over 8000 steps of 0.1, the state is lost."""
    cell = jd.PoissonCell(jd.DenseSkew.random(8, key=jr.key(7)), jd.Tanh())
    direction = jr.normal(jr.key(107), (8,))
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if cell.energy(middle * direction) < 8 else (low, middle)
    return cell, low * direction


def of_x0(cell, x0, n_steps, **options):
    def loss(x):
        return jnp.sum(jnp.sin(simulated({"cell": cell, "x0": x, "dt": 0.1}, n_steps, **options)))

    return jax.jit(jax.grad(loss))(x0)


def test_chaos_needs_checkpoints(chaotic):
    """Without them the error is raised; with them, the gradient is that of all states stored."""
    with pytest.raises(Exception, match="checkpoint_every"):
        jax.block_until_ready(of_x0(*chaotic, 8000))
    stored = of_x0(*chaotic, 8000, adjoint=jd.ReversibleAdjoint(checkpoint_every=1))
    got = of_x0(*chaotic, 8000, adjoint=jd.ReversibleAdjoint(checkpoint_every=64))
    assert np.max(np.abs(stored)) > 1e3  # chaotic indeed
    assert_equal(got, stored, 1e-3)


def test_nobody_hides_behind_the_batch(chaotic):
    """The error is relative to each trajectory, however large its neighbour is."""
    cell, x0 = chaotic
    beside = jnp.stack([x0, 1e9 * jnp.ones(8)])
    with pytest.raises(Exception, match="checkpoint_every"):
        jax.block_until_ready(of_x0(cell, beside, 8000))


def test_nobody_hides_behind_a_lost_one(chaotic):
    """A trajectory that is NaN, let through by `throw=False`, takes nothing from the others."""
    cell, x0 = chaotic
    beside = jnp.stack([x0, jnp.full(8, jnp.nan)])
    with pytest.raises(Exception, match="checkpoint_every"):
        jax.block_until_ready(of_x0(cell, beside, 8000, throw=False))
    got = of_x0(cell, beside, 20, throw=False)
    assert_equal(got[0], of_x0(cell, x0, 20))
    assert np.all(np.isnan(got[1]))


def test_checkpoints_change_nothing():
    """Whether or not they divide the steps, or fall on saves."""
    p = problem(SMALL)

    def of(every):
        adjoint = jd.ReversibleAdjoint(checkpoint_every=every)
        options = {"adjoint": adjoint, "saveat": SaveAt(t0=True, steps=3, t1=True)}
        sol = jd.simulate(SMALL, X2, dt=0.1, n_steps=10, adjoint=adjoint)
        assert sol.stats["checkpoint_every"] == every
        return gradient(lambda p: simulated(p, 10, **options), p)

    want = of(None)
    for every in (1, 4, 100):
        assert_equal(of(every), want)


def test_interval_for_an_error(chaotic):
    """The interval found serves the gradient it was found for, and the regular orbit needs none."""
    cell, x0 = chaotic
    every = jd.reversal_interval(cell, x0, dt=0.1, n_steps=8000, error=1e-8)
    assert every is not None and 8 <= every < 8000
    of_x0(cell, x0, 8000, adjoint=jd.ReversibleAdjoint(checkpoint_every=every, error=1e-8))
    assert jd.reversal_interval(SMALL, X2, dt=0.1, n_steps=8000, error=1e-8) is None


@pytest.mark.core
@pytest.mark.parametrize("name", ["Dense", "Bipartite", "Dense of 2"])
def test_grid_is_undone_bit_by_bit(name):
    """There and back in two programs, 1e4 steps each. Off the grid rounding is left."""
    cell = jd.PoissonCell(OPERATORS[name], jd.Tanh(), bias=jnp.full(OPERATORS[name].in_size(), 0.1))
    x = jr.normal(KEY, (cell.size, 2))

    def steps_of(solver, h):
        @jax.jit
        def steps(x):
            prepared = solver.prepare(cell, h)
            nothing, t = SharedInput(None), jnp.zeros(())

            def step(_, x):
                return solver.advance_batch(prepared, t, h, x, nothing)

            return jax.lax.fori_loop(0, 10_000, step, x)

        return steps

    for solver, same in ((jd.Strang(grid=GRID), True), (jd.Strang(), False)):
        there, back = (steps_of(solver, jnp.asarray(h)) for h in (0.1, -0.1))
        begin = solver.start(x)
        end = there(begin)
        assert np.max(np.abs(end - begin)) > 0.1
        assert np.array_equal(back(end), begin) == same


@pytest.mark.core
@pytest.mark.parametrize("solver", [jd.Strang(grid=GRID), jd.BlanesMoan4(grid=GRID)])
def test_driven_steps_on_a_grid_are_undone_bit_by_bit(solver):
    """The input is seen at the same times, to the last bit, forwards and backwards."""
    cell, n_steps = driven(PAIR), 20_000
    found = jd.reversal_interval(
        cell, X2, dt=0.1, n_steps=n_steps, error=1e-300, solver=solver, args=WAVE
    )
    assert found is None
    exact = jd.ReversibleAdjoint(error=1e-300)

    def loss(x):
        sol = jd.simulate(cell, x, dt=0.1, n_steps=n_steps, args=WAVE, solver=solver, adjoint=exact)
        return jnp.sum(sol.ys)

    x = solver.start(X2)
    assert np.all(np.isfinite(jax.block_until_ready(jax.jit(jax.grad(loss))(x))))


def test_more_steps_between_checkpoints_than_can_be_counted():
    with jax.enable_x64(False):
        cell = jd.PoissonCell(jd.DenseSkew.random(3, key=KEY), jd.Tanh())
        adjoint = jd.ReversibleAdjoint(checkpoint_every=10**10)
        of_x0(cell, jnp.ones(3), 5, adjoint=adjoint)


def test_gradient_on_a_grid(chaotic):
    """Not a bit is lost, on a chaotic orbit; and the gradient is that of the plain method."""
    exact = jd.ReversibleAdjoint(error=1e-300)
    of_x0(*chaotic, 8000, solver=jd.Strang(grid=GRID), adjoint=exact)
    with pytest.raises(Exception, match="chaotic"):
        jax.block_until_ready(of_x0(*chaotic, 100, solver=jd.Strang(), adjoint=exact))

    cell, x0 = chaotic
    options = [{"solver": jd.Strang(grid=GRID)}, {"solver": jd.Strang()}]
    on_grid, plain = (simulated({"cell": cell, "x0": x0, "dt": 0.1}, 20, **o) for o in options)
    # 20 steps of 16 kicks, each off by half a grid, on an orbit that amplifies by less than 10.
    assert 0 < np.max(np.abs(on_grid - plain)) < 20 * 16 * GRID / 2 * 10
    on_grid, plain = (of_x0(cell, x0, 20, **o) for o in options)
    assert_equal(on_grid, plain, 1e-6)

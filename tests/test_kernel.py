"""Kernels: the numbers of the scan, by Pallas' interpreter, and programs that lower for CUDA."""

import inspect
import types

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh
from scipy.special import erf

import jaxdyn as jd
from jaxdyn._kernel import check_device, rewrites, tile
from jaxdyn._kernel.launch import Saves, integrate_in_kernel
from jaxdyn._simulate import in_kernel

KEY = jr.key(0)
KERNEL = jd.Kernel(tile=4, interpret=True)
W3, W5 = (jd.DenseSkew.random(n, key=KEY) for n in (3, 5))
PAIR, TWO = jd.BlockSkew([1.3]), jd.BipartiteSkew.random(5, key=KEY)
TANH = jd.Tanh()
# On and between steps; t1 is no multiple of dt.
SAVEAT = diffrax.SaveAt(t0=True, t1=True, ts=[0.3, 0.33])
DRIVEN = jd.PoissonCell(W3, TANH, bias=jnp.ones(3), input_matrix=jr.normal(KEY, (3, 2)))
# Relative to states of size 1: orders of sums, and contractions, differ.
TOLERANCE = {jnp.float64: 1e-13, jnp.float32: 3e-6}


def wave(t):
    return jnp.stack([jnp.sin(t), t * t])


CASES = {
    "RK4, n = 5": (jd.PoissonCell(W5, TANH), jd.RK4(), None),
    "RK4, damping and shell": (
        jd.PoissonCell(PAIR, TANH, damping=0.1, regulator=jd.EnergyShell(1.0, 0.1)),
        jd.RK4(),
        None,
    ),
    "Strang, n = 5": (jd.PoissonCell(W5, TANH), jd.Strang(), None),
    "Strang, n = 3, bias and damping": (
        jd.PoissonCell(W3, TANH, bias=jnp.ones(3), damping=0.1),
        jd.Strang(),
        None,
    ),
    "Strang, bipartite": (jd.PoissonCell(TWO, TANH), jd.Strang(), None),
    "Strang, block": (jd.PoissonCell(PAIR, TANH), jd.Strang(), None),
    "Strang, driven": (DRIVEN, jd.Strang(), wave),
    "Strang, grid": (jd.PoissonCell(W3, TANH), jd.Strang(grid=2.0**-12), None),
    "Strang, antisymmetric": (jd.AntisymmetricCell(W3, TANH, bias=jnp.ones(3)), jd.Strang(), None),
    "BlanesMoan4": (jd.PoissonCell(W3, TANH), jd.BlanesMoan4(), None),
    "Taylor(6)": (jd.PoissonCell(W3, TANH), jd.Taylor(6), None),
    "Taylor(6), driven": (DRIVEN, jd.Taylor(6), wave),
}


def solve(cell, solver, args=None, engine=KERNEL, x0=None, **how):
    x0 = jr.normal(jr.key(1), (6, cell.size)) if x0 is None else x0
    how = {"t1": 0.52, "dt": 0.1, "saveat": SAVEAT, **how}
    return jd.simulate(cell, x0, solver=solver, args=args, engine=engine, **how)


@pytest.mark.parametrize("name", CASES)
def test_numbers_are_those_of_the_scan(name):
    cell, solver, args = CASES[name]
    got, want = (solve(cell, solver, args, engine) for engine in (KERNEL, None))
    assert got.ys.shape == (6, 4, cell.size)
    # One unit of the grid where one of two numbers beside halfway is rounded up.
    tolerance = TOLERANCE[jnp.float64] if getattr(solver, "grid", None) is None else 2.0**-12
    np.testing.assert_allclose(got.ys, want.ys, rtol=0, atol=tolerance)
    assert jnp.array_equal(got.ts, want.ts)
    assert jnp.array_equal(got.stats["num_steps"], want.stats["num_steps"])
    assert jnp.all(got.result == diffrax.RESULTS.successful)


@pytest.mark.core
@pytest.mark.parametrize("solver", [jd.RK4(), jd.Strang(), jd.Taylor(6)])
def test_single_precision(solver):
    cell, x0 = jd.PoissonCell(PAIR, TANH), jr.normal(KEY, (3, 2), jnp.float32)
    how = {"x0": x0, "saveat": None}
    got, want = (solve(cell, solver, engine=engine, **how).ys for engine in (KERNEL, None))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE[jnp.float32])


@pytest.mark.parametrize(
    "how",
    [
        {"t1": -0.52, "saveat": diffrax.SaveAt(ts=[0.0, -0.33, -0.5])},
        {"saveat": diffrax.SaveAt(steps=2, t1=True)},
        {"saveat": None, "t0": 0.1},
        {"saveat": diffrax.SaveAt(ts=[0.0, 0.0, 0.1, 0.5])},
    ],
    ids=["backwards", "every second step", "end", "ragged"],
)
def test_whenever_it_is_saved(how):
    got, want = (solve(DRIVEN, jd.Strang(), wave, engine, **how) for engine in (KERNEL, None))
    np.testing.assert_allclose(got.ys, want.ys, rtol=0, atol=1e-13)
    assert jnp.array_equal(got.ts, want.ts)


def test_one_state_and_inputs_of_their_own():
    cell, u = jd.PoissonCell(W3, TANH, input_matrix=jnp.ones((3, 1))), jr.normal(KEY, (6, 1))
    got, want = (solve(cell, jd.Strang(), u, engine).ys for engine in (KERNEL, None))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-13)
    alone = solve(cell, jd.Strang(), u[2], x0=jr.normal(jr.key(1), (6, 3))[2])
    assert alone.ys.shape == (4, 3) and alone.result == diffrax.RESULTS.successful
    np.testing.assert_allclose(alone.ys, want[2], rtol=0, atol=1e-13)


def test_saved_function_sees_its_own_input():
    cell, u = jd.PoissonCell(W3, TANH, input_matrix=jnp.ones((3, 1))), jr.normal(KEY, (6, 1))
    saveat = diffrax.SaveAt(ts=[0.3, 0.33], fn=lambda t, x, args: {"u": args, "tx": t * x})
    got, want = (solve(cell, jd.RK4(), u, engine, saveat=saveat).ys for engine in (KERNEL, None))
    assert jnp.array_equal(got["u"], want["u"])
    np.testing.assert_allclose(got["tx"], want["tx"], rtol=0, atol=1e-13)


def test_failures_stand_with_their_trajectory():
    cell = jd.PoissonCell(W5, jd.Identity())
    x0 = jnp.zeros((6, 5)).at[4].set(1.0)
    how = {"x0": x0, "dt": 1e6, "t1": None, "n_steps": 60, "saveat": None}
    sol = solve(cell, jd.RK4(), **how, throw=False)
    assert jnp.array_equal(sol.result == diffrax.RESULTS.successful, jnp.arange(6) != 4)
    with pytest.raises(eqx.EquinoxRuntimeError, match="infinite or NaN"):
        solve(cell, jd.RK4(), **how)


def loss(given, engine, **how):
    """Of a cell, states, and what the input closes over."""
    cell, x0, a = given
    return jnp.sum(jnp.sin(solve(cell, jd.Strang(), lambda t: a * wave(t), engine, x0, **how).ys))


GIVEN = DRIVEN, jr.normal(KEY, (5, 3)), jnp.asarray(1.3)
END = {"saveat": None, "t1": 0.3}


def test_gradients_are_those_of_the_scan():
    got = eqx.filter_grad(loss)(GIVEN, KERNEL, **END)
    want = eqx.filter_grad(loss)(GIVEN, None, **END)
    leaves = jax.tree.leaves(want)
    assert len(leaves) == 5 and all(jnp.any(leaf != 0) for leaf in leaves)
    for a, b in zip(jax.tree.leaves(got), leaves, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


UNDONE = {
    "Strang, driven": (DRIVEN, jd.Strang(), wave),
    "Strang, bipartite, inputs of their own": (
        jd.PoissonCell(TWO, TANH, input_matrix=jnp.ones((5, 1))),
        jd.Strang(),
        jr.normal(KEY, (6, 1)),
    ),
    "Strang, antisymmetric": (jd.AntisymmetricCell(W3, TANH, bias=jnp.ones(3)), jd.Strang(), None),
    "Taylor(10)": (jd.PoissonCell(PAIR, TANH), jd.Taylor(10), None),
}


@pytest.mark.parametrize("name", UNDONE)
def test_steps_are_undone_in_kernels(name, monkeypatch):
    """By the cell, the input, states and times, saved on the way."""
    cell, solver, u = UNDONE[name]

    def loss(given, engine, adjoint):
        cell, x0, dt, t0, v = given
        how = {"solver": solver, "args": u if callable(u) else v, "engine": engine, "dt": dt}
        saveat = diffrax.SaveAt(steps=2)
        ys = jd.simulate(cell, x0, t0=t0, n_steps=4, saveat=saveat, adjoint=adjoint, **how).ys
        return jnp.sum(jnp.sin(ys))

    x0 = jr.normal(KEY, (6, cell.size))
    given = cell, x0, jnp.asarray(0.1), jnp.asarray(0.3), None if callable(u) else u
    want = jax.tree.leaves(eqx.filter_grad(loss)(given, None, None))

    def by_the_scan(*_):
        raise AssertionError("the scan was run again")

    for engine in ("integrate", "integrate_reversibly"):
        monkeypatch.setattr(in_kernel, engine, by_the_scan)
    got = jax.tree.leaves(eqx.filter_grad(loss)(given, KERNEL, jd.ReversibleAdjoint()))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-11)


def test_undone_in_single_precision_under_maps_and_backwards():
    """An input in another precision; a save at the start, and two at once."""
    saveat = diffrax.SaveAt(ts=np.array([0.0, -0.2, -0.2, -0.4]))
    x0, u = jr.normal(KEY, (5, 3), jnp.float32), jr.normal(KEY, (5, 1))

    def loss(cell, x0, u, engine, adjoint):
        how = {"saveat": saveat, "t1": -0.4, "adjoint": adjoint}
        return jnp.sum(jnp.sin(solve(cell, jd.Strang(), u, engine, x0, **how).ys))

    def gradients(*how):
        grad = eqx.filter_grad(lambda given: loss(*given, *how))
        return jax.tree.leaves(eqx.filter_vmap(lambda *given: grad(given))(CELLS, x0, u))

    got, want = gradients(KERNEL, jd.ReversibleAdjoint()), gradients(None, None)
    assert len(got) == len(want) == 5
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_what_comes_back_wrong_is_said():
    """A long step of a low order, which a step back does not undo."""

    def loss(x0, **how):
        cell = jd.PoissonCell(W3, TANH)
        return jnp.sum(solve(cell, jd.Taylor(2), x0=x0, saveat=None, **how).ys)

    with pytest.raises(Exception, match="further off than `error`"):
        jax.grad(loss)(GIVEN[1], adjoint=jd.ReversibleAdjoint())


@pytest.mark.parametrize("what", ["side steps", "kept states"])
def test_gradients_that_no_kernel_serves_are_by_the_scan(what):
    saveat = diffrax.SaveAt(ts=[0.15]) if what == "side steps" else None
    cell = jd.PoissonCell(W3, TANH)
    adjoint = jd.ReversibleAdjoint(checkpoint_every=2 if what == "kept states" else None)

    def loss(x0, engine):
        how = {"x0": x0, "saveat": saveat, "t1": 0.3, "adjoint": adjoint, "engine": engine}
        return jnp.sum(jnp.sin(solve(cell, jd.Strang(), **how).ys))

    x0 = jr.normal(KEY, (2, cell.size))
    got, want = (jax.grad(loss)(x0, engine) for engine in (KERNEL, None))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


def test_forward_mode():
    cell, x0, a = GIVEN
    got, want = (
        jax.jvp(lambda a, e=e: loss((cell, x0, a), e, **END), (a,), (jnp.asarray(1.0),))
        for e in (KERNEL, None)
    )
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


@eqx.filter_vmap
def cells_of(key):
    operator = jd.DenseSkew.random(3, key=key)
    return jd.PoissonCell(operator, TANH, bias=jr.normal(key, (3,)), input_matrix=jnp.ones((3, 1)))


CELLS = cells_of(jr.split(KEY, 5))


@pytest.mark.parametrize("shape", [(), (2,)], ids=["one state", "a batch"])
def test_every_member_has_its_own_cell(shape):
    x0, u = jr.normal(KEY, (5, *shape, 3)), jr.normal(KEY, (5, *shape, 1))
    got, want = (
        eqx.filter_vmap(lambda c, x, u, e=e: solve(c, jd.RK4(), u, e, x).ys)(CELLS, x0, u)
        for e in (KERNEL, None)
    )
    assert got.shape == (5, *shape, 4, 3)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-13)


def test_maps_in_maps_gradients_in_maps_and_steps_that_are_mapped():
    x0, u = jr.normal(KEY, (2, 3)), jr.normal(KEY, (3, 1))

    def run(cell, x, u, dt, engine):
        return jd.simulate(cell, x, dt=dt, n_steps=3, args=u, solver=jd.RK4(), engine=engine).ys

    def nested(e):
        inner = eqx.filter_vmap(run, in_axes=(None, None, 0, None, None))
        return eqx.filter_vmap(inner, in_axes=(eqx.if_array(0), None, None, 0, None))(
            CELLS, x0, u, jnp.linspace(0.1, 0.2, 5), e
        )

    def gradients(e):
        grad = eqx.filter_grad(lambda c, x: jnp.sum(run(c, x, u[0], 0.1, e) ** 2))
        return eqx.filter_vmap(grad, in_axes=(eqx.if_array(0), None))(CELLS, x0)

    for fn in (nested, gradients):
        got, want = jax.tree.leaves(fn(KERNEL)), jax.tree.leaves(fn(None))
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_functions_that_triton_lacks(dtype):
    x = np.concatenate([np.linspace(-8, 8, 4001), [0.0, 1.0, 1e-300, np.inf]]).astype(dtype)
    off = np.asarray(rewrites.erf(jnp.asarray(x))).astype(float) - erf(x.astype(float))
    assert np.all(np.abs(off) <= 2 * np.finfo(dtype).eps * np.abs(erf(x.astype(float))) + 1e-300)
    halves = jnp.asarray(np.arange(-5, 5.5, 0.5), dtype)
    for method in jax.lax.RoundingMethod:
        got = rewrites.rounded(halves, rounding_method=method)
        assert jnp.array_equal(got, jax.lax.round(halves, method))


def test_operations_on_arrays_that_are_taken_apart():
    """Each beside what JAX makes of it."""
    index = jnp.array([2, 0])

    def step(c, t, dt, x):
        rolled = jnp.roll(x, 1) + jnp.flip(x) * x[index].sum() + jnp.outer(x, c) @ x
        stacked = jnp.stack([x, rolled]).T @ jnp.tile(c, (2, 1))
        picked = jax.lax.dynamic_slice(stacked, (1, 0), (2, 3)).at[0].set(c)
        low, high = jnp.split(jnp.pad(x, (1, 0)), 2)
        chosen = jax.lax.cond(x[0] > t, jnp.cos, jnp.sin, x)
        looped = jax.lax.fori_loop(0, 3, lambda i, x: x * c + i * dt, x)
        summed, each = jax.lax.scan(lambda s, v: (s + v, s * v), dt, x)
        extremes = jnp.max(x) - jnp.min(c) * jnp.prod(x) + jnp.where(jnp.any(x > 1), 1.0, summed)
        return picked.sum(0) + chosen + looped + each + extremes + low[1] * high[0]

    x0, c = jr.normal(KEY, (6, 3)), jnp.array([0.3, -0.2, 0.5])
    t0, dt = jnp.asarray(0.1), jnp.asarray(0.2)
    saves = Saves(np.array([0]), np.array([1]), None)
    got = integrate_in_kernel(step, c, False, x0, t0, dt, saves, KERNEL)
    want = jax.vmap(lambda x: step(c, t0, dt, x))(x0)
    np.testing.assert_allclose(got[:, 0], want, rtol=1e-13, atol=1e-13)


def bare(step, **how):
    arguments = {"constants": jnp.ones(3), "own": False, "x0": jnp.ones((2, 3)), **how}
    t0, dt, saves = jnp.asarray(0.0), jnp.asarray(0.1), Saves(np.array([0]), np.array([1]), None)
    return integrate_in_kernel(step, t0=t0, dt=dt, saves=saves, kernel=KERNEL, **arguments)


@pytest.mark.parametrize(
    "step, what",
    [
        (lambda c, t, dt, x: jnp.sort(x), "cannot carry out `sort`"),
        (lambda c, t, dt, x: x[(x[0] > 0).astype(int)] * x, "`.*` at an index that depends"),
        (lambda c, t, dt, x: jax.lax.while_loop(lambda x: x[0] < 9, lambda x: 2 * x, x), "`while`"),
        (lambda c, t, dt, x: jax.lax.fori_loop(0, 1000, lambda _, x: x * c, x), "a loop of"),
    ],
)
def test_what_cannot_be_taken_apart_is_refused(step, what):
    with pytest.raises(ValueError, match=f"Kernel.*{what}.*leave `engine` out"):
        bare(step)


def test_programs_that_are_too_long_are_refused(monkeypatch):
    monkeypatch.setattr(tile, "MOST_OPERATIONS", 50)
    with pytest.raises(ValueError, match=r"more than 50 operations.*fewer units"):
        solve(jd.PoissonCell(W3, TANH), jd.RK4())


DEVICE = {"device_kind": "NVIDIA H100 80GB HBM3", "num_cores": None}
if "platform" in inspect.signature(AbstractDevice).parameters:
    DEVICE["platform"] = "gpu"
MESH = AbstractMesh((), (), abstract_device=AbstractDevice(**DEVICE))


def lowered(run, *arguments):
    """The program for a GPU, which needs none to be written."""
    with jax.sharding.use_abstract_mesh(MESH):
        program = jax.jit(run).trace(*arguments).lower(lowering_platforms=("cuda",))
    return program.as_text()


@pytest.mark.core
@pytest.mark.parametrize(
    "name, dtype",
    [*((name, jnp.float32) for name in CASES), ("RK4, n = 5", jnp.float64)],
)
def test_lowers_for_cuda(name, dtype, monkeypatch):
    monkeypatch.setattr(in_kernel, "check_device", lambda *_: None)
    cell, solver, args = CASES[name]
    x0 = jax.ShapeDtypeStruct((300, cell.size), dtype)
    how = {"engine": jd.Kernel(), "throw": False}
    text = lowered(lambda x0: solve(cell, solver, args, x0=x0, **how).ys, x0)
    assert text.count("__gpu$xla.gpu.triton") == 1
    assert "grid_x = 3" in text


ACTIVATIONS = [
    jd.Arctan(), jd.Erf(), jd.ISRU(), jd.Softsign(), jd.HardTanh(), jd.AsymmetricTanh(), jd.ELU(),
    jd.LeakyReLU(), jd.ReLU(), jd.RectifiedTanh(), jd.Softplus(), jd.Sigmoid(), jd.Identity(),
]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
def test_every_activation_lowers_for_cuda(activation, monkeypatch):
    """With damping where that has an exact flow, which uses more functions."""
    monkeypatch.setattr(in_kernel, "check_device", lambda *_: None)
    cell = jd.PoissonCell(PAIR, activation, damping=0.1 if activation.relaxes else None)
    x0 = jax.ShapeDtypeStruct((300, 2), jnp.float32)
    how = {"engine": jd.Kernel(), "throw": False}
    text = lowered(lambda x0: solve(cell, jd.Strang(), x0=x0, **how).ys, x0)
    assert "__gpu$xla.gpu.triton" in text


@pytest.mark.core
def test_members_of_their_own_and_gradients_lower_for_cuda(monkeypatch):
    monkeypatch.setattr(in_kernel, "check_device", lambda *_: None)
    # Errors at run time are calls of this machine's Python.
    monkeypatch.setattr(eqx, "error_if", lambda x, *_: x)
    x0, u, how = jnp.ones((5, 3)), jnp.ones(1), {"engine": jd.Kernel(), "throw": False}
    arrays, static = eqx.partition(CELLS, eqx.is_array)

    def ensemble(arrays, x0):
        cell = eqx.combine(arrays, static)
        return jnp.sum(solve(cell, jd.Strang(), u, x0=x0, **how).ys)

    def undone(x0):
        adjoint = jd.ReversibleAdjoint()
        cell, x0 = jd.PoissonCell(W3, TANH), x0[None]
        ys = solve(cell, jd.Strang(), x0=x0, adjoint=adjoint, saveat=None, t1=0.5, **how).ys
        return jnp.sum(ys**2)

    for run in (ensemble, jax.value_and_grad(ensemble)):
        assert lowered(jax.vmap(run), arrays, x0).count("__gpu$xla.gpu.triton") == 1
    assert lowered(jax.vmap(jax.grad(undone)), x0).count("__gpu$xla.gpu.triton") == 2


def test_a_mesh_is_not_for_kernels_and_a_cpu_is_none_either():
    cell = jd.PoissonCell(W3, TANH)
    with pytest.raises(ValueError, match="exclude each other"):
        solve(cell, jd.RK4(), mesh=jax.make_mesh((1,), ("b",)))
    with pytest.raises(ValueError, match=r"NVIDIA GPU, and `x0` is on .*interpret=True"):
        solve(cell, jd.RK4(), engine=jd.Kernel())


def test_old_gpus_and_unknown_ones_are_refused():
    class States:
        dtype = jnp.float32

        def __init__(self, **gpu):
            self.gpus = [types.SimpleNamespace(platform="gpu", **gpu)]

        def devices(self):
            return self.gpus

    check_device(jd.Kernel(), States(compute_capability="8.0"))
    with pytest.raises(ValueError, match=r"capability 8.0 or higher, and .* has 7.5; leave"):
        check_device(jd.Kernel(), States(compute_capability="7.5"))
    with pytest.raises(ValueError, match="does not say its compute capability; leave"):
        check_device(jd.Kernel(), States())

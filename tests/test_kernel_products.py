"""Kernels that multiply blocks of matrices: the numbers of the scan, and programs for CUDA."""

import functools
import inspect
import re

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.lax import DotAlgorithmPreset
from jax.sharding import AbstractDevice, AbstractMesh

import jaxdyn as jd
from jaxdyn._kernel import blocks, launch, mapped
from jaxdyn._kernel.blocks import multiplied_in_parts
from jaxdyn._kernel.engine import PRECISIONS
from jaxdyn._kernel.entries import Refused
from jaxdyn._kernel.rows import CannotServe
from jaxdyn._simulate import in_kernel, undone_in_kernel

KEY = jr.key(0)
KERNEL = jd.Kernel(tile=16, interpret=True)
# Neither 20 nor 40 fills a block; 40 is more than its first half, of 32.
N = 20
W, TANH = jd.DenseSkew.random(N, key=KEY), jd.Tanh()
BIAS, U = jr.normal(KEY, (N,)), jr.normal(KEY, (N, 2))
SAVEAT = diffrax.SaveAt(t0=True, t1=True, ts=[0.3, 0.33])
DRIVEN = jd.PoissonCell(W, TANH, bias=BIAS, input_matrix=U, damping=0.1)


def wave(t):
    return jnp.stack([jnp.sin(t), t * t])


def linear(t, x, args):
    """A field with numbers of its own, reductions and entries."""
    A, w = args
    return A @ jnp.sin(x) - w * jnp.max(x) + jnp.cos(x[3]) * jnp.mean(x**2)


CASES = {
    "RK4": (jd.PoissonCell(W, jd.Erf()), jd.RK4(), None),
    "RK4, driven and damped": (DRIVEN, jd.RK4(), wave),
    "RK4, inputs of their own": (DRIVEN, jd.RK4(), jr.normal(KEY, (5, 2))),
    "RK4, shell": (
        jd.PoissonCell(W, TANH, regulator=jd.EnergyShell(1.0, 0.1)),
        jd.RK4(),
        None,
    ),
    "RK4, antisymmetric": (jd.AntisymmetricCell(W, TANH, bias=BIAS), jd.RK4(), None),
    "RK4, banded": (
        jd.PoissonCell(jd.BandedSkew.random(N, key=KEY, bandwidth=2), TANH),
        jd.RK4(),
        None,
    ),
    "RK4, a field": (linear, jd.RK4(), (jr.normal(KEY, (N, N)) / N, BIAS)),
    "Taylor(6), driven": (jd.PoissonCell(W, TANH, input_matrix=U), jd.Taylor(6), wave),
    "Strang, in two halves": (
        jd.PoissonCell(jd.DenseSkew.random(40, key=KEY), TANH),
        jd.Strang(),
        None,
    ),
    "Strang, driven and damped": (DRIVEN, jd.Strang(), wave),
    "BlanesMoan4, bipartite": (
        jd.PoissonCell(jd.BipartiteSkew.random(N, key=KEY), TANH, bias=BIAS),
        jd.BlanesMoan4(),
        None,
    ),
    "Strang, block": (jd.PoissonCell(jd.BlockSkew.random(N, key=KEY), TANH), jd.Strang(), None),
    "Strang, grid": (
        jd.PoissonCell(jd.BipartiteSkew.random(N, key=KEY), TANH),
        jd.Strang(grid=2.0**-12),
        None,
    ),
}


def of_whole_numbers(t, x, args):
    with jax.numpy_dtype_promotion("standard"):
        return -0.1 * (args["I"] @ x)


FIELDS = {
    "of the inverse": lambda t, x, a: -(0.01 / a["A"]) @ x,
    "of whole numbers": of_whole_numbers,
    "written into it": lambda t, x, a: -jnp.ones((N, N)) @ x,
    "not square": lambda t, x, a: -a["B"] @ jnp.tanh(a["B"].T @ x),
    "from the left": lambda t, x, a: x @ (a["A"] - a["A"].T + jnp.eye(N)),
    "chosen": lambda t, x, a: jnp.where(a["mask"], -x, jnp.where(x > 0, a["A"] @ x, 0)),
    "of a column": lambda t, x, a: -x * (1 + jnp.eye(N, 1)[:, 0]),
    "normed": lambda t, x, a: -x / jnp.linalg.norm(x) * jnp.max(jnp.exp(-x)),
}
GIVEN = {
    "A": jr.normal(KEY, (N, N)) + 3,
    "B": jr.normal(KEY, (N, 7)),
    "I": jnp.arange(N * N).reshape(N, N) % 3,
    "mask": jnp.arange(N) % 2 == 0,
}


def units(cell):
    return cell.size if isinstance(cell, eqx.Module) else N


def solve(cell, solver, args=None, engine=KERNEL, x0=None, **how):
    x0 = jr.normal(jr.key(1), (5, units(cell))) if x0 is None else x0
    how = {"t1": 0.52, "dt": 0.1, "saveat": SAVEAT, **how}
    return jd.simulate(cell, x0, solver=solver, args=args, engine=engine, **how)


@pytest.fixture
def by_products(monkeypatch):
    """That nothing is taken apart into numbers, to which it would fall back."""

    def taken_apart(*_):
        raise AssertionError("taken apart into numbers")

    monkeypatch.setattr(launch, "_in_lanes", taken_apart)


@pytest.mark.parametrize("name", CASES)
def test_numbers_are_those_of_the_scan(name, by_products):
    cell, solver, args = CASES[name]
    got, want = (solve(cell, solver, args, engine) for engine in (KERNEL, None))
    assert got.ys.shape == (5, 4, units(cell))
    # Sums in another order; one unit of the grid, where one of two numbers beside halfway is
    # rounded up.
    tolerance = 1e-13 if getattr(solver, "grid", None) is None else 2.0**-12
    np.testing.assert_allclose(got.ys, want.ys, rtol=0, atol=tolerance)
    assert jnp.array_equal(got.ts, want.ts)
    assert jnp.all(got.result == diffrax.RESULTS.successful)


@pytest.mark.parametrize("name", FIELDS)
def test_fields_have_the_numbers_of_the_scan(name, by_products):
    """With tiles as wide as a matrix, and narrower."""
    want = solve(FIELDS[name], jd.RK4(), GIVEN, None, saveat=None).ys
    for tile in (16, 32) if name == "from the left" else (32,):
        got = solve(FIELDS[name], jd.RK4(), GIVEN, jd.Kernel(tile, True), saveat=None).ys
        np.testing.assert_allclose(got, want, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    "field",
    [
        lambda t, x, a: jnp.where(x[0] > 0, a, 2 * a) @ x,
        lambda t, x, a: (a * jnp.cos(x[0])) @ x,
        lambda t, x, a: jnp.full((N, N), x[0]) @ x,
        lambda t, x, a: jnp.tensordot(x[0], a, 0) @ x,
        lambda t, x, a: jnp.tensordot(x, x, 0) @ x,
        lambda t, x, a: (jnp.tensordot(x, jnp.ones(N), 0) + a) @ x,
        lambda t, x, a: jax.lax.fori_loop(0, 2, lambda _, b: jnp.tensordot(x, x, 0), a) @ x,
        lambda t, x, a: (
            jax.lax.fori_loop(0, 2, lambda _, b: -b, jnp.tensordot(x, jnp.ones(N), 0)) @ x
        ),
        lambda t, x, a: jax.lax.fori_loop(0, 2, lambda _, b: b * x[0], a) @ x,
        lambda t, x, a: jax.lax.fori_loop(0, 2, lambda _, b: jnp.full((N, N), x[0]), a) @ x,
    ],
)
@pytest.mark.parametrize("tile", [16, 32])
def test_a_matrix_of_their_own_is_not_taken_for_a_shared_one(field, tile, monkeypatch):
    def refuse(*_):
        raise Refused("Too long.")

    monkeypatch.setattr(launch, "_in_lanes", refuse)
    with pytest.raises(ValueError, match=r"Too long. By matrix .* a matrix of each trajectory's"):
        solve(field, jd.RK4(), GIVEN["A"], jd.Kernel(tile, True))


def test_products_of_two_vectors_are_summed_over_all_trajectories():
    x, A = jr.normal(KEY, (5, N)), jnp.eye(N, 7)

    def total(change):
        def step(A, t, dt, states, sums):
            return states, (sums[0] + change(states[0], A),)

        when = jnp.array([0]), jnp.array([3])
        like, times = jax.ShapeDtypeStruct((N, 7), x.dtype), jnp.array([0.0, 0.1])
        states = [blocks.States(x, "constant")]
        return blocks.run_in_blocks(step, A, False, when, states, [like], *times, KERNEL, 16)[1][0]

    def pairs(x):
        return jnp.tensordot(x, x[0] * jnp.ones(7), 0)

    of_all = 3 * jnp.outer(x.T @ x[:, 0], jnp.ones(7))
    for change, want in [
        (lambda x, A: pairs(x), of_all),
        (lambda x, A: A * pairs(x) - 2.0 * pairs(x) + 0.0, (A - 2) * of_all),
        (lambda x, A: -jnp.where(A > 0, 0.0, pairs(x)), -jnp.where(A > 0, 0, of_all)),
        (lambda x, A: jnp.tensordot(x[0] * jnp.ones(7), x, 0).T, of_all),
    ]:
        np.testing.assert_allclose(total(change), want, rtol=0, atol=1e-13)
    for change in (
        lambda x, A: A,
        lambda x, A: pairs(x) + A,
        lambda x, A: x[0] * pairs(x),
        lambda x, A: pairs(x) * pairs(x),
        lambda x, A: jnp.where(x[0] > 0, pairs(x), 0.0),
    ):
        with pytest.raises(CannotServe, match="a matrix of each trajectory's own"):
            total(change)


def test_a_half_of_one_unit(by_products):
    cell = jd.PoissonCell(jd.DenseSkew.random(65, key=KEY), TANH)
    how = {"saveat": None, "t1": 0.2}
    got, want = (solve(cell, jd.Strang(), engine=e, **how).ys for e in (KERNEL, None))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-13)


def test_gradients_and_maps_over_states(by_products):
    """The gradient is the plain solve's: here it has to arrive, through maps too."""
    cell, x0 = jd.PoissonCell(W, TANH, input_matrix=U), jr.normal(KEY, (2, 3, N))

    def loss(given, engine):
        cell, x0 = given
        run = jax.vmap(lambda x: solve(cell, jd.RK4(), BIAS[:2], engine, x, saveat=None, t1=0.2).ys)
        return jnp.sum(jnp.sin(run(x0)))

    got, want = (eqx.filter_value_and_grad(loss)((cell, x0), e) for e in (KERNEL, None))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


@eqx.filter_vmap
def cells_of(key):
    return jd.PoissonCell(
        jd.DenseSkew.random(N, key=key), TANH, input_matrix=jr.normal(key, (N, 2))
    )


CELLS, STEPS = cells_of(jr.split(KEY, 3)), jnp.array([0.1, 0.2])


@pytest.mark.parametrize("most", [2, 65_535], ids=["in parts", "at once"])
def test_cells_and_steps_of_members_and_maps_in_maps(most, by_products, monkeypatch):
    """Each member has programs of its own, of all its trajectories, in two parts too."""
    monkeypatch.setattr(mapped, "MOST_MEMBERS", most)
    # Nothing is traced before `most` is what it is.
    x0, u = jr.normal(KEY, (2 if most == 2 else 3, N)), jr.normal(KEY, (4, 2))

    def run(cell, u, dt, engine):
        return jd.simulate(cell, x0, dt=dt, n_steps=3, args=u, engine=engine).ys

    def nested(engine):
        fn = functools.partial(run, engine=engine)
        for axes in [(None, 0, None), (eqx.if_array(0), None, None), (None, None, 0)]:
            fn = eqx.filter_vmap(fn, in_axes=axes)
        return fn(CELLS, u, STEPS)

    got, want = nested(KERNEL), nested(None)
    assert got.shape == (2, 3, 4, len(x0), 1, N)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-13)


@pytest.mark.parametrize("order", ["cells inside", "cells outside"])
def test_maps_over_states_fill_the_tiles_of_a_member(order, by_products):
    x0, u = jr.normal(KEY, (40, N)), jr.normal(KEY, (40, 2))

    def run(cell, x0, u, engine):
        return jd.simulate(cell, x0, dt=0.1, n_steps=2, args=u, engine=engine).ys

    def nested(engine):
        fn = functools.partial(run, engine=engine)
        maps = [(eqx.if_array(0), None, None), (None, 0, 0)]
        for axes in maps if order == "cells inside" else reversed(maps):
            fn = eqx.filter_vmap(fn, in_axes=axes)
        return fn(CELLS, x0, u)

    program = str(jax.make_jaxpr(lambda: nested(KERNEL))())
    assert re.findall(r"grid=\((.*?)\)", program) == ["3, 3"]
    np.testing.assert_allclose(nested(KERNEL), nested(None), rtol=0, atol=1e-13)


def test_what_is_no_product_is_taken_apart():
    """The steps of a form of the cell, of which no pieces are made."""
    cell = jd.AntisymmetricCell(jd.BlockSkew(jr.normal(KEY, (9,))), TANH)
    got, want = (solve(cell, jd.Strang(), engine=e, t1=0.2, saveat=None).ys for e in (KERNEL, None))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-13)


class Steep(eqx.Module):
    slope: jax.Array

    def __call__(self, x):
        return jnp.tanh(self.slope * x)


class Wave(eqx.Module):
    frequency: jax.Array

    def __call__(self, t):
        return wave(self.frequency * t)


UNDONE = {
    "Strang, driven": (
        jd.PoissonCell(
            W, jd.FunctionActivation(Steep(jnp.asarray(1.3))), bias=BIAS, input_matrix=U
        ),
        jd.Strang(),
        Wave(jnp.asarray(1.3)),
    ),
    "Strang, pieces of 16 and 1, in float32": (
        jd.PoissonCell(jd.DenseSkew.random(17, key=KEY, dtype=jnp.float32), TANH),
        jd.Strang(),
        None,
    ),
    "BlanesMoan4, bipartite, inputs of their own": (
        jd.PoissonCell(jd.BipartiteSkew.random(N, key=KEY), jd.AsymmetricTanh(1.2), input_matrix=U),
        jd.BlanesMoan4(),
        jr.normal(KEY, (20, 2)),
    ),
    "Strang, banded, one input": (
        jd.PoissonCell(jd.BandedSkew.random(N, key=KEY, bandwidth=2), TANH, input_matrix=U[:, :1]),
        jd.Strang(),
        jnp.ones(1),
    ),
    "Strang, block": (
        jd.PoissonCell(jd.BlockSkew.random(N, key=KEY), TANH, bias=BIAS),
        jd.Strang(),
        None,
    ),
    "Strang, 10 units": (jd.PoissonCell(jd.DenseSkew.random(10, key=KEY), TANH), jd.Strang(), None),
    "Taylor(6), driven": (jd.PoissonCell(W, TANH, input_matrix=U), jd.Taylor(6), wave),
    "Taylor(6), antisymmetric": (
        jd.AntisymmetricCell(W, TANH, bias=BIAS),
        jd.Taylor(6),
        None,
    ),
}


@pytest.fixture
def undone_by_products(monkeypatch):
    """That no gradient is left to the scan."""

    def by_the_scan(*_):
        raise AssertionError("the scan was run again")

    def check():
        for engine in ("integrate", "integrate_reversibly"):
            monkeypatch.setattr(in_kernel, engine, by_the_scan)
        monkeypatch.setattr(undone_in_kernel, "MOST_CARRIED", 0)

    return check


@pytest.mark.parametrize("name", UNDONE)
def test_steps_are_undone_by_products(name, undone_by_products):
    """By the cell, the input, states and times, saved on the way; with two tiles."""
    cell, solver, u = UNDONE[name]
    dtype = cell.operator.dtype

    def loss(given, engine, adjoint):
        cell, x0, dt, t0, u = given
        how = {"solver": solver, "args": u, "engine": engine, "dt": dt}
        saveat = diffrax.SaveAt(steps=2, t0=True)
        ys = jd.simulate(cell, x0, t0=t0, n_steps=4, saveat=saveat, adjoint=adjoint, **how).ys
        return jnp.sum(jnp.sin(ys))

    x0, times = jr.normal(KEY, (20, cell.size), dtype), jnp.array([0.02, 0.3], dtype)
    given = cell, x0, *times, u
    want = eqx.filter_grad(loss)(given, None, None)
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(want[:2]))
    undone_by_products()
    got = eqx.filter_grad(loss)(given, KERNEL, jd.ReversibleAdjoint())
    for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-11 if dtype == jnp.float64 else 1e-4)


def test_gradients_under_maps_over_states():
    """Whoever undoes them; `ReversibleAdjoint` adds no error of its own in so few steps."""
    cell, x0 = jd.PoissonCell(W, TANH), jr.normal(KEY, (2, 3, N))

    def states(cell, x0, engine):
        how = {"t1": 0.2, "saveat": None, "adjoint": jd.ReversibleAdjoint() if engine else None}
        return solve(cell, jd.Strang(), None, engine, x0, **how).ys

    def of_each(engine):
        def grad(x0):
            return eqx.filter_grad(lambda cell: jnp.sum(jnp.sin(states(cell, x0, engine))))(cell)

        return jax.vmap(grad)(x0)

    def of_all(engine):
        def total(cell):
            return jnp.sum(jnp.sin(jax.vmap(lambda x0: states(cell, x0, engine))(x0)))

        return eqx.filter_grad(total)(cell)

    for fn in (of_each, of_all):
        for a, b in zip(*(jax.tree.leaves(fn(engine)) for engine in (KERNEL, None)), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_members_are_undone_by_products(undone_by_products):
    """Each with a gradient of its own."""
    x0 = jr.normal(KEY, (2, N))

    def loss(given, engine, adjoint):
        cell, u = given
        how = {"dt": 0.1, "n_steps": 2, "args": u, "solver": jd.Strang(), "adjoint": adjoint}
        return jnp.sum(jnp.sin(jd.simulate(cell, x0, engine=engine, **how).ys))

    def gradients(*how):
        grad = eqx.filter_grad(lambda given: loss(given, *how))
        return jax.tree.leaves(eqx.filter_vmap(lambda *given: grad(given))(CELLS, U[:3]))

    want = gradients(None, None)
    undone_by_products()
    for a, b in zip(gradients(KERNEL, jd.ReversibleAdjoint()), want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "what, n, dtype, by_kernels",
    [
        ("dense", 128, jnp.float32, True),
        ("dense", 96, jnp.float64, True),
        ("dense", 97, jnp.float64, False),
        ("form without pieces", 40, jnp.float32, False),
        ("grid", 20, jnp.float32, False),
        ("states mapped over", 20, jnp.float32, False),
        ("cells mapped over", 20, jnp.float32, True),
    ],
)
def test_what_products_undo(what, n, dtype, by_kernels, monkeypatch):
    """Nothing else: that is by the scan. Only traced."""
    runs, run = [], in_kernel.integrate_reversibly
    monkeypatch.setattr(in_kernel, "integrate_reversibly", lambda *v: runs.append(v) or run(*v))
    solver = jd.Strang(grid=2.0**-8 if what == "grid" else None)
    operator = jd.BipartiteSkew if what == "grid" else jd.DenseSkew
    cell = jd.PoissonCell(
        operator.random(n, key=KEY, dtype=dtype), TANH, input_matrix=jnp.ones((n, 2), dtype)
    )
    if what == "form without pieces":
        cell = jd.AntisymmetricCell(
            jd.BlockSkew(jnp.ones(n // 2, dtype)), TANH, input_matrix=jnp.ones((n, 2), dtype)
        )

    def loss(given):
        cell, x0 = given
        how = {"saveat": None, "t1": 0.3, "adjoint": jd.ReversibleAdjoint()}
        return jnp.sum(solve(cell, solver, jnp.ones(2, dtype), KERNEL, x0, **how).ys)

    def gradient(cell, x0):
        def mapped(cell, x0):
            return eqx.filter_grad(loss)((cell, x0))

        if what == "states mapped over":
            return eqx.filter_vmap(mapped, in_axes=(None, 0))(cell, x0)
        if what == "cells mapped over":
            cells = jax.tree.map(lambda v: jnp.stack([v, v]), cell)
            return eqx.filter_vmap(mapped, in_axes=(eqx.if_array(0), None))(cells, x0)
        return mapped(cell, x0)

    eqx.filter_eval_shape(gradient, cell, jnp.ones((3, n), dtype))
    assert bool(runs) != by_kernels


def test_rough_products_do_not_undo_what_was_done_without():
    """Up to 16 units the solve is by numbers."""
    cell = jd.PoissonCell(jd.DenseSkew.random(12, key=KEY, dtype=jnp.float32), TANH)
    rough = jd.Kernel(16, interpret=True, precision=DotAlgorithmPreset.BF16_BF16_F32)

    def loss(x0, engine):
        how = {"saveat": None, "t1": 1.0, "adjoint": jd.ReversibleAdjoint(error=1e-5)}
        return jnp.sum(jnp.sin(solve(cell, jd.Strang(), None, engine, x0, **how).ys))

    x0 = jr.normal(KEY, (2, 12), jnp.float32)
    np.testing.assert_allclose(*(jax.grad(loss)(x0, e) for e in (rough, None)), rtol=0, atol=1e-5)


def test_what_is_no_product_and_too_large_is_refused():
    cell = jd.AntisymmetricCell(jd.BlockSkew(jnp.ones(33)), TANH)
    with pytest.raises(ValueError, match=r"this solver for this cell.*up to 64 units without"):
        solve(cell, jd.Strang())
    with pytest.raises(ValueError, match=r"cannot carry out `cumsum`.*up to 64 units without"):
        solve(lambda t, x, args: -jnp.cumsum(x), jd.RK4(), x0=jnp.ones((2, 65)))

    def printed(t, x, args):
        jax.debug.print("{}", t)
        return -x

    with pytest.raises(ValueError, match=r"cannot carry out `debug_.*up to 64 units without"):
        solve(printed, jd.RK4(), x0=jnp.ones((2, 65)))


@pytest.mark.parametrize("precision", PRECISIONS, ids=lambda p: p.name)
def test_products_are_as_precise_as_they_say(precision):
    """As the interpreter does them, against float64, in units of the rounding of float32 times the
    sum of all magnitudes. On a GPU it is Triton that takes the parts."""
    a, b = (jr.normal(key, (64, 64), jnp.float32) for key in jr.split(KEY))
    got = multiplied_in_parts(a, b, precision).astype(float)
    exact, size = (
        jnp.matmul(f(a).astype(float), f(b).astype(float)) for f in (lambda v: v, jnp.abs)
    )
    off = float(jnp.max(jnp.abs(got - exact) / size)) * 2**24
    plain = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST).astype(float)
    full = float(jnp.max(jnp.abs(plain - exact) / size)) * 2**24
    least, most = {
        DotAlgorithmPreset.BF16_BF16_F32_X9: (0, 2 * full),
        DotAlgorithmPreset.F32_F32_F32: (0, 2 * full),
        DotAlgorithmPreset.TF32_TF32_F32_X3: (0, 4 * full),
        DotAlgorithmPreset.TF32_TF32_F32: (2**9, 2**14),
        DotAlgorithmPreset.BF16_BF16_F32: (2**12, 2**17),
    }[precision]
    assert least <= off <= most


@pytest.mark.core
def test_single_precision_is_float32(by_products):
    cell, x0 = jd.PoissonCell(W, TANH), jr.normal(KEY, (3, N), jnp.float32)
    how = {"x0": x0, "saveat": None, "t1": 2.0}
    want = solve(cell, jd.RK4(), engine=None, **{**how, "x0": x0.astype(float)}).ys
    rough = jd.Kernel(16, interpret=True, precision=DotAlgorithmPreset.BF16_BF16_F32)
    off = []
    for engine in (None, KERNEL, rough):
        ys = solve(cell, jd.RK4(), engine=engine, **how).ys
        assert ys.dtype == jnp.float32
        off.append(jnp.max(jnp.abs(ys.astype(float) - want)))
    assert off[0] < 1e-6 and off[1] < 1e-6 and 1e-4 < off[2] < 1e-1


DEVICE = {"device_kind": "NVIDIA H100 80GB HBM3", "num_cores": None}
if "platform" in inspect.signature(AbstractDevice).parameters:
    DEVICE["platform"] = "gpu"
MESH = AbstractMesh((), (), abstract_device=AbstractDevice(**DEVICE))


# All that Triton takes.
POWERS = {1, 2, 4, 8}


def warps_of(text):
    return map(int, re.findall(r"num_warps = (\d+)", text))


OLDEST_TOO = {"RK4, shell", "Taylor(6), driven", "Strang, in two halves", "BlanesMoan4, bipartite"}


@pytest.mark.parametrize(
    "name, dtype",
    [
        *(
            pytest.param(name, jnp.float32, marks=[pytest.mark.core] * (name in OLDEST_TOO))
            for name in CASES
        ),
        pytest.param("RK4, driven and damped", jnp.float64, marks=pytest.mark.core),
    ],
)
def test_lowers_for_cuda(name, dtype, monkeypatch, by_products):
    monkeypatch.setattr(in_kernel, "check_device", lambda *_: None)
    cell, solver, args = CASES[name]
    args = jnp.ones((300, 2)) if eqx.is_array(args) else args
    x0 = jax.ShapeDtypeStruct((300, units(cell)), dtype)

    def run(x0):
        return solve(cell, solver, args, jd.Kernel(), x0, throw=False).ys

    with jax.sharding.use_abstract_mesh(MESH):
        text = jax.jit(run).trace(x0).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("__gpu$xla.gpu.triton") == 1
    assert "grid_x = 10" in text
    assert set(warps_of(text)) <= POWERS


@pytest.mark.core
@pytest.mark.parametrize("n", [20, 100])
def test_undoing_lowers_for_cuda(n, monkeypatch, by_products):
    """For members with a cell each."""
    monkeypatch.setattr(in_kernel, "check_device", lambda *_: None)
    # Errors at run time are calls of this machine's Python.
    monkeypatch.setattr(eqx, "error_if", lambda x, *_: x)
    operator = jd.BandedSkew if n == 100 else jd.DenseSkew
    cell = jd.PoissonCell(operator.random(n, key=KEY), TANH, bias=jnp.ones(n))
    cells, static = eqx.partition(cell, eqx.is_array)
    cells = jax.tree.map(lambda v: jnp.stack([v, v]).astype(jnp.float32), cells)
    x0 = jax.ShapeDtypeStruct((300, n), jnp.float32)

    def loss(cell, x0):
        how = {"throw": False, "saveat": None, "t1": 0.5, "adjoint": jd.ReversibleAdjoint()}
        ys = solve(eqx.combine(cell, static), jd.Strang(), None, jd.Kernel(), x0, **how).ys
        return jnp.sum(ys**2)

    run = jax.jit(jax.vmap(jax.grad(loss), in_axes=(0, None)))
    with jax.sharding.use_abstract_mesh(MESH):
        text = run.trace(cells, x0).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("__gpu$xla.gpu.triton") == 2
    assert "grid_y = 2" in text
    assert set(warps_of(text)) <= POWERS


def test_the_precision_asked_for_is_that_of_the_program(monkeypatch):
    monkeypatch.setattr(in_kernel, "check_device", lambda *_: None)
    cell, x0 = jd.PoissonCell(W, TANH), jnp.ones((3, N), jnp.float32)

    def products(kernel, x0=x0):
        run = jax.make_jaxpr(lambda x0: solve(cell, jd.RK4(), None, kernel, x0, throw=False).ys)
        return set(re.findall(r"dot_general\[.*?precision=(\S+?)\s", str(run(x0)), re.DOTALL))

    assert products(jd.Kernel()) == {"BF16_BF16_F32_X9"}
    rough = jd.Kernel(precision=DotAlgorithmPreset.TF32_TF32_F32)
    assert products(rough) == {"TF32_TF32_F32"}
    assert products(jd.Kernel(), x0.astype(float)) == {"(Precision.HIGHEST,"}

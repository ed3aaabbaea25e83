"""Lyapunov exponents and alignment indices against systems whose values are known."""

import csv
import pathlib
import subprocess
import sys

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax import config

import jaxdyn as jd


def lorenz(t, x, args):
    a, b, c = x
    return jnp.stack([10.0 * (b - a), a * (28.0 - c) - b, a * b - 8.0 / 3.0 * c])


def henon_heiles(t, s, args):
    x, y, px, py = s
    return jnp.stack([px, py, -x - 2.0 * x * y, -y - x**2 + y**2])


# Energies 1/8 and below: a periodic orbit, a quasi-periodic one, a chaotic one.
KNOWN = jnp.array(
    [
        [0.0, 0.295456, 0.407308431, 0.0],
        [0.0, 0.483, 0.27898039, 0.0],
        [0.0, -0.25, 0.42081, 0.0],
    ]
)


def tanh_cell(n, seed=0):
    return jd.PoissonCell(jd.DenseSkew.random(n, key=jr.key(seed)), jd.Tanh())


def test_lorenz():
    """Viswanath's and Sprott's .9056, 0, -14.5723; the sum is the divergence, exactly."""
    found = jd.lyapunov_spectrum(lorenz, [1.0, 1.0, 20.0], 1000.0, 0.01)
    off = np.abs(np.asarray(found.exponents) - [0.9056, 0.0, -14.5723])
    assert np.all(off <= found.error), (off, found.error)
    assert np.all(np.asarray(found.error) < 0.05)
    assert float(found.sum) == pytest.approx(-41 / 3, abs=1e-6)
    assert int(found.zeros) == 1 and jd.verdict(found) == "chaotic"


def test_a_linear_field_has_the_real_parts_of_its_eigenvalues():
    A = jnp.array([[0.1, 2.0, 0.3], [-2.0, 0.1, 0.5], [0.0, 0.0, -0.7]])
    found = jd.lyapunov_spectrum(lambda t, x, args: A @ x, jnp.ones(3), 200.0, 0.02)
    # A full turn is not a whole number of records: directions inside the plane take turns.
    np.testing.assert_allclose(found.exponents, [0.1, 0.1, -0.7], atol=2e-3)
    first = jd.max_lyapunov(lambda t, x, args: -0.3 * x, jnp.ones(1), 10.0, 0.1)
    assert float(first.exponents[0]) == pytest.approx(-0.3, abs=1e-12)


@pytest.mark.parametrize("n", [7, 8])
def test_random_networks_pair_and_sum_to_zero(n):
    cell = tanh_cell(n)
    x0 = 1.5 * jr.normal(jr.key(1), (4, n))
    found = jd.lyapunov_spectrum(cell, x0, 2000.0, 0.1)
    assert found.exponents.shape == (4, n) and found.history.shape == (4, len(found.times), n)
    # Each shear has determinant 1, so volume is kept to rounding.
    assert np.all(np.abs(found.sum) < 1e-12)
    worst = np.max(np.asarray(found.error + found.error[:, ::-1]), axis=1)
    assert np.all(np.asarray(found.pairing) <= worst)
    assert np.all(found.zeros >= 2 + n % 2)
    assert np.all(np.diff(np.asarray(found.exponents), axis=1) <= 0)


def test_separate_pairs_are_regular_and_coupled_units_are_not():
    """THEORY: blocks stay integrable at any energy; n = 8 is chaotic throughout from H ~ 2."""
    x0 = 2.0 * jr.normal(jr.key(3), (6, 8))
    blocks = jd.PoissonCell(jd.BlockSkew([1.0, 0.83, 0.61, 0.37]), jd.Tanh())
    regular = jd.max_lyapunov(blocks, x0, 3000.0, 0.1)
    assert list(jd.verdict(regular)) == ["regular"] * 6
    assert np.all(np.asarray(regular.exponents) < 5e-3)
    chaotic = jd.max_lyapunov(tanh_cell(8), x0, 3000.0, 0.1)
    assert list(jd.verdict(chaotic)) == ["chaotic"] * 6


def test_another_solver_finds_the_same_exponents():
    cell, x0 = tanh_cell(8), 2.0 * jr.normal(jr.key(4), (8, 8))
    strang = jd.max_lyapunov(cell, x0, 2000.0, 0.1)
    taylor = jd.max_lyapunov(cell, x0, 2000.0, 0.2, solver=jd.Taylor(8))
    a, b = (np.asarray(found.exponents)[:, 0] for found in (strang, taylor))
    # Trajectories differ, and so do exponents of each; their mean is that of the ensemble.
    spread = np.std(a) / np.sqrt(len(a))
    assert abs(a.mean() - b.mean()) < 4 * spread + 0.05 * a.mean()


def test_alignment_indices_of_henon_and_heiles():
    two = jd.gali(henon_heiles, KNOWN, 1000.0, 0.05)
    assert np.all(np.asarray(two.last)[:2] > 0.01) and float(two.last[2]) <= 1e-12
    assert two.values.shape == (3, len(two.times)) and float(two.times[-1]) >= 1000.0
    short = jd.sali(henon_heiles, KNOWN, 1000.0, 0.05)
    angle = np.arcsin(np.minimum(np.asarray(two.values), 1))
    np.testing.assert_allclose(short.values, 2 * np.sin(angle / 2), rtol=1e-6, atol=1e-15)
    assert list(jd.verdict(jd.max_lyapunov(henon_heiles, KNOWN, 2000.0, 0.05))) == [
        "regular",
        "regular",
        "chaotic",
    ]


def test_gali_falls_by_the_differences_of_the_exponents():
    """A diagonal field: vectors align at known rates."""
    rates = jnp.array([0.3, 0.1, -0.4])
    found = jd.gali(lambda t, x, args: rates * x, jnp.ones(3), 40.0, 0.1, 3)
    logs, times = np.log(np.asarray(found.values)), np.asarray(found.times)
    slope = np.polyfit(times[20:], logs[20:], 1)[0]
    assert slope == pytest.approx(-(0.2 + 0.7), rel=1e-3)


def test_the_run_is_hardly_longer_than_asked_and_says_how_long():
    cell, x0 = tanh_cell(4), jnp.ones(4)
    for t1 in (201.0, 333.3):
        for found in (jd.max_lyapunov(cell, x0, t1, 0.1), jd.gali(cell, x0, t1, 0.1)):
            assert t1 <= float(found.times[-1]) <= 1.01 * t1 + 2.0
    # Pairs need all exponents.
    assert np.isnan(jd.max_lyapunov(cell, x0, 50.0, 0.1).pairing)


def test_vectors_that_vanish_are_no_alignment():
    shrinks = lambda t, x, args: -40.0 * x  # noqa: E731
    x0 = jnp.ones(2, jnp.float32)
    kept = jd.gali(shrinks, x0, 4.0, 0.01)
    np.testing.assert_allclose(kept.values, 1.0, rtol=1e-5)
    with pytest.raises(RuntimeError, match="`every`"):
        jd.gali(shrinks, x0, 40.0, 0.01, every=400)


def test_one_and_many_agree_under_jit_and_vmap():
    cell, x0 = tanh_cell(4), jr.normal(jr.key(5), (3, 4))
    many = jd.lyapunov_spectrum(cell, x0, 50.0, 0.1)
    one = jd.lyapunov_spectrum(cell, x0[1], 50.0, 0.1)
    assert one.exponents.shape == (4,)
    np.testing.assert_allclose(one.exponents, many.exponents[1], atol=1e-12)
    cells = jax.vmap(lambda key: jd.PoissonCell(jd.DenseSkew.random(4, key=key), jd.Tanh()))
    stack = cells(jr.split(jr.key(6), 2))
    run = eqx.filter_jit(
        eqx.filter_vmap(lambda c, x: jd.lyapunov_spectrum(c, x, 50.0, 0.1).exponents)
    )
    both = run(stack, x0[:2])
    alone = jd.lyapunov_spectrum(jax.tree.map(lambda a: a[1], stack), x0[1], 50.0, 0.1)
    np.testing.assert_allclose(both[1], alone.exponents, atol=1e-12)


def test_the_exponent_has_a_gradient_by_the_weights():
    """In a linear network with damping every exponent is minus the damping."""

    def first(damping):
        cell = jd.PoissonCell(jd.BlockSkew([1.0, 0.5]), jd.Identity(), damping=damping)
        return jd.lyapunov_spectrum(cell, jnp.ones(4), 20.0, 0.1, throw=False).exponents[0]

    assert float(jax.grad(first)(jnp.asarray(0.2))) == pytest.approx(-1.0, abs=1e-6)


def test_many_exponents_by_lapack():
    cell = tanh_cell(20)
    found = jd.lyapunov_spectrum(cell, jr.normal(jr.key(7), (2, 20)), 30.0, 0.1)
    assert np.all(np.abs(found.sum) < 1e-12) and np.all(np.isfinite(found.exponents))


def test_what_diverges_is_said():
    def escapes(t, x, args):
        return x**2

    with pytest.raises(RuntimeError, match=r"trajectories \[1\] diverged.*smaller `dt`"):
        jd.max_lyapunov(escapes, jnp.array([[-1.0], [1.0]]), 20.0, 0.05)
    found = jd.max_lyapunov(escapes, jnp.array([[-1.0], [1.0]]), 20.0, 0.05, throw=False)
    assert np.isfinite(found.exponents[0, 0]) and np.isnan(found.exponents[1, 0])
    assert list(found.finite) == [True, False] and jd.verdict(found)[1] == "undecided"
    with pytest.raises(RuntimeError, match="diverged"):
        jd.gali(lambda t, x, args: x**2, jnp.ones(2), 20.0, 0.05)


def test_float32_stays_float32():
    assert config.jax_enable_x64
    x0 = jr.normal(jr.key(8), (2, 4), jnp.float32)
    found = jd.lyapunov_spectrum(tanh_cell(4), x0, 50.0, 0.1)
    assert found.exponents.dtype == jnp.float32 and np.all(np.abs(found.sum) < 1e-4)


@pytest.mark.parametrize(
    ("change", "error", "names"),
    [
        ({"field": "lorenz"}, TypeError, "field"),
        ({"field": lambda t, x, args: x[:2]}, ValueError, "field"),
        ({"x0": [1.0, np.nan, 1.0]}, ValueError, "x0"),
        ({"x0": "start"}, TypeError, "x0"),
        ({"x0": np.ones((2, 2, 3))}, ValueError, "x0"),
        ({"x0": np.ones(3) + 1j}, TypeError, "x0"),
        ({"t1": -1.0}, ValueError, "t1"),
        ({"t1": 0.5}, ValueError, "t1"),
        ({"t1": "long"}, TypeError, "t1"),
        ({"dt": 0.0}, ValueError, "dt"),
        ({"k": 4}, ValueError, "k"),
        ({"k": 0}, ValueError, "k"),
        ({"k": 1.5}, TypeError, "k"),
        ({"every": 0}, ValueError, "every"),
        ({"solver": jd.Strang()}, TypeError, "solver"),
        ({"solver": diffrax.Kvaerno5()}, TypeError, "solver"),
        ({"field": tanh_cell(3), "solver": diffrax.Dopri8()}, TypeError, "solver"),
        ({"field": tanh_cell(3), "x0": np.ones(4)}, ValueError, "x0"),
    ],
)
def test_bad_input(change, error, names):
    given = {"field": lorenz, "x0": np.ones(3), "t1": 10.0, "dt": 0.05} | change
    for function in (jd.lyapunov_spectrum, jd.gali):
        if function is jd.gali and change.get("t1") == 0.5:
            continue
        with pytest.raises(error, match=f"`{names}`"):
            function(**given)


def test_bad_verdicts():
    with pytest.raises(TypeError, match="`spectrum`"):
        jd.verdict(0.3)


def test_the_script_of_the_chaos_map_runs(tmp_path):
    script = pathlib.Path(__file__).parent.parent / "notebooks" / "chaos_map.py"
    subprocess.run(
        [sys.executable, str(script), "--quick", "--out", str(tmp_path)], check=True, timeout=300
    )
    with open(tmp_path / "chaos_map.csv") as file:
        rows = list(csv.DictReader(file))
    assert {(row["n"], row["kind"]) for row in rows} == {
        (n, kind) for n in "24" for kind in ("dense", "bipartite", "ring", "block")
    }
    # Pairs are integrable: their exponents are what vectors that grow linearly show.
    pairs = [float(row["exponent"]) for row in rows if row["n"] == "2"]
    assert 0 < np.median(pairs) < 3 * np.log(10) / (0.9 * 300)
    assert all(row["chaotic"] == "0" for row in rows if row["kind"] == "block")
    assert (tmp_path / "chaos_map.png").stat().st_size > 10_000

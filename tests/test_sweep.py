"""Ensembles in chunks: against `simulate`; stores killed, damaged, full, or of another sweep."""

import errno
import fcntl
import os
import random
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import xarray
import zarr
from jax.sharding import Mesh

import jaxdyn as jd
from jaxdyn._ensemble import store as store_module
from jaxdyn._ensemble.program import Program
from jaxdyn.cli import main

CELL = jd.PoissonCell(jd.DenseSkew.random(3, key=jr.key(0)), jd.Tanh())
X0 = np.random.default_rng(0).normal(size=(50, 3))
# The last step is a short one, and the last sample comes early.
TIMES = {"t1": 1.03, "dt": 0.1, "every": 4}
KEEP = {
    "final_state": jd.reductions.FinalState(),
    "drift": jd.reductions.EnergyDrift(),
    "states": jd.reductions.States(),
}
DONE, DIVERGED, FAILED = 1, 2, 3


def swept(x0=X0, **how):
    return jd.sweep(CELL, x0, **TIMES | {"keep": KEEP, "chunk": 16} | how)


def tree(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The store of a sweep that nothing happened to."""
    path = tmp_path_factory.mktemp("whole") / "sweep.zarr"
    swept(store=path)
    return path


def copied(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "sweep.zarr"))


def test_numbers_are_those_of_simulate():
    found = swept()
    saveat = diffrax.SaveAt(steps=4, t1=True)
    sol = jd.simulate(CELL, X0, t1=1.03, dt=0.1, saveat=saveat)
    # Other tiles, other sums: to rounding.
    np.testing.assert_allclose(found["states"], sol.ys, rtol=0, atol=4e-15)
    np.testing.assert_array_equal(found["final_state"], found["states"][:, -1])
    np.testing.assert_allclose(found.times, sol.ts, rtol=1e-15)
    np.testing.assert_array_equal(found["drift"], jd.energy_drift(CELL, X0, found["states"]))
    np.testing.assert_array_equal(found["status"], DONE)


def test_chunks_lanes_and_the_store_change_nothing(whole):
    found = swept()
    mesh = Mesh(np.array(jax.local_devices()), ("b",))
    for how in ({"engine": jd.Threads(1)}, {"engine": jd.Threads(3)}, {"mesh": mesh}):
        again = swept(**how)
        for name in found.arrays:
            np.testing.assert_array_equal(again[name], found[name])
    group = zarr.open_group(str(whole), mode="r")
    for name in found.arrays:
        np.testing.assert_array_equal(group[name][...], found[name])
    np.testing.assert_allclose(swept(chunk=7)["states"], found["states"], rtol=0, atol=4e-15)


def test_a_cell_for_every_member():
    scales = np.linspace(0.5, 2.0, 10)
    entries = jnp.array([0.3, -0.4, 0.5])

    def cell(scale, bias):
        return jd.PoissonCell(jd.DenseSkew(scale * entries), jd.Tanh(), bias=bias)

    def start(cell, key):
        return 0.1 * jr.normal(key, (3,)) + cell.bias

    biases = np.random.default_rng(1).normal(size=(10, 3))
    given = {"scale": scales, "bias": biases}
    found = jd.sweep(cell, start, parameters=given, key=jr.key(3), t1=1.0, dt=0.1)
    for i in (0, 4, 9):
        one = cell(scales[i], biases[i])
        x0 = start(one, jr.fold_in(jr.key(3), i))
        exact = jd.simulate(one, x0, t1=1.0, dt=0.1).ys[0]
        np.testing.assert_allclose(found["final_state"][i], exact, rtol=0, atol=4e-15)
    data = found.dataset()
    np.testing.assert_array_equal(data.scale, scales)
    assert data.scale.dims == ("member",) and data.bias.dims == ("member", "bias_dim0")


def test_reductions():
    keep = {
        "start": jd.reductions.InitialState(),
        "lyapunov": jd.reductions.Exponents(2),
        "other": jd.reductions.Exponents(1, every=5),
        "mean": lambda trajectory: jnp.mean(trajectory.states, axis=0),
        "both": lambda trajectory: {"least": trajectory.times[0], "n": jnp.asarray(3)},
    }
    found = jd.sweep(CELL, X0, t1=20.0, dt=0.1, keep=keep)
    exact = jd.lyapunov_spectrum(CELL, X0, 20.0, 0.1, 2)
    np.testing.assert_allclose(found["lyapunov_exponents"], exact.exponents, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found["lyapunov_error"], exact.error, rtol=1e-9)
    np.testing.assert_array_equal(found["start"], X0)
    states = jd.simulate(CELL, X0, t1=20.0, dt=0.1, saveat=diffrax.SaveAt(steps=2)).ys
    np.testing.assert_allclose(found["mean"], np.mean(states, axis=1), rtol=0, atol=1e-14)
    np.testing.assert_array_equal(found["both_least"], found.times[0])
    assert found["both_n"].dtype == np.int64
    data = found.dataset()
    assert data["lyapunov_exponents"].dims == ("member", "exponent")
    assert data["other_exponents"].dims == ("member", "other_exponents_exponent")


def test_exponents_see_the_input_at_its_time():
    driven = jd.PoissonCell(CELL.operator, jd.Tanh(), input_matrix=jnp.ones((3, 1)))
    step = lambda t: jnp.where(t > 10, 5.0, 0.0)[None]  # noqa: E731
    how = {"dt": 0.1, "keep": {"l": jd.reductions.Exponents(2)}}
    found = jd.sweep(driven, X0[:2], args=step, t0=20.0, t1=40.0, **how)
    exact = jd.sweep(driven, X0[:2], args=jnp.full(1, 5.0), t1=20.0, **how)
    np.testing.assert_allclose(found["l_exponents"], exact["l_exponents"], rtol=1e-12, atol=1e-15)
    with pytest.raises(ValueError, match="`t1` of a sweep must be above `t0`"):
        jd.sweep(CELL, X0, t1=-20.0, **how)


def test_solvers_of_diffrax_and_inputs():
    driven = jd.PoissonCell(CELL.operator, jd.Tanh(), input_matrix=jnp.ones((3, 1)))
    push = lambda t: jnp.sin(t)[None]  # noqa: E731
    how = {"t0": 0.5, "t1": 1.5, "dt": 0.1, "args": push, "solver": diffrax.Euler()}
    found = jd.sweep(driven, X0, **how)
    exact = jd.simulate(driven, X0, **how).ys[:, 0]
    np.testing.assert_allclose(found["final_state"], exact, rtol=0, atol=4e-15)


def test_xarray_opens_the_store(whole):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = xarray.open_zarr(whole)
    assert dict(data.sizes) == {"member": 50, "unit": 3, "time": 3}
    assert data["states"].dims == ("member", "time", "unit")
    np.testing.assert_allclose(data.time, [0.4, 0.8, 1.03], rtol=1e-15)
    assert data.time.attrs["units"] == "model time"
    assert data.status.attrs["flag_meanings"] == "pending done diverged failed"
    about = data.attrs
    assert (about["t1"], about["dt"], about["jaxdyn"]) == (1.03, 0.1, jd.__version__)
    assert about["solver"] == "Strang()" and about["dtype"] == "float64"
    memory = swept().dataset()
    assert memory.drop_attrs().identical(data.load().drop_attrs())


def test_float32_is_kept_and_functions_make_the_states(tmp_path):
    def start(cell, key):
        return jr.normal(key, (3,), jnp.float32)

    how = {"key": jr.key(1), "t1": 1.0, "dt": 0.1, "trajectories": 40}
    found = jd.sweep(CELL, start, **how, chunk=16, store=tmp_path / "a.zarr")
    keys = jax.vmap(lambda i: jr.fold_in(jr.key(1), i))(jnp.arange(40))
    x0 = jax.vmap(lambda key: start(CELL, key))(keys)
    assert found["final_state"].dtype == np.float32
    exact = jd.simulate(CELL, x0, t1=1.0, dt=0.1).ys[:, 0]
    np.testing.assert_allclose(found["final_state"][...], exact, rtol=0, atol=1e-6)
    # A member is the same in an ensemble of any size.
    few = jd.sweep(CELL, start, **how | {"trajectories": 5}, chunk=16)
    np.testing.assert_array_equal(few["final_state"], found["final_state"][:5])
    data = xarray.open_zarr(tmp_path / "a.zarr")
    assert data.attrs["key"] == [0, 1]


@pytest.mark.filterwarnings("default")
def test_what_diverges_is_told_of():
    linear = jd.PoissonCell(CELL.operator, jd.Identity())
    x0 = np.stack([np.zeros(3), np.ones(3)])
    with pytest.warns(UserWarning, match="1 of 2 trajectories diverged"):
        found = jd.sweep(linear, x0, n_steps=2000, dt=10.0, solver=jd.Taylor(1))
    np.testing.assert_array_equal(found["status"], [DONE, DIVERGED])


def interrupted(monkeypatch, error, at=2):
    """Makes the chunk number `at` fail."""
    call, count = Program.__call__, iter(range(100))

    def failing(self, x0, parameters):
        if next(count) == at:
            raise error
        return call(self, x0, parameters)

    monkeypatch.setattr(Program, "__call__", failing)


def test_a_chunk_that_fails(whole, tmp_path, monkeypatch):
    path = tmp_path / "sweep.zarr"
    with monkeypatch.context() as patch:
        interrupted(patch, MemoryError("no room"))
        says = "Chunk 2, trajectories 32 to 47, failed: MemoryError: no room"
        with pytest.raises(RuntimeError, match=says):
            swept(store=path)
    with monkeypatch.context() as patch:
        interrupted(patch, MemoryError(), at=0)
        with pytest.warns(UserWarning, match="Chunk 2"):
            found = swept(store=path, resume=True, throw=False)
    np.testing.assert_array_equal(found["status"][...] == FAILED, (np.arange(50) // 16) == 2)
    assert np.all(np.isnan(found["drift"][32:48])) and np.all(np.isfinite(found["drift"][48:]))
    swept(store=path, resume=True)
    assert tree(path) == tree(whole)
    interrupted(monkeypatch, MemoryError())
    np.testing.assert_array_equal(swept(retries=1)["status"], DONE)


def test_a_damaged_or_missing_chunk_is_computed_again(whole, tmp_path):
    path = copied(whole, tmp_path)
    file = path / "states" / "c" / "1" / "0" / "0"
    data = bytearray(file.read_bytes())
    data[7] ^= 1
    file.write_bytes(data)
    (path / "drift" / "c" / "3").unlink()
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_group(str(path), mode="r")["states"][16:32]
    (path / "drift" / "c" / "0.abc.partial").write_bytes(b"left by a kill")
    with pytest.warns(UserWarning) as told:
        swept(store=path, resume=True)
    assert [str(w.message).split("chunk ")[1].split(";")[0] for w in told] == [
        "1, trajectories 16 to 31, is damaged (states)",
        "3, trajectories 48 to 49, is damaged (drift)",
    ]
    assert tree(path) == tree(whole)


def test_what_is_known_beforehand_is_put_back(whole, tmp_path):
    path = copied(whole, tmp_path)
    (path / "time" / "c" / "0").write_bytes(b"?")
    (path / "unit" / "c" / "0").unlink()
    (path / "drift" / "zarr.json").write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged; it is put back") as told:
        swept(store=path, resume=True)
    assert len(told) == 3 and tree(path) == tree(whole)
    (path / "zarr.json").write_text("{")
    with pytest.raises(ValueError, match=r"its zarr.json is damaged"):
        swept(store=path, resume=True)


def test_a_function_that_has_changed(tmp_path):
    def sweep(function):
        path = tmp_path / "sweep.zarr"
        jd.sweep(CELL, X0, t1=1.0, dt=0.1, keep={"a": function}, store=path, resume=True)

    sweep(lambda t: t.x0[0])
    sweep(lambda t: t.x0[0])
    for other in (lambda t: t.x0[1], lambda t: t.x0, lambda t: t.x0[0] > 0):
        with pytest.raises(ValueError, match="not the same `keep`"):
            sweep(other)


def test_a_full_disk(whole, tmp_path, monkeypatch):
    path = tmp_path / "sweep.zarr"
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(store_module.shutil, "disk_usage", lambda _: usage._replace(free=100))
        with pytest.raises(OSError, match=r"the sweep will take .* GiB are free"):
            swept(store=path)
    assert not list(tmp_path.iterdir())
    import zarr.storage._local as local

    put, count = local._put, iter(range(1000))

    def full(where, value, exclusive=False):
        # In the midst of the third chunk.
        if "states" in str(where) and "c" in where.parts and next(count) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return put(where, value, exclusive)

    with monkeypatch.context() as patch:
        patch.setattr(local, "_put", full)
        says = "chunk 2 of 4 could not be written .No space left on device.; what was written"
        with pytest.raises(OSError, match=says) as stop:
            swept(store=path)
    assert stop.value.errno == errno.ENOSPC and stop.value.filename == str(path)
    swept(store=path, resume=True)
    assert tree(path) == tree(whole)


def test_two_writers(whole, tmp_path):
    path = copied(whole, tmp_path)
    with open(path / "zarr.json", "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match="another process writes to it"):
            swept(store=path, resume=True)
    swept(store=path, resume=True)
    assert tree(path) == tree(whole)


def test_a_store_of_another_sweep(whole, tmp_path):
    path = copied(whole, tmp_path)
    with pytest.raises(ValueError, match="exists; go on with it by resume=True"):
        swept(store=path)
    other = {"store": path, "resume": True}
    with pytest.raises(ValueError, match="not the same `dt`, `n_steps`"):
        swept(**other, dt=0.2)
    with pytest.raises(ValueError, match="not the same `x0`;"):
        swept(X0 + 1e-9, **other)
    with pytest.raises(ValueError, match="not the same `keep`;"):
        swept(**other, keep=KEEP | {"drift": jd.reductions.InitialState()})
    with pytest.raises(ValueError, match="not the same `cell`;"):
        jd.sweep(jd.PoissonCell(CELL.operator, jd.ELU()), X0, **TIMES, keep=KEEP, chunk=16, **other)
    shutil.rmtree(path)
    path.mkdir()
    with pytest.raises(ValueError, match="is no store of a sweep"):
        swept(**other)
    with pytest.raises(OSError, match="there is no such folder"):
        swept(store=tmp_path / "nowhere" / "sweep.zarr")
    assert list(tmp_path.rglob("*")) == [path]


def test_what_a_killed_start_has_left_goes(tmp_path):
    for name, age in ((".sweep.zarr.0.partial", 1e5), (".sweep.zarr.1.partial", 0.0)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    swept(store=tmp_path / "sweep.zarr")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".sweep.zarr.1.partial", "sweep.zarr"]


def test_without_zarr(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ImportError, match=r'pip install "jaxdyn\[store\]"'):
        swept(store=tmp_path / "sweep.zarr")


def command(store, *more):
    sizes = ["--units", "8", "--trajectories", "40000", "--t1", "20", "--seed", "3"]
    return ["simulate", *sizes, "--store", str(store), *more]


def run(capsys, args):
    with pytest.raises(SystemExit) as stop:
        main(args)
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def test_killed_at_any_moment_and_resumed(tmp_path, capsys):
    path, moments = tmp_path / "killed.zarr", random.Random(1)
    code, out, err = run(capsys, command(tmp_path / "whole.zarr"))
    assert (code, err) == (0, "") and "energy drift" in out and "40,000 trajectories" in out
    program = [sys.executable, "-m", "jaxdyn", *command(path, "--resume")]
    killed = 0
    for _ in range(2):
        before = len(list(path.rglob("*")))
        process = subprocess.Popen(program, stdout=subprocess.DEVNULL)
        while process.poll() is None and len(list(path.rglob("*"))) == before:
            time.sleep(0.005)
        try:
            assert process.wait(moments.uniform(0, 0.3)) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
    assert killed
    assert run(capsys, command(path, "--resume"))[0] == 0
    assert tree(path) == tree(tmp_path / "whole.zarr")


def test_the_command(tmp_path, capsys):
    small = ["simulate", "--units", "3", "--trajectories", "5", "--t1", "1", "--dt", ".1"]
    small += ["--dtype", "float64", "--energy", "2"]
    store, file = tmp_path / "a.zarr", tmp_path / "a.npz"
    code, _, err = run(capsys, [*small, "--store", str(store), "--save-every", "5"])
    assert (code, err) == (0, "")
    assert run(capsys, [*small, "--out", str(file), "--save-every", "5"])[0] == 0
    data = xarray.open_zarr(store)
    with np.load(file) as saved:
        np.testing.assert_allclose(data["states"], saved["states"][:, 1:], rtol=0, atol=1e-14)
    assert data.attrs["seed"] == 0 and data.attrs["operator"] == "dense"
    code, _, err = run(capsys, [*small, "--store", str(store)])
    assert code == 2 and "--store" in err and "give another name" in err
    code, _, err = run(capsys, [*small, "--store", str(store), "--resume"])
    assert code == 2 and "holds another sweep" in err
    code, _, err = run(capsys, [*small, "--seed", "1", "--store", str(store), "--resume"])
    assert code == 2 and "not the same network, initial states, --seed," in err
    code, _, err = run(capsys, [*small, "--resume"])
    assert code == 2 and "--resume" in err
    code, _, err = run(capsys, [*small, "--store", str(store), "--out", str(file)])
    assert code == 2 and "--store" in err

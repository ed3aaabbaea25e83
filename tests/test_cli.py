"""The command line: `jaxdyn simulate`, `--help`, `--version`, and every wrong option."""

import errno
import json
import os
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdyn as jd
from jaxdyn._cli.simulate import ACTIVATIONS, OPERATORS, SOLVERS
from jaxdyn.cli import main

SMALL = ["simulate", "--units", "4", "--trajectories", "3", "--t1", "1", "--dt", "0.1"]


def run(capsys, args):
    with pytest.raises(SystemExit) as stop:
        main(args)
    out, err = capsys.readouterr()
    return stop.value.code, out, err


@pytest.mark.core
def test_simulate_writes_what_it_ran(tmp_path, capsys):
    file = tmp_path / "run.npz"
    args = [*SMALL, "--dtype", "float64", "--energy", "2", "--save-every", "4", "--out", str(file)]
    code, out, err = run(capsys, args)
    assert (code, err) == (0, "")
    for row in ("energy drift", "Casimir drift", "compile time", "wall time", "speed"):
        assert row in out
    with np.load(file) as data:
        meta = json.loads(str(data["metadata"]))
        # Steps 4 and 8, and the end at 10, after the start.
        np.testing.assert_allclose(data["times"], [0, 0.4, 0.8, 1.0], rtol=1e-15)
        assert data["states"].shape == (3, 4, 4) and data["states"].dtype == np.float64
        np.testing.assert_array_equal(data["W"], -data["W"].T)
        # Bisection to rounding; the norm is rescaled from an eigenvalue problem.
        np.testing.assert_allclose(data["energies"][:, 0], 2.0, rtol=1e-14)
        assert np.linalg.norm(data["W"], 2) == pytest.approx(1.0, abs=1e-13)
        log_cosh = np.sum(np.log(np.cosh(data["states"])), axis=-1)
        np.testing.assert_allclose(data["energies"], log_cosh, rtol=1e-12)
        # The states are those of simulate itself.
        cell = jd.PoissonCell(jd.DenseSkew.from_matrix(data["W"]), jd.Tanh())
        again = jd.simulate(cell, data["states"][:, 0], t1=1.0, dt=0.1).ys[:, 0]
        np.testing.assert_allclose(again, data["states"][:, -1], rtol=1e-13, atol=1e-14)
    assert meta["seed"] == 0 and meta["solver"] == "strang" and meta["save_every"] == 4
    assert meta["jaxdyn"] == jd.__version__
    assert [p.name for p in tmp_path.iterdir()] == ["run.npz"]


def test_same_seed_same_numbers(tmp_path, capsys):
    saved = []
    for seed, name in ((1, "a"), (1, "b"), (2, "c")):
        file = tmp_path / f"{name}.npz"
        assert run(capsys, [*SMALL, "--seed", str(seed), "--out", str(file)])[0] == 0
        with np.load(file) as data:
            saved.append(data["states"])
    assert saved[0].dtype == np.float32
    np.testing.assert_array_equal(saved[0], saved[1])
    assert np.any(saved[0] != saved[2])


@pytest.mark.parametrize(
    "more",
    [
        ["--operator", "bipartite", "--solver", "rk4", "--activation", "elu"],
        ["--operator", "circulant", "--solver", "euler", "--units", "5"],
        ["--solver", "exact-linear", "--activation", "identity", "--scale", "2"],
    ],
)
def test_combinations(capsys, more):
    code, out, _ = run(capsys, SMALL + more)
    assert code == 0 and "energy drift" in out


def test_every_name_exists():
    import diffrax

    for names in (ACTIVATIONS, OPERATORS, SOLVERS):
        for name in names.values():
            assert hasattr(jd, name) or (name == "Euler" and hasattr(diffrax, name))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--units", "1"], "--units 1: give at least 2"),
        (["--units", "2", "--operator", "circulant"], "--units 2: give at least 3"),
        (["--units", "5", "--operator", "block"], "needs an even number"),
        (["--trajectories", "0"], "--trajectories 0"),
        (["--t1", "inf"], "--t1 inf: give a finite number > 0"),
        (["--t1", "-1"], "--t1 -1"),
        (["--dt", "0"], "--dt 0"),
        (["--dt", "nan"], "--dt nan"),
        (["--dt", "2"], "at most --t1 = 1"),
        (["--dt", "1e-12"], "2^31"),
        (["--seed", "-1"], "--seed -1"),
        (["--scale", "0"], "--scale 0"),
        (["--energy", "-2"], "--energy -2"),
        (["--energy", "1", "--activation", "relu"], "does not confine"),
        (["--save-every", "0"], "--save-every 0"),
        (["--save-every", "11"], "between 1 and 10"),
        (["--trajectories", "10000000000000"], "simulate fewer trajectories at a time"),
        (["--dt", "1e-9", "--trajectories", "1000000", "--save-every", "1"], "save less often"),
        (["--solver", "exact-linear"], "--activation identity"),
        (["--solver", "taylor", "--activation", "relu"], "no Taylor recurrence"),
        (["--out", "run.txt"], "ends in .npz"),
        (["--out", "nowhere/run.npz"], "give a file in a folder you can write"),
        (["--out", "folder.npz"], "is a directory"),
    ],
)
def test_wrong_values(tmp_path, monkeypatch, capsys, more, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.npz").mkdir()
    code, out, err = run(capsys, SMALL + more)
    assert code == 2 and out == ""
    assert err.startswith("jaxdyn simulate: --") and says in err and err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["folder.npz"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["simulate", "--unitz", "3"], "--unitz"),
        (["simulate", "--units", "many"], "--units"),
        (["simulate", "--solver", "magic"], "strang"),
        (["simulate", "--dtype", "float16"], "float64"),
        (["reproduce", "--quik"], "--quick"),
        (["frobnicate"], "reproduce"),
    ],
)
def test_unknown_options(capsys, args, says):
    code, out, err = run(capsys, args)
    assert code == 2 and out == "" and says in err


def test_divergence_is_reported_and_writes_nothing(tmp_path, capsys):
    # Euler multiplies the linear energy by 1 + (h w)^2 a step: 1e4^100 overflows float32.
    file = tmp_path / "run.npz"
    more = "--solver euler --activation identity --scale 1000 --t1 10".split()
    code, out, err = run(capsys, [*SMALL, *more, "--out", str(file)])
    assert code == 1 and out == "" and "diverged" in err and "--dt" in err
    assert list(tmp_path.iterdir()) == []


def test_second_run_takes_its_programs_from_the_cache(tmp_path):
    # Fresh processes: in one, JAX would not compile again anyway.
    cache, states = tmp_path / "new" / "cache", []
    for name in ("first", "second"):
        file = tmp_path / f"{name}.npz"
        args = [*SMALL, "--cache", str(cache), "--out", str(file)]
        subprocess.run([sys.executable, "-m", "jaxdyn", *args], check=True, timeout=60)
        with np.load(file) as data:
            states.append(data["states"])
        if name == "first":
            written = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
            assert any(path.startswith("jit_solve") for path in written)
    assert {path.name: path.stat().st_mtime_ns for path in cache.iterdir()} == written
    np.testing.assert_array_equal(*states)


def test_reproduce_fills_the_cache_and_leaves_the_settings(tmp_path, monkeypatch, capsys):
    def reproduce(out, quick):
        return bool(jax.jit(lambda x: 3 * x > 2)(jnp.ones(())))

    monkeypatch.setattr("jaxdyn._study.run.reproduce", reproduce)
    before = dict(jax.config.values)
    assert run(capsys, ["reproduce", "--cache", str(tmp_path)])[0] == 0
    assert any(path.name.startswith("jit__lambda") for path in tmp_path.iterdir())
    assert dict(jax.config.values) == before


@pytest.mark.parametrize("command", ["simulate", "reproduce"])
@pytest.mark.parametrize(
    ("cache", "says"), [("file", "file exists"), ("file/in", "not a directory")]
)
def test_no_cache_where_a_file_is(tmp_path, monkeypatch, capsys, command, cache, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    code, out, err = run(capsys, [command, "--cache", cache])
    assert code == 2 and out == ""
    cure = "give a folder you can write."
    assert err == f"jaxdyn {command}: --cache {cache}: cannot write there ({says}); {cure}\n"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_no_cache_without_leave_to_write(tmp_path, monkeypatch, capsys):
    # Whoever runs the tests may be allowed to write everywhere.
    def refuse(**_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    code, _, err = run(capsys, [*SMALL, "--cache", str(tmp_path)])
    assert code == 2 and f"--cache {tmp_path}: cannot write there (permission denied)" in err


@pytest.mark.parametrize("args", [[], ["--help"], ["simulate", "--help"], ["reproduce", "--help"]])
def test_help(capsys, args):
    code, out, _ = run(capsys, args)
    assert code == 0 and "usage: jaxdyn" in out


def test_version_and_what_import_leaves_out():
    code = (
        "import sys, jaxdyn, jaxdyn.cli\n"
        "heavy = {'tyro', 'matplotlib', 'tqdm', 'optax', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "import jax; assert not jax.config.jax_enable_x64\n"
        "sys.argv = ['jaxdyn', '--version']; jaxdyn.cli.main()"
    )
    pipes: dict = dict(capture_output=True, text=True, timeout=60)
    done = subprocess.run([sys.executable, "-c", code], check=False, **pipes)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"jaxdyn {jd.__version__}\n"

"""The command line: `jaxdyn generate`."""

import errno
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jaxdyn as jd
from jaxdyn._model_file import save_module
from jaxdyn.cli import main


def run(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def tree(folder):
    """Every file below a folder, with its content."""
    return {p: p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    cell = jd.PoissonCell(jd.BlockSkew(jnp.asarray([1.0, 2.3])), jd.Tanh())
    readout = jd.Readout([[1.0, 0.0, 0.5, 0.0]], [0.25])
    x0 = jnp.asarray([1.0, 0.5, 0.3, -0.2])
    file = tmp_path_factory.mktemp("model") / "model.eqx"
    jd.Oscillator(x0, cell, readout, channels=("y",)).save(file)
    return file


def test_goes_on_for_longer_than_a_chunk(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("jaxdyn._cli.generate.CHUNK", 1000)
    oscillator, values = jd.Oscillator.load(model), {}
    expected = oscillator.generate(250.0, 0.1)
    for suffix in ("csv", "npy", "wav"):
        file = tmp_path / f"run.{suffix}"
        code, out, err = run(capsys, "generate", model, "--t1", "250", "--dt", "0.1", "--out", file)
        assert (code, err) == (0, "") and "2,501 every 0.1" in out and f"wrote {file}" in out
        more = {"time": 0} if suffix == "npy" else {}
        values[suffix] = jd.signals.read(file, **more)
        # Rounding grows with time, slowly, and WAV has 24 bits.
        atol = 1e-6 if suffix == "wav" else 1e-11
        np.testing.assert_allclose(values[suffix].values, expected.values, atol=atol)
        np.testing.assert_allclose(values[suffix].ts, expected.ts, rtol=1e-12)
    assert values["csv"].channels == ("y",)
    np.testing.assert_array_equal(values["csv"].values, values["npy"].values)
    assert len(list(tmp_path.iterdir())) == 3


def test_from_another_time(model, tmp_path, capsys):
    file = tmp_path / "late.csv"
    times = ["--t0", "100.05", "--t1", "103", "--rate", "20"]
    assert run(capsys, "generate", model, *times, "--out", file)[0] == 0
    signal, oscillator = jd.signals.read(file), jd.Oscillator.load(model)
    np.testing.assert_allclose(signal.ts, 100.05 + 0.05 * np.arange(60), rtol=1e-14)
    np.testing.assert_allclose(signal.values, oscillator(signal.ts), atol=1e-12)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("nowhere.eqx --t1 9 --dt 1 --out a.csv", "nowhere.eqx: no such file or directory"),
        (". --t1 9 --dt 1 --out a.csv", ".: is a directory"),
        ("empty.eqx --t1 9 --dt 1 --out a.csv", "empty.eqx is not a module saved by jaxdyn"),
        ("cut.eqx --t1 9 --dt 1 --out a.csv", "cut.eqx is damaged"),
        ("flipped.eqx --t1 9 --dt 1 --out a.csv", "flipped.eqx is damaged"),
        ("longer.eqx --t1 9 --dt 1 --out a.csv", "longer.eqx is damaged"),
        ("cell.eqx --t1 9 --dt 1 --out a.csv", "holds a"),
        ("good.eqx --t1 0 --dt 1 --out a.csv", "--t1 0: give at least 1, one step of 1"),
        ("good.eqx --t0 5 --t1 4 --dt 1 --out a.csv", "--t1 4: give at least 6"),
        ("good.eqx --t1 nan --dt 1 --out a.csv", "--t1 nan: give a finite number"),
        ("good.eqx --t1 9 --dt 0 --out a.csv", "--dt 0.0: give a finite number > 0"),
        ("good.eqx --t1 9 --rate -1 --out a.csv", "--rate -1.0"),
        ("good.eqx --t1 9 --out a.csv", "give --dt or --rate"),
        ("good.eqx --t1 9 --dt 1 --rate 1 --out a.csv", "give --dt or --rate"),
        ("good.eqx --t1 9 --dt 1 --out a.txt", "ends in .csv, .npy, .wav"),
        ("good.eqx --t1 9 --dt 1 --out no/a.csv", "--out no/a.csv: cannot write there"),
        ("good.eqx --t1 9 --dt 1 --out folder.csv", "--out folder.csv: cannot write there"),
        ("good.eqx --t1 1e30 --dt 1 --out kept.csv", "are free; give a smaller one"),
        ("good.eqx --t1 9 --dt 0.3 --out a.wav", "--out a.wav: the signal has 1/dt"),
    ],
)
def test_bad_input(model, tmp_path, monkeypatch, capsys, args, says):
    monkeypatch.chdir(tmp_path)
    data = model.read_bytes()
    flipped = bytearray(data)
    flipped[-5] ^= 1
    for name, content in (
        ("good", data),
        ("empty", b""),
        ("cut", data[:-9]),
        ("flipped", bytes(flipped)),
        ("longer", data + b"x"),
    ):
        (tmp_path / f"{name}.eqx").write_bytes(content)
    save_module(tmp_path / "cell.eqx", jd.Oscillator.load(model).cell)
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "kept.csv").write_text("kept")
    before = tree(tmp_path)
    code, out, err = run(capsys, "generate", *args.split())
    assert code == 2 and out == ""
    assert err.startswith("jaxdyn generate: ") and says in err and err.count("\n") == 1
    assert tree(tmp_path) == before


def test_on_a_full_disk(model, tmp_path, capsys, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = tmp_path / "kept.csv"
    file.write_text("kept")
    monkeypatch.setattr(os, "fsync", full)
    code, _, err = run(capsys, "generate", model, "--t1", "9", "--dt", "1", "--out", file)
    assert code == 2 and "no space left on device" in err
    assert file.read_text() == "kept" and len(list(tmp_path.iterdir())) == 1

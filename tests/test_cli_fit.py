"""The command line: `jaxdyn fit`."""

import errno
import json
import os
import random
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import jaxdyn as jd
from jaxdyn._cli.fit import RESULTS
from jaxdyn._train.checkpoint import Checkpoint
from jaxdyn.cli import main

SETTINGS = "--units 4 --restarts 2 --steps 0 --polish 10 --seed 3".split()


def run(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def tree(folder):
    """Every file below a folder, with its content."""
    return {p: p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def outcome(folder):
    """What must not depend on interruptions."""
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics.pop("seconds") > 0
    return (folder / "model.eqx").read_bytes(), (folder / "history.csv").read_bytes(), metrics


def write_noisy(path, n=200):
    # Noise, so that polishing takes rounds.
    t = 0.1 * np.arange(n)
    y = np.sin(t) + 0.4 * np.cos(2.3 * t) + 0.05 * np.random.default_rng(0).normal(size=n)
    np.savetxt(path, np.stack([t, y], 1), delimiter=",", header="t,y", comments="")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a signal, a fit of it that nothing disturbed, and a cache of programs."""
    place = tmp_path_factory.mktemp("fit")
    write_noisy(place / "noisy.csv")
    with pytest.raises(SystemExit) as stop:
        main(command(place, place / "whole"))
    assert stop.value.code == 0
    return place


def command(place, out, *more):
    cache = ["--cache", str(place / "cache")]
    return ["fit", str(place / "noisy.csv"), *SETTINGS, *cache, "--out", str(out), *more]


def test_results_are_there_and_agree(place, capsys):
    out = place / "whole"
    assert sorted(p.name for p in out.iterdir()) == sorted(RESULTS)
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics["naive_rmse"]) == {"last_value", "seasonal", "autoregression"}
    assert metrics["units"] == 4 and metrics["restarts"] == 2
    assert (metrics["samples"], metrics["forecast_samples"]) == (160, 40)
    np.testing.assert_allclose(metrics["frequencies"], [1.0, 2.3], atol=0.02)
    # The saved model has the error that was printed.
    model, signal = jd.Oscillator.load(out / "model.eqx"), jd.signals.read(place / "noisy.csv")
    assert model.channels == ("y",)
    error = np.asarray(model(signal.ts)) - signal.values
    np.testing.assert_allclose(np.mean(error[:160] ** 2), metrics["mse"], rtol=1e-10)
    forecast = np.sqrt(np.mean(error[160:] ** 2))
    np.testing.assert_allclose(forecast, metrics["forecast_rmse"], rtol=1e-10)
    rows = (out / "history.csv").read_text().splitlines()
    assert rows[0].startswith("stage,iteration") and rows[1].startswith("polish,5")
    for name in RESULTS:
        if name.endswith(".png"):
            data = (out / name).read_bytes()
            width, height = struct.unpack(">II", data[16:24])
            assert data[:8] == b"\x89PNG\r\n\x1a\n" and width == 1080 and 400 < height < 1000


def test_the_same_command_writes_the_same_and_prints_a_table(place, capsys):
    code, out, err = run(capsys, *command(place, place / "again"))
    assert (code, err) == (0, "")
    for row in (
        "signal",
        "160 fitted every 0.1, 40 held out",
        "forecast RMSE",
        "autoregression",
        "frequencies (rad/time unit)",
        "(period 6.",
        "energy",
        "seconds",
        "model.eqx",
    ):
        assert row in out
    assert outcome(place / "again") == outcome(place / "whole")


def test_resume_of_what_is_finished(place, capsys):
    before = tree(place / "whole")
    code, out, err = run(capsys, *command(place, place / "whole", "--resume"))
    assert (code, err) == (0, "") and "finished" in out
    assert tree(place / "whole") == before


def test_interrupted_and_resumed(place, capsys, monkeypatch):
    out, write = place / "interrupted", Checkpoint.write

    def interrupt(self, *args):
        write(self, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "write", interrupt)
    code, _, err = run(capsys, *command(place, out))
    assert code == 130 and err == ("jaxdyn: interrupted, the same command with --resume goes on\n")
    assert [p.name for p in out.iterdir()] == ["checkpoint.jdyn"]
    # Without --resume it is refused, with other options too, and nothing is lost.
    before = tree(place)
    code, _, err = run(capsys, *command(place, out))
    assert code == 2 and "--resume to go on" in err and tree(place) == before
    code, _, err = run(capsys, *command(place, out, "--resume", "--seed", "4"))
    assert code == 2 and "belongs to another fit" in err and tree(place) == before
    monkeypatch.setattr(Checkpoint, "write", write)
    assert run(capsys, *command(place, out, "--resume"))[0] == 0
    assert outcome(out) == outcome(place / "whole")
    assert sorted(p.name for p in out.iterdir()) == sorted(RESULTS)


def test_killed_and_resumed(place):
    """At random moments after a checkpoint is there, so that each time there is work to lose."""
    out, moments = place / "killed", random.Random(5)
    args = [sys.executable, "-m", "jaxdyn", *command(place, out)]
    killed = 0
    for more in ([], ["--resume"], ["--resume"]):
        before = mark(out / "checkpoint.jdyn")
        process = subprocess.Popen([*args, *more], stdout=subprocess.DEVNULL)
        while process.poll() is None and mark(out / "checkpoint.jdyn") == before:
            time.sleep(0.01)
        try:
            # About as long as the rounds that are left take.
            assert process.wait(moments.uniform(0, 0.5)) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
    assert killed
    subprocess.run([*args, "--resume"], stdout=subprocess.DEVNULL, check=True, timeout=120)
    assert outcome(out) == outcome(place / "whole")
    assert sorted(p.name for p in out.iterdir()) == sorted(RESULTS)


def mark(path):
    """What changes when the file is replaced by one with something in it."""
    try:
        about = path.stat()
    except FileNotFoundError:
        return None
    return (about.st_ino, about.st_mtime_ns) if about.st_size else None


def test_full_disk_at_the_end_loses_nothing(place, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    for name in RESULTS:
        (out / name).write_text("of an earlier fit")
    before, replace = tree(out), os.replace

    def full(source, target):
        if Path(target).name == "model.eqx":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    code, _, err = run(capsys, *command(place, out))
    assert code == 2 and "no space left on device" in err and "--resume then goes on" in err
    after = tree(out)
    assert after.pop(out / "checkpoint.jdyn") and after == before
    monkeypatch.setattr(os, "replace", replace)
    assert run(capsys, *command(place, out, "--resume"))[0] == 0
    assert outcome(out) == outcome(place / "whole")


@pytest.mark.parametrize("out", ["new/folder", "sunspots"])
def test_sunspots_hold_out_1980_to_2008(tmp_path, capsys, monkeypatch, out):
    seen = {}

    def diverge(signal, **options):
        seen.update(options, signal=signal)
        raise RuntimeError("every restart diverged; scale the signal.")

    monkeypatch.setattr(jd, "fit", diverge)
    monkeypatch.chdir(tmp_path)
    code, printed, err = run(capsys, "fit", "sunspots", "--out", out)
    assert code == 1 and printed == "" and err.startswith("jaxdyn fit: every restart diverged")
    assert seen["signal"].ts[-seen["holdout"]] == 1980 and seen["signal"].ts[-1] == 2008
    assert seen["units"] == 16 and seen["restarts"] == 16 and seen["validation"] == 0.2
    assert list(tmp_path.iterdir()) == []


TONE = [(0.2 * i, np.sin(0.2 * i)) for i in range(100)]


def write_table(path, rows, header="t,y"):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")


@pytest.fixture
def bad(tmp_path, monkeypatch):
    """A folder of files that cannot be fitted, and one that can."""
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "good.csv", TONE)
    write_table(tmp_path / "one.csv", TONE[:1])
    write_table(tmp_path / "few.csv", TONE[:20])
    write_table(tmp_path / "short.csv", [(t / 20, y) for t, y in TONE[:9]])
    write_table(tmp_path / "slow.csv", [(t, np.sin(t / 20)) for t, _ in TONE])
    write_table(tmp_path / "constant.csv", [(t, 2.5) for t, _ in TONE])
    write_table(tmp_path / "nan.csv", [(t, "nan") for t, _ in TONE])
    write_table(tmp_path / "inf.csv", [*TONE[:50], (10.0, "inf"), *TONE[51:]])
    write_table(tmp_path / "back.csv", [*TONE[:50], *TONE[40:]])
    write_table(tmp_path / "wide.csv", [(t, y, y * y, y + t) for t, y in TONE], "t,a,b,c")
    write_table(tmp_path / "ragged.csv", [*TONE, (1, 2, 3)])
    write_table(tmp_path / "timeless.csv", TONE, "u,v")
    (tmp_path / "text.csv").write_text("It was\na dark\nand stormy night\n")
    (tmp_path / "empty.csv").touch()
    (tmp_path / "notes.md").write_text("1\n2\n")
    (tmp_path / "folder.csv").mkdir()
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "words.npy").read_bytes()[:40])
    fmt = struct.pack("<HHIIHH", 0x0055, 1, 8000, 1000, 1, 8)
    chunks = struct.pack("<4sI", b"fmt ", 16) + fmt + struct.pack("<4sI", b"data", 2) + b"ab"
    riff = struct.pack("<4sI4s", b"RIFF", 4 + len(chunks), b"WAVE") + chunks
    (tmp_path / "mp3.wav").write_bytes(riff)
    (tmp_path / "file").write_text("kept")
    (tmp_path / "taken" / "model.eqx").mkdir(parents=True)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "checkpoint.jdyn").write_text("kept")
    return tmp_path


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("nowhere.csv", "nowhere.csv: no such file or directory; give a file of samples"),
        ("folder.csv", "folder.csv: is a directory"),
        ("sunspot", "sunspot: must be the name of a file that ends in .csv"),
        ("notes.md", "notes.md: must be the name of a file that ends in .csv"),
        ("empty.csv", "empty.csv is empty"),
        ("text.csv", "text.csv, line 2, column 1"),
        ("text.csv --time 0", "text.csv, line 2, column 1"),
        ("one.csv", "at least 2 samples"),
        ("few.csv", "few.csv: shows"),
        ("short.csv", "too few: give at least 8, or a smaller --holdout"),
        ("slow.csv", "slow.csv: shows"),
        ("constant.csv", "is constant"),
        ("nan.csv", "fewer than 2 measured samples"),
        ("inf.csv", "not finite"),
        ("back.csv", "does not come after"),
        ("ragged.csv", "3 cells"),
        ("timeless.csv", "give --dt"),
        ("good.csv --dt 0.1", "--dt 0.1: must be left out"),
        ("good.csv --time when", "--time when: must be a column of good.csv"),
        ("good.csv --channels t", "--channels"),
        ("words.npy --dt 1", "not real numbers"),
        ("cut.npy --dt 1", "cut.npy is not a .npy file"),
        ("mp3.wav", "0x0055 (MP3)"),
        ("sunspots --dt 1", "--dt 1.0: sunspots has its own"),
        ("good.csv --units 1", "--units 1: give at least 2"),
        ("wide.csv --units 2", "--units 2: must be at least the number of channels, 3"),
        ("good.csv --restarts 0", "--restarts 0: give at least 1"),
        ("good.csv --steps -1", "--steps -1"),
        ("good.csv --seed -1", "--seed -1"),
        ("good.csv --dt 0", "--dt 0.0: give a finite number > 0"),
        ("good.csv --shell nan", "--shell nan"),
        ("good.csv --holdout 1.5", "--holdout 1.5: give a fraction below 1 or a whole number"),
        ("good.csv --holdout 100", "--holdout 100.0: must be a fraction in [0, 1)"),
        ("good.csv --validation -0.1", "--validation -0.1"),
        ("good.csv --out file", "--out file: cannot write there (file exists)"),
        ("good.csv --out file/in", "--out file/in: cannot write there (not a directory)"),
        ("good.csv --out taken", "--out taken: model.eqx there is a folder"),
        ("good.csv --out foreign", "--out foreign: holds an unfinished fit"),
        ("good.csv --out foreign --resume", "foreign/checkpoint.jdyn is no checkpoint of a fit"),
        ("good.csv --cache file", "--cache file: cannot write there"),
    ],
)
def test_bad_input(bad, capsys, args, says):
    before = tree(bad)
    code, out, err = run(capsys, "fit", *args.split())
    assert code == 2 and out == ""
    assert err.startswith("jaxdyn fit: ") and says in err and err.count("\n") == 1
    assert "`" not in err and tree(bad) == before and not (bad / "fit").exists()


def test_enormous_file(tmp_path, capsys):
    with open(tmp_path / "huge.csv", "wb") as file:
        file.truncate(2**30)
    code, _, err = run(capsys, "fit", tmp_path / "huge.csv", "--out", tmp_path / "new")
    assert code == 2 and "has 1073741824 bytes, more than the limit" in err
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_before_anything_is_computed(bad, capsys, monkeypatch, code):
    def full(handle):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    before = tree(bad)
    status, out, err = run(capsys, "fit", "good.csv", "--out", "new")
    assert (status, out) == (2, "") and os.strerror(code).lower() in err
    assert tree(bad) == before and not (bad / "new").exists()


def test_folder_without_leave_to_write(bad, capsys, monkeypatch):
    # Whoever runs the tests may be allowed to write everywhere.
    def refuse(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    code, _, err = run(capsys, "fit", "good.csv", "--out", "foreign")
    assert code == 2 and "--out foreign: cannot write there (permission denied)" in err


def test_damaged_checkpoint(place, tmp_path, capsys):
    (tmp_path / "checkpoint.jdyn").write_bytes(b"JDYNCKP1" + bytes(100))
    before = tree(tmp_path)
    code, _, err = run(capsys, *command(place, tmp_path, "--resume"))
    assert code == 2 and "checkpoint.jdyn is damaged; repeat the command" in err
    assert tree(tmp_path) == before

"""`jaxdyn analyze`: what it finds is what is known, and what it refuses is named."""

import json
import math

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jaxdyn as jd
from jaxdyn._cli.analyze import RESULTS
from jaxdyn.cli import main


def run(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        main(["analyze", *(str(a) for a in args)])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def test_pair_is_regular_with_the_exact_period(tmp_path, capsys):
    code, out, err = run(capsys, "pair", "--out", tmp_path / "a", "--t1", 500)
    assert (code, err) == (0, "") and "regular" in out
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == sorted(RESULTS)
    found = json.loads((tmp_path / "a" / "analysis.json").read_text())
    assert found["verdict"] == "regular" and found["zero_exponents"] == 2
    assert found["energy"] == pytest.approx(2.0, rel=1e-9) and found["energy_drift"] < 1e-11
    exact = 2 * math.pi / float(jd.period(2.0, 1.0))
    assert found["frequencies"][0] == pytest.approx(exact, rel=1e-6)
    # One crossing a turn.
    assert abs(found["section_crossings"] - 500 * exact / (2 * math.pi)) <= 1
    page = (tmp_path / "a" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5 and "pair: regular" in page


def test_a_saved_cell_and_a_saved_oscillator(tmp_path, capsys):
    cell = jd.PoissonCell(jd.DenseSkew.random(6, key=jr.key(0)), jd.Tanh())
    jd.save_module(tmp_path / "cell.eqx", cell)
    args = ("--out", tmp_path / "b", "--t1", 300, "--energy", 8)
    code, out, _ = run(capsys, tmp_path / "cell.eqx", *args)
    assert code == 0 and "6 units" in out
    found = json.loads((tmp_path / "b" / "analysis.json").read_text())
    assert found["energy"] == pytest.approx(8.0) and abs(found["exponent_sum"]) < 1e-10
    assert len(found["exponents"]) == 6
    model = jd.Oscillator(jnp.array([0.3, 0.1]), jd.PoissonCell(jd.BlockSkew([2.0]), jd.Tanh()))
    model.save(tmp_path / "model.eqx")
    code, _, _ = run(capsys, tmp_path / "model.eqx", "--out", tmp_path / "c", "--t1", 100)
    assert code == 0
    found = json.loads((tmp_path / "c" / "analysis.json").read_text())
    np.testing.assert_allclose(found["x0"], [0.3, 0.1], rtol=1e-6)


def test_a_cycle_attracts(tmp_path, capsys):
    code, _, _ = run(capsys, "cycle", "--out", tmp_path, "--t1", 400)
    assert code == 0
    found = json.loads((tmp_path / "analysis.json").read_text())
    # The other exponent is ln(multiplier) / T.
    multiplier = float(jd.shell_multiplier(1.5, 0.1, 1.0))
    rate = math.log(multiplier) / float(jd.period(1.5, 1.0))
    assert found["exponents"][1] == pytest.approx(rate, rel=0.03)
    assert abs(found["exponents"][0]) < 0.02


def test_bad_input(tmp_path, capsys):
    (tmp_path / "text.eqx").write_text("no model")
    (tmp_path / "file").write_text("")
    still = jd.Oscillator(jnp.zeros(2), jd.PoissonCell(jd.BlockSkew([1.0]), jd.Tanh()))
    still.save(tmp_path / "still.eqx")
    for args, told in (
        ((tmp_path / "still.eqx",), "at rest"),
        ((tmp_path / "still.eqx", "--energy", "2"), "at rest"),
        (("nothing.eqx",), "pair, chaos, cycle"),
        ((tmp_path / "text.eqx",), "text.eqx"),
        (("pair", "--energy", "-1"), "--energy -1"),
        (("pair", "--t1", "0"), "--t1 0"),
        (("pair", "--t1", "0.5"), "--t1 0.5"),
        (("pair", "--seed", "-1"), "--seed -1"),
        (("pair", "--out", tmp_path / "file" / "x"), "--out"),
    ):
        out = () if "--out" in args else ("--out", tmp_path / "o")
        code, _, err = run(capsys, *args, *out)
        assert code == 2 and told in err and err.count("\n") == 1, (args, err)
    assert not any((tmp_path / "o").glob("*")) if (tmp_path / "o").exists() else True

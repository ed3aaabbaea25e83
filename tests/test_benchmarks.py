"""Benchmarks time and write what they say; the README's tables are those of the results."""

import json
import math
import os
import time

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

# Benchmarks set this to "nan" when imported, which processes started by other tests would inherit.
os.environ.setdefault("EQX_ON_ERROR", "raise")

import jaxdyn as jd
from benchmarks import energy_long, gradient, readme
from benchmarks.gradient_case import Case
from benchmarks.peers import Problem, in_c
from benchmarks.report import Report, Table, Target
from benchmarks.timing import race

MACHINE = {"cpu": "an abacus", "cores": 2, "jax": "1.2.3"}


def test_readme_tables_are_those_of_the_results():
    text = readme.README.read_text()
    assert text.count("<!-- table: ") == len(readme.BETWEEN.findall(text))
    assert readme.rendered(text) == text, "run `python -m benchmarks readme`"


def test_every_table_of_the_readme_is_made_from_its_result(tmp_path):
    trend = ["solver", "worst", "first half", "second half", "trend / its error"]
    contents = {
        "ensemble": [
            Table(
                "Ensemble",
                ["solver", "seconds", "/ bare scan", "error"],
                [["slow", 2.0, 4.0, 1e-6], ["fast", 0.5, 1.0, 1e-5]],
            )
        ],
        "energy": [
            Table(
                "float64",
                trend,
                [
                    ["RK4", 2e-4, 1e-4, 2e-4, 80.0],
                    ["Strang", 1e-4, 1e-4, 9e-5, 4.0],
                    ["Taylor", 1e-14, 5e-15, 1e-14, 9.0],
                ],
            ),
            Table(
                "long",
                ["case", "seconds", "spread", "worst", "takes part"],
                [
                    ["A, dt 2", 1.0, 0.0, 1e-11, "energy within 1e-10"],
                    ["A, dt 1", 2.0, 0.0, 1e-12, "energy within 1e-10"],
                    ["B, dt 1", 0.1, 0.0, 1e-3, "out: error too large"],
                ],
            ),
        ],
        "precision": [
            Table(
                f"{readme.FASTEST}n = 2",
                ["error <=", "solver", "its error", "seconds", "/ our fastest"],
                [
                    ["1e-05", "Strang", 1e-6, 2.0, 2.0],
                    ["1e-05", "RK4", 1e-6, 1.0, 1.0],
                    ["1e-05", "C RK4", 1e-6, 0.5, 0.5],
                    ["1e-05", "diffrax Tsit5, vmapped", 1e-6, 9.0, 9.0],
                    ["1e-05", "diffrax Tsit5, batch", 1e-6, 3.0, 3.0],
                    ["1e-12", "heyoka", 1e-13, 3.0, None],
                ],
            )
        ],
        "gradient": [
            Table(
                "10,000 steps, float32",
                ["method", "seconds", "spread", "/ forward", "temporary MB", "resident MB"],
                [["reversible", 1.0, 0.1, 4.0, 0.25, None]],
            )
        ],
        "fit": [
            Table(
                "Fits",
                ["case", "units", "parameters", "samples", "mse, best", "mse, median", "seconds"],
                [["tones", 16, 170, 400, 2.5e-9, 1e-3, 7.6]],
            )
        ],
        "lyapunov": [
            Table(
                "Energy within 0.01",
                ["method", "dt", "seconds", "/ our fastest", "first exponent", "its error"],
                [["them, RK4", 0.2, 9.0, 4.5, 0.0123456, 0.001]],
            )
        ],
        "forecast": [
            Table(
                "noise",
                ["method", "fit", "fit is", "1x", "10x", "100x", "seconds"],
                [
                    ["jaxdyn", 0.1, "free run", 0.2, 0.3, 0.4, 9.0],
                    ["GRU", 0.1, "one step", 0.5, 0.6, None, 20.0],
                ],
            ),
            Table(
                "real",
                ["method", "fit", "fit is", "29 years", "seconds"],
                [["jaxdyn", 0.1, "free run", 1.5, 9.0]],
            ),
        ],
    }
    for name, tables in contents.items():
        Report(name, "", tables, machine=MACHINE).write(tmp_path)
    blank = "".join(f"before\n<!-- table: {name} -->\n<!-- end -->\n" for name in readme.TABLES)
    path = tmp_path / "README.md"
    path.write_text(blank)
    readme.update(path, tmp_path)
    text = path.read_text()
    assert readme.rendered(text, tmp_path) == text
    assert text.count("an abacus, 2 cores") == len(readme.TABLES)
    assert text.index("| fast |") < text.index("| slow |")
    for line in (
        "| RK4 | 2.0e-04 | grows |",
        "| Strang | 1.0e-04 | no |",
        "| Taylor | 1.0e-14 | rounding |",
        "| A, dt 2 | 1 | 1.0e-11 |",
        "| n = 2 | 1e-05 | 1 s, RK4 | 3 |  |  |  |  | 0.5 |",
        "| n = 2 | 1e-12 |",
        "| reversible | 1 | 4 | 0.25 |  |",
        "| tones | 16 | 400 | 2.5e-09 | 8 |",
        "| them, RK4 | 0.2 | 9 | 4.5 | 0.0123 | 0.0010 |",
        "|  | ahead | jaxdyn | GRU |",
        "| noise | 10x | 0.3 | 0.6 |",
        "| real | 29 years | 1.5 |  |",
    ):
        assert line in text
    assert "A, dt 1" not in text and "B, dt" not in text


def test_readme_refuses_unknown_tables_and_missing_results(tmp_path):
    with pytest.raises(ValueError, match="'speed'"):
        readme.rendered("<!-- table: speed -->\n<!-- end -->\n", tmp_path)
    with pytest.raises(FileNotFoundError, match="python -m benchmarks gradient"):
        readme.rendered("<!-- table: gradient -->\n<!-- end -->\n", tmp_path)
    Report("gradient", "", machine=MACHINE).write(tmp_path)
    with pytest.raises(ValueError, match="run it anew"):
        readme.rendered("<!-- table: gradient -->\n<!-- end -->\n", tmp_path)


def test_race_times_every_case_and_keeps_its_result():
    timings = race({"short": lambda: 1, "long": lambda: time.sleep(0.02)}, 3, target=0.001)
    assert {name: len(t.seconds) for name, t in timings.items()} == {"short": 3, "long": 3}
    assert timings["short"].result == 1
    assert timings["long"].median >= 0.02
    assert timings["long"].ratio(timings["short"]) > 1


def test_report_writes_numbers_words_and_a_picture(tmp_path):
    report = Report(
        "demo",
        "A setting.",
        [Table("T", ["what", "seconds"], [["a", 0.12345], ["b", None], ["c", math.inf]])],
        [Target("fast", 0.5, 1.0), Target("not measured", math.nan, 1.0)],
        ["peer (pip install peer)"],
        draw=lambda figure: figure.subplots().plot([1, 2]),
    )
    report.write(tmp_path)
    content = json.loads((tmp_path / "demo.json").read_text(), parse_constant=pytest.fail)
    assert content["tables"][0]["rows"] == [["a", 0.12345], ["b", None], ["c", "inf"]]
    assert [target["reached"] for target in content["targets"]] == [True, False]
    assert content["machine"]["cores"] >= 1
    words = (tmp_path / "demo.md").read_text()
    for line in ("![demo](demo.png)", "| a | 0.123 |", "Skipped: peer (pip install peer)", "NO"):
        assert line in words
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_a_missing_peer_is_named_with_the_cure(monkeypatch):
    monkeypatch.setattr(
        energy_long, "without", lambda package: f"{package} (pip install {package})"
    )
    monkeypatch.setattr(energy_long, "ours", lambda *a: lambda count: np.zeros((count, 2)))
    monkeypatch.setattr(energy_long, "chained", lambda *a: lambda count: np.zeros((count, 2)))
    report = Report("energy", "", machine=MACHINE)

    class Cell:
        class operator:
            as_matrix = staticmethod(lambda: np.zeros((2, 2)))

        energy = staticmethod(lambda x: 1.0)

    cases = energy_long.cases(Cell, np.zeros(2), report.skipped, quick=True)
    assert not any(name.startswith("heyoka") for name in cases)
    assert "Skipped: energy over t = 1e5: heyoka (pip install heyoka)" in report.markdown()


def test_a_gradient_case_that_fails_or_comes_too_late_is_named():
    skipped: list[str] = []
    workers = gradient.start([Case("forward", 10, 2, 1, "float32")], -1.0, skipped)
    assert not workers and "forward, 10 steps, float32: not begun" in skipped[0]
    missing = [t for t in gradient.targets({}, [1_000]) if not t.reached]
    assert len(missing) == len(gradient.targets({}, [1_000]))


@pytest.fixture(scope="module")
def yardstick():
    why = in_c.missing()
    if why is not None:
        pytest.skip(why)
    return in_c


@pytest.mark.parametrize("n, batch", [(2, 16), (8, 100), (65, 3)])
@pytest.mark.parametrize("dtype, bound", [(jnp.float64, 1e-13), (jnp.float32, 2e-5)])
def test_the_yardstick_does_the_same_work(yardstick, n, batch, dtype, bound):
    """The same steps as ours end in the same states."""
    cell = jd.PoissonCell(jd.DenseSkew.random(n, key=jr.key(0), dtype=dtype), jd.Tanh())
    x0 = jr.normal(jr.key(1), (batch, n), dtype)
    same = Problem.of(cell, x0, 2.0)
    for solve, solver in ((yardstick.rk4, jd.RK4()), (yardstick.strang, jd.Strang())):
        ours = jd.simulate(cell, x0, n_steps=40, dt=0.05, solver=solver).ys[:, -1]
        np.testing.assert_allclose(solve(same, 40)(), ours, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype, bound", [(np.float32, 1.6e-7), (np.float64, 3e-16)])
def test_the_tanh_of_the_yardstick(yardstick, dtype, bound):
    x = np.linspace(-25, 25, 1 << 14, dtype=dtype)
    exact = np.tanh(x.astype(np.longdouble))
    assert np.max(np.abs(yardstick.tanh(x) - exact)) <= bound


def test_the_yardstick_leaves_subnormal_numbers_alone(yardstick):
    """Linked with -ffast-math, it would have them flushed to zero in all that follows."""
    assert np.array(np.finfo(np.float64).tiny) / 2 > 0

"""`jaxdyn reproduce --quick`, run once, and what it does when a claim fails or a folder is bad."""

import json
import re

import pytest

from jaxdyn._study import activations, report, run
from jaxdyn._study.claim import Claim, at_least, at_most, near
from jaxdyn.cli import main


def status(args):
    with pytest.raises(SystemExit) as stop:
        main(args)
    return stop.value.code


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "deep" / "report"
    code = status(["reproduce", "--quick", "--out", str(out)])
    return code, out


def failing(quick_run):
    text = (quick_run[1] / "claims.json").read_text(encoding="utf-8")
    return [c["claim"] for c in json.loads(text)["claims"] if c["verdict"] != "holds"]


def test_every_verdict_holds(quick):
    code, _ = quick
    assert failing(quick) == []
    assert code == 0


def test_files(quick):
    _, out = quick
    names = {path.name for path in out.iterdir()}
    assert {"report.html", "claims.json"} <= names
    assert not [n for n in names if n.startswith(".")]
    for path in out.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    # The temporary folder was beside the new one.
    assert [p.name for p in out.parent.iterdir()] == ["report"]


def test_claims_schema(quick):
    data = json.loads((quick[1] / "claims.json").read_text(encoding="utf-8"))
    assert {"jaxdyn", "jax", "dtype", "seconds", "mode"} <= set(data)
    assert data["dtype"] == "float64" and data["mode"] == "quick"
    ids = [c["claim"] for c in data["claims"]]
    assert len(ids) == len(set(ids)) and ids == sorted(ids)
    # The paper's claims (a) to (e), each with a section of its own.
    assert {i[0] for i in ids} >= set("abcdefg")
    for claim in data["claims"]:
        assert claim["statement"] and claim["paper"] and claim["checks"]
        assert set(claim["measured"]) == set(claim["bound"])
        assert all(isinstance(v, float) for v in claim["measured"].values())
        assert all(check["basis"] for check in claim["checks"])


def test_page_needs_nothing_but_itself(quick):
    _, out = quick
    page = (out / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r'src="([^"]{0,40})', page)
    assert len(sources) == len(list(out.glob("*.png"))) > 10
    assert all(s.startswith("data:image/png;base64,") for s in sources)
    for tag in ("<link", "<script", "@import", "url("):
        assert tag not in page
    # Every claim of the table has its section, and the table comes first.
    targets = re.findall(r'href="#([^"]+)"', page)
    assert targets and all(f'<section id="{t}"' in page for t in targets)
    assert page.index("<table") < page.index("<section")


def test_precision_is_the_callers_own_again(quick):
    import jax

    # conftest turned 64 bits on; a study must not leave a context behind.
    with jax.enable_x64(False):
        assert jax.numpy.ones(1).dtype == jax.numpy.float32


def _theme(*claims):
    class Theme:
        MEASUREMENTS = (lambda quick: list(claims),)

    return Theme


def _claim(check, **more):
    return Claim("z1-made-up", "A statement.", (check,), "adds", "Nothing.", "Made up.", **more)


def test_a_failing_claim_exits_1_and_still_reports(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run, "THEMES", (_theme(_claim(at_most("gap", 2.0, 1.0, "a bound"))),))
    (tmp_path / "mine.txt").write_text("kept")
    assert status(["reproduce", "--quick", "--out", str(tmp_path)]) == 1
    data = json.loads((tmp_path / "claims.json").read_text())
    assert data["claims"][0]["verdict"] == "fails"
    assert (tmp_path / "mine.txt").read_text() == "kept"
    printed = capsys.readouterr().out
    assert "fails: gap: 2, bound ≤ 1 (a bound)" in printed and "0 of 1 claims hold" in printed


def test_a_tightened_bound_fails(monkeypatch):
    # 1e-18 is below rounding: the measurement, not the bound, must decide.
    monkeypatch.setattr(activations, "FIELD_BOUND", 1e-18)
    (claim,) = activations.conserving(True)
    assert claim.verdict == "fails"


def test_a_crash_leaves_nothing_behind(monkeypatch, tmp_path):
    def crash(figure):
        raise RuntimeError("no ink")

    broken = _claim(at_most("gap", 0.0, 1.0, "a bound"), draw=crash)
    monkeypatch.setattr(run, "THEMES", (_theme(broken),))
    old, new = tmp_path / "old", tmp_path / "new" / "report"
    old.mkdir()
    for out in (old, new):
        with pytest.raises(RuntimeError, match="no ink"):
            main(["reproduce", "--out", str(out)])
    assert list(tmp_path.rglob("*")) == [old]


@pytest.mark.parametrize("below", [False, True])
def test_a_folder_that_cannot_be_written(monkeypatch, tmp_path, capsys, below):
    def never(quick):
        raise AssertionError("computed before the folder was checked")

    monkeypatch.setattr(run, "measure", never)
    file = tmp_path / "file"
    file.write_text("kept")
    out = file / "report" if below else file
    assert status(["reproduce", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("jaxdyn reproduce: --out") and error.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and file.read_text() == "kept"


def test_checks_say_what_they_mean():
    check = near("period", 8.13194657, 8.1319, 6e-5, "reference", "8.1319")
    assert check.passes and check.value == "8.1319466" and check.bound == "8.1319000 ± 6.0e-05"
    for broken in (at_most, at_least):
        assert not broken("q", float("nan"), 1.0, "never passes").passes
    assert at_least("q", 2.0, 1.0, "b").bound == "≥ 1"


def test_text_is_escaped():
    claim = _claim(at_most("<b>|x| & y</b>", 0.0, 1.0, "a bound"))
    page = report.page([claim], {}, {"jax": "0"})
    assert "<b>|x|" not in page and "&lt;b&gt;|x| &amp; y" in page

"""The README's Python blocks run, as written, in one session."""

import pathlib
import re

import matplotlib.pyplot as plt

README = pathlib.Path(__file__).parent.parent / "README.md"


def test_python_blocks_run(monkeypatch, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert blocks and "@@" not in README.read_text()
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)
    plt.close("all")

"""What `import jaxdyn` gives, and what it leaves for later."""

import ast
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import pytest

import jaxdyn as jd

SOURCE = ast.parse(pathlib.Path(jd.__file__).read_text())


def test_late_rooms_offer_the_names_that_type_checkers_see():
    (block,) = (node for node in SOURCE.body if isinstance(node, ast.If))
    seen: dict = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom) and node.module is not None
        seen.setdefault(node.module, set()).update(alias.name for alias in node.names)
    assert seen == {room: set(names) for room, names in jd._ROOMS.items()}
    for names in jd._ROOMS.values():
        assert set(names) <= set(dir(jd))
        assert all(getattr(jd, name) is not None for name in names)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = jd.Nothing


def test_they_stay_closed_until_asked_for_and_open_for_a_saved_model(tmp_path):
    path = tmp_path / "model.eqx"
    jd.Oscillator(jnp.ones(2), jd.PoissonCell(jd.BlockSkew([1.0]), jd.Tanh())).save(path)
    code = (
        "import sys, jax\n"
        "jax.config.update('jax_enable_x64', True)\n"
        "import jaxdyn as jd\n"
        "late = [m for m in sys.modules if m.startswith(('jaxdyn._train', 'jaxdyn._analysis'))]\n"
        "assert not late, late\n"
        f"model = jd.load_module({str(path)!r})\n"
        "assert type(model) is jd.Oscillator, model\n"
        "from jaxdyn import losses, gali\n"
        "assert losses.Trajectory and jd.signals.tones and callable(gali)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)

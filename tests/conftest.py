"""Strict set-up: 64-bit, no silent rank or dtype promotion, run-time checked annotations."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
# Most of the time goes into compiling programs that run once. With XLA_FLAGS="" they are compiled
# as users' are.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

with install_import_hook("jaxdyn", "beartype.beartype"):
    import jaxdyn
    import jaxdyn._analysis
    import jaxdyn._train  # noqa: F401


# XLA maps memory for every program that it compiles and keeps, and Linux gives a process 65,530
# maps: beyond, compiling crashes.
MOST_MAPS = 25_000


@pytest.fixture(scope="module", autouse=True)
def programs_are_dropped() -> Iterator[None]:
    """Before there are too many of them."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()

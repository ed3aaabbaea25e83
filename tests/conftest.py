"""Strict set-up: 64-bit, no silent rank or dtype promotion, run-time checked annotations."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

with install_import_hook("jaxdyn", "beartype.beartype"):
    import jaxdyn
    import jaxdyn._analysis
    import jaxdyn._train  # noqa: F401

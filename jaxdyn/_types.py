"""Array aliases. Shape letters mean one thing everywhere:

n  units (the size of W)
b  batch (trajectories)
t  saved times
m  inputs or outputs
k  members of a list (eigenvalues, Casimirs, harmonics)
"""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Real

RealScalar: TypeAlias = float | int | Real[Array, ""]
Args: TypeAlias = Any


@jax.jit
def _constant() -> Array:
    return jnp.zeros(())


def is_inside_jit() -> bool:
    """Whether this runs inside jit, where even a constant has no value yet."""
    return is_traced(_constant())


def is_traced(tree: Any) -> bool:
    """True when any leaf of `tree` has no value yet (under jit, grad or vmap)."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))

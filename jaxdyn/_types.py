"""Array aliases. Shape letters mean one thing everywhere:

n  units (the size of W)
b  batch (trajectories)
t  saved times
m  inputs or outputs
k  members of a list (eigenvalues, Casimirs, harmonics)
"""

from typing import Any, TypeAlias

from jaxtyping import Array, Float, Real

RealScalar: TypeAlias = float | int | Real[Array, ""]
FloatScalar: TypeAlias = Float[Array, ""]
Args: TypeAlias = Any

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._types import RealScalar, is_traced
from .input import check_constant


class EnergyShell(eqx.Module):
    r"""A regulator that makes one energy attracting: x' gains -rate (H - energy) g, g = grad H.

    Then H' = -rate (H - energy) |g|^2, so the level set H = energy attracts. For two units that
    set is one closed orbit and becomes a limit cycle in the strict sense, with the nontrivial
    Floquet multiplier of [`jaxdyn.shell_multiplier`][]; for more units it is an attracting energy
    surface, on which the motion stays as rich as before. This is a canonical-dissipative system
    (Ebeling and Sokolov, Statistical Thermodynamics and Stochastic Theory of Nonequilibrium
    Systems, 2005).

    The extra term does not respect the linear invariants c.x of a singular W. Pass
    `keep=operator.kernel()` to project it onto range(W), which does.

    **Arguments:**

    - `energy`: the attracting energy, a scalar >= 0 (0 is the state of rest).
    - `rate`: how strongly it attracts, a scalar, in 1 / (energy x time). Negative, it repels:
      what starts below goes to rest, what starts above grows without bound.
    - `keep`: (k, n), orthonormal rows c whose c.x the term must leave alone, or None.

    **Raises:** TypeError for what is not a real number; ValueError when a scalar is not a scalar,
    not finite or `energy` is negative, or the rows of `keep` are not orthonormal.
    """

    energy: Float[Array, ""]
    rate: Float[Array, ""]
    keep: Float[Array, "k n"] | None

    def __init__(self, energy: RealScalar, rate: RealScalar, *, keep: Any = None):
        for name, value in (("energy", energy), ("rate", rate)):
            check_constant(value, name)
            if np.shape(value) != ():
                raise ValueError(f"`{name}` must be a scalar, got shape {np.shape(value)}.")
        if not is_traced(energy) and float(energy) < 0:
            raise ValueError(
                f"`energy` must be >= 0, got {energy}: no state has a negative energy. For plain "
                "damping give the cell damping=."
            )
        self.energy = jnp.asarray(energy, _float(energy))
        self.rate = jnp.asarray(rate, _float(rate))
        if keep is not None:
            check_constant(keep, "keep")
            if np.ndim(keep) != 2:
                raise ValueError(
                    f"`keep` must be a matrix (k, n) of orthonormal rows, such as "
                    f"operator.kernel(); got shape {np.shape(keep)}."
                )
            if not is_traced(keep):
                rows = np.asarray(keep, np.float64)
                # Far above what rounding leaves of a float32 kernel, far below a wrong length.
                if np.max(np.abs(rows @ rows.T - np.eye(len(rows))), initial=0.0) > 1e-5:
                    raise ValueError(
                        "`keep` must have orthonormal rows, such as operator.kernel(); make them "
                        "so with jnp.linalg.qr(keep.T)[0].T."
                    )
                keep = np.asarray(keep)
        self.keep = None if keep is None else jnp.asarray(keep, _float(keep))

    def direction(self, g: Float[Array, "n *b"]) -> Float[Array, "n *b"]:
        """g, or its part orthogonal to the rows of `keep`; of one state or of a batch."""
        return g if self.keep is None else g - self.keep.T @ (self.keep @ g)

    def force(self, energy: Float[Array, ""], g: Float[Array, " n"]) -> Float[Array, " n"]:
        """-rate (H - energy) g at a state of energy H and gradient g."""
        return -self.rate * (energy - self.energy) * self.direction(g)


def _float(value: object):
    """The dtype of `value` if it is floating, else the default one."""
    dtype = jnp.result_type(value)
    return dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(float)

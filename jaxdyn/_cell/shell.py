import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import RealScalar
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

    - `energy`: the attracting energy, a scalar.
    - `rate`: how strongly it attracts, a scalar, in 1 / (energy x time).
    - `keep`: (k, n), orthonormal rows c whose c.x the term must leave alone, or None.

    **Raises:** ValueError when a scalar is not a scalar or not finite, or `keep` is not a matrix.
    """

    energy: Float[Array, ""]
    rate: Float[Array, ""]
    keep: Float[Array, "k n"] | None

    def __init__(self, energy: RealScalar, rate: RealScalar, *, keep: Array | None = None):
        for name, value in (("energy", energy), ("rate", rate)):
            check_constant(value, name)
            if jnp.shape(value) != ():
                raise ValueError(f"`{name}` must be a scalar, got shape {jnp.shape(value)}.")
        self.energy = jnp.asarray(energy, _float(energy))
        self.rate = jnp.asarray(rate, _float(rate))
        if keep is not None:
            check_constant(keep, "keep")
            if jnp.ndim(keep) != 2:
                raise ValueError(
                    f"`keep` must be a matrix (k, n) of orthonormal rows, such as "
                    f"operator.kernel(); got shape {jnp.shape(keep)}."
                )
        self.keep = None if keep is None else jnp.asarray(keep)

    def direction(self, g: Float[Array, " n"]) -> Float[Array, " n"]:
        """g, or its part orthogonal to the rows of `keep`."""
        return g if self.keep is None else g - self.keep.T @ (self.keep @ g)

    def force(self, energy: Float[Array, ""], g: Float[Array, " n"]) -> Float[Array, " n"]:
        """-rate (H - energy) g at a state of energy H and gradient g."""
        return -self.rate * (energy - self.energy) * self.direction(g)


def _float(value: object):
    """The dtype of `value` if it is floating, else the default one."""
    dtype = jnp.result_type(value)
    return dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(float)

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._cell import AbstractCell
from .._types import Args
from .base import AbstractCellSolver
from .newton import check_size, newton


class ImplicitMidpoint(AbstractCellSolver):
    r"""x1 = x + h f(t + h/2, (x + x1)/2): implicit, order 2, solved by Newton's method.

    Self-adjoint, a Poisson map for our constant W, exact for every Casimir and for quadratic
    energies (linear networks), where a frequency w comes out as tan(Omega h/2) = w h/2; it only
    nearly conserves other energies. A step that Newton's method cannot solve gives NaN, which
    `simulate` and diffrax report.

    Source: Hairer, Lubich and Wanner, Geometric Numerical Integration, IV.2 and VII.4.
    """

    reversible: ClassVar = True
    explicit: ClassVar = False

    def order(self, terms) -> int:
        return 2

    def check(self, cell: AbstractCell) -> None:
        check_size("ImplicitMidpoint", cell.size)

    def advance(
        self,
        cell: AbstractCell,
        t: Float[Array, ""],
        dt: Float[Array, ""],
        x: Float[Array, " n"],
        args: Args,
    ) -> Float[Array, " n"]:
        half = 0.5 * dt
        midpoint = newton(
            lambda z: z - x - half * cell(t + half, z, args), x + half * cell(t, x, args)
        )
        return 2.0 * midpoint - x

    def converged(self, x1: Float[Array, " n"]) -> Bool[Array, ""]:
        return jnp.all(jnp.isfinite(x1))

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._cell import AbstractCell, AntisymmetricCell, PoissonCell
from .._types import Args
from .base import AbstractCellSolver
from .newton import check_size, newton


class DiscreteGradient(AbstractCellSolver):
    r"""x1 = x + h W g, g_i = (S(x1_i) - S(x_i)) / (x1_i - x_i): the energy to rounding, for ever.

    H(x1) - H(x) = g.(x1 - x) = h g.W g = 0. For a separable H the average vector field and the
    Itoh-Abe discrete gradient are the same. Implicit, order 2, self-adjoint, exact for Casimirs,
    but not a Poisson map. With damping the energy falls by exactly h damping |g|^2 a step, and an
    EnergyShell attracts at any h; bias and input act at the middle of the step. A step that
    Newton's method cannot solve gives NaN, which `simulate` and diffrax report.

    Source: McLachlan, Quispel and Robidoux, Phil. Trans. R. Soc. A 357 (1999).
    """

    reversible: ClassVar = True
    explicit: ClassVar = False

    def order(self, terms) -> int:
        return 2

    def check(self, cell: AbstractCell) -> None:
        check_size("DiscreteGradient", cell.size)
        if isinstance(cell, AntisymmetricCell) and cell.damping is not None:
            raise ValueError(
                "DiscreteGradient cannot serve a damped AntisymmetricCell, whose damping acts "
                "inside the activation; use solver=jaxdyn.Strang(), jaxdyn.RK4() or "
                "jaxdyn.ImplicitMidpoint()."
            )

    def advance(
        self,
        cell: AbstractCell,
        t: Float[Array, ""],
        dt: Float[Array, ""],
        x: Float[Array, " n"],
        args: Args,
    ) -> Float[Array, " n"]:
        middle = t + 0.5 * dt
        gradient = cell.activation.discrete_gradient
        if isinstance(cell, AntisymmetricCell):
            # In z = W y + U u + b this is the Poisson form, and y moves by h g.
            z = cell.preactivation(middle, x, args)
            z1 = newton(
                lambda z1: z1 - z - dt * cell.operator.mv(gradient(z, z1)),
                z + dt * cell.operator.mv(cell.activation(z)),
            )
            return x + dt * gradient(z, z1)

        assert isinstance(cell, PoissonCell)
        drive = cell.drive(middle, args)

        def residual(x1):
            g = gradient(x, x1)
            field = cell.operator.mv(g)
            if drive is not None:
                field = field + drive
            if cell.damping is not None:
                field = field - cell.damping * g
            if cell.regulator is not None:
                energy = 0.5 * (cell.energy(x) + cell.energy(x1))
                field = field + cell.regulator.force(energy, g)
            return x1 - x - dt * field

        return newton(residual, x + dt * cell(t, x, args))

    def converged(self, x1: Float[Array, " n"]) -> Bool[Array, ""]:
        return jnp.all(jnp.isfinite(x1))

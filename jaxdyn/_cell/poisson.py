import jax.numpy as jnp
from jaxtyping import Array, Float

from .._activation import AbstractActivation
from .._skew import AbstractSkewOperator
from .._types import Args, RealScalar
from .base import AbstractCell, check_state, parameters
from .shell import EnergyShell


class PoissonCell(AbstractCell):
    r"""x' = W g + U u(t) + b - damping g - shell.rate (H - shell.energy) g, with g = s(x) = grad H.

    W = -W^T, H(x) = sum_i S(x_i), S' = s. The bare cell x' = W s(x) is a Poisson system with
    constant structure matrix W: it conserves H for any activation, every c.x with W c = 0, and
    phase-space volume (Casoni et al., arXiv 2504.13951; Hairer, Lubich and Wanner, Geometric
    Numerical Integration, VII.2).

    **Arguments:**

    - `operator`: W, a skew operator of size n, e.g. `jaxdyn.DenseSkew.random(n, key=key)`.
    - `activation`: s with its potential, e.g. `jaxdyn.Tanh()`.
    - `bias`: b, shape (n,), or None.
    - `input_matrix`: U, shape (n, m), or None; the input u is then passed as `args`.
    - `damping`: a scalar or (n,), or None: the energy then falls as H' = -damping |g|^2. For tanh
      the damped part alone is exactly sinh x -> exp(-damping t) sinh x. Negative values pump.
    - `regulator`: an [`jaxdyn.EnergyShell`][], or None. It needs a confining activation.

    Called as `cell(t, x, args)` with x of shape (n,); returns x' of shape (n,).

    **Raises:** TypeError or ValueError that names the argument when a part has the wrong type or
    shape or is not finite.
    """

    operator: AbstractSkewOperator
    activation: AbstractActivation
    bias: Float[Array, " n"] | None
    input_matrix: Float[Array, "n m"] | None
    damping: Float[Array, ""] | Float[Array, " n"] | None
    regulator: EnergyShell | None

    def __init__(
        self,
        operator: AbstractSkewOperator,
        activation: AbstractActivation,
        *,
        bias: object = None,
        input_matrix: object = None,
        damping: object = None,
        regulator: EnergyShell | None = None,
    ):
        self.bias, self.input_matrix, self.damping = parameters(
            operator, activation, bias, input_matrix, damping
        )
        if regulator is not None:
            if not isinstance(regulator, EnergyShell):
                raise TypeError(
                    f"`regulator` must be a jaxdyn.EnergyShell or None, got {regulator!r}."
                )
            if not activation.confining:
                raise ValueError(
                    f"`regulator` needs an activation whose energy surfaces are closed, and "
                    f"{type(activation).__name__} does not confine; use one with .confining True, "
                    "such as jaxdyn.Tanh(), or regulator=None."
                )
            if regulator.keep is not None and regulator.keep.shape[1] != operator.size:
                raise ValueError(
                    f"`regulator.keep` must have {operator.size} columns, one per unit; got shape "
                    f"{regulator.keep.shape}."
                )
        self.operator = operator
        self.activation = activation
        self.regulator = regulator

    def __call__(self, t: RealScalar, x: Float[Array, " n"], args: Args) -> Float[Array, " n"]:
        x = check_state(x, self.size)
        g = self.activation(x)
        out = self.operator.mv(g)
        drive = self.drive(t, args)
        if drive is not None:
            out = out + drive
        if self.damping is not None:
            out = out - self.damping * g
        if self.regulator is not None:
            out = out + self.regulator.force(self.energy(x), g)
        return out

    def energy(self, x: Float[Array, " n"]) -> Float[Array, ""]:
        """H(x) = sum_i S(x_i) of a state (n,)."""
        return jnp.sum(self.activation.potential(check_state(x, self.size)))

    def casimirs(self, x: Float[Array, " n"]) -> Float[Array, " k"]:
        """c.x for each c of an orthonormal basis of ker W; shape (k,), k = dim ker W.

        Needs concrete W (k depends on its values). Conserved by the bare cell; a bias, input,
        damping or a regulator without `keep` moves them.
        """
        x = check_state(x, self.size)
        return self.operator.kernel().astype(x.dtype) @ x

    def energy_rate(self, t: RealScalar, x: Float[Array, " n"], args: Args) -> Float[Array, ""]:
        """H' = g.(U u + b) - damping |g|^2 - rate (H - energy) |g|^2: 0 for the bare cell.

        The skew part is left out because g.W g = 0 exactly.
        """
        x = check_state(x, self.size)
        g = self.activation(x)
        rate = jnp.zeros((), x.dtype)
        drive = self.drive(t, args)
        if drive is not None:
            rate = rate + g @ drive
        if self.damping is not None:
            rate = rate - jnp.sum(self.damping * g**2)
        if self.regulator is not None:
            rate = rate + g @ self.regulator.force(self.energy(x), g)
        return rate

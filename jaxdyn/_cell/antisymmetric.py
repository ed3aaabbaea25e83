import jax.numpy as jnp
from jaxtyping import Array, Float

from .._activation import AbstractActivation
from .._skew import AbstractSkewOperator
from .._types import Args, RealScalar
from .base import AbstractCell, check_state, parameters


class AntisymmetricCell(AbstractCell):
    r"""y' = s(W y - damping y + U u(t) + b), the AntisymmetricRNN (Chang et al., ICLR 2019).

    With z = W y + b the bare cell becomes the Poisson cell z' = W s(z), so it conserves
    H(W y + b), H = sum_i S. With a singular W it is only presymplectic. `damping` is the diffusion
    term of that paper, inside the activation.

    **Arguments:**

    - `operator`: W, a skew operator of size n.
    - `activation`: s with its potential.
    - `bias`: b, shape (n,), or None.
    - `input_matrix`: U, shape (n, m), or None; the input u is then passed as `args`.
    - `damping`: a scalar or (n,), or None. Negative values pump.

    Called as `cell(t, y, args)` with y of shape (n,); returns y' of shape (n,).

    **Raises:** TypeError or ValueError that names the argument when a part has the wrong type or
    shape or is not finite.
    """

    operator: AbstractSkewOperator
    activation: AbstractActivation
    bias: Float[Array, " n"] | None
    input_matrix: Float[Array, "n m"] | None
    damping: Float[Array, ""] | Float[Array, " n"] | None

    def __init__(
        self,
        operator: AbstractSkewOperator,
        activation: AbstractActivation,
        *,
        bias: object = None,
        input_matrix: object = None,
        damping: object = None,
    ):
        self.bias, self.input_matrix, self.damping = parameters(
            operator, activation, bias, input_matrix, damping
        )
        self.operator = operator
        self.activation = activation

    def preactivation(self, t: RealScalar, y: Float[Array, " n"], args: Args) -> Float[Array, " n"]:
        """z = W y + U u(t) + b, without the damping."""
        z = self.operator.mv(y)
        drive = self.drive(t, args)
        return z if drive is None else z + drive

    def __call__(self, t: RealScalar, y: Float[Array, " n"], args: Args) -> Float[Array, " n"]:
        y = check_state(y, self.size, "y")
        z = self.preactivation(t, y, args)
        if self.damping is not None:
            z = z - self.damping * y
        return self.activation(z)

    def _poisson_state(self, y: Float[Array, " n"]) -> Float[Array, " n"]:
        z = self.operator.mv(check_state(y, self.size, "y"))
        return z if self.bias is None else z + self.bias

    def energy(self, y: Float[Array, " n"]) -> Float[Array, ""]:
        """H(W y + b) = sum_i S((W y + b)_i) of a state (n,); the input is not part of it."""
        return jnp.sum(self.activation.potential(self._poisson_state(y)))

    def casimirs(self, y: Float[Array, " n"]) -> Float[Array, " k"]:
        """c.(W y + b) for each c of an orthonormal basis of ker W; shape (k,).

        They are c.b for every state: the range of W holds no more. Needs concrete W.
        """
        z = self._poisson_state(y)
        return self.operator.kernel().astype(z.dtype) @ z

    def energy_rate(self, t: RealScalar, y: Float[Array, " n"], args: Args) -> Float[Array, ""]:
        """d/dt H(W y + b) = s(W y + b).W y': 0 for the bare cell, up to rounding."""
        return self.activation(self._poisson_state(y)) @ self.operator.mv(self(t, y, args))

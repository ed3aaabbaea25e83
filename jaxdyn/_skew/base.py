import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float

from .._types import RealScalar, is_traced
from .checks import check_vector
from .coloring import class_size, singletons

# A complex matrix of this size takes 6 GB.
_LARGEST_DENSE = 20_000


class AbstractSkewOperator(lx.AbstractLinearOperator):
    """A real matrix W = -W^T given by its free entries: skew whatever training does to them.

    A subclass holds its free entries as floating array leaves and says how to apply them
    (`_mv`), how to write W out (`as_matrix`), how to draw one (`random`) and how to read one
    (`from_matrix`). Spectrum, kernel and colouring have dense defaults here; a structure that
    knows better overrides them. All lineax functions are registered once, on this class.
    """

    size: eqx.AbstractVar[int]
    """The number of units n."""

    @property
    def dtype(self) -> np.dtype:
        """The type of the free entries."""
        return np.dtype(jax.tree.leaves(self)[0].dtype)

    @abc.abstractmethod
    def _mv(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        """W x, for an `x` of this operator's own size and dtype."""

    @abc.abstractmethod
    def as_matrix(self) -> Float[Array, "n n"]:
        """W written out, exactly skew."""

    @classmethod
    @abc.abstractmethod
    def random(
        cls, n: int, *, key: Array, scale: RealScalar = 1.0, dtype: Any = None
    ) -> "AbstractSkewOperator":
        """A random operator with |W|_2 = `scale`."""

    @classmethod
    @abc.abstractmethod
    def from_matrix(cls, W: Any) -> "AbstractSkewOperator":
        """The operator whose `as_matrix` is `W`."""

    def mv(self, x: Any) -> Float[Array, " n"]:
        """W x, in the precision of `x`.

        **Arguments:**

        - `x`: real floating, shape (n,). Batches go through `jax.vmap`.

        **Returns:** shape (n,), the dtype of `x`; x . W x = 0 to rounding.

        **Raises:** ValueError when `x` has another shape or is not real floating.
        """
        x = check_vector(x, self.size, "x")
        return self._cast(x.dtype)._mv(x)

    def transpose(self) -> "AbstractSkewOperator":
        """W^T = -W, with every free entry negated."""
        return jax.tree.map(jnp.negative, self)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.size,), self.dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.size,), self.dtype)

    def frequencies(self) -> Float[Array, " k"]:
        """The spectrum of W is +/- i w_k (and one 0 when n is odd): these are the w_k.

        A dense eigenvalue problem, that of the Hermitian matrix i W: O(n^3).

        **Returns:** shape (n // 2,), ascending, >= 0, in radians per model time unit;
        differentiable where the spectrum is simple.
        """
        self._refuse_large("frequencies")
        W = self.as_matrix()
        eigenvalues = jnp.linalg.eigvalsh(jax.lax.complex(jnp.zeros_like(W), W))
        half = self.size // 2
        # Both members of each +/- pair are used: the mean is exactly >= 0.
        return (eigenvalues[self.size - half :] - eigenvalues[:half][::-1]) / 2

    def kernel(self) -> Float[Array, "k n"]:
        """An orthonormal basis of ker W: for each row c, c . x is a Casimir of x' = W grad H.

        A dense singular value decomposition, O(n^3). A direction counts as kernel when its
        singular value is at most n eps |W|_2. Its size depends on the values of the entries, so
        it is eager only.

        **Returns:** shape (k, n); k has the parity of n.

        **Raises:** ValueError under jit, grad or vmap.
        """
        self._refuse_traced("kernel")
        self._refuse_large("kernel")
        W = np.asarray(self.as_matrix()).astype(np.float64)
        _, s, vh = np.linalg.svd(W)
        return self._kernel_rows(s, vh)

    def coloring(self) -> "tuple[slice | np.ndarray, ...]":
        """Classes of units with no coupling inside a class, W[c, c] = 0; together all n units.

        A splitting method moves the units of one class at once. A property of the structure,
        not of the values; static.
        """
        return singletons(self.size)

    def color_mv(self, c: int, g: Float[Array, " k"]) -> Float[Array, " n"]:
        """W[:, class c] @ g: what the units of one class do to all others.

        **Arguments:**

        - `c`: which class of `coloring()`.
        - `g`: shape (len of that class,).

        **Returns:** shape (n,).

        **Raises:** ValueError when there is no class `c` or `g` has another length.
        """
        classes = self.coloring()
        if not 0 <= c < len(classes):
            raise ValueError(f"`c` must be one of the {len(classes)} classes, got {c}.")
        g = check_vector(g, class_size(classes[c], self.size), "g")
        return self._cast(g.dtype)._color_mv(c, classes[c], g)

    def _color_mv(
        self, c: int, units: "slice | np.ndarray", g: Float[Array, " k"]
    ) -> Float[Array, " n"]:
        n = self.size
        if isinstance(units, slice):
            start, _, step = units.indices(n)
            after = n - start - (g.size - 1) * step - 1
            # A pad, unlike a scatter, keeps a batch in the minor axis and fuses.
            return self._mv(jax.lax.pad(g, jnp.zeros((), g.dtype), [(start, after, step - 1)]))
        spread = jnp.zeros(n, g.dtype).at[units].set(g, unique_indices=True)
        return self._mv(spread)

    def _cast(self, dtype: Any) -> "AbstractSkewOperator":
        if dtype == self.dtype:
            return self
        return jax.tree.map(lambda entry: entry.astype(dtype), self)

    def _materialise(self) -> "AbstractSkewOperator":
        return self

    def _is_tridiagonal(self) -> bool:
        return False

    def _subdiagonal(self) -> Float[Array, " k"]:
        return jnp.diagonal(self.as_matrix(), -1)

    def _refuse_traced(self, method: str) -> None:
        if is_traced(self):
            raise ValueError(
                f"{method}() has a shape that depends on the values of the entries, which are "
                "unknown under jit, grad or vmap: call it outside and pass the result in."
            )

    def _refuse_large(self, method: str) -> None:
        if self.size > _LARGEST_DENSE:
            raise ValueError(
                f"{method}() of {type(self).__name__} is a dense problem of order n^3, not tried "
                f"beyond {_LARGEST_DENSE} units; this operator has {self.size}."
            )

    def _kernel_rows(self, s: np.ndarray, vh: np.ndarray) -> Float[Array, "k n"]:
        n = self.size
        tolerance = n * float(jnp.finfo(self.dtype).eps) * s.max(initial=0.0)
        rank = int((s > tolerance).sum())
        # Nonzero singular values come in pairs: a pair split by the tolerance is dropped whole.
        return jnp.asarray(vh[rank - rank % 2 :], self.dtype)


for _identity in (lx.linearise, lx.conj):

    @_identity.register(AbstractSkewOperator)
    def _(operator):
        return operator


@lx.materialise.register(AbstractSkewOperator)
def _(operator):
    return operator._materialise()


@lx.diagonal.register(AbstractSkewOperator)
def _(operator):
    return jnp.zeros(operator.size, operator.dtype)


@lx.tridiagonal.register(AbstractSkewOperator)
def _(operator):
    lower = operator._subdiagonal()
    return jnp.zeros(operator.size, operator.dtype), lower, -lower


@lx.is_tridiagonal.register(AbstractSkewOperator)
def _(operator):
    # In lineax 0.1.1 the diagonals of an identity have JAX's default type whatever its structure
    # says, so that its tridiagonal solver takes 1 - h W in that type only.
    return operator._is_tridiagonal() and operator.dtype == jnp.zeros(()).dtype


# These say what is known without looking at values. The zero matrix is all of them, yet no
# structure here is always zero, so False is right, and costs a solver nothing but speed.
for _check in (
    lx.is_symmetric,
    lx.is_diagonal,
    lx.has_unit_diagonal,
    lx.is_lower_triangular,
    lx.is_upper_triangular,
    lx.is_positive_semidefinite,
    lx.is_negative_semidefinite,
):

    @_check.register(AbstractSkewOperator)
    def _(operator):
        return False

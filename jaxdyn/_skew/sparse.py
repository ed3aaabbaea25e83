from typing import Any

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from .._types import RealScalar, is_traced
from .base import AbstractSkewOperator
from .checks import check_key, check_scale, check_size, float_dtype, free_entries, skew_matrix
from .coloring import Coloring
from .formed import FormedSkew
from .graph import Pattern, Plan
from .norm import operator_norm, rescaled


class SparseSkew(AbstractSkewOperator):
    """A network with few couplings: W_ij = v, W_ji = -v at the given positions, 0 elsewhere.

    W x costs 2 multiplications for each position. A splitting step has as many stages as the graph
    of the positions has classes in a greedy colouring: two when it is bipartite.

    **Arguments:**

    - `values`: v, shape (k,), per model time unit.
    - `rows`, `cols`: integer positions, shape (k,), row > col, in row-major order, none twice (not
      trained, not traced).
    - `size`: the number of units n.

    **Raises:** ValueError or TypeError when the positions are not of this kind.
    """

    values: Float[Array, " k"]
    pattern: Pattern = eqx.field(static=True)

    def __init__(self, values: Any, rows: Any, cols: Any, size: int):
        self.values = free_entries(values, "values", 1)
        self.pattern = make_pattern(rows, cols, size)
        if self.values.shape != self.pattern.rows.shape:
            raise ValueError(
                f"`values` has shape {self.values.shape}, but there are "
                f"{self.pattern.rows.size} positions."
            )

    @property
    def size(self) -> int:
        return self.pattern.size

    @property
    def rows(self) -> np.ndarray:
        """The row of each entry."""
        return self.pattern.rows

    @property
    def cols(self) -> np.ndarray:
        """The column of each entry, below its row."""
        return self.pattern.cols

    def _mv(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        return self._product(self.pattern.product, x)

    def as_matrix(self) -> Float[Array, "n n"]:
        M = jnp.zeros((self.size, self.size), self.dtype)
        M = M.at[self.pattern.rows, self.pattern.cols].set(
            self.values, unique_indices=True, indices_are_sorted=True, mode="promise_in_bounds"
        )
        return M - M.T

    def coloring(self) -> "tuple[slice | np.ndarray, ...]":
        """Classes found greedily on the graph of the positions."""
        return self.pattern.classes

    def _color_mv(
        self, c: int, units: "slice | np.ndarray", g: Float[Array, " k"]
    ) -> Float[Array, " n"]:
        # Else what is added to this is computed anew in each round of the next class.
        return lax.optimization_barrier(self._product(self.pattern.class_products[c], g))

    def _product(self, plan: Plan, x: Float[Array, " k"]) -> Float[Array, " n"]:
        v = self.values
        signed = jnp.concatenate([v, -v, jnp.zeros(1, v.dtype)])
        y = jnp.zeros(self.size, v.dtype)
        if plan.rounds is None:
            terms = _taken(signed, plan.entries) * _taken(x, plan.sources)
            return y.at[plan.targets].add(terms, indices_are_sorted=True, mode="promise_in_bounds")
        # Else XLA computes whatever made x anew in each round (10 times slower for tanh).
        x = lax.optimization_barrier(x)
        for sources, entries in plan.rounds:
            y = y + _taken(signed, entries) * _taken(x, sources)
        return y

    def _materialise(self) -> AbstractSkewOperator:
        # Measured in a batch on a CPU: gathers lose to the matrix when it is small or quite full,
        # a scatter does as long as the matrix fits.
        rounds = self.pattern.product.rounds
        if rounds is None:
            formed = self.size <= 2000
        else:
            formed = self.size <= 64 or 4 * len(rounds) >= self.size
        return FormedSkew(self.as_matrix(), Coloring(self.coloring())) if formed else self

    @classmethod
    def random(
        cls,
        n: int,
        *,
        key: Array,
        scale: RealScalar = 1.0,
        dtype: Any = None,
        degree: float | int = 4,
        rows: Any = None,
        cols: Any = None,
    ) -> "SparseSkew":
        """Independent Gaussian entries at random or given positions, rescaled to |W|_2 = `scale`.

        **Arguments:**

        - `n`: number of units, at least 2.
        - `key`: JAX random key.
        - `scale`: the spectral norm, in radians per model time unit.
        - `dtype`: float32 or float64, JAX's default when None.
        - `degree`: the mean number of partners of a unit, 0 < degree < n; the n degree / 2 pairs
          are drawn uniformly.
        - `rows`, `cols`: the positions instead of `degree`. Under jit or vmap over `key` they must
          be given, as positions are static.

        The scale is met to rounding up to n = 2000 (a dense eigenvalue problem), and to 1e-6 by a
        Lanczos recurrence beyond.
        """
        n = check_size(n, 2, "the only skew matrix of one unit is 0")
        check_key(key)
        check_scale(scale)
        dtype = float_dtype(dtype)
        key_pattern, key_values = jr.split(key)
        if (rows is None) != (cols is None):
            raise ValueError("Give `rows` and `cols` together, or neither.")
        if rows is None:
            rows, cols = _random_pairs(n, degree, key_pattern)
        values = jr.normal(key_values, np.shape(rows), dtype)
        op = cls(values, rows, cols, n)
        return rescaled(op, operator_norm(op), scale)

    @classmethod
    def from_matrix(cls, W: Any) -> "SparseSkew":
        """The nonzero entries of `W`, eagerly.

        **Arguments:**

        - `W`: shape (n, n), skew to a few rounding errors; integers are promoted.

        **Raises:** ValueError when `W` is not square, finite and skew, TypeError when not real.
        """
        matrix = skew_matrix(W)
        rows, cols = np.nonzero(np.tril(matrix))
        return cls(matrix[rows, cols], rows, cols, matrix.shape[0])


def make_pattern(rows: Any, cols: Any, size: int) -> Pattern:
    """The positions as a hashable static object, or an error that says what is wrong."""
    n = check_size(size, 1, "an operator needs a unit", "size")
    if is_traced((rows, cols)):
        raise ValueError("`rows` and `cols` are static: give numpy arrays, not traced ones.")
    rows, cols = np.asarray(rows), np.asarray(cols)
    for name, index in (("rows", rows), ("cols", cols)):
        if index.ndim != 1 or (index.size and not np.issubdtype(index.dtype, np.integer)):
            raise TypeError(
                f"`{name}` must be a vector of integers, got shape {index.shape}, {index.dtype}."
            )
    if rows.shape != cols.shape:
        raise ValueError(
            f"`rows` and `cols` must be equally long, got {rows.size} and {cols.size}."
        )
    if rows.size and not (cols.min() >= 0 and rows.max() < n and (rows > cols).all()):
        raise ValueError(
            f"Positions must satisfy 0 <= col < row < size = {n}: give each pair once, below the "
            "diagonal; the entry above is minus that."
        )
    flat = rows.astype(np.int64) * n + cols
    if (np.diff(flat) <= 0).any():
        raise ValueError(
            "`rows` and `cols` must be in row-major order with no position twice: "
            "order = np.lexsort((cols, rows)) sorts them (and `values`); add up duplicates."
        )
    return Pattern(n, rows.astype(np.int32), cols.astype(np.int32))


def _random_pairs(n: int, degree: Any, key: Array) -> tuple[np.ndarray, np.ndarray]:
    if is_traced(key):
        raise ValueError(
            "The positions of a SparseSkew are static and cannot be drawn from a traced `key`: "
            "give `rows` and `cols`, e.g. those of one SparseSkew.random outside."
        )
    if isinstance(degree, bool) or not isinstance(degree, int | float) or not 0 < degree < n:
        raise ValueError(f"`degree` must be a number between 0 and n = {n}, got {degree!r}.")
    possible = n * (n - 1) // 2
    wanted = min(max(round(n * degree / 2), 1), possible)
    if 4 * wanted >= possible:
        rows, cols = np.tril_indices(n, -1)
        chosen = np.sort(np.asarray(jr.permutation(key, possible)[:wanted]))
        return rows[chosen], cols[chosen]
    flat = np.zeros(0, np.int64)
    while flat.size < wanted:
        # At most a quarter of all pairs are wanted, so most draws are new ones.
        key, draw = jr.split(key)
        pairs = np.asarray(jr.randint(draw, (2 * wanted, 2), 0, n)).astype(np.int64)
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        flat = np.concatenate([flat, pairs.max(axis=1) * n + pairs.min(axis=1)])
        _, first = np.unique(flat, return_index=True)
        flat = flat[np.sort(first)]
    flat = np.sort(flat[:wanted])
    return flat // n, flat % n


def _taken(x: Float[Array, " k"], index: np.ndarray) -> Float[Array, " m"]:
    return x.at[index].get(mode="promise_in_bounds")

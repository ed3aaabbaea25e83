"""A step of one trajectory, carried out on a tile of them: a vector is a block of the GPU's memory.

What has no axis longer than 1 is a number, () or (1, tile); a vector (k,) is (K, 1) or (K, tile),
where 1 is for what all trajectories share and K is the next power of two, 16 at least; a matrix
(k, l) is (K, L), and shared. Beyond k and l there may be anything, and 0 in constants.

The product u v^T of two vectors of each trajectory's own is kept as the sum over the tile, which is
all that a gradient needs of it: nothing but what is linear is done to it, by what all share.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Literal
from jaxtyping import Array

from .entries import Loaded
from .primitives import ELEMENTWISE, IDENTITIES, REWRITTEN, folded
from .scalarise import CALLED, CALLS

# The shortest side that Triton multiplies.
LEAST = 16
# Elementwise operations with rules of their own elsewhere.
_SIMPLE = ELEMENTWISE | frozenset("add and mul or select_n sub convert_element_type".split())
_MOVES = frozenset("broadcast_in_dim reshape squeeze".split())
_EXTREMES = {"reduce_max": (jnp.max, -np.inf), "reduce_min": (jnp.min, np.inf)}


class CannotServe(Exception):
    """An operation that cannot be done to blocks."""


def padded(k: int) -> int:
    """The length of the block of a vector (k,)."""
    return max(LEAST, 1 << (k - 1).bit_length())


def sides(shape: Sequence[int]) -> tuple[int, ...]:
    """The axes that count."""
    return tuple(k for k in shape if k != 1)


class Rows:
    """Evaluates programs on blocks; `multiply` is the product of two of them."""

    def __init__(self, multiply: Callable[[Array, Array], Array]):
        self.multiply = multiply
        # Matrices that are known to be 0 beyond their sides; kept, for their ids to stay theirs.
        self.clean: dict[int, Any] = {}
        # Those that are sums over the tile.
        self.sums: dict[int, Any] = {}

    def start(
        self, jaxpr: Any, consts: Sequence[Any], operands: Sequence[Any], sums: Sequence[Any]
    ) -> list[Any]:
        """What `jaxpr` makes of constants as they are stored, and of a state, the last of whose
        parts are `sums` over the tile."""
        self.clean = {id(v): v for v in (*consts, *operands)}
        self.sums = {id(v): v for v in sums}
        outs = self.run(jaxpr, consts, operands)
        self._refuse_sums(outs[: len(outs) - len(sums)])
        if any(id(v) not in self.sums for v in outs[len(outs) - len(sums) :]):
            raise CannotServe("a gradient that is no sum of products of vectors")
        return outs

    def run(self, jaxpr: Any, consts: Sequence[Any], operands: Sequence[Any]) -> list[Any]:
        values: dict[Any, Any] = {}

        def read(atom: Any) -> Any:
            value = _literal(atom) if isinstance(atom, Literal) else values[atom]
            if isinstance(value, Loaded):
                value = value.read()
                self.clean[id(value)] = value
            return value

        values.update(zip(jaxpr.constvars, consts, strict=True))
        values.update(zip(jaxpr.invars, operands, strict=True))
        for eqn in jaxpr.eqns:
            outs = self._equation(eqn, [read(atom) for atom in eqn.invars])
            values.update(zip(eqn.outvars, outs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, eqn: Any, values: list[Any]) -> list[Any]:
        name, params = eqn.primitive.name, eqn.params
        if name in CALLS:
            return self._called(next(params[k] for k in CALLED if k in params), values)
        if name in IDENTITIES:
            return values
        if name == "scan":
            return self._loop(params, values)
        if not eqn.outvars:
            raise CannotServe(f"`{name}`")
        size, sizes = sides(eqn.outvars[0].aval.shape), [_sides_of(atom) for atom in eqn.invars]
        if any(id(value) in self.sums for value in values):
            return [self._summed(eqn, values)]
        elementwise = name in _SIMPLE or name in REWRITTEN
        known = all(isinstance(value, np.generic) for value in values)
        if values and known and (elementwise or not size):
            shapes = (atom.aval.shape for atom in eqn.invars)
            whole = [np.broadcast_to(v, shape) for v, shape in zip(values, shapes, strict=True)]
            return [out.dtype.type(out.ravel()[0]) for out in folded(eqn, whole)]
        if elementwise:
            fn: Any = REWRITTEN.get(name, eqn.primitive.bind)
            return [fn(*_together(name, values, sizes, size), **params)]
        if name in _MOVES and sizes[0] in ((), size):
            return values[:1]
        if name == "transpose":
            order = [i for i in params["permutation"] if eqn.invars[0].aval.shape[i] != 1]
            return [values[0] if order == sorted(order) else self._turned(values[0], sizes[0])]
        if name in ("concatenate", "stack") and not any(sizes):
            return [_listed(values)]
        if name == "slice" and len(sizes[0]) == 1 and not size:
            return [_entry(values[0], *sizes[0], max(params["start_indices"]))]
        if name == "unstack" and len(sizes[0]) == 1 and not size:
            return [_entry(values[0], *sizes[0], i) for i in range(len(eqn.outvars))]
        if name == "dot_general":
            return [self._product(eqn, *values)]
        if name == "reduce_sum" or name in _EXTREMES:
            return [_reduced(eqn, values[0])]
        if name == "iota" and params["shape"][params["dimension"]] == 1:
            return [np.dtype(params["dtype"]).type(0)]
        if name == "iota" and len(size) == 1:
            return [lax.broadcasted_iota(params["dtype"], (padded(*size), 1), 0)]
        if name == "iota" and len(size) == 2:
            axis = len(sides(params["shape"][: params["dimension"]]))
            return [lax.broadcasted_iota(params["dtype"], tuple(map(padded, size)), axis)]
        raise CannotServe(f"`{name}`")

    def _called(self, program: Any, values: Sequence[Any]) -> list[Any]:
        if getattr(program, "consts", ()):
            raise CannotServe("an array that a function closes over")
        return self.run(getattr(program, "jaxpr", program), (), values)

    def _loop(self, params: dict, values: list[Any]) -> list[Any]:
        """A loop of known length over what it changes."""
        if "ft_in" in params:  # from JAX 0.12 on
            consts, carried, rows = map(len, params["ft_in"].unpack())
        else:
            consts, carried = params["num_consts"], params["num_carry"]
            rows = len(values) - consts - carried
        body = params["jaxpr"]
        if rows or len(body.jaxpr.outvars) != carried:
            raise CannotServe("a loop over the rows of an array")
        fixed, first = values[:consts], values[consts:]
        sizes = [sides(atom.aval.shape) for atom in body.jaxpr.outvars]

        def shaped(values: Sequence[Any]) -> list[Any]:
            self._refuse_sums(values)
            pairs = zip(values, sizes, strict=True)
            return [matrix(v, size) if len(size) == 2 else v for v, size in pairs]

        def turn(*values: Any) -> list[Any]:
            return shaped(self._called(body, (*fixed, *values)))

        self._refuse_sums(fixed)
        first = shaped(first)
        # What a turn makes of shared values may be each trajectory's own.
        for _ in range(len(first) + 1):
            shapes = [np.shape(v) for v in jax.eval_shape(turn, *first)]
            if shapes == [np.shape(v) for v in first]:
                break
            first = [
                _spread(v, np.broadcast_shapes(shape, np.shape(v)))
                for shape, v in zip(shapes, first, strict=True)
            ]
        else:
            raise CannotServe("a loop that goes on with blocks of another shape")

        def step(_: Any, values: tuple) -> tuple:
            pairs = zip(turn(*values), values, strict=True)
            return tuple(_spread(out, np.shape(old)) for out, old in pairs)

        length = jnp.int32(params["length"])
        return list(lax.fori_loop(jnp.int32(0), length, step, tuple(first)))

    def _product(self, eqn: Any, left: Any, right: Any) -> Any:
        (summed, others), batch = eqn.params["dimension_numbers"]
        if any(map(len, batch)):
            raise CannotServe("a batch of products")
        a, b = (v.aval for v in eqn.invars)
        dtype = eqn.outvars[0].aval.dtype
        left, right = (self._as(v, dtype) for v in (left, right))
        if math.prod(a.shape[i] for i in summed) == 1:
            if len(sides(a.shape)) == len(sides(b.shape)) == 1:
                return self._outer(block(left, *sides(a.shape)), block(right, *sides(b.shape)))
            size, sizes = _sides_of(eqn.outvars[0]), [_sides_of(atom) for atom in eqn.invars]
            return jnp.multiply(*_together("dot_general", [left, right], sizes, size))
        if len(sides(a.shape)) < len(sides(b.shape)):
            a, left, summed, b, right = b, right, others, a, left
        if len(sides(b.shape)) != 1:
            raise CannotServe("a product of two matrices")
        (length,) = sides(b.shape)
        right = block(right, length, 0)
        if len(sides(a.shape)) == 1:
            left = block(left, length, 0)
            return jnp.sum(jnp.multiply(*_alike([left, right])), axis=0, keepdims=True)
        left = self._cleared(matrix(left, sides(a.shape)), sides(a.shape))
        (place,) = (i for i in summed if a.shape[i] != 1)
        if any(k != 1 for k in a.shape[place + 1 :]):
            left = self._turned(left, sides(a.shape))
        if right.shape[1] == 1:
            return jnp.sum(left * right.reshape(1, -1), axis=1, keepdims=True)
        return self.multiply(left, right)

    def _outer(self, left: Any, right: Any) -> Any:
        if left.shape[1] == right.shape[1] == 1:
            return left * right.reshape(1, -1)
        tile = max(left.shape[1], right.shape[1])
        left, right = (_spread(v, (v.shape[0], tile)) for v in (left, right))
        return self._noted(self.multiply(left, right.T))

    def _summed(self, eqn: Any, values: list[Any]) -> Any:
        """What a linear operation makes of sums over the tile."""
        name = eqn.primitive.name
        totals = [v for v in values if id(v) in self.sums]
        others = [v for v in values if id(v) not in self.sums]
        # What all trajectories share; a number of their own is (1, tile).
        shared = all(np.shape(v) in ((), (1, 1), np.shape(totals[0])) for v in others)
        if name == "transpose":
            order = [i for i in eqn.params["permutation"] if eqn.invars[0].aval.shape[i] != 1]
            return totals[0] if order == sorted(order) else self._noted(totals[0].T)
        if name == "mul" and len(others) == 1 and shared:
            return self._noted(totals[0] * others[0])
        if name == "select_n" and np.shape(values[0]) in ((), np.shape(totals[0])):
            where, *terms = values
        else:
            where, terms = None, values
        zero = [isinstance(v, np.generic) and v == 0 for v in terms]
        known = all(z or id(v) in self.sums for z, v in zip(zero, terms, strict=True))
        if not known or name not in ("add", "add_any", "neg", "select_n", "sub"):
            raise CannotServe(f"`{name}` of a matrix of each trajectory's own")
        if name.startswith("add") and len(totals) == 1:
            return totals[0]
        terms = [jnp.zeros_like(totals[0]) if z else v for z, v in zip(zero, terms, strict=True)]
        given = terms if where is None else [where, *terms]
        return self._noted(eqn.primitive.bind(*given, **eqn.params))

    def _refuse_sums(self, values: Sequence[Any]) -> None:
        if any(id(value) in self.sums for value in values):
            raise CannotServe("a matrix of each trajectory's own")

    def _noted(self, total: Any) -> Any:
        self.sums[id(total)] = total
        return total

    def _as(self, value: Any, dtype: Any) -> Any:
        if value.dtype == dtype:
            return value
        out = np.dtype(dtype).type(value) if isinstance(value, np.generic) else value.astype(dtype)
        if id(value) in self.clean:
            self.clean[id(out)] = out
        return out

    def _turned(self, value: Any, size: tuple[int, ...]) -> Any:
        """The transpose of a matrix."""
        value = matrix(value, size)
        out = value.T
        if id(value) in self.clean:
            self.clean[id(out)] = out
        return out

    def _cleared(self, value: Any, size: tuple[int, ...]) -> Any:
        """A matrix with 0 beyond its sides."""
        if id(value) in self.clean:
            return value
        for axis, k in enumerate(size):
            if value.shape[axis] != k:
                inside = lax.broadcasted_iota(np.int32, value.shape, axis) < np.int32(k)
                value = jnp.where(inside, value, jnp.zeros_like(value))
        return value


def _literal(atom: Any) -> Any:
    """A number; arrays do not get into kernels this way."""
    if np.size(atom.val) != 1:
        raise CannotServe("an array written into the program")
    return np.dtype(atom.aval.dtype).type(np.reshape(atom.val, ()))


def _sides_of(atom: Any) -> tuple[int, ...]:
    return sides(np.shape(atom.val) if isinstance(atom, Literal) else atom.aval.shape)


def _together(name: str, values: Sequence[Any], sizes: Sequence[tuple], size: tuple) -> list[Any]:
    """`values` of these sides in one shape, for an elementwise result of sides `size`."""
    if any(other not in ((), size) for other in sizes):
        raise CannotServe(f"`{name}` of rows and columns")
    if len(size) == 2:
        pairs = zip(values, sizes, strict=True)
        values = [matrix(v, size) if s else _shared(v) for v, s in pairs]
    return _alike(values)


def _shared(value: Any) -> Any:
    """A number that all trajectories share, to go with a matrix."""
    if np.ndim(value) == 2 and np.shape(value)[1] != 1:
        raise CannotServe("a matrix of each trajectory's own")
    return value


def matrix(value: Any, size: tuple[int, ...]) -> Any:
    """`value`, a block or a number in all its places, as the block of a matrix."""
    shape = padded(size[0]), padded(size[1])
    return value if np.shape(value) == shape else _spread(_shared(value), shape)


def _alike(values: Sequence[Any]) -> list[Any]:
    """`values`, numbers or blocks, in one shape."""
    shape = np.broadcast_shapes(*map(np.shape, values))
    return [v if np.shape(v) == shape else _spread(v, shape) for v in values]


def _spread(value: Any, shape: tuple[int, ...]) -> Any:
    if isinstance(value, np.generic):
        return lax.full(shape, np.asarray(value), value.dtype)
    return jnp.broadcast_to(value, shape)


def block(value: Any, k: int, filling: Any = None) -> Any:
    """`value`, of a vector (k,), as a block with its K rows, and `filling` in those beyond k."""
    shape = padded(k), np.shape(value)[1] if np.ndim(value) else 1
    value = value if np.shape(value) == shape else _spread(value, shape)
    if filling is None or shape[0] == k:
        return value
    inside = lax.broadcasted_iota(np.int32, shape, 0) < np.int32(k)
    return jnp.where(inside, value, lax.full(shape, filling, value.dtype))


def _listed(numbers: Sequence[Any]) -> Any:
    """The vector of these numbers."""
    if len(numbers) == 1:
        return numbers[0]
    numbers = _alike(numbers)
    shape = padded(len(numbers)), np.shape(numbers[0])[1] if np.ndim(numbers[0]) else 1
    place, out = lax.broadcasted_iota(np.int32, shape, 0), _spread(numbers[0], shape)
    for i, number in enumerate(numbers[1:], 1):
        out = jnp.where(place == np.int32(i), _spread(number, shape), out)
    return out


def _entry(value: Any, k: int, i: int) -> Any:
    """Entry `i` of a vector (k,)."""
    value = block(value, k)
    here = lax.broadcasted_iota(np.int32, value.shape, 0) == np.int32(i)
    return jnp.sum(jnp.where(here, value, jnp.zeros_like(value)), axis=0, keepdims=True)


def _reduced(eqn: Any, value: Any) -> Any:
    size, axes = _sides_of(eqn.invars[0]), eqn.params["axes"]
    if not sides([eqn.invars[0].aval.shape[i] for i in axes]):
        return value
    if len(size) != 1 or value.dtype.kind != "f":
        raise CannotServe("a reduction of a matrix")
    fold, filling = _EXTREMES.get(eqn.primitive.name, (jnp.sum, 0))
    return fold(block(value, *size, filling), axis=0, keepdims=True)

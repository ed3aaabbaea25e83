"""What each operation of a traced step does to arrays that are taken apart."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax

from . import rewrites
from .entries import Entries, Lanes, known

# Elementwise operations that Triton has, or that `rewrites` makes of those.
ELEMENTWISE = frozenset(
    "abs acos acosh add_any asin asinh atan atan2 atanh cbrt ceil clamp cos cosh div eq exp exp2 "
    "expm1 floor ge gt integer_pow is_finite le log log1p logistic lt max min ne neg nextafter not "
    "pow rem rsqrt sign sin sinh sqrt square tan tanh xor".split()
)
REWRITTEN: dict[str, Callable] = {
    "erf": rewrites.erf,
    "one_minus_square": rewrites.one_minus_square,
    "round": rewrites.rounded,
}
# Operations that hand on what they are given.
IDENTITIES = frozenset("copy copy_p optimization_barrier stop_gradient".split())
# Operations that only move entries. Those of the second line take an index too.
MOVES = frozenset(
    "broadcast_in_dim concatenate pad reshape rev slice split squeeze stack tile transpose unstack "
    "dynamic_slice dynamic_update_slice gather scatter".split()
)


def evaluate(eqn: Any, operands: Sequence[Entries], lanes: Lanes) -> list[Entries] | None:
    """The results of an operation; None where it is none of those known here."""
    name = eqn.primitive.name
    if name in IDENTITIES:
        return list(operands)
    if name == "iota" or (operands and all(operand.known() for operand in operands)):
        return _folded(eqn, operands)
    if name in MOVES:
        return _moved(eqn, operands)
    if name in _RULES:
        return [_RULES[name](eqn, operands, lanes)]
    if name in ELEMENTWISE or name in REWRITTEN:
        fn = REWRITTEN.get(name)

        def emit(*items):
            bind = fn or eqn.primitive.bind
            return lanes.emit(lambda *v: bind(*v, **eqn.params), *items)

        return [each(emit, *operands)]
    return None


def each(fn: Callable, *operands: Entries) -> Entries:
    """`fn` of every entry; axes of length 1, and missing ones, go with all."""
    shape = np.broadcast_shapes(*(operand.shape for operand in operands))
    rows = [
        o.items if o.shape == shape else o.at(np.broadcast_to(o.numbers(), shape)).items
        for o in operands
    ]
    return Entries(shape, [fn(*items) for items in zip(*rows, strict=True)])


def _folded(eqn: Any, operands: Sequence[Entries]) -> list[Entries]:
    """An operation on what is known, done at once."""
    values = [o.value(v.aval.dtype) for o, v in zip(operands, eqn.invars, strict=True)]
    return [known(out) for out in folded(eqn, values)]


def folded(eqn: Any, values: Sequence[Any]) -> Sequence[Any]:
    """The results of an operation on arrays that are known."""
    with jax.ensure_compile_time_eval():
        outs = eqn.primitive.bind(*map(jax.numpy.asarray, values), **eqn.params)
        return [np.asarray(out) for out in (outs if eqn.primitive.multiple_results else [outs])]


def _moved(eqn: Any, operands: Sequence[Entries]) -> list[Entries]:
    """What moves entries is applied to their numbers."""
    name = eqn.primitive.name
    moving = _MOVING.get(name, range(len(operands)))
    values, items = [], []
    for i, operand in enumerate(operands):
        if i in moving:
            values.append(operand.numbers(len(items)))
            items += operand.items
        elif operand.known():
            values.append(operand.value(eqn.invars[i].aval.dtype))
        else:
            raise UnknownPlace(name)
    quick = _QUICK.get(name)
    outs = [quick(eqn.params, *values)] if quick else folded(eqn, values)
    dtype = eqn.outvars[0].aval.dtype
    missing = np.dtype(dtype).type(np.nan if np.issubdtype(dtype, np.floating) else 0)
    return [
        Entries(out.shape, [items[i] if i >= 0 else missing for i in out.ravel()]) for out in outs
    ]


# Which operands are moved, and are not indices.
_MOVING = {"dynamic_slice": (0,), "dynamic_update_slice": (0, 1), "gather": (0,), "scatter": (0, 2)}


class UnknownPlace(Exception):
    """An index that depends on the state or on time."""


def _broadcast(params: dict, numbers: np.ndarray) -> np.ndarray:
    shape, places = params["shape"], params["broadcast_dimensions"]
    spread = [1] * len(shape)
    for place, length in zip(places, numbers.shape, strict=True):
        spread[place] = length
    return np.broadcast_to(numbers.reshape(spread), shape)


def _sliced(params: dict, numbers: np.ndarray) -> np.ndarray:
    starts, limits = params["start_indices"], params["limit_indices"]
    strides = params["strides"] or (1,) * len(starts)
    return numbers[tuple(map(slice, starts, limits, strides))]


# By NumPy, which takes a thousandth of the time that JAX takes to compile each.
_QUICK: dict[str, Callable] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": lambda params, *numbers: np.concatenate(numbers, params["dimension"]),
    "reshape": lambda params, numbers: numbers.reshape(params["new_sizes"]),
    "slice": _sliced,
    "squeeze": lambda params, numbers: np.squeeze(numbers, params["dimensions"]),
    "transpose": lambda params, numbers: numbers.transpose(params["permutation"]),
}


def _binary(name: str) -> Callable:
    return lambda eqn, operands, lanes: each(getattr(lanes, name), *operands)


def _selected(eqn: Any, operands: Sequence[Entries], lanes: Lanes) -> Entries:
    return each(lanes.select, *operands)


def _converted(eqn: Any, operands: Sequence[Entries], lanes: Lanes) -> Entries:
    return each(lambda item: lanes.convert(item, eqn.params["new_dtype"]), *operands)


def _dotted(eqn: Any, operands: Sequence[Entries], lanes: Lanes) -> Entries:
    """Sums of products, in full precision whatever precision was asked for."""
    (left_sum, right_sum), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    out = eqn.outvars[0].aval
    left, right = operands

    def laid_out(operand: Entries, batch, summed) -> np.ndarray:
        """The numbers as (batch, free, summed)."""
        numbers = operand.numbers()
        free = [i for i in range(numbers.ndim) if i not in (*batch, *summed)]
        return numbers.transpose(*batch, *free, *summed).reshape(
            math.prod(numbers.shape[i] for i in batch),
            -1,
            math.prod(numbers.shape[i] for i in summed),
        )

    rows = laid_out(left, left_batch, left_sum)
    columns = laid_out(right, right_batch, right_sum)
    items = []
    for part, other in zip(rows, columns, strict=True):
        for row in part:
            for column in other:
                pairs = ((left.items[i], right.items[j]) for i, j in zip(row, column, strict=True))
                terms = [
                    lanes.mul(lanes.convert(a, out.dtype), lanes.convert(b, out.dtype))
                    for a, b in pairs
                ]
                items.append(lanes.fold(lanes.add, terms))
    return Entries(out.shape, items)


def _reduced(fold: Callable) -> Callable:
    def rule(eqn: Any, operands: Sequence[Entries], lanes: Lanes) -> Entries:
        (operand,) = operands
        axes, numbers = eqn.params["axes"], operand.numbers()
        kept = [i for i in range(numbers.ndim) if i not in axes]
        shape = tuple(numbers.shape[i] for i in kept)
        rows = numbers.transpose(*kept, *axes).reshape(math.prod(shape), -1)
        return Entries(
            shape, [lanes.fold(fold(lanes), [operand.items[i] for i in row]) for row in rows]
        )

    return rule


def _scattered(eqn: Any, operands: Sequence[Entries], lanes: Lanes) -> Entries:
    """Sums of what is added in each place."""
    operand, index, updates = operands
    if not index.known():
        raise UnknownPlace(eqn.primitive.name)
    places = index.value(eqn.invars[1].aval.dtype)
    dtype = eqn.outvars[0].aval.dtype
    zero, one = np.zeros(operand.shape, dtype), np.eye(len(updates.items), dtype=dtype)
    with jax.ensure_compile_time_eval():
        added = jax.vmap(lambda v: eqn.primitive.bind(zero, places, v, **eqn.params))(
            one.reshape(-1, *updates.shape)
        )
    items = list(operand.items)
    for j, i in zip(*np.nonzero(np.asarray(added).reshape(len(one), -1)), strict=True):
        items[i] = lanes.add(items[i], updates.items[j])
    return Entries(operand.shape, items)


def _emitted(primitive: Any) -> Callable:
    return lambda lanes: lambda a, b: lanes.emit(primitive.bind, a, b)


_RULES: dict[str, Callable] = {
    "add": _binary("add"),
    "and": _binary("conjunction"),
    "convert_element_type": _converted,
    "dot_general": _dotted,
    "mul": _binary("mul"),
    "or": _binary("disjunction"),
    "reduce_and": _reduced(lambda lanes: lanes.conjunction),
    "reduce_max": _reduced(_emitted(lax.max_p)),
    "reduce_min": _reduced(_emitted(lax.min_p)),
    "reduce_or": _reduced(lambda lanes: lanes.disjunction),
    "reduce_prod": _reduced(lambda lanes: lanes.mul),
    "reduce_sum": _reduced(lambda lanes: lanes.add),
    "scatter-add": _scattered,
    "select_n": _selected,
    "sub": _binary("sub"),
}

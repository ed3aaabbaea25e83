"""A step of one trajectory, carried out on arrays that are taken apart."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

from .entries import Entries, Lanes, Refused, known
from .primitives import UnknownPlace, evaluate

# Loops of at most so many turns are written out.
MOST_TURNS = 256
# Where an operation that calls a function keeps it.
CALLED = ("jaxpr", "call_jaxpr", "fun_jaxpr")
CALLS = frozenset(
    "jit pjit closed_call core_call remat checkpoint remat2 custom_jvp_call custom_vjp_call "
    "custom_vjp_call_jaxpr custom_vmap_call".split()
)


def scalarised(program: Any, operands: Sequence[Entries], lanes: Lanes) -> list[Entries]:
    """What `program`, written for arrays of one trajectory, makes of their entries.

    **Raises:** ValueError that names an operation which cannot be carried out so.
    """
    return _called(program, operands, lanes)


def _run(
    jaxpr: Any, consts: Sequence[Entries], operands: Sequence[Entries], lanes: Lanes
) -> list[Entries]:
    values: dict[Any, Entries] = {}

    def read(atom: Any) -> Entries:
        if isinstance(atom, Literal):
            kind: Any = atom.aval
            return known(np.asarray(atom.val, kind.dtype))
        return values[atom]

    values.update(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, operands, strict=True))
    for eqn in jaxpr.eqns:
        outs = _equation(eqn, [read(atom) for atom in eqn.invars], lanes)
        values.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _equation(eqn: Any, operands: list[Entries], lanes: Lanes) -> list[Entries]:
    name = eqn.primitive.name
    if name in CALLS:
        return _called(next(eqn.params[k] for k in CALLED if k in eqn.params), operands, lanes)
    if name in _CONTROL:
        return _CONTROL[name](eqn.params, operands, lanes)
    try:
        outs = evaluate(eqn, operands, lanes)
    except UnknownPlace as error:
        raise _refusal(f"`{name}` at an index that depends on the state or on time") from error
    if outs is None:
        raise _refusal(f"`{name}`")
    return outs


def _called(program: Any, operands: Sequence[Entries], lanes: Lanes) -> list[Entries]:
    consts = [known(const) for const in getattr(program, "consts", ())]
    return _run(getattr(program, "jaxpr", program), consts, operands, lanes)


def _cond(params: dict, operands: list[Entries], lanes: Lanes) -> list[Entries]:
    """The branch, where it is known which; else all of them, and a choice."""
    (index,), rest = operands[0].items, operands[1:]
    branches = params["branches"]
    if isinstance(index, np.generic):
        return _called(branches[min(max(int(index), 0), len(branches) - 1)], rest, lanes)
    all_outs = [_called(branch, rest, lanes) for branch in branches]

    def choose(*items):
        out = items[-1]
        for k in reversed(range(len(items) - 1)):
            limit = np.int32(k)
            out = lanes.select(lanes.emit(jax.lax.le_p.bind, index, limit), out, items[k])
        return out

    return [
        Entries(
            outs[0].shape, [choose(*items) for items in zip(*(o.items for o in outs), strict=True)]
        )
        for outs in zip(*all_outs, strict=True)
    ]


def _scan(params: dict, operands: list[Entries], lanes: Lanes) -> list[Entries]:
    length = params["length"]
    if "ft_in" in params:  # from JAX 0.12 on
        consts, carried, _ = map(len, params["ft_in"].unpack())
    else:
        consts, carried = params["num_consts"], params["num_carry"]
    if length > MOST_TURNS:
        raise _refusal(f"a loop of {length} turns (limit {MOST_TURNS})")
    fixed, carry = operands[:consts], operands[consts : consts + carried]
    rows, turns = operands[consts + carried :], range(length)
    made: list[list[Entries]] = [[] for _ in turns]
    for i in reversed(turns) if params["reverse"] else turns:
        row = [xs.at(xs.numbers()[i]) for xs in rows]
        outs = _called(params["jaxpr"], [*fixed, *carry, *row], lanes)
        carry, made[i] = outs[:carried], outs[carried:]
    stacked = [
        Entries((length, *ys[0].shape), [item for y in ys for item in y.items])
        for ys in zip(*made, strict=True)
    ]
    return [*carry, *stacked]


def _while(params: dict, operands: list[Entries], lanes: Lanes) -> list[Entries]:
    """A loop whose number of turns is known."""
    tests, moves = params["cond_nconsts"], params["body_nconsts"]
    test, fixed = operands[:tests], operands[tests : tests + moves]
    carry = operands[tests + moves :]
    for _ in range(MOST_TURNS + 1):
        (goes_on,) = _called(params["cond_jaxpr"], [*test, *carry], lanes)[0].items
        if not isinstance(goes_on, np.generic):
            raise _refusal("a `while` loop that ends when the state or the time says so")
        if not goes_on:
            return carry
        carry = _called(params["body_jaxpr"], [*fixed, *carry], lanes)
    raise _refusal(f"a loop of more than {MOST_TURNS} turns")


_CONTROL = {"cond": _cond, "scan": _scan, "while": _while}


def _refusal(what: str) -> Refused:
    return Refused(
        f"`engine=jaxdyn.Kernel` cannot carry out {what}, which a step of this cell, solver or "
        "input asks for; leave `engine` out."
    )

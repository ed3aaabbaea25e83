"""What a sweep is to do, and what will come of it, before anything is computed."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from .._cell import AbstractCell, SharedInput
from .._fingerprint import fingerprint
from .._simulate.checks import check_solver, check_times, inputs_of
from .._simulate.simulate import default_solver
from .._types import Args
from .layout import KEPT_BY_STORES, RESERVED, STATUS, Coordinate, Layout, Variable
from .members import Members, is_name
from .program import Job, named
from .reductions import About, AbstractReduction, EnergyDrift, FinalState

# A chunk has at most so many trajectories, so many bytes of results, and so much work (a minute or
# so of two cores): what a killed sweep loses.
MOST, MOST_BYTES, MOST_WORK = 2**14, 2**25, 1e12
SAMPLES = 100


def job_of(
    members: Members, times: tuple, args: Args, solver: Any, keep: Any, every: int | None
) -> Job:
    cell = members.first
    t0, t1, dt, n_steps = times
    span = check_times(t0, t1, dt, n_steps, members.dtype)
    if not span.concrete:
        raise ValueError("`t0` and `dt` of a sweep must be known numbers; call it outside of jit.")
    if span.n_steps == 0:
        raise ValueError("`t1` equals `t0`: there is nothing to integrate; take a later one.")
    if every is not None and every > span.n_steps:
        raise ValueError(f"`every` must be at most {span.n_steps}, all steps, got {every}.")
    solver = default_solver(cell) if solver is None else solver
    check_solver(solver, cell, None, None)
    x0 = jax.numpy.zeros(cell.size, members.dtype)
    if not isinstance(inputs_of(cell, args, x0, span), SharedInput):
        raise ValueError("`args` of a sweep must be one input, shared by all trajectories.")
    return Job(
        cell=members.make,
        args=args,
        solver=solver,
        keep=_checked_keep(keep),
        t0=float(span.t0),
        t1=float(span.t1),
        dt=abs(float(span.dt)),
        n_steps=span.n_steps,
        every=max(1, span.n_steps // SAMPLES) if every is None else int(every),
    )


def layout_of(members: Members, job: Job, chunk: Any, attributes: dict[str, Any]) -> Layout:
    n, dtype = members.first.size, members.dtype
    variables = _variables(members, job)
    used = {dim for each in variables for dim in each.dims}
    coordinates: dict[str, Coordinate] = {}
    if "time" in used:
        about = {"long_name": "time", "units": "model time"}
        coordinates["time"] = Coordinate(("time",), job.times, about)
    if "unit" in used:
        coordinates["unit"] = Coordinate(("unit",), np.arange(n), {"long_name": "unit"})
    for name, value in members.parameters.items():
        dims = "member", *(f"{name}_dim{axis}" for axis in range(value.ndim - 1))
        coordinates[name] = Coordinate(dims, value, {"long_name": f"parameter {name}"})
    names = [each.name for each in variables]
    taken = [name for name in names if names.count(name) > 1 or name in coordinates]
    if taken:
        raise ValueError(f"`keep` has the name {taken[0]!r}, which is taken; give it another.")
    if chunk is None:
        member = max(1, sum(each.bytes for each in variables))
        work = MOST_WORK / (job.n_steps * n * (n + 30))
        most = min(MOST, MOST_BYTES / member, max(64, work), max(64, members.count))
        chunk = 2 ** math.floor(math.log2(max(1, most)))
    chunk = int(chunk)
    platform = jax.default_backend()
    versions = {"jaxdyn": _version(), "jax": jax.__version__, "platform": platform}
    settings = {
        **{name: getattr(job, name) for name in ("t0", "t1", "dt", "n_steps", "every")},
        "dtype": str(dtype),
        "chunk": chunk,
    }
    task = members.task() | settings | versions
    for name in ("solver", "args", "keep"):
        task[name] = fingerprint(getattr(job, name))
    task["keep"] += " " + fingerprint([dataclasses.astuple(each) for each in variables])
    about = {
        "title": f"{members.count} trajectories of {n} units",
        "cell": str(members.first if isinstance(members.make, AbstractCell) else members.make),
        "solver": str(job.solver),
        "time_units": "model time",
    }
    if members.key is not None:
        about["key"] = np.asarray(jax.random.key_data(members.key)).tolist()
    about["cell"] = about["cell"].split(" at 0x")[0]
    about |= settings | versions
    clash = sorted({*about, *KEPT_BY_STORES} & set(attributes))
    if clash:
        raise ValueError(f"`attributes` has the name {clash[0]!r}, which is taken; give another.")
    return Layout(
        batch=members.count,
        chunk=chunk,
        variables=(*variables, STATUS),
        coordinates=coordinates,
        attributes=about | attributes,
        task=task,
    )


def _version() -> str:
    from .. import __version__

    return __version__


def _variables(members: Members, job: Job) -> list[Variable]:
    """What the reductions return."""
    x0, parameters = members.take(np.zeros(1, int))
    first = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), parameters)
    state = jax.ShapeDtypeStruct(x0.shape[1:], x0.dtype)
    found, _ = jax.eval_shape(job.one, state, first)
    sizes = {"time": len(job.times), "unit": members.first.size}
    variables = []
    for name, parts in found.items():
        reduction = job.keep[name]
        about = reduction.about() if isinstance(reduction, AbstractReduction) else {}
        for full, value in named({name: parts}).items():
            where = f'`keep["{name}"]`'
            if not is_name(full) or full in RESERVED:
                raise ValueError(f"{where} returns a part {full!r}; give it another name.")
            if np.dtype(value.dtype).kind not in "biufc" or 0 in value.shape:
                raise TypeError(
                    f"{where} must return arrays of numbers, none of them empty; {full!r} is "
                    f"{value.dtype}{list(value.shape)}."
                )
            dims = tuple(f"{full}_dim{axis}" for axis in range(len(value.shape)))
            said = about.get(full[len(name) + 1 :], About(dims, full, ""))
            if len({*said.dims, "member"}) != len(value.shape) + 1:
                raise ValueError(
                    f"{where} says that the axes of {full!r} are {said.dims}, and there are "
                    f"{len(value.shape)}; name each, all different, none of them member."
                )
            # Two of one name may differ in size.
            dims = tuple(
                dim if sizes.setdefault(dim, size) == size else f"{full}_{dim}"
                for dim, size in zip(said.dims, value.shape, strict=True)
            )
            described = {"long_name": said.long_name} | ({"units": said.units} if about else {})
            variables.append(Variable(full, value.shape, np.dtype(value.dtype), dims, described))
    return variables


def _checked_keep(keep: Any) -> dict[str, Callable]:
    if keep is None:
        return {"final_state": FinalState(), "energy_drift": EnergyDrift()}
    if not isinstance(keep, Mapping) or not keep:
        raise TypeError(
            "`keep` must be a dict of names and reductions, such as "
            f'{{"drift": jaxdyn.reductions.EnergyDrift()}}, got {keep!r}.'
        )
    for name, reduction in keep.items():
        if not is_name(name) or name in RESERVED:
            raise ValueError(
                f"`keep` has the name {name!r}; give one that a variable can have, and none of "
                f"{', '.join(RESERVED)}."
            )
        if not callable(reduction) or isinstance(reduction, type):
            hint = " (an object, not the class)" if isinstance(reduction, type) else ""
            raise TypeError(
                f'`keep["{name}"]` must be a function of a jaxdyn.reductions.Trajectory, such as '
                f"jaxdyn.reductions.FinalState(){hint}, got {reduction!r}."
            )
    return dict(keep)


def checked_attributes(attributes: Any) -> dict[str, Any]:
    if attributes is None:
        return {}
    try:
        plain = json.dumps(dict(attributes), allow_nan=False, default=lambda value: value.tolist())
        return json.loads(plain)
    except AttributeError as error:
        raise TypeError(f"`attributes` must be a dict of what JSON can hold: {error}.") from error
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`attributes` must be a dict of what JSON can hold, got {attributes!r}: {error}."
        ) from error

"""An ensemble of any size, chunk after chunk."""

import dataclasses
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffrax
import jax
import numpy as np
from jax.sharding import Mesh

from .._simulate import Threads
from .._simulate.checks import (
    check_flags,
    check_types,
    is_count,
)
from .._simulate.memory import host_memory
from .._types import Args, RealScalar
from .layout import (
    DIVERGED,
    DONE,
    FAILED,
    STATUS,
    Layout,
    Ledger,
    Memory,
)
from .members import Members
from .plan import checked_attributes, job_of, layout_of
from .program import Program
from .store import Store, already_there, check_ours, zarr


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    `arrays`, by name, each leading with the b trajectories: NumPy arrays, or Zarr arrays of the
    `store`, which are read as they are indexed; among them `status` (b,), int8: 0 pending, 1 done,
    2 diverged, or not to be solved, whose numbers may be NaN, 3 failed, with its whole chunk. What
    is pending or failed is NaN, or 0 where that is no float. `times` (t,) of the samples;
    `parameters`; `store`, the folder, or None; `seconds` spent `solving` (the first chunk's
    compilation included) and `writing`.
    """

    arrays: dict[str, Any]
    times: np.ndarray
    parameters: dict[str, np.ndarray]
    store: Path | None
    seconds: dict[str, float]
    layout: Layout = dataclasses.field(repr=False)

    def __getitem__(self, name: str) -> Any:
        return self.arrays[name]

    def dataset(self) -> Any:
        """All of it as an `xarray.Dataset`, that of `xarray.open_zarr(store)` if there is one.

        **Raises:** ImportError without xarray.
        """
        try:
            import xarray
        except ImportError as error:
            raise ImportError(
                'A dataset needs xarray, which is not installed; pip install "jaxdyn[store]".'
            ) from error
        if self.store is not None:
            return xarray.open_zarr(self.store)
        variables = {
            each.name: (("member", *each.dims), self.arrays[each.name], each.attributes)
            for each in self.layout.variables
        }
        coordinates = {
            name: (each.dims, each.values, each.attributes)
            for name, each in self.layout.coordinates.items()
        }
        return xarray.Dataset(variables, coordinates, self.layout.attributes)


def sweep(
    cell: Any,
    x0: Any,
    *,
    t1: RealScalar | None = None,
    dt: RealScalar,
    t0: RealScalar = 0.0,
    n_steps: int | None = None,
    args: Args = None,
    solver: diffrax.AbstractSolver | None = None,
    parameters: Any = None,
    trajectories: Any = None,
    key: Any = None,
    keep: Any = None,
    every: Any = None,
    chunk: Any = None,
    store: Any = None,
    resume: bool = False,
    attributes: Any = None,
    retries: Any = 0,
    engine: Any = None,
    mesh: Mesh | None = None,
    progress: bool = False,
    throw: bool = True,
) -> Sweep:
    r"""Integrates an ensemble of any size in chunks, and keeps of each trajectory what is asked.

    Nothing is as large as the ensemble but what is kept, and with `store` that lies on disk: a Zarr
    group that `xarray.open_zarr` opens, with coordinates, units and the settings in it. A sweep
    that is killed, at any moment, is taken up again by `resume=True`, less the chunk it was at, and
    ends with the same store to the last bit.

    **Arguments:**

    - `cell`: the cell of all trajectories, or a function of `parameters` that returns each one's,
      such as `lambda scale: jaxdyn.PoissonCell(jaxdyn.DenseSkew(scale * entries), jaxdyn.Tanh())`.
      It goes through `jax.vmap`, as a function `x0` and those of `keep` do.
    - `x0`: initial states (b, n), an array that may be memory-mapped, or a function of a cell and a
      PRNG key that returns one state (n,): trajectory i has the key `jax.random.fold_in(key, i)`.
    - `t1`, `dt`, `t0`, `n_steps`, `args`, `solver`: as for [`jaxdyn.simulate`][], all known before
      anything is traced. Steps are fixed, the input is shared by all trajectories.
    - `parameters`: a dict of arrays that lead with the trajectories, handed to `cell` by name, a
      row at a time. They are coordinates of the results.
    - `trajectories`: how many there are, where neither `x0` nor `parameters` say it.
    - `key`: for an `x0` that is a function.
    - `keep`: a dict of names and of [`jaxdyn.reductions`][], or any functions of a
      [`jaxdyn.reductions.Trajectory`][] that return an array or a dict of arrays. Default:
      `{"final_state": FinalState(), "energy_drift": EnergyDrift()}`.
    - `every`: the steps between two samples of a trajectory, from which reductions are made.
      Default: about 100 samples.
    - `chunk`: trajectories in a chunk, of the sweep and of the store. Default: up to 16,384, fewer
      where they hold much or take long.
    - `store`: a folder, made for it; `.zarr` is customary. Default: results stay in memory.
    - `resume`: go on with the store if there is one. It must be that of the same call, with the
      same versions of JAX and jaxdyn; functions are compared by their code, which cannot see all
      that they may depend on. What is there is read first: damaged chunks, and those that failed,
      are computed again.
    - `attributes`: a dict of more to note in a new store, as JSON takes it.
    - `retries`: how often a chunk that fails, by an error such as one of memory, is tried again.
    - `engine`, `mesh`: [`jaxdyn.Threads`][], or a `jax.sharding.Mesh` of devices of this process,
      to share the trajectories among. Default: all devices of this process, or the cores of a CPU.
      On CPUs they do not change a bit of the results.
    - `progress`: show a progress bar, with the time left.
    - `throw`: raise when a chunk fails; if False, mark its trajectories as failed and go on.

    With several processes (`jax.distributed`) all make the same call, and chunks are dealt out.

    **Returns:** a [`jaxdyn.Sweep`][]. It warns of trajectories that diverged.

    **Raises:** ValueError or TypeError that names the argument, before anything is computed;
    ImportError for `store` without Zarr; OSError when the store cannot be written, or another
    process writes to it; RuntimeError that names the chunk that failed. What has been written by
    then is kept.
    """
    check_types(solver=(solver, diffrax.AbstractSolver), mesh=(mesh, Mesh))
    check_flags(resume=resume, progress=progress, throw=throw)
    _check_count("retries", retries, 0)
    if every is not None:
        _check_count("every", every, 1)
    if chunk is not None:
        _check_count("chunk", chunk, 1)
    path = _checked_path(store, resume)
    place = _place(engine, mesh)
    members = Members(cell, x0, parameters, trajectories, key)
    job = job_of(members, (t0, t1, dt, n_steps), args, solver, keep, every)
    layout = layout_of(members, job, chunk, checked_attributes(attributes))
    ledger = _ledger(path, layout, resume)
    try:
        program = Program(job, members.first, layout.chunk, place, members.dtype)
        seconds = _together(
            lambda: _run(program, members, ledger, layout, int(retries), progress, throw)
        )
        arrays = ledger.read()
    finally:
        ledger.close()
    diverged = int(np.count_nonzero(arrays[STATUS.name][...] == DIVERGED))
    if diverged:
        warnings.warn(
            f"{diverged} of {members.count} trajectories diverged (`status` {DIVERGED}); take a "
            "smaller `dt`, or another `solver`.",
            stacklevel=2,
        )
    return Sweep(arrays, job.times, members.parameters, path, seconds, layout)


def _run(
    program: Program,
    members: Members,
    ledger: Ledger,
    layout: Layout,
    retries: int,
    progress: bool,
    throw: bool,
) -> dict[str, float]:
    from tqdm import tqdm

    mine = range(jax.process_index(), layout.chunks, jax.process_count())
    sizes = {k: layout.members(k).stop - layout.members(k).start for k in mine}
    pending = [number for number in mine if not ledger.has(number)]
    total, left = sum(sizes.values()), sum(sizes[number] for number in pending)
    how = {"unit": " trajectories", "disable": not progress, "smoothing": 0.1}
    seconds = {"solving": 0.0, "writing": 0.0}
    with tqdm(total=total, initial=total - left, **how) as bar:
        for number in pending:
            began = time.perf_counter()
            values = _solved(program, members, layout, number, retries, throw)
            solved = time.perf_counter()
            ledger.write(number, values)
            seconds["solving"] += solved - began
            seconds["writing"] += time.perf_counter() - solved
            bar.update(sizes[number])
    return seconds


def _solved(
    program: Program, members: Members, layout: Layout, number: int, retries: int, throw: bool
) -> dict[str, np.ndarray]:
    """What to write of a chunk."""
    part = layout.members(number)
    size = part.stop - part.start
    # The last chunk is filled up with its last member.
    numbers = np.minimum(np.arange(part.start, part.start + layout.chunk), part.stop - 1)
    for attempt in range(retries + 1):
        try:
            kept, failed = program(*members.take(numbers))
            status = np.where(failed, DIVERGED, DONE).astype(STATUS.dtype)
            return {name: value[:size] for name, value in (kept | {STATUS.name: status}).items()}
        except Exception as error:
            if attempt < retries:
                continue
            where = f"Chunk {number}, trajectories {part.start} to {part.stop - 1},"
            tried = f" {retries + 1} times" if retries else ""
            said = f"{where} failed{tried}: {type(error).__name__}: {error}"
            if throw:
                raise RuntimeError(
                    f"{said}\nWhat was written before is kept: go on with resume=True, with "
                    "`retries` if it may pass, or throw=False to leave the chunk out."
                ) from error
            warnings.warn(f"{said}\nIt is left out (`status` {FAILED}).", stacklevel=4)
            break
    return {STATUS.name: np.full(size, FAILED, STATUS.dtype)}


def _check_count(name: str, value: Any, least: int) -> None:
    if not is_count(value):
        raise TypeError(f"`{name}` must be an integer >= {least}, got {value!r}.")
    if value < least:
        raise ValueError(f"`{name}` must be an integer >= {least}, got {value}.")


def _checked_path(store: Any, resume: bool) -> Path | None:
    if store is None:
        if resume:
            raise ValueError("`resume=True` goes on with a `store`; say which.")
        if jax.process_count() > 1:
            raise ValueError(
                "`store` must be given with several processes: each has but its own part."
            )
        return None
    if not isinstance(store, str | os.PathLike) or not os.fspath(store):
        raise TypeError(f"`store` must be the name of a folder, got {store!r}.")
    if "://" in os.fspath(store):
        raise ValueError(f"`store` must be a folder of this machine, got {store!r}.")
    zarr()
    return Path(store).expanduser().absolute()


def _place(engine: Any, mesh: Mesh | None) -> Mesh | Threads:
    local = jax.local_devices()
    if engine is not None and mesh is not None:
        raise ValueError("`mesh` and `engine` exclude each other; leave one of them out.")
    if mesh is not None:
        if any(device.process_index != jax.process_index() for device in mesh.devices.flat):
            raise ValueError(
                "`mesh` of a sweep must have devices of this process only: other processes are "
                "dealt chunks of their own; leave it out."
            )
        return mesh
    if engine is not None:
        if not isinstance(engine, Threads):
            raise TypeError(
                f"`engine` of a sweep must be a jaxdyn.Threads or None, got {engine!r}."
            )
        if local[0].platform != "cpu":
            raise ValueError(
                "`engine=jaxdyn.Threads` is for the cores of a CPU, and JAX runs on "
                f"{local[0].platform}; leave it out."
            )
        return engine
    if len(local) == 1 and local[0].platform == "cpu":
        return Threads()
    return Mesh(np.array(local), ("b",))


def _ledger(path: Path | None, layout: Layout, resume: bool) -> Ledger:
    if path is None:
        available = host_memory()
        if available is not None and layout.bytes > available:
            raise ValueError(
                f"`keep` asks for {layout.bytes / 2**30:,.1f} GiB, more than the "
                f"{available / 2**30:,.1f} GiB of memory; keep less, or give a `store`."
            )
        return Memory(layout)
    first = jax.process_index() == 0
    ledger: Ledger | None = None
    try:
        if first and os.path.lexists(path):
            check_ours(path)
            if not resume:
                raise ValueError(already_there(path))
            ledger = Store.resume(path, layout)
        elif first:
            ledger = Store.create(path, layout)
    finally:
        ready = _said_by_all(ledger is not None)
    if not ready[0]:
        raise RuntimeError("The first process could not open `store`; its error says why.")
    return Store.resume(path, layout, alone=False) if ledger is None else ledger


def _together(work: Callable[[], Any]) -> Any:
    """`work`, and then waits for what the other processes make of theirs.

    **Raises:** RuntimeError when another one failed.
    """
    done = False
    try:
        result = work()
        done = True
    finally:
        failed = np.flatnonzero(~_said_by_all(done))
    if len(failed):
        raise RuntimeError(
            f"Process {failed[0]} failed; its error says why. What was written is kept: go on with "
            "resume=True."
        )
    return result


def _said_by_all(mine: bool) -> np.ndarray:
    """What each process says here, in their order."""
    if jax.process_count() == 1:
        return np.array([mine])
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(np.asarray(mine))).ravel()

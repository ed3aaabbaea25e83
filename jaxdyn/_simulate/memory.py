"""Whether a solve fits into memory at all, asked before anything is allocated."""

import functools
import math
import os
from pathlib import Path
from typing import Any

import diffrax
import jax
from jaxtyping import Array, Float

from .._types import is_traced
from .schedule import SAVE_STATE, subs_of

GIB = 2**30


def check_memory(
    x0: Float[Array, "..."] | jax.ShapeDtypeStruct,
    saveat: diffrax.SaveAt,
    n_steps: int,
    checkpoint_every: int | None = None,
) -> None:
    """Refuses a solve whose saved states are more than the memory they would have to lie in.

    Counts what is certain: the input and the saved states, not what the solver, `saveat.fn` or
    reverse mode need besides. Swap is not counted as memory.

    **Arguments:** `x0`, (n,) or (b, n), which may be traced or only a shape; `saveat` as
    `check_saveat` returns it; `n_steps`, those of a fixed step, or 0 where they are not known;
    `checkpoint_every`, that of a ReversibleAdjoint.

    **Raises:** ValueError with the estimate and the memory there is.
    """
    saves = sum(_saves(sub, n_steps) for sub in subs_of(saveat) if sub.fn is SAVE_STATE)
    kept = -(-n_steps // checkpoint_every) if checkpoint_every else 0
    if isinstance(x0, jax.Array) and not is_traced(x0):
        copies, available = saves + kept + 1, memory_of(frozenset(x0.devices()))
    else:  # it may be donated, and its place taken by the output
        copies, available = max(saves + kept, 1), _largest_memory()
    needed = x0.size * x0.dtype.itemsize * copies
    if available is None or needed <= available:
        return
    cures = ["simulate fewer trajectories at a time"] if math.prod(x0.shape[:-1]) > 1 else []
    cures += ["save less often"] if saves > 1 else []
    cures += ["raise `checkpoint_every`"] if kept > 1 else []
    cures += ["give `x0` in float32"] if x0.dtype.itemsize == 8 else []
    cures += ["take a device with more"]
    raise ValueError(
        f"`x0` of shape {x0.shape}, {x0.dtype}, saved {saves} times (`saveat`), needs at least "
        f"{needed / GIB:,.1f} GiB of {available / GIB:,.1f} GiB of memory; {' or '.join(cures)}."
    )


def _saves(sub: diffrax.SubSaveAt, n_steps: int) -> int:
    own = 0 if sub.ts is None else len(sub.ts)
    return sub.t0 + own + max(sub.t1, n_steps // sub.steps if sub.steps else 0)


def _largest_memory() -> int | None:
    """Where a state will lie, and over how many devices, is known only when it is there."""
    places = memory_of(frozenset(jax.devices())), host_memory()
    known = [place for place in places if place is not None]
    return max(known) if len(known) == len(places) else None


@functools.cache
def memory_of(devices: frozenset[Any]) -> int | None:
    """Bytes that `devices` may hold together; None where that is not known."""
    if any(device.process_index != jax.process_index() for device in devices):
        return None
    limits = [_limit(device) for device in devices if device.platform != "cpu"]
    if len(limits) < len(devices):
        limits.append(host_memory())  # CPU devices share it
    known = [limit for limit in limits if limit is not None]
    return sum(known) if len(known) == len(limits) else None


def _limit(device: Any) -> int | None:
    try:
        return (device.memory_stats() or {}).get("bytes_limit") or None
    except jax.errors.JaxRuntimeError:  # not every platform keeps count
        return None


@functools.cache
def host_memory() -> int | None:
    """Physical memory in bytes, or what the control group of this process may use of it."""
    try:
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows, or no such name
        return None
    try:
        groups = Path("/proc/self/cgroup").read_text()
    except OSError:
        return physical
    return min([physical, *cgroup_limits(groups, Path("/sys/fs/cgroup"))])


def cgroup_limits(groups: str, root: Path) -> list[int]:
    """The memory limits of the control groups in /proc/self/cgroup, and of those they are in."""
    limits = []
    for line in groups.splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            top, file = root, "memory.max"
        elif "memory" in controllers.split(","):
            top, file = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = Path(name.lstrip("/"))
        for folder in (group, *group.parents):
            # Inside a container the groups outside it are not to be seen.
            try:
                limits.append(int((top / folder / file).read_text()))
            except (OSError, ValueError):  # absent, or "max"
                continue
    return limits

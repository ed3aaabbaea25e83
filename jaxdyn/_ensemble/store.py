"""A sweep on disk: a Zarr group with one chunk of every variable for each chunk of the sweep.

A chunk is there when its `status` is, which is written last. Every file is written beside its
place and renamed, and carries a checksum, so that at any moment the store is whole but for the
chunks that are not there yet. The group itself is made under another name and renamed.
"""

import contextlib
import errno
import json
import os
import secrets
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from .layout import FAILED, PENDING, STATUS, Layout, empty

try:
    import fcntl
except ImportError:  # Windows: nothing there keeps two writers apart
    fcntl = None

MADE_BY = "jaxdyn sweep"
# A group that is being made is younger.
STALE_SECONDS = 3600
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def zarr() -> Any:
    try:
        import zarr
    except ImportError as error:
        raise ImportError(
            '`store` needs Zarr, which is not installed; pip install "jaxdyn[store]".'
        ) from error
    return zarr


class Store:
    """A store that this process, and no other, writes to.

    **Raises:** ValueError when it is one of another sweep, or none at all; OSError when another
    process writes to it, or nothing can be written.
    """

    def __init__(self, path: Path, layout: Layout, lock: Any):
        group = zarr().open_group(str(path), mode="r+", use_consolidated=False)
        self.path, self.layout, self.lock = path, layout, lock
        self.arrays: dict[str, Any] = {each.name: group[each.name] for each in layout.variables}

    @classmethod
    def create(cls, path: Path, layout: Layout) -> "Store":
        _check_room(path, layout.bytes)
        _drop_stale(path)
        beside = _beside(path)
        try:
            _write_group(beside, layout)
            lock = _locked(beside, path)
            try:
                os.rename(beside, path)
            except OSError as error:
                lock.close()
                if path.exists():
                    raise ValueError(already_there(path)) from error
                raise
        except OSError as error:
            raise _said(error, path) from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return cls(path, layout, lock)

    @classmethod
    def resume(cls, path: Path, layout: Layout, alone: bool = True) -> "Store":
        """`alone` is False for those processes that share a store by leave of the one that has
        locked it."""
        check_ours(path)
        lock = _locked(path, path) if alone else None
        try:
            _check_same(path, layout)
            if alone:
                for partial in path.rglob("*.partial"):  # what a write that was killed has left
                    partial.unlink()
                _mend(path, layout)
            return cls(path, layout, lock)
        except BaseException:
            if lock is not None:
                lock.close()
            raise

    def has(self, number: int) -> bool:
        """Not if it failed, or is damaged, which is told of."""
        if not self._file(STATUS.name, number).exists():
            return False
        members = self.layout.members(number)
        damaged = []
        for name, array in self.arrays.items():
            if name != STATUS.name and not self._file(name, number).exists():
                damaged.append(name)
                continue
            try:
                values = array[members]
            except ValueError:  # its checksum
                damaged.append(name)
                continue
            if name == STATUS.name and np.any((values == FAILED) | (values == PENDING)):
                return False
        if damaged:
            warnings.warn(
                f"`store` {self.path}: chunk {number}, trajectories {members.start} to "
                f"{members.stop - 1}, is damaged ({', '.join(damaged)}); it is computed again.",
                stacklevel=4,
            )
        return not damaged

    def _file(self, name: str, number: int) -> Path:
        zeros = ["0"] * (len(self.arrays[name].shape) - 1)
        return self.path.joinpath(name, "c", str(number), *zeros)

    def write(self, number: int, values: dict[str, np.ndarray]) -> None:
        try:
            # From here on the chunk is not there, until its new status is.
            self._file(STATUS.name, number).unlink(missing_ok=True)
            for name in sorted(values, key=lambda name: name == STATUS.name):
                self.arrays[name][self.layout.members(number)] = values[name]
        except OSError as error:
            what = f"chunk {number} of {self.layout.chunks} could not be written"
            raise _said(error, self.path, what) from error

    def read(self) -> dict[str, Any]:
        group = zarr().open_group(str(self.path), mode="r")
        return {name: group[name] for name in self.arrays}

    def close(self) -> None:
        if self.lock is not None:
            self.lock.close()


def _write_group(path: Path, layout: Layout) -> None:
    from zarr.codecs import Crc32cCodec

    about = layout.attributes | {"made_by": MADE_BY, "task": layout.task}
    group = zarr().create_group(store=str(path), attributes=about)

    def make(name, shape, dtype, dims, empty, attributes):
        return group.create_array(
            name,
            shape=shape,
            chunks=tuple(
                layout.chunk if dim == "member" else max(1, size)
                for dim, size in zip(dims, shape, strict=True)
            ),
            dtype=dtype,
            dimension_names=dims,
            fill_value=empty,
            compressors=(Crc32cCodec(),),  # states of different trajectories do not compress
            attributes=attributes,
            config={"write_empty_chunks": True},
        )

    known = " ".join(layout.auxiliary)
    for each in layout.variables:
        attributes = each.attributes | ({"coordinates": known} if known else {})
        dims = ("member", *each.dims)
        make(each.name, (layout.batch, *each.shape), each.dtype, dims, each.empty, attributes)
    for name, each in layout.coordinates.items():
        values = each.values
        nothing = empty(values.dtype)
        array = make(name, values.shape, values.dtype, each.dims, nothing, each.attributes)
        array[...] = values
    with warnings.catch_warnings():
        # Zarr says that the format does not have it yet; without it xarray warns its readers.
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr().consolidate_metadata(str(path))


def _check_room(path: Path, needed: int) -> None:
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(path.parent))
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"the sweep will take {needed / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB are free; "
            "keep less of each trajectory",
            str(path),
        )


def _mend(path: Path, layout: Layout) -> None:
    """Puts back what is known beforehand and is gone or damaged: coordinates, and metadata."""
    beside = _beside(path)
    try:
        _write_group(beside, layout)
        for whole in beside.rglob("*"):
            part = whole.relative_to(beside)
            # That of the group is locked, and has been read.
            if not whole.is_file() or part == Path("zarr.json"):
                continue
            place = path / part
            if not place.is_file() or place.read_bytes() != whole.read_bytes():
                warnings.warn(f"`store` {path}: {part} is damaged; it is put back.", stacklevel=5)
                place.parent.mkdir(parents=True, exist_ok=True)
                os.replace(whole, place)
    except OSError as error:
        raise _said(error, path) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _beside(path: Path) -> Path:
    return path.parent / f".{path.name}.{secrets.token_hex(8)}.partial"


def check_ours(path: Path) -> None:
    """Refuses what is no store of a sweep.

    **Raises:** ValueError.
    """
    about = path / "zarr.json"
    try:
        ours = json.loads(about.read_text())["attributes"]["made_by"] == MADE_BY
    except (OSError, ValueError, KeyError, TypeError) as error:
        if (path / STATUS.name).is_dir():
            raise ValueError(
                f"`store` {path}: its zarr.json is damaged; put back a copy of it, or give another "
                "name."
            ) from error
        ours = False
    if not ours:
        raise ValueError(f"`store` {path} is no store of a sweep; give another name.")


def _check_same(path: Path, layout: Layout) -> None:
    about = json.loads((path / "zarr.json").read_text())["attributes"]
    found, wanted = about["task"], json.loads(json.dumps(layout.task))
    others = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
    if others and {*others} <= {"jaxdyn", "jax", "platform"}:
        begun = ", ".join(f"{name} {found[name]} (now {wanted[name]})" for name in others)
        raise ValueError(
            f"`store` {path} was begun with {begun}, whose numbers may differ in the last digits; "
            "finish it with that, or give another name."
        )
    if others:
        names = ", ".join(f"`{name}`" for name in others)
        raise ValueError(
            f"`store` {path} holds another sweep: not the same {names}; repeat the call that it "
            "came from, or give another name."
        )


def already_there(path: Path) -> str:
    return f"`store` {path} exists; go on with it by resume=True, or give another name."


def _locked(place: Path, path: Path) -> Any:
    """The group's own metadata, open and locked; it is never written again."""
    file = open(place / "zarr.json", "r+b")
    if fcntl is None:
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            warnings.warn(
                f"`store` {path} is on a file system without locks: see to it that no other "
                "process writes to it.",
                stacklevel=2,
            )
            return file
        file.close()
        raise BlockingIOError(
            errno.EAGAIN, "another process writes to it; wait for it to end", str(path)
        ) from error
    return file


def _drop_stale(path: Path) -> None:
    """Groups for `path` that killed processes have left half made."""
    for beside in path.parent.glob(f".{path.name}.*.partial"):
        with contextlib.suppress(OSError):
            if time.time() - beside.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(beside, ignore_errors=True)


def _said(error: OSError, path: Path, what: str = "") -> OSError:
    """The error, naming the store and what to do."""
    reason = error.strerror or str(error)
    if what:
        reason = f"{what} ({reason}); what was written before is kept: go on with resume=True"
    return type(error)(error.errno or errno.EIO, reason, str(path))

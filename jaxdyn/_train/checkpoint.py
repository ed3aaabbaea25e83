"""A fit written down after its last whole round, so that a killed one goes on where it was."""

import dataclasses
import hashlib
import io
import json
import struct
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._files import replacing
from .stages import Record

MAGIC = b"JDYNCKP1"


@dataclasses.dataclass(frozen=True)
class Saved:
    """What a checkpoint holds: where the fit was, and the arrays it had there."""

    stage: int
    members: np.ndarray
    record: Record
    leaves: list[np.ndarray]

    def restored(self, template: Any) -> Any:
        """The next arrays as a PyTree like `template`."""
        wanted, structure = jax.tree.flatten(template)
        found = self.leaves[: len(wanted)]
        del self.leaves[: len(wanted)]
        same = len(found) == len(wanted) and all(
            np.shape(a) == np.shape(b) and a.dtype == b.dtype
            for a, b in zip(found, wanted, strict=True)
        )
        if not same:
            raise ValueError(
                "`checkpoint` does not hold the state of this fit (another optimiser?); repeat "
                "the call that it came from, or delete it to start afresh."
            )
        return jax.tree.unflatten(
            structure,
            [
                array if isinstance(like, np.ndarray) else jnp.asarray(array)
                for like, array in zip(wanted, found, strict=True)
            ],
        )


class Checkpoint:
    """One file that holds the state of a fit; `path` None keeps nothing."""

    def __init__(self, path: str | Path | None, task: str):
        self.path = None if path is None else Path(path)
        self.task = task

    def write(self, stage: int, members: np.ndarray, record: Record, *states: Any) -> None:
        """Replaces what is there, when all of it is on disk."""
        if self.path is None:
            return
        rows = [np.reshape(v, (-1, record.restarts)) for v in (record.losses, record.scores)]
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(states)]
        payload = io.BytesIO()
        for array in (members, *rows, *leaves):
            np.save(payload, array, allow_pickle=False)
        body = payload.getvalue()
        about = {
            "task": self.task,
            "stage": stage,
            "arrays": 3 + len(leaves),
            "restarts": record.restarts,
            "stages": record.stages,
            "iterations": record.iterations,
        }
        header = json.dumps(about).encode()
        sizes = struct.pack("<QQ", len(header), len(body))
        digest = hashlib.sha256(sizes + header + body).digest()
        with replacing(self.path) as file:
            file.write(MAGIC + digest + sizes + header + body)

    def read(self) -> Saved | None:
        """What `write` wrote, or None where there is no file.

        **Raises:** ValueError for a file that is no checkpoint, damaged, or of another fit.
        """
        if self.path is None or not self.path.exists():
            return None
        where = f"`checkpoint` {self.path}"
        data = self.path.read_bytes()
        start = len(MAGIC) + 32
        if data[: len(MAGIC)] != MAGIC:
            raise ValueError(f"{where} is no checkpoint of a fit; give another name.")
        digest, sizes = data[len(MAGIC) : start], data[start : start + 16]
        if len(sizes) < 16 or hashlib.sha256(data[start:]).digest() != digest:
            raise ValueError(f"{where} is damaged: its checksum fails. Delete it to start afresh.")
        header_size, _ = struct.unpack("<QQ", sizes)
        about = json.loads(data[start + 16 : start + 16 + header_size])
        if about["task"] != self.task:
            raise ValueError(
                f"{where} belongs to another fit: another signal, key, setting or version. Repeat "
                "the call that it came from, or give another name."
            )
        file = io.BytesIO(data[start + 16 + header_size :])
        arrays = [np.load(file, allow_pickle=False) for _ in range(about["arrays"])]
        members, losses, scores, *leaves = arrays
        record = Record(
            about["restarts"], about["stages"], about["iterations"], list(losses), list(scores)
        )
        return Saved(about["stage"], members, record, leaves)

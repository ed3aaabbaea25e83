"""A module in one file that is safe to load: nothing in it can run, or claim more than it is.

    8 bytes   magic
    32 bytes  SHA-256 of all that follows
    16 bytes  format version (u32), length of the header (u32) and of the whole file (u64)
    header    JSON: versions, the payload's length and SHA-256, and the module as nested records
    payload   the arrays, one after the other, as `equinox.tree_serialise_leaves` writes a list

Everything up to the header has its place in every format version. Integers are little-endian.
"""

import hashlib
import importlib
import io
import json
import os
import struct
from typing import Any

import equinox as eqx
import numpy as np

from ._files import replacing
from ._model_record import NO_LIKE, Damaged, Reader, encode
from ._model_record import register as register

_FORMAT = 1
_MAGIC = b"\x89JAXDYN\n"
_SIGNED = len(_MAGIC) + 32
_PREFIX = struct.Struct("<8s32sIIQ")
_LONGEST_HEADER = 2**24


def save_module(path: Any, module: Any) -> None:
    """Writes a cell, an operator, an activation, a solver or what holds them to one file.

    Arrays, numbers, strings, tuples, lists, dicts and classes of jaxdyn's own are kept exactly
    (but an array of a weak type becomes one of a plain type). Of anything else, such as your own
    function in a [`jaxdyn.FunctionActivation`][], only the name and the arrays and numbers that it
    holds are written, and [`jaxdyn.load_module`][] then needs `like`.

    **Arguments:**

    - `path`: the file, usually `*.eqx`. An existing one is replaced, all at once: whatever goes
      wrong, it is as before.
    - `module`: the module.

    **Raises:** TypeError when `module` is none, or holds arrays that no file can hold (typed
    random keys, objects); ValueError when its arrays have no value yet; OSError when `path` cannot
    be written.
    """
    from . import __version__

    path = _text(path)
    if not isinstance(module, eqx.Module):
        raise TypeError(
            f"`module` must be an equinox module such as a jaxdyn.PoissonCell, got "
            f"{type(module).__name__}; for a bare array use numpy.save."
        )
    arrays: list[np.ndarray] = []
    record = encode(module, "module", arrays)
    stream = io.BytesIO()
    eqx.tree_serialise_leaves(stream, arrays)
    # Not getbuffer: collecting one that an error's traceback held crashes CPython 3.12.1.
    payload = stream.getvalue()
    about = {
        "format": _FORMAT,
        "jaxdyn": __version__,
        "payload": {"length": len(payload), "sha256": hashlib.sha256(payload).hexdigest()},
        "module": record,
    }
    header = json.dumps(about, allow_nan=False, separators=(",", ":")).encode()
    if len(header) > _LONGEST_HEADER:
        raise ValueError(
            f"`module` has {len(header)} bytes of structure besides its arrays, and a file holds "
            f"{_LONGEST_HEADER}; keep numbers in arrays, not in tuples, lists or dicts."
        )
    total = _PREFIX.size + len(header) + len(payload)
    signed = _PREFIX.pack(_MAGIC, b"", _FORMAT, len(header), total)[_SIGNED:] + header
    digest = hashlib.sha256(signed)
    digest.update(payload)
    try:
        with replacing(path) as file:
            for part in (_MAGIC, digest.digest(), signed, payload):
                file.write(part)
    except OSError as error:
        if error.filename is not None:
            raise
        # Of a write: it does not know where it writes to.
        raise OSError(error.errno, error.strerror, path) from None


def load_module(
    path: Any,
    *,
    like: Any = None,
    expect: Any = None,
) -> Any:
    """The module that [`jaxdyn.save_module`][] wrote.

    Nothing in the file is run or imported, so it may come from anyone. Its checksums catch damage,
    not malice: a file that was made to deceive can hold a module of absurd numbers.

    **Arguments:**

    - `path`: the file.
    - `like`: a module built as the saved one was, when that held functions or classes of your own.
      Those are taken from `like`, with their arrays and numbers from the file; whether they are
      the functions that were saved, no one can tell. All the rest comes from the file.
    - `expect`: a class, or a tuple of classes, that the module must be an instance of.

    **Returns:** the module, its arrays on JAX's default device.

    **Raises:** ValueError when the file is not one of ours, damaged, written by a newer jaxdyn,
    needs `like` or does not fit it, holds 64-bit arrays while these are off, or holds something
    else than `expect`; OSError (FileNotFoundError and so on) when it cannot be read.
    """
    path = _text(path)
    if like is not None and not isinstance(like, eqx.Module):
        raise TypeError(
            f"`like` must be a module built as the saved one was, or None, got {like!r}."
        )
    wanted = expect if isinstance(expect, tuple) else () if expect is None else (expect,)
    if not all(isinstance(cls, type) for cls in wanted):
        raise TypeError(f"`expect` must be a class or a tuple of classes, got {expect!r}.")
    # Oscillators register themselves when their room is opened.
    importlib.import_module("._train", __package__)
    try:
        record, payload = _parts(_whole_file(path))
        reader = Reader(path, payload)
        module = reader.value(record, "module", NO_LIKE if like is None else like)
        reader.finish()
        if not isinstance(module, eqx.Module):
            raise Damaged("what it holds is no module")
    except Damaged as error:
        raise ValueError(f"{path} is damaged: {error}; copy it again, or save it anew.") from error
    if wanted and not isinstance(module, wanted):
        others = " or ".join(_with_article(cls) for cls in wanted)
        raise ValueError(
            f"{path} holds {_with_article(type(module))}, not {others}; give the file of such a "
            "module."
        )
    return module


def _text(path: Any) -> str:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"`path` must be a str or a pathlib.Path, got {path!r}.")
    return os.fsdecode(path)


def _with_article(cls: type) -> str:
    return f"{'an' if cls.__name__[0] in 'AEIOU' else 'a'} {cls.__name__}"


def _whole_file(path: str) -> bytes:
    """What is in the file, when all of it is as it was written."""
    with open(path, "rb") as file:
        start = file.read(_PREFIX.size)
        if not start.startswith(_MAGIC):
            seen = f"it begins with {start[:8]!r}" if start else "it is empty"
            raise ValueError(
                f"{path} is not a module saved by jaxdyn, {seen}; give a file that "
                "jaxdyn.save_module wrote."
            )
        if len(start) < _PREFIX.size:
            raise Damaged(f"it is cut short after {len(start)} bytes")
        _, digest, version, _, total = _PREFIX.unpack(start)
        size = os.fstat(file.fileno()).st_size
        if size != total:
            raise Damaged(f"it has {size} bytes and should have {total}")
        data = start + file.read()
    if hashlib.sha256(memoryview(data)[_SIGNED:]).digest() != digest:
        raise Damaged("its checksum is not that of its content")
    if version > _FORMAT:
        raise ValueError(
            f"{path} was written by a newer jaxdyn, in format {version}, and this one reads up to "
            f"{_FORMAT}; upgrade it: pip install --upgrade jaxdyn."
        )
    if version != _FORMAT:
        raise Damaged(f"there is no format {version}")
    return data


def _parts(data: bytes) -> tuple[Any, memoryview]:
    """The record of the module, and the payload."""
    length = _PREFIX.unpack_from(data)[3]
    end = _PREFIX.size + length
    if length > _LONGEST_HEADER:
        raise Damaged(f"its header claims {length} bytes, and {_LONGEST_HEADER} are allowed")
    if end > len(data):
        raise Damaged(f"its header claims {length} bytes, more than there are")
    text = data[_PREFIX.size : end]
    try:
        header = json.loads(text.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"its header is not JSON ({error})") from error
    payload = memoryview(data)[end:]
    about = {"length": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
    match header:
        case {"format": int(version), "jaxdyn": str(), "payload": claimed, "module": record}:
            if version != _FORMAT:
                raise Damaged(f"it is in format {_FORMAT} and says {version}")
            if claimed != about:
                raise Damaged(f"its payload, of {len(payload)} bytes, is not as announced")
            return record, payload
    raise Damaged("its header lacks entries")


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a number")

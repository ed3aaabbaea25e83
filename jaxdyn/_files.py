"""Files that are either written whole or not at all."""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[Any]:
    """A file beside `path` that takes its place when the block has written to it and ends well.

    A block that raises, or writes nothing, leaves `path` as it was and no file behind. A link stays
    a link: the file it points to is replaced.

    **Arguments:** `path`; `mode`, `"wb"` for bytes or `"w"` for text in UTF-8.

    **Returns:** a context manager that gives the open file.

    **Raises:** OSError, with `path` as its `filename`, when nothing can be written there.
    """
    target = Path(os.path.realpath(path))
    beside = target.parent / f".jaxdyn-{secrets.token_hex(8)}{target.suffix}"
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with _naming(path):
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, "is a directory")
            if target.exists() and not stat.S_ISREG(target.stat().st_mode):
                raise OSError(errno.EINVAL, "is not an ordinary file")
            # Who may read what is there may read what takes its place. For a new file the system
            # takes the umask off these permissions; mkstemp's are for the owner only.
            handle = os.open(beside, flags, 0o666)
            if target.exists() and hasattr(os, "fchmod"):
                os.fchmod(handle, stat.S_IMODE(target.stat().st_mode))
        with os.fdopen(handle, mode, **text) as file:
            yield file
            with _naming(path):
                file.flush()
                written = os.fstat(file.fileno()).st_size > 0
                os.fsync(file.fileno())
        if written:
            with _naming(path):
                os.replace(beside, target)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(beside)


@contextlib.contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Errors name the file that was asked for, not the one beside it."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno or errno.EIO, reason, os.fspath(path)) from None

"""What commands share: refusals of one line, tables, the cache of programs."""

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn


class UsageError(Exception):
    """A wrong option, or a file that cannot be read or written: one line, exit status 2."""


def require(ok: bool, option: str, value: Any, cure: str) -> None:
    if not ok:
        refuse(option, value, cure)


def refuse(option: str, value: Any, cure: str) -> NoReturn:
    raise UsageError(f"--{option} {value}: {cure}.")


def unwritable(option: str, path: Path, error: OSError, what: str) -> str:
    return f"{option} {path}: cannot write there ({reason(error)}); give {what} you can write."


def reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")


def in_options(error: Any, options: dict[str, str]) -> str:
    """What an error of the library says, in the words of the command line.

    **Arguments:** `error`, or its text, which names arguments as `x`; `options`, what each argument
    is called here. One that the message begins with moves to its front: "--units 1: must be ...".
    """
    text = " ".join(str(error).split())
    head = re.match(r"`(\w+)`:? ", text)
    if head and head[1] in options:
        text = f"{options[head[1]]}: {text[head.end() :]}"
    names = {
        name: option.split(" ")[0] if option.startswith("--") else option
        for name, option in options.items()
    }
    return re.sub(r"`(\w+)`", lambda name: names.get(name[1], name[1]), text)


def print_table(rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}".rstrip())


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns errors of the block into one about `--out`, a file."""
    try:
        yield
    except OSError as error:
        raise UsageError(unwritable("--out", path, error, "a file in a folder")) from error


@contextlib.contextmanager
def caching(folder: Path | None) -> Iterator[None]:
    """Keeps every program that the block compiles in `folder`, whatever its size."""
    if folder is None:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UsageError(unwritable("--cache", folder, error, "a folder")) from error
    import jax
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    settings = {
        "jax_enable_compilation_cache": True,
        "jax_compilation_cache_dir": str(folder.resolve()),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}

    def use(values: dict[str, Any]) -> None:
        for name, value in values.items():
            jax.config.update(name, value)
        reset_cache()  # JAX looks at the folder once, when it first compiles

    use(settings)
    try:
        yield
    finally:
        use(before)

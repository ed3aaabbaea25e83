"""Runs every measurement in float64, and puts the report in place when all of it is written."""

import contextlib
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from . import activations, chaos, euler, memory, orbits, report, shell, solvers, structure
from .claim import Claim

# The longest first, for the sake of the two threads; the report is in the order of the claims.
THEMES = (solvers, orbits, euler, activations, structure, chaos, shell, memory)


def reproduce(out: Path, quick: bool = False) -> bool:
    """Measures every claim and writes report.html, claims.json and PNG figures into `out`.

    Nothing is left behind if it fails on the way; other files in `out` are kept.

    **Arguments:** `out`, a folder, made if it does not exist; `quick`, fewer and shorter runs.

    **Returns:** whether every claim holds.

    **Raises:** OSError when `out` cannot be written, before anything is computed.
    """
    with staged(out) as folder:
        claims, facts = measure(quick)
        with _bar(sum(c.draw is not None for c in claims), "drawing") as bar:
            report.write(folder, claims, facts, bar.update)
    print(report.table(claims, shutil.get_terminal_size((120, 24)).columns))
    held = sum(c.verdict == "holds" for c in claims)
    print(f"{held} of {len(claims)} claims hold; {facts['seconds']} s; {out / 'report.html'}")
    return held == len(claims)


def measure(quick: bool) -> tuple[list[Claim], dict[str, Any]]:
    """The claims, in the order of the report, and the facts of the run."""
    from .. import __version__

    began = time.perf_counter()
    stop = threading.Event()
    with (
        _bar(sum(len(t.MEASUREMENTS) for t in THEMES), "measuring") as bar,
        # Nearly all of the time goes into compiling, on one core a program: two at once.
        ThreadPoolExecutor(2) as pool,
    ):

        def study(theme: Any) -> list[Claim]:
            found = []
            # Thread-local: whoever called sees no change of precision.
            with jax.enable_x64(True):
                for measurement in theme.MEASUREMENTS:
                    if not stop.is_set():
                        found += measurement(quick)
                        bar.update()
            return found

        try:
            claims = [claim for found in pool.map(study, THEMES) for claim in found]
        finally:
            stop.set()
    facts = {
        "jaxdyn": __version__,
        "jax": jax.__version__,
        "platform": jax.default_backend(),
        "dtype": "float64",
        "mode": "quick" if quick else "full",
        "seconds": round(time.perf_counter() - began, 1),
    }
    return sorted(claims, key=lambda claim: claim.id), facts


def _bar(total: int, what: str) -> tqdm:
    return tqdm(total=total, desc=what, file=sys.stderr, leave=False, disable=None)


@contextlib.contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A temporary folder whose files are moved into `out` if the block ends well."""
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file")
    # On the file system of `out`, so that moving is renaming: inside it, or beside its place.
    base = out if out.is_dir() else next(p for p in out.absolute().parents if p.exists())
    folder = Path(tempfile.mkdtemp(prefix=".jaxdyn-", dir=base))
    try:
        yield folder
        out.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.iterdir()):
            os.replace(path, out / path.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)

"""`jaxdyn reproduce`."""

import dataclasses
from pathlib import Path

from .common import UsageError, caching, unwritable


@dataclasses.dataclass(frozen=True)
class Reproduce:
    """Measure every claim about skew-symmetric networks afresh and write a report.

    Exit status 0 if every claim holds, 1 if one does not, 2 if the folder cannot be written.
    """

    out: Path = Path("report")
    """Folder for report.html, claims.json and the figures; other files in it are kept."""
    quick: bool = False
    """Fewer and shorter runs of the same claims."""
    cache: Path | None = None
    """Folder, made if need be, that keeps compiled programs for later runs; none by default."""

    def __call__(self) -> int:
        from .._study.run import reproduce

        try:
            with caching(self.cache):
                return 0 if reproduce(self.out, self.quick) else 1
        except OSError as error:
            raise UsageError(unwritable("--out", self.out, error, "a folder")) from error

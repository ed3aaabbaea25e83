"""What a benchmark hands back, and how it is written: JSON for machines, Markdown for people."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .timing import Timing, machine


@dataclass
class Table:
    title: str
    columns: list[str]
    rows: list[list[Any]]


@dataclass
class Target:
    """A number to reach: `measured` at most, or at least, `bound`."""

    what: str
    measured: float
    bound: float
    at_least: bool = False

    @property
    def reached(self) -> bool:
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound


@dataclass
class Report:
    """`setting` says what was run; `skipped` names what was not, and why."""

    name: str
    setting: str
    tables: list[Table] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        about = ", ".join(f"{key} {value}" for key, value in machine().items())
        parts = [f"# {self.name}", self.setting, f"Measured on: {about}."]
        for table in self.tables:
            parts += [f"## {table.title}", _grid(table.columns, table.rows)]
        if self.targets:
            rows = [
                [
                    target.what,
                    f"{_number(target.measured)}",
                    f"{'>=' if target.at_least else '<='} {_number(target.bound)}",
                    "yes" if target.reached else "NO",
                ]
                for target in self.targets
            ]
            parts += ["## Targets", _grid(["target", "measured", "bound", "reached"], rows)]
        parts += [f"Skipped: {what}" for what in self.skipped]
        return "\n\n".join(parts) + "\n"

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        content = asdict(self) | {"machine": machine()}
        for target, fields in zip(self.targets, content["targets"], strict=True):
            fields["reached"] = target.reached
        (folder / f"{self.name}.json").write_text(json.dumps(content, indent=1) + "\n")
        (folder / f"{self.name}.md").write_text(self.markdown())


TIMING_COLUMNS = ["seconds", "spread", "compile s"]


def timing_cells(timing: Timing) -> list[float]:
    """The cells under TIMING_COLUMNS."""
    return [timing.median, timing.spread, timing.compile]


def _grid(columns: list[str], rows: list[list[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *([_number(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(cell: Any) -> str:
    return f"{cell:.3g}" if isinstance(cell, float) else str(cell)

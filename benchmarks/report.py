"""What a benchmark hands back, and how it is written: JSON for machines, the rest for people."""

import json
import math
from collections.abc import Callable
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
        return bool(self.measured >= self.bound if self.at_least else self.measured <= self.bound)


@dataclass
class Report:
    """`setting` says what was run; `skipped` names what was not, and the cure; `draw` fills an
    empty matplotlib Figure, whose `size` is in inches.
    """

    name: str
    setting: str
    tables: list[Table] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    draw: Callable[[Any], None] | None = None
    size: tuple[float, float] = (8.0, 3.8)
    machine: dict[str, Any] = field(default_factory=machine)

    def markdown(self) -> str:
        parts = [f"# {self.name}", self.setting, f"Measured on: {described(self.machine)}."]
        if self.draw is not None:
            parts.append(f"![{self.name}]({self.name}.png)")
        for table in self.tables:
            parts += [f"## {table.title}", grid(table.columns, table.rows)]
        if self.targets:
            rows = [
                [
                    target.what,
                    f"{cell_text(target.measured)}",
                    f"{'>=' if target.at_least else '<='} {cell_text(target.bound)}",
                    "yes" if target.reached else "NO",
                ]
                for target in self.targets
            ]
            parts += ["## Targets", grid(["target", "measured", "bound", "reached"], rows)]
        parts += [f"Skipped: {what}" for what in self.skipped]
        return "\n\n".join(parts) + "\n"

    def content(self) -> dict[str, Any]:
        """Everything but the picture, as JSON takes it."""
        targets = [
            asdict(target) | {"measured": _json(target.measured), "reached": target.reached}
            for target in self.targets
        ]
        tables = [
            asdict(table) | {"rows": [[_json(cell) for cell in row] for row in table.rows]}
            for table in self.tables
        ]
        return {
            "name": self.name,
            "setting": self.setting,
            "tables": tables,
            "targets": targets,
            "skipped": self.skipped,
            "machine": self.machine,
        }

    def write(self, folder: Path) -> None:
        """NAME.json and NAME.md, and NAME.png when there is something to draw."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.json").write_text(json.dumps(self.content(), indent=1) + "\n")
        (folder / f"{self.name}.md").write_text(self.markdown())
        if self.draw is not None:
            save_figure(self.draw, self.size, folder / f"{self.name}.png")


def save_figure(draw: Callable[[Any], None], size: tuple[float, float], path: Path) -> None:
    """At 8 inches the picture is 1200 pixels wide, and its letters readable at 900."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings: Any = {
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.8,
        "legend.frameon": False,
    }
    with rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        figure.savefig(path, dpi=150)


TIMING_COLUMNS = ["seconds", "spread", "compile s"]


def timing_cells(timing: Timing) -> list[float]:
    """The cells under TIMING_COLUMNS."""
    return [timing.median, timing.spread, timing.compile]


def grid(columns: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *([cell_text(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell_text(cell: Any) -> str:
    """Three digits of a number; nothing for None."""
    if cell is None:
        return ""
    return f"{cell:.3g}" if isinstance(cell, float) else str(cell)


def _json(cell: Any) -> Any:
    """JSON has no NaN and no infinity: they become text."""
    return str(cell) if isinstance(cell, float) and not math.isfinite(cell) else cell


def described(machine: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in machine.items())

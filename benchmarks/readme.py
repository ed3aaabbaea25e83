"""The README's tables, made from benchmarks/results: `python -m benchmarks readme`.

Each stands between `<!-- table: NAME -->` and `<!-- end -->`, and is written anew every time.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .report import grid

ROOT = Path(__file__).parent.parent
README, RESULTS = ROOT / "README.md", ROOT / "benchmarks" / "results"
FASTEST = "The fastest case within an error, "
PACKAGES = ("diffrax", "torchdiffeq", "scipy", "numba", "heyoka", "C")
BETWEEN = re.compile(r"(?<=<!-- table: )(\w+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)


def update(readme: Path = README, results: Path = RESULTS) -> None:
    readme.write_text(rendered(readme.read_text(), results))


def rendered(text: str, results: Path = RESULTS) -> str:
    """`text` with what stands between markers made from the results.

    **Raises:** ValueError for a marker that names no table, or a result that lacks what the table
    is made of; FileNotFoundError for a benchmark without results.
    """

    def part(match: re.Match[str]) -> str:
        name = match[1]
        if name not in TABLES:
            raise ValueError(f"the README asks for table {name!r}; there are {sorted(TABLES)}.")
        benchmark, make = TABLES[name]
        path = results / f"{benchmark}.json"
        if not path.exists():
            raise FileNotFoundError(
                f"{path.name} is missing: run `python -m benchmarks {benchmark} --out {results}`."
            )
        result = json.loads(path.read_text())
        return f"{name}{match[2]}{make(result)}\n\n{source(result)}\n"

    return BETWEEN.sub(part, text)


def source(result: dict[str, Any]) -> str:
    """The machine, and where all the numbers are."""
    name, about = result["name"], result["machine"]
    return (
        f"Measured on {about['cpu']}, {about['cores']} cores, jax {about['jax']}; "
        f"[all numbers](benchmarks/results/{name}.md), `python -m benchmarks {name}`."
    )


def ensemble(result: dict[str, Any]) -> str:
    """The headline setting, the fastest first."""
    table = table_with(result, "solver", "seconds", "/ bare scan", "error")
    rows = picked(table, "solver", "seconds", "/ bare scan", "error")
    columns = ["", "seconds", "relative to a bare `lax.scan` RK4", "error"]
    return grid(columns, sorted(rows, key=lambda row: row[1]))


def energy(result: dict[str, Any]) -> str:
    """The worst error of each solver, and whether it goes on growing."""
    table = table_with(result, "solver", "worst", "first half", "second half", "trend / its error")
    rows = []
    for solver, worst, first, second, trend in picked(table, *table["columns"]):
        grows = trend > 3 and second > 1.2 * first
        verdict = "rounding" if worst < 1e-11 else "grows" if grows else "no"
        rows.append([solver, f"{worst:.1e}", verdict])
    return grid(["solver", "worst &#124;H − H₀&#124; / H₀", "drifts"], rows)


def energy_long(result: dict[str, Any]) -> str:
    """The fastest case of each solver among those that kept the bound to the end."""
    table = table_with(result, "case", "seconds", "worst", "takes part")
    best: dict[str, list] = {}
    rows = picked(table, "case", "seconds", "worst", "takes part")
    for case, seconds, worst, verdict in sorted(rows, key=lambda row: row[1]):
        if verdict.startswith("energy within"):
            family = case.partition(",")[0]
            best.setdefault(family, [case, seconds, f"{worst:.1e}"])
    return grid(["", "seconds", "worst &#124;H − H₀&#124; / H₀"], list(best.values()))


def precision(result: dict[str, Any]) -> str:
    """For each setting and error our fastest, and the fastest of every package relative to it."""
    rows = []
    for table in result["tables"]:
        if not table["title"].startswith(FASTEST):
            continue
        setting = table["title"].removeprefix(FASTEST)
        found: dict[str, dict[str, Any]] = {}
        cells = picked(table, "error <=", "solver", "seconds", "/ our fastest")
        for error, solver, seconds, ratio in sorted(cells, key=lambda row: -row[2]):
            package = solver.split()[0]
            ours = package not in PACKAGES
            cell = f"{seconds:.3g} s, {solver}" if ours else f"{ratio:.2g}" if ratio else None
            found.setdefault(error, {})["" if ours else package] = cell
        for error, best in found.items():
            others = [best.get(package) for package in PACKAGES]
            rows.append([setting, error, best.get(""), *others])
    if not rows:
        raise ValueError(f"precision.json has no table {FASTEST!r}; run it anew.")
    return grid(["", "error <=", "jaxdyn", *PACKAGES], rows)


def gradient(result: dict[str, Any]) -> str:
    """Time and memory of every method at 10,000 steps."""
    for table in result["tables"]:
        if table["title"] == "10,000 steps, float32":
            rows = picked(table, "method", "seconds", "/ forward", "temporary MB", "resident MB")
            columns = ["", "seconds", "relative to forward", "temporary MB", "resident MB"]
            return grid(columns, rows)
    raise ValueError("gradient.json has no table '10,000 steps, float32'; run it anew.")


def fit(result: dict[str, Any]) -> str:
    """Every fit: its error and how long it took."""
    table = table_with(result, "case", "units", "samples", "mse, best", "seconds")
    rows = picked(table, "case", "units", "samples", "mse, best", "seconds")
    columns = ["", "units", "samples", "mean squared error", "seconds, compilation included"]
    return grid(columns, [[*row[:3], f"{row[3]:.1e}", f"{row[4]:.0f}"] for row in rows])


def forecast(result: dict[str, Any]) -> str:
    """The error of every method as far ahead as 10 windows, or as there is data."""
    rows, methods = [], []
    for table in result["tables"]:
        # After the columns of the fit come the horizons, then what it cost.
        ahead = table["columns"][3 : table["columns"].index("seconds")]
        horizon = "10x" if "10x" in ahead else ahead[-1]
        cells = dict(picked(table, "method", horizon))
        methods = methods or list(cells)
        rows.append([table["title"], horizon, *(cells.get(method) for method in methods)])
    return grid(["", "ahead", *methods], rows)


def lyapunov(result: dict[str, Any]) -> str:
    """Every method, at the looser bound of the energy."""
    table = result["tables"][0]
    columns = ("method", "dt", "seconds", "/ our fastest", "first exponent", "its error")
    rows = picked(table, *columns)
    return grid(["", *columns[1:]], [[*row[:4], f"{row[4]:.4f}", f"{row[5]:.4f}"] for row in rows])


def table_with(result: dict[str, Any], *columns: str) -> dict[str, Any]:
    """The first table that has these columns."""
    for table in result["tables"]:
        if set(columns) <= set(table["columns"]):
            return table
    raise ValueError(f"{result['name']}.json has no table with columns {columns}; run it anew.")


def picked(table: dict[str, Any], *columns: str) -> list[list[Any]]:
    at = [table["columns"].index(column) for column in columns]
    return [[row[i] for i in at] for row in table["rows"]]


# Name in the README: the benchmark whose results it is made from, and how.
TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "ensemble": ("ensemble", ensemble),
    "energy": ("energy", energy),
    "energy_long": ("energy", energy_long),
    "precision": ("precision", precision),
    "gradient": ("gradient", gradient),
    "fit": ("fit", fit),
    "forecast": ("forecast", forecast),
    "lyapunov": ("lyapunov", lyapunov),
}

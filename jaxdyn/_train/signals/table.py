"""Tables of numbers in text: a column for each channel, a line for each sample."""

import csv
import io
import itertools
import math
from array import array
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from .signal import Signal

TIME_NAMES = frozenset({"t", "time", "ts", "year", "years", "second", "seconds", "s"})
_MISSING = frozenset({"", "nan", "na"})
# What `save` writes above the table, and `parse` looks for there.
_NOTES = ("name", "time_unit")


class Table(NamedTuple):
    """Columns of numbers, NaN where a cell is empty, and the line that each row stands on."""

    values: Float[np.ndarray, "t k"]
    header: tuple[str, ...] | None
    lines: np.ndarray
    notes: dict[str, str]


def parse(file: Any, path: str, tabs: bool, time: int | str | None) -> Table:
    """The table in a binary file. `tabs`: the separator is a tab; `time`: a name that the header
    may have."""
    notes: dict[str, str] = {}
    try:
        with io.TextIOWrapper(file, encoding="utf-8-sig") as text:
            return _parse(_content(text, path, notes), path, tabs, time, notes)
    except UnicodeDecodeError:
        pass
    raise ValueError(f"{path} is not text in UTF-8; save it as CSV in UTF-8.")


def _content(file: Any, path: str, notes: dict[str, str]) -> Iterator[tuple[int, str]]:
    """Lines and their numbers, without comments."""
    for number, text in enumerate(file, 1):
        if "\0" in text:
            raise ValueError(
                f"{path} is not text, line {number} has a zero byte; save it as CSV in UTF-8."
            )
        if text.lstrip().startswith("#"):
            key, _, value = text.strip(" \t\n#").partition(":")
            if key in _NOTES and value.strip():
                notes.setdefault(key, value.strip())
            continue
        yield number, text.rstrip("\n")


def _parse(
    content: Iterator[tuple[int, str]],
    path: str,
    tabs: bool,
    time: int | str | None,
    notes: dict[str, str],
) -> Table:
    first_row = next((row for row in content if row[1].strip(" ")), None)
    if first_row is None:
        raise ValueError(f"{path} holds no numbers; give one line for each sample.")
    # A header may have separators in its names: the next line with cells tells, if there is one.
    head = [first_row]
    for row in content:
        head.append(row)
        if row[1].strip(" "):
            break
    separator = "\t" if tabs else _separator(head[-1][1].strip(" ") or first_row[1])
    first = _cells(*head[0], separator, path)
    header = None
    if _is_header(first, time):
        header = tuple(cell or f"column {i + 1}" for i, cell in enumerate(first))
        del head[0]
    width, origin = len(first), "the header" if header else f"line {head[0][0]}"
    values, lines, blank = array("d"), array("q"), 0
    for number, text in itertools.chain(head, content):
        if not text.strip(" ") or (separator is None and not text.split()):
            blank = blank or number
            continue
        if blank and lines and width == 1:
            raise ValueError(
                f"{path}, line {blank}: empty; write nan for a missing sample, or remove the line."
            )
        blank = 0
        cells = _cells(number, text, separator, path)
        if len(cells) != width:
            raise ValueError(
                f"{path}, line {number}: has {len(cells)} cells where {origin} has {width}; give "
                "every line as many."
            )
        values.extend(_number(cell, path, number, i) for i, cell in enumerate(cells))
        lines.append(number)
    table = np.frombuffer(values, np.float64) if values else np.zeros(0)
    return Table(table.reshape(-1, width), header, np.array(lines, np.int64), notes)


def _separator(text: str) -> str | None:
    """None for blanks, and for a single column."""
    return next((s for s in ";,\t" if s in text), None)


def _cells(number: int, text: str, separator: str | None, path: str) -> list[str]:
    if '"' in text:
        try:
            rows = csv.reader(
                [text.strip(" ")], delimiter=separator or " ", skipinitialspace=True, strict=True
            )
            return [cell.strip() for cell in next(rows)]
        except csv.Error:
            pass
        raise ValueError(
            f"{path}, line {number}: has a quoted cell that does not end well; close the quote on "
            "the same line."
        )
    return text.split() if separator is None else [c.strip() for c in text.split(separator)]


def _is_header(cells: list[str], time: int | str | None) -> bool:
    """Whether these are names: one of a time, or none of them a number."""
    if any(cell.casefold() in TIME_NAMES or cell == time for cell in cells):
        return True
    named = [cell for cell in cells if cell.casefold() not in _MISSING]
    return bool(named) and all(_float(cell) is None for cell in named)


def _float(cell: str) -> float | None:
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def _number(cell: str, path: str, line: int, column: int) -> float:
    value = _float(cell)
    if value is None:
        if cell.casefold() in _MISSING:
            return math.nan
        comma = _float(cell.replace(",", ".")) is not None
        cure = "write decimals with a point" if comma else "give numbers, or nan for a missing one"
        raise ValueError(
            f"{path}, line {line}, column {column + 1}: {cell[:20]!r} is not a number; {cure}."
        )
    if math.isinf(value):
        raise ValueError(
            f"{path}, line {line}, column {column + 1}: {cell[:20]!r} is not finite; give a finite "
            "number, or nan for a missing one."
        )
    return value


def save(file: Any, signal: Signal) -> None:
    """Writes a signal so that `parse` finds every bit of it again."""
    file.write(f"# name: {signal.name}\n# time_unit: {signal.time_unit}\n")
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["t", *signal.channels])
    for t, values, mask in zip(
        signal.ts.tolist(), signal.values.tolist(), signal.mask.tolist(), strict=True
    ):
        row = (repr(v) if known else "" for v, known in zip(values, mask, strict=True))
        rows.writerow([repr(t), *row])

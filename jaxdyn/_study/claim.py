"""A claim, what was measured for it, and the verdict."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """One measured number and the interval it has to lie in.

    `basis` says where the bound comes from; `reference` is a value computed elsewhere, shown
    beside the measurement.
    """

    quantity: str
    measured: float
    basis: str
    low: float = -math.inf
    high: float = math.inf
    reference: str = ""
    tolerance: float = 0.0

    @property
    def passes(self) -> bool:
        return bool(self.low <= self.measured <= self.high)

    @property
    def value(self) -> str:
        """The measurement, with as many digits as its tolerance makes meaningful."""
        if self.tolerance and math.isfinite(self.measured):
            return f"{self.measured:.{self._decimals}f}"
        return number(self.measured)

    @property
    def _decimals(self) -> int:
        return min(12, max(0, 2 - math.floor(math.log10(self.tolerance))))

    @property
    def bound(self) -> str:
        if self.tolerance:
            middle = 0.5 * (self.low + self.high)
            return f"{middle:.{self._decimals}f} ± {number(self.tolerance)}"
        if math.isinf(self.low):
            return f"≤ {number(self.high)}"
        if math.isinf(self.high):
            return f"≥ {number(self.low)}"
        return f"{number(self.low)} to {number(self.high)}"


@dataclass(frozen=True)
class Claim:
    """A statement in plain words with its checks; it holds when all of them pass.

    `paper` is what the paper (arXiv 2504.13951) says about it, and `stance` how the measurement
    relates to that: "agrees", "sharpens", "corrects" or "adds". `draw(figure)` draws it.
    """

    id: str
    statement: str
    checks: tuple[Check, ...]
    stance: str
    paper: str
    how: str
    draw: Callable[[Any], None] | None = None
    caption: str = ""

    @property
    def verdict(self) -> str:
        return "holds" if self.checks and all(c.passes for c in self.checks) else "fails"

    @property
    def headline(self) -> Check:
        """The first check that fails, or else the first."""
        return next((c for c in self.checks if not c.passes), self.checks[0])


def at_most(quantity: str, measured: Any, bound: float, basis: str, reference: str = "") -> Check:
    return Check(quantity, float(measured), basis, high=float(bound), reference=reference)


def at_least(quantity: str, measured: Any, bound: float, basis: str, reference: str = "") -> Check:
    return Check(quantity, float(measured), basis, low=float(bound), reference=reference)


def near(
    quantity: str, measured: Any, expected: float, tolerance: float, basis: str, reference: str = ""
) -> Check:
    return Check(
        quantity,
        float(measured),
        basis,
        low=float(expected - tolerance),
        high=float(expected + tolerance),
        reference=reference,
        tolerance=float(tolerance),
    )


def number(value: float) -> str:
    """A number for people: plain where it is short, scientific where it is not."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}"
    return f"{value:.1e}"

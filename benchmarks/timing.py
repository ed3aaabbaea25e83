"""How everything here is timed: side by side in one run, compilation apart, medians and ratios."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

# Their versions are noted where they are installed.
PEERS = ("numpy", "scipy", "torch", "torchdiffeq", "numba", "heyoka", "optax", "linax", "lyapax")


@dataclass
class Timing:
    """Seconds of every round, and of the first call less the median: tracing and compiling."""

    seconds: list[float] = field(default_factory=list)
    first: float = 0.0
    result: Any = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        return min(self.seconds)

    @property
    def spread(self) -> float:
        """Distance between the quartiles over the median."""
        if len(self.seconds) < 4:
            return (max(self.seconds) - min(self.seconds)) / self.median
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / self.median

    @property
    def compile(self) -> float:
        return max(0.0, self.first - self.median)

    def ratio(self, other: "Timing") -> float:
        """This over `other`: the median over rounds, so that what slows both cancels."""
        return statistics.median(
            mine / theirs for mine, theirs in zip(self.seconds, other.seconds, strict=True)
        )


def race(cases: Mapping[str, Callable[[], Any]], rounds: int, target: float = 0.02) -> dict:
    """Times every case once a round, `rounds` rounds, after a first call that compiles.

    A case shorter than `target` seconds is repeated within its round. The order turns by one each
    round, so that no case always follows the same other.
    """
    timings = {name: Timing() for name in cases}
    repeats = {}
    for name, case in cases.items():
        timings[name].first, timings[name].result = _once(case)
        warm, _ = _once(case)
        repeats[name] = max(1, round(target / max(warm, 1e-7)))
    names = list(cases)
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            start = time.perf_counter()
            for _ in range(repeats[name]):
                jax.block_until_ready(cases[name]())
            elapsed = time.perf_counter() - start
            timings[name].seconds.append(elapsed / repeats[name])
    return timings


def _once(case: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = jax.block_until_ready(case())
    return time.perf_counter() - start, result


def machine() -> dict[str, Any]:
    """What the numbers depend on, without names or paths."""
    import diffrax
    import equinox
    import jaxlib

    devices = jax.devices()
    peers = {name: _version(name) for name in PEERS}
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "device": f"{len(devices)} x {devices[0].device_kind}",
        "system": platform.system(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "diffrax": diffrax.__version__,
        "equinox": equinox.__version__,
        **{name: version for name, version in peers.items() if version is not None},
        "load": round(os.getloadavg()[0], 1),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()

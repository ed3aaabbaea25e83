"""Sweeps into a store: what it costs, what it takes of memory, and whether kills change a bit."""

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr

import jaxdyn as jd

from .report import TIMING_COLUMNS, Report, Table, Target, timing_cells
from .sweep_case import DT, T1, cell_of, start, sweep
from .timing import Timing, race

X64 = False
MEMORY, STORE, AT_ONCE = "sweep, in memory", "sweep, into a store", "simulate, all at once"
GIB = 2**30


def run(quick: bool = False) -> Report:
    few, many, kills = (2000, 3000, 1) if quick else (2**18, 1_000_000, 25)
    units = {8: 64, 64: 32} if quick else {8: 20_000, 64: 2048}
    with tempfile.TemporaryDirectory() as folder:
        timings = overhead(Path(folder), few, 3 if quick else 5)
        large = in_a_process("store", str(Path(folder) / "large.zarr"), many)
        killed, same = killed_and_resumed(Path(folder), 2 * many, kills)
    scaling = {n: on_devices(3 if quick else 9, n, batch) for n, batch in units.items()}
    rows = [
        [name, timing.ratio(timings[MEMORY]), *timing_cells(timing)]
        for name, timing in timings.items()
    ]
    peak = large["peak"] / GIB
    targets = [
        Target("store / memory", timings[STORE].ratio(timings[MEMORY]), 1.1),
        Target(f"memory of {many:,} trajectories into a store, GiB", peak, 1.5),
        Target(f"stores that differ after {killed} SIGKILLs", float(not same), 0.0),
    ]
    devices = []
    for n, found in scaling.items():
        alone = found["no mesh"]
        devices += [[f"{n} units", name, t.median, alone.ratio(t)] for name, t in found.items()]
        gain = alone.ratio(found["2 devices"])
        targets.append(Target(f"2 devices over no mesh, {n} units", gain, 1.0, at_least=True))
    return Report(
        "sweep",
        f"8 units, dense W, t = {T1:g}, steps of {DT}, float32, final state and energy drift "
        f"kept of each trajectory; {few:,} of them in the first table. The second is a process of "
        "its own, imports and compilation in its seconds. Devices are virtual ones of one CPU, a "
        "core for each; without a mesh a solve runs on one core; weak scaling is the last row of "
        "each size, whose batch is twice as large, against the row of one device.",
        [
            Table("Overhead", ["", "/ in memory", *TIMING_COLUMNS], rows),
            Table(
                "A million" if not quick else "A large one",
                ["trajectories", "seconds", "peak GiB", "worst energy drift"],
                [[f"{many:,}", large["seconds"], peak, large["worst drift"]]],
            ),
            Table("Devices", ["", "case", "seconds", "times as fast as no mesh"], devices),
        ],
        targets,
    )


def overhead(folder: Path, trajectories: int, rounds: int) -> dict[str, Timing]:
    cell, numbers = cell_of(8), itertools.count()
    key = jr.key(1)

    def stored() -> Any:
        path = folder / f"{next(numbers)}.zarr"
        sweep(trajectories, store=path)
        shutil.rmtree(path)

    def at_once() -> Any:
        x0 = jax.vmap(lambda i: start(cell, jr.fold_in(key, i)))(jnp.arange(trajectories))
        return jd.simulate(cell, x0, t1=T1, dt=DT, engine=jd.Threads()).ys

    cases = {
        MEMORY: lambda: sweep(trajectories).arrays["final_state"],
        STORE: stored,
        AT_ONCE: at_once,
    }
    return race(cases, rounds)


def in_a_process(what: str, *arguments: Any, **more: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.sweep_case", what, *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | more,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def on_devices(rounds: int, n: int, batch: int) -> dict[str, Timing]:
    flags = "--xla_force_host_platform_device_count=2"
    found = in_a_process("devices", rounds, n, batch, XLA_FLAGS=flags)
    return {name: Timing(seconds) for name, seconds in found.items()}


def killed_and_resumed(folder: Path, trajectories: int, kills: int) -> tuple[int, bool]:
    """How often a sweep was killed, and whether it ended with the bytes of one that was not.

    Two of three kills come within two seconds after something was written, the others at any moment
    of the start.
    """
    moments, killed = random.Random(0), 0
    plain, path = folder / "undisturbed.zarr", folder / "killed.zarr"

    def process(store: Path) -> subprocess.Popen:
        sizes = ["--units", "8", "--trajectories", str(trajectories), "--t1", str(T1)]
        command = [sys.executable, "-m", "jaxdyn", "simulate", *sizes, "--dt", str(DT)]
        command += ["--store", str(store), "--resume"]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)

    assert process(plain).wait() == 0
    for number in range(kills):
        before = len(list(path.rglob("*")))
        running = process(path)
        if number % 3:
            while running.poll() is None and len(list(path.rglob("*"))) <= before:
                time.sleep(0.005)
        try:
            running.wait(moments.uniform(0, 2.0 if number % 3 else 5.0))
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
            killed += 1
    assert process(path).wait() == 0
    return killed, contents(path) == contents(plain)


def contents(folder: Path) -> dict[Path, bytes]:
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

"""What the sweep benchmark runs in processes of their own; answers are a line of JSON.

`python -m benchmarks.sweep_case store PATH TRAJECTORIES`: a sweep into PATH, its seconds and the
most memory. `... devices ROUNDS UNITS BATCH`: the same solve on one and on all devices.
"""

import json
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.sharding import Mesh

import jaxdyn as jd

from .gradient_case import resident
from .timing import race

T1, DT = 100.0, 0.05


def cell_of(n: int) -> jd.PoissonCell:
    return jd.PoissonCell(jd.DenseSkew.random(n, key=jr.key(0), dtype=jnp.float32), jd.Tanh())


def start(cell: jd.PoissonCell, key: jax.Array) -> jax.Array:
    return jr.normal(key, (cell.size,), jnp.float32)


def sweep(trajectories: int, **how: Any) -> jd.Sweep:
    """Of 8 units, final state and energy drift kept."""
    ensemble = {"trajectories": trajectories, "key": jr.key(1)}
    return jd.sweep(cell_of(8), start, t1=T1, dt=DT, **ensemble, **how)


def into_store(path: str, trajectories: str) -> dict[str, Any]:
    began = time.perf_counter()
    found = sweep(int(trajectories), store=path)
    seconds = time.perf_counter() - began
    worst = float(np.max(found["energy_drift"][...]))
    return {"seconds": seconds, "peak": resident("VmHWM"), "worst drift": worst}


def on_devices(rounds: str, units: str, batch: str) -> dict[str, list[float]]:
    cell, b = cell_of(int(units)), int(batch)
    x0 = np.random.default_rng(0).normal(size=(2 * b, cell.size)).astype(np.float32)
    steps = min(1000, int(4e9 / (b * cell.size * (cell.size + 30))))

    def case(batch: int, devices: int | None):
        mesh = None if devices is None else Mesh(np.array(jax.devices()[:devices]), ("b",))
        given = jnp.asarray(x0[:batch])
        return lambda: jd.simulate(cell, given, n_steps=steps, dt=DT, mesh=mesh).ys

    timings = race(
        {
            "no mesh": case(b, None),
            "1 device": case(b, 1),
            "2 devices": case(b, 2),
            "2 devices, twice the batch": case(2 * b, 2),
        },
        int(rounds),
    )
    return {name: timing.seconds for name, timing in timings.items()}


if __name__ == "__main__":
    case = {"store": into_store, "devices": on_devices}[sys.argv[1]]
    print(json.dumps(case(*sys.argv[2:])), flush=True)

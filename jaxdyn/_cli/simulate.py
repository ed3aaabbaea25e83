"""`jaxdyn simulate`."""

import dataclasses
import json
import math
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from .._files import replacing
from .common import (
    UsageError,
    caching,
    first_line,
    in_options,
    print_table,
    reason,
    refuse,
    require,
    writing,
)

ACTIVATIONS = {
    "tanh": "Tanh",
    "identity": "Identity",
    "arctan": "Arctan",
    "erf": "Erf",
    "softsign": "Softsign",
    "isru": "ISRU",
    "hard-tanh": "HardTanh",
    "asymmetric-tanh": "AsymmetricTanh",
    "elu": "ELU",
    "leaky-relu": "LeakyReLU",
    "rectified-tanh": "RectifiedTanh",
    "relu": "ReLU",
    "softplus": "Softplus",
    "sigmoid": "Sigmoid",
}
OPERATORS = {
    "dense": "DenseSkew",
    "bipartite": "BipartiteSkew",
    "block": "BlockSkew",
    "spectral": "SpectralSkew",
    "low-rank": "LowRankSkew",
    "banded": "BandedSkew",
    "circulant": "CirculantSkew",
    "sparse": "SparseSkew",
}
SOLVERS = {
    "strang": "Strang",
    "blanes-moan4": "BlanesMoan4",
    "yoshida4": "Yoshida4",
    "yoshida6": "Yoshida6",
    "suzuki4": "Suzuki4",
    "discrete-gradient": "DiscreteGradient",
    "implicit-midpoint": "ImplicitMidpoint",
    "exact-linear": "ExactLinear",
    "rk4": "RK4",
    "taylor": "Taylor",
    "euler": "Euler",
}
OF_THE_NETWORK = ("activation", "operator", "scale", "energy")
# Rows of saved states when --save-every is not given.
DEFAULT_ROWS = 100


@dataclasses.dataclass(frozen=True)
class Simulate:
    """Simulate an ensemble of trajectories of one random network and say how well it went.

    Prints energy and Casimir drift and the speed, with the time to compile apart. Exit status 1
    if a trajectory diverges, 2 for a wrong option.
    """

    units: int = 64
    """Number of units n."""
    trajectories: int = 1024
    """Number of trajectories b, each from its own random state."""
    t1: float = 100.0
    """End time, in model time units."""
    dt: float = 0.05
    """Step, in model time units; the last one is shortened to land on --t1."""
    seed: int = 0
    """Seed of the weights and the initial states."""
    activation: Literal[tuple(ACTIVATIONS)] = "tanh"  # pyright: ignore[reportInvalidTypeForm]
    """The activation s."""
    operator: Literal[tuple(OPERATORS)] = "dense"  # pyright: ignore[reportInvalidTypeForm]
    """The structure of W."""
    solver: Literal[tuple(SOLVERS)] = "strang"  # pyright: ignore[reportInvalidTypeForm]
    """The integrator; taylor is of order 16, euler is diffrax's."""
    scale: float = 1.0
    """Spectral norm of W: the fastest angular frequency, in radians per model time unit."""
    energy: float | None = None
    """Scale every initial state to this energy; by default they are N(0, 1) in each unit."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of the whole run."""
    save_every: int | None = None
    """Save after every so many steps; by default about 100 times a run."""
    out: Path | None = None
    """File (.npz) for states (b, t, n), times, energies, W and metadata; none by default."""
    store: Path | None = None
    """Instead of --out, for any size: a Zarr folder; states with --save-every, else the end."""
    resume: bool = False
    """Go on with the --store of a run of the same options that was killed, if there is one."""
    cache: Path | None = None
    """Folder, made if need be, that keeps compiled programs for later runs; none by default."""

    def __call__(self) -> int:
        self.check()
        with caching(self.cache):
            if self.store is not None:
                with self.enabled_x64():
                    return self.sweep(self.store)
            if self.out is None:
                return self.run(None)
            with writing(self.out), replacing(self.out) as file:
                return self.run(file)

    @property
    def steps(self) -> int:
        return math.ceil(self.t1 / self.dt - 1e-9)

    @property
    def every(self) -> int:
        return self.save_every or max(1, self.steps // DEFAULT_ROWS)

    def check(self) -> None:
        """What can be refused before anything is imported or computed."""
        least = 3 if self.operator == "circulant" else 2
        require(self.units >= least, "units", self.units, f"give at least {least}")
        if self.operator == "block":
            require(
                self.units % 2 == 0, "units", self.units, "--operator block needs an even number"
            )
        require(self.trajectories >= 1, "trajectories", self.trajectories, "give at least 1")
        for name in ("t1", "dt", "scale"):
            value = getattr(self, name)
            require(math.isfinite(value) and value > 0, name, value, "give a finite number > 0")
        require(self.dt <= self.t1, "dt", self.dt, f"give a step of at most --t1 = {self.t1:g}")
        require(self.steps <= 2**31 - 1, "dt", self.dt, "that is more than 2^31 steps to --t1")
        require(0 <= self.seed < 2**63, "seed", self.seed, "give a whole number >= 0")
        if self.energy is not None:
            ok = math.isfinite(self.energy) and self.energy > 0
            require(ok, "energy", self.energy, "give a finite number > 0")
        if self.save_every is not None:
            ok = 1 <= self.save_every <= self.steps
            cure = f"give a number of steps between 1 and {self.steps}, the whole run"
            require(ok, "save-every", self.save_every, cure)
        if self.solver == "exact-linear":
            cure = "exact-linear serves linear networks only: add --activation identity"
            require(self.activation == "identity", "solver", self.solver, cure)
        if self.out is not None:
            require(self.out.suffix == ".npz", "out", self.out, "give a name that ends in .npz")
            require(self.store is None, "out", self.out, "give either this or --store")
        require(
            self.store is not None or not self.resume, "resume", "", "it goes on with a --store"
        )

    def enabled_x64(self) -> Any:
        import jax

        return jax.enable_x64(self.dtype == "float64")

    def build(self) -> tuple[Any, Callable, Any]:
        """The cell, the initial state as a function of it and of a key, and the solver."""
        import diffrax
        import jax.numpy as jnp
        import jax.random as jr

        import jaxdyn as jd

        from .._solver import AbstractCellSolver
        from .._study.measure import at_energy

        key_w, _ = self.keys()
        dtype = jnp.dtype(self.dtype)
        operator = getattr(jd, OPERATORS[self.operator])
        activation = getattr(jd, ACTIVATIONS[self.activation])()
        name = SOLVERS[self.solver]
        solver = diffrax.Euler() if name == "Euler" else getattr(jd, name)()
        if self.energy is not None and not activation.confining:
            refuse("energy", self.energy, f"{self.activation} does not confine; leave it out")
        try:
            W = operator.random(self.units, key=key_w, scale=self.scale, dtype=dtype)
        except ValueError as error:
            refuse("operator", self.operator, first_line(error))
        cell = jd.PoissonCell(W, activation)
        if isinstance(solver, AbstractCellSolver):
            try:
                solver.check(cell)
            except ValueError as error:
                refuse("solver", self.solver, first_line(error))

        def start(cell: Any, key: Any) -> Any:
            x0 = jr.normal(key, (self.units,), dtype)
            if self.energy is None:
                return x0
            return at_energy(cell, x0[None], jnp.asarray(self.energy, dtype))[0]

        return cell, start, solver

    def keys(self) -> tuple[Any, Any]:
        """Of W, and of the initial states."""
        import jax.random as jr

        key_w, key_x = jr.split(jr.key(self.seed))
        return key_w, key_x

    def sweep(self, store: Path) -> int:
        """The run, chunk by chunk into `store`."""
        import numpy as np

        import jaxdyn as jd

        from .._ensemble.layout import DIVERGED, DONE

        options = {name: f"--{name}" for name in ("store", "t1", "dt", "dtype", "solver")}
        options |= {"n_steps": "--t1", "keep": "--save-every", "every": "--save-every"}
        # What --seed and the options of the network make.
        options |= {"cell": "network", "x0": "initial states", "key": "--seed"}
        options |= {"trajectories": "--trajectories", "retries": "another attempt"}

        def said(text: Any) -> str:
            return in_options(text, options).replace("resume=True", "--resume").rstrip(".") + "."

        cell, start, solver = self.build()
        keep: dict[str, Any] = {
            "final_state": jd.reductions.FinalState(),
            "energy_drift": jd.reductions.EnergyDrift(),
        }
        if self.save_every is not None:
            keep["states"] = jd.reductions.States()
        about = dataclasses.asdict(self)
        began = time.perf_counter()
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always", UserWarning)
                found = jd.sweep(
                    cell,
                    start,
                    t1=self.t1,
                    dt=self.dt,
                    solver=solver,
                    trajectories=self.trajectories,
                    key=self.keys()[1],
                    keep=keep,
                    every=self.save_every,
                    store=store,
                    resume=self.resume,
                    attributes={name: about[name] for name in ("seed", *OF_THE_NETWORK)},
                    progress=sys.stderr.isatty(),
                )
        except (ValueError, ImportError) as error:
            raise UsageError(said(error)) from error
        except OSError as error:
            raise UsageError(f"--store {store}: {said(reason(error))}") from error
        except RuntimeError as error:
            print(f"jaxdyn simulate: {said(error)}", file=sys.stderr)
            return 1
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt("what is in --store is kept: go on with --resume") from error
        for warning in told:
            print(f"jaxdyn simulate: {said(warning.message)}", file=sys.stderr)
        status, drift = found["status"][...], found["energy_drift"][...]
        good = status == DONE
        rows = self.settings()
        if np.any(good):
            rows += [drift_row(drift[good])]
        wall, solving = time.perf_counter() - began, found.seconds["solving"]
        rows += [
            ("diverged", f"{np.count_nonzero(status == DIVERGED):,} trajectories"),
            ("wall time", f"{wall:.1f} s, {solving:.1f} of them solving, compilation included"),
        ]
        print_table(rows)
        print(f"wrote {store}")
        return 0 if np.all(good) else 1

    def settings(self) -> list[tuple[str, str]]:
        """Rows of the table that say what is run."""
        import jax

        steps = f"{self.steps:,} steps of {self.dt:g}"
        return [
            ("network", f"{self.units} units, {self.activation}, {self.operator} W"),
            ("run", f"{self.trajectories:,} trajectories x {steps}"),
            ("solver", f"{self.solver}, {self.dtype}, {jax.default_backend()}"),
        ]

    def run(self, file: Any) -> int:
        with self.enabled_x64():
            return self._run(file)

    def _run(self, file: Any) -> int:
        import diffrax
        import jax
        import jax.numpy as jnp
        import numpy as np

        import jaxdyn as jd

        from .._simulate.memory import check_memory

        saveat = diffrax.SaveAt(steps=self.every, t1=True)
        shape = self.trajectories, self.units
        try:
            check_memory(jax.ShapeDtypeStruct(shape, jnp.dtype(self.dtype)), saveat, self.steps)
        except ValueError as error:
            refuse("trajectories", self.trajectories, first_line(error))
        cell, start, solver = self.build()
        numbers = jnp.arange(self.trajectories)
        key = self.keys()[1]
        x0 = jax.jit(jax.vmap(lambda i: start(cell, jax.random.fold_in(key, i))))(numbers)

        def solve(x0):
            sol = jd.simulate(
                cell, x0, t1=self.t1, dt=self.dt, solver=solver, saveat=saveat, throw=False
            )
            failed = sol.result != diffrax.RESULTS.successful
            return sol.ts, sol.ys, failed

        began = time.perf_counter()
        compiled = jax.jit(solve).lower(x0).compile()
        compiling = time.perf_counter() - began
        began = time.perf_counter()
        ts, ys, failed = jax.block_until_ready(compiled(x0))
        running = time.perf_counter() - began
        if ts.ndim == 2:
            ts = ts[0]
        diverged = int(jnp.sum(failed))
        if diverged:
            print(
                f"jaxdyn simulate: {diverged} of {self.trajectories} trajectories diverged; "
                "give a smaller --dt or another --solver.",
                file=sys.stderr,
            )
            return 1

        energy = jax.jit(jax.vmap(jax.vmap(cell.energy)))
        energy0, energies = jax.jit(jax.vmap(cell.energy))(x0), energy(ys)
        drift = np.asarray(jd.energy_drift(cell, x0, ys))
        casimir = float(jnp.max(jd.casimir_drift(cell, x0, ys)))
        rate = self.trajectories * self.steps / running
        print_table(
            [
                *self.settings(),
                ("energy at the start", f"{float(jnp.mean(energy0)):.4g} (mean)"),
                drift_row(drift),
                ("Casimir drift", f"{casimir:.2e}"),
                ("compile time", f"{compiling:.2f} s"),
                ("wall time", f"{running:.3f} s"),
                ("speed", f"{rate:.3g} trajectories x steps per second"),
            ]
        )
        if file is not None:
            metadata = dataclasses.asdict(self) | {
                "save_every": self.every,
                "jaxdyn": jd.__version__,
                "jax": jax.__version__,
                "time_unit": "model time",
            }
            np.savez(
                file,
                states=np.concatenate([np.asarray(x0)[:, None], np.asarray(ys)], axis=1),
                times=np.concatenate([np.zeros(1, self.dtype), np.asarray(ts)]),
                energies=np.concatenate(
                    [np.asarray(energy0)[:, None], np.asarray(energies)], axis=1
                ),
                W=np.asarray(cell.operator.as_matrix()),
                metadata=json.dumps(metadata, default=str),
            )
            print(f"wrote {self.out}")
        return 0


def drift_row(drift: Any) -> tuple[str, str]:
    import numpy as np

    return "energy drift", f"{np.median(drift):.2e} (median), {np.max(drift):.2e} (worst)"

"""`jaxdyn simulate`."""

import dataclasses
import json
import math
import sys
import time
from pathlib import Path
from typing import Any, Literal

from .._files import replacing
from .common import caching, first_line, print_table, refuse, require, writing

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
    cache: Path | None = None
    """Folder, made if need be, that keeps compiled programs for later runs; none by default."""

    def __call__(self) -> int:
        self.check()
        with caching(self.cache):
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

    def build(self) -> tuple[Any, Any, Any]:
        """The cell, the initial states and the solver."""
        import diffrax
        import jax.numpy as jnp
        import jax.random as jr

        import jaxdyn as jd

        from .._solver import AbstractCellSolver
        from .._study.measure import at_energy

        key_w, key_x = jr.split(jr.key(self.seed))
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
        x0 = jr.normal(key_x, (self.trajectories, self.units), dtype)
        if self.energy is not None:
            x0 = at_energy(cell, x0, jnp.asarray(self.energy, dtype))
        return cell, x0, solver

    def run(self, file: Any) -> int:
        import jax

        with jax.enable_x64(self.dtype == "float64"):
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
        cell, x0, solver = self.build()

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
                ("network", f"{self.units} units, {self.activation}, {self.operator} W"),
                (
                    "run",
                    f"{self.trajectories:,} trajectories x {self.steps:,} steps of {self.dt:g}",
                ),
                ("solver", f"{self.solver}, {self.dtype}, {jax.default_backend()}"),
                ("energy at the start", f"{float(jnp.mean(energy0)):.4g} (mean)"),
                ("energy drift", f"{np.median(drift):.2e} (median), {np.max(drift):.2e} (worst)"),
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

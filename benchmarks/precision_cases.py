"""What `python -m benchmarks precision` runs: settings, and every method's sweep in each.

A sweep holds one case a little within each error of interest, and one or two beside it. Tolerances
near the rounding of float32 are left out: adaptive methods reject steps there without end.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxdyn as jd

from .peers import Problem, Solve, in_c, in_diffrax, in_heyoka, in_numba, in_scipy, in_torch

T1 = 25.0
TSIT5, DOPRI8 = in_diffrax.Tsit5(), in_diffrax.Dopri8()
# A method is called with a number of steps (int) or a tolerance (float).
PEERS: dict[str, tuple[Any, Callable[[Problem, Any], Solve]]] = {
    "diffrax Tsit5 adaptive, vmapped": (in_diffrax, partial(in_diffrax.adaptive, solver=TSIT5)),
    "diffrax Tsit5 fixed, vmapped": (in_diffrax, partial(in_diffrax.fixed, solver=TSIT5)),
    "diffrax Tsit5 fixed, batch in state": (in_diffrax, partial(in_diffrax.batched, solver=TSIT5)),
    "diffrax Tsit5 adaptive, batch in state": (
        in_diffrax,
        partial(in_diffrax.batched_adaptive, solver=TSIT5),
    ),
    "diffrax Dopri8 adaptive, vmapped": (in_diffrax, partial(in_diffrax.adaptive, solver=DOPRI8)),
    "diffrax Dopri8 fixed, batch in state": (
        in_diffrax,
        partial(in_diffrax.batched, solver=DOPRI8),
    ),
    "torchdiffeq rk4": (in_torch, in_torch.rk4),
    "torchdiffeq dopri5": (in_torch, in_torch.dopri5),
    "torchdiffeq rk4, one thread": (in_torch, partial(in_torch.rk4, threads=1)),
    "torchdiffeq dopri5, one thread": (in_torch, partial(in_torch.dopri5, threads=1)),
    "scipy DOP853": (in_scipy, in_scipy.adaptive),
    "numba RK4": (in_numba, in_numba.rk4),
    "heyoka": (in_heyoka, in_heyoka.taylor),
    "C RK4": (in_c, in_c.rk4),
    "C Strang": (in_c, in_c.strang),
}
TSIT5_VMAPPED = ("diffrax Tsit5 adaptive, vmapped", "diffrax Tsit5 fixed, vmapped")
DOPRI8_VMAPPED = ("diffrax Dopri8 adaptive, vmapped",)
TORCH = tuple(method for method, (module, _) in PEERS.items() if module is in_torch)


class Goal(NamedTuple):
    """At an error of `bound`, the fastest of `methods` takes `times` as long as our fastest."""

    what: str
    bound: float
    methods: tuple[str, ...]
    times: float


ON_THREADS, ON_ONE = ", threads", ", one thread"


class Setting(NamedTuple):
    n: int
    batch: int
    dtype: Any
    numbers: Mapping[str, tuple]
    bounds: tuple[float, ...]
    goals: tuple[Goal, ...]

    @property
    def sweeps(self) -> dict[str, tuple]:
        """The numbers of every method, and of what it is called with other threads."""
        others = {
            m + how: numbers
            for m, numbers in self.numbers.items()
            for how, known in ((ON_THREADS, m not in PEERS), (ON_ONE, m + ON_ONE in PEERS))
            if known
        }
        return {**self.numbers, **others}

    @property
    def name(self) -> str:
        return f"n = {self.n}, {self.batch} trajectories, {jnp.dtype(self.dtype).name}"


SETTINGS = (
    Setting(
        64,
        1024,
        jnp.float32,
        {
            "Strang": (250, 500, 2000),
            "BlanesMoan4": (64, 100),
            "Yoshida6": (50, 64),
            "RK4": (125, 180, 200, 250),
            "Taylor(4)": (125, 200, 250),
            "Taylor(5)": (80, 120),
            "Taylor(6)": (64, 84, 92),
            "Taylor(7)": (64, 72),
            "Taylor(8)": (50, 68),
            "diffrax Tsit5 adaptive, vmapped": (1e-5, 1e-6),
            "diffrax Tsit5 fixed, vmapped": (64, 80),
            "diffrax Tsit5 fixed, batch in state": (64, 80),
            "diffrax Tsit5 adaptive, batch in state": (1e-5, 1e-6),
            "diffrax Dopri8 fixed, batch in state": (32, 50),
            "torchdiffeq rk4": (125, 190, 210),
            "torchdiffeq dopri5": (1e-5, 2e-6),
            "scipy DOP853": (1e-6,),
            "numba RK4": (125, 190, 210),
            "heyoka": (1e-5, 3e-6, 1e-6),
            "C RK4": (125, 180, 200, 250),
            "C Strang": (250, 500, 2000),
        },
        (1e-3, 1e-5),
        (
            Goal("diffrax Tsit5, vmapped", 1e-5, TSIT5_VMAPPED, 10.0),
            Goal("torchdiffeq", 1e-5, TORCH, 6.0),
            Goal("C RK4", 1e-5, ("C RK4",), 1.0),
        ),
    ),
    Setting(
        8,
        1024,
        jnp.float64,
        {
            "Strang": (500, 2000),
            "BlanesMoan4": (100, 216),
            "Yoshida6": (152, 1050),
            "RK4": (250, 720),
            "Taylor(6)": (100, 220),
            "Taylor(7)": (144, 150),
            "Taylor(8)": (100, 112),
            "Taylor(9)": (90, 96),
            "Taylor(10)": (80,),
            "Taylor(12)": (100, 152, 160),
            "Taylor(13)": (132, 140),
            "Taylor(14)": (116, 124),
            "Taylor(16)": (96, 100),
            "diffrax Tsit5 adaptive, vmapped": (1e-6, 6e-9, 5e-9),
            "diffrax Tsit5 adaptive, batch in state": (1e-6, 4e-9),
            "diffrax Tsit5 fixed, batch in state": (100, 152),
            "diffrax Dopri8 adaptive, vmapped": (2e-8, 1e-10, 6e-13, 5e-13),
            "diffrax Dopri8 fixed, batch in state": (40, 80, 152),
            "torchdiffeq rk4": (250, 720),
            "torchdiffeq dopri5": (1e-6, 5e-10),
            "scipy DOP853": (1e-8, 2e-9, 1e-12, 1e-13),
            "numba RK4": (250, 720),
            "heyoka": (3e-7, 1e-7, 1e-12, 1e-13),
            "C RK4": (250, 720),
            "C Strang": (500, 2000),
        },
        (1e-7, 1e-12),
        (
            Goal("diffrax Tsit5 adaptive, vmapped", 1e-7, TSIT5_VMAPPED[:1], 12.0),
            Goal("heyoka", 1e-7, ("heyoka",), 1.0),
            Goal("diffrax Dopri8 adaptive, vmapped", 1e-12, DOPRI8_VMAPPED, 5.0),
            Goal("heyoka", 1e-12, ("heyoka",), 0.5),
        ),
    ),
    # Rounding alone leaves 1.4e-5 after 200 steps, whatever the method.
    Setting(
        2,
        16384,
        jnp.float32,
        {
            "Strang": (250, 1000),
            "BlanesMoan4": (125,),
            "Yoshida6": (84,),
            "RK4": (100, 200),
            "Taylor(4)": (200,),
            "Taylor(6)": (84, 90),
            "Taylor(8)": (56, 64),
            "diffrax Tsit5 adaptive, vmapped": (1e-5, 2e-6, 1e-6),
            "diffrax Tsit5 fixed, vmapped": (84, 100),
            "diffrax Tsit5 fixed, batch in state": (84, 100),
            "diffrax Tsit5 adaptive, batch in state": (1e-6,),
            "torchdiffeq rk4": (100, 200),
            "torchdiffeq dopri5": (1e-5, 2e-6),
            "numba RK4": (100, 200),
            "heyoka": (1e-5, 1e-6),
            "C RK4": (100, 200),
            "C Strang": (250, 1000),
        },
        (2e-5,),
        (Goal("diffrax Tsit5, vmapped", 2e-5, TSIT5_VMAPPED, 15.0),),
    ),
    Setting(
        2,
        16384,
        jnp.float64,
        {
            "Strang": (1000,),
            "BlanesMoan4": (250,),
            "Yoshida6": (190,),
            "RK4": (250, 720),
            "Taylor(6)": (200,),
            "Taylor(8)": (98, 104),
            "Taylor(9)": (80, 88),
            "Taylor(10)": (72, 80),
            "diffrax Tsit5 adaptive, vmapped": (1e-7, 5e-9),
            "diffrax Tsit5 fixed, vmapped": (156,),
            "diffrax Tsit5 fixed, batch in state": (156,),
            "diffrax Dopri8 adaptive, vmapped": (1e-8, 2e-9),
            "scipy DOP853": (3e-8, 1e-8),
            "heyoka": (3e-7, 1e-7),
            "torchdiffeq rk4": (720,),
            "numba RK4": (720,),
            "C RK4": (250, 720),
            "C Strang": (1000,),
        },
        (1e-7,),
        (Goal("diffrax Tsit5, vmapped", 1e-7, TSIT5_VMAPPED, 15.0),),
    ),
)
QUICK = Setting(
    4,
    8,
    jnp.float64,
    {
        "Taylor(8)": (60, 120),
        "RK4": (100, 400),
        "diffrax Tsit5 adaptive, vmapped": (1e-6,),
        "torchdiffeq rk4": (100,),
        "scipy DOP853": (1e-8,),
        "heyoka": (1e-7,),
        "C RK4": (100, 400),
    },
    (1e-4,),
    (Goal("C RK4", 1e-4, ("C RK4",), 1.0),),
)


def ours(cell, x0, method: str, steps: int) -> Solve:
    """`simulate` inside `jax.jit`, as the peers' solves are; or on threads, which jit is not for.

    `method`: Strang, Taylor(8), "Taylor(8), threads", ...
    """
    kind, threads, _ = method.partition(ON_THREADS)
    name, _, order = kind.rstrip(")").partition("(")
    solver = getattr(jd, name)(*([int(order)] if order else []))
    if threads:
        return lambda: _solved(cell, x0, steps, solver, jd.Threads())
    return lambda: _simulated(cell, x0, steps, solver)


def _solved(cell, x0, steps, solver, engine=None):
    dt = T1 / steps
    return jd.simulate(cell, x0, n_steps=steps, dt=dt, solver=solver, engine=engine).ys[:, -1]


_simulated = jax.jit(_solved, static_argnums=(2, 3))

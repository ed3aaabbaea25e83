"""Cost against the number of units: products with W, and one Strang step."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import jaxdyn as jd

from .report import Report, Table, Target
from .timing import race

X64 = False
SIZES = (1_000, 10_000, 100_000, 1_000_000)


def run(quick: bool = False) -> Report:
    sizes, rounds = (SIZES[:2], 3) if quick else (SIZES, 7)
    products, steps = {}, {}
    for n in sizes:
        x = jr.normal(jr.key(1), (n,), jnp.float32)
        for name, operator in operators(n).items():
            products[name, n] = lambda W=operator, x=x: product(W, x)
            if name in ("Banded", "Sparse", "Bipartite"):
                cell = jd.PoissonCell(operator, jd.Tanh())
                steps[name, n] = lambda cell=cell, x=x: strang(cell, x)
    report = Report(
        "structured",
        "float32, one trajectory. Banded: 4 diagonals on either side; Sparse: 8 entries a row on "
        "average; LowRank: rank 4; Bipartite: 16 units against the others. Seconds (the best of "
        f"{rounds}), and in brackets the exponent of the cost between a size and the one before: 1 "
        "is linear, 2 quadratic. Beyond 1e5 units the state leaves the cache, which costs the "
        "random access of Sparse most.",
    )
    for title, cases in (("One product W x", products), ("One Strang step", steps)):
        timings = race(cases, rounds, target=0.01)
        rows = []
        for name in dict.fromkeys(name for name, _ in cases):
            seconds = [timings[name, n].best if (name, n) in timings else None for n in sizes]
            rows.append([name, *_with_exponents(seconds, sizes)])
            if not quick and seconds[-1] is not None:
                exponent = float(np.log10(seconds[-1] / seconds[1])) / 2
                what = f"{title}, {name}: exponent from 1e4 to 1e6"
                report.targets.append(Target(what, exponent, 1.3))
        report.tables.append(Table(title, ["operator", *(f"n = {n:,}" for n in sizes)], rows))
    return report


def operators(n: int) -> dict[str, jd.AbstractSkewOperator]:
    key, dtype = jr.key(0), jnp.float32
    return {
        "Circulant": jd.CirculantSkew.random(n, key=key, dtype=dtype),
        "Banded": jd.BandedSkew.random(n, key=key, dtype=dtype, bandwidth=4),
        "Sparse": jd.SparseSkew.random(n, key=key, dtype=dtype, degree=8),
        "LowRank": jd.LowRankSkew.random(n, key=key, dtype=dtype, rank=4),
        "Bipartite": jd.BipartiteSkew.random(n, key=key, dtype=dtype, split=16),
    }


@jax.jit
def product(W, x):
    return W.mv(x)


@jax.jit
def strang(cell, x):
    return jd.Strang().advance(cell, jnp.float32(0), jnp.float32(0.1), x, None)


def _with_exponents(seconds, sizes) -> list[str]:
    cells = []
    for i, s in enumerate(seconds):
        if s is None:
            cells.append("")
        elif i == 0 or seconds[i - 1] is None:
            cells.append(f"{s:.2e}")
        else:
            exponent = np.log(s / seconds[i - 1]) / np.log(sizes[i] / sizes[i - 1])
            cells.append(f"{s:.2e} ({exponent:.2f})")
    return cells

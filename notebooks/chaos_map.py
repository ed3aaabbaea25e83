"""Where skew-symmetric tanh networks are chaotic: the largest exponent over size and energy.

    python notebooks/chaos_map.py [--quick]

For each size n, one compiled program runs all networks and trajectories at once: four kinds of W,
20 draws of each, 10 energies, 4 starts in random directions. |W|_2 = 1 everywhere, so that
exponents are per radian of the fastest mode. Writes chaos_map.csv (a row for each n, kind, draw and
energy: median exponent of its starts, and the shares of them that `jaxdyn.verdict` calls chaotic
and undecided) and chaos_map.png beside itself.

The kinds: dense, Gaussian entries; bipartite, two halves that act on each other only, Gaussian;
ring, each unit coupled to the next, Gaussian; block, pairs of units that no one else acts on,
frequencies uniform in [0, 1]. Blocks are integrable: they show what a run of this length makes of
an exponent that is 0.
"""

import argparse
import csv
import math
import pathlib
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxdyn as jd

HERE = pathlib.Path(__file__).parent
KINDS = ("dense", "bipartite", "ring", "block")
SIZES, DRAWS, STARTS = (2, 4, 6, 8, 12, 16), 20, 4
ENERGIES = np.geomspace(0.05, 64.0, 10)
T1, DT = 20_000.0, 0.1


def matrix(kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """A random W of one kind, |W|_2 = 1."""
    upper = np.zeros((n, n))
    if kind == "dense":
        upper = np.triu(rng.normal(size=(n, n)), 1)
    elif kind == "bipartite":
        half = n // 2
        upper[:half, half:] = rng.normal(size=(half, n - half))
    elif kind == "ring":
        i = np.arange(n - 1)
        upper[i, i + 1] = rng.normal(size=n - 1)
        if n > 2:
            upper[0, n - 1] = rng.normal()
    else:
        i = np.arange(0, n - 1, 2)
        upper[i, i + 1] = rng.uniform(size=len(i))
    w = upper - upper.T
    return w / np.linalg.norm(w, 2)


def states(n: int, rng: np.random.Generator) -> np.ndarray:
    """(energies x starts, n): each energy in the same number of random directions."""
    directions = rng.normal(size=(len(ENERGIES), STARTS, n))
    wanted = ENERGIES[:, None, None]
    low, high = np.zeros_like(wanted), np.full_like(wanted, 1e4)
    low, high = (
        np.broadcast_to(low, (*directions.shape[:2], 1)),
        np.broadcast_to(high, (*directions.shape[:2], 1)),
    )
    for _ in range(100):
        middle = 0.5 * (low + high)
        x = middle * directions
        h = np.sum(np.logaddexp(x, -x) - math.log(2), axis=2, keepdims=True)
        low, high = np.where(h < wanted, middle, low), np.where(h < wanted, high, middle)
    return (0.5 * (low + high) * directions).reshape(-1, n)


@eqx.filter_jit
def exponents(entries: jax.Array, x0: jax.Array, t1: float, dt: float) -> jd.LyapunovSpectrum:
    """Of every network (a) and every start (b): the structure of W is in its values."""

    def one(entries, x0):
        cell = jd.PoissonCell(jd.DenseSkew(entries), jd.Tanh())
        return jd.max_lyapunov(cell, x0, t1, dt, every=20, throw=False)

    return eqx.filter_vmap(one)(entries, x0)


def measure(n: int, draws: int, t1: float, dt: float) -> list[dict]:
    rng = np.random.default_rng(n)
    lower = np.tril_indices(n, -1)
    networks = [(kind, draw) for kind in KINDS for draw in range(draws)]
    entries = jnp.asarray([matrix(kind, n, rng)[lower] for kind, _ in networks])
    x0 = jnp.asarray([states(n, rng) for _ in networks])
    found = jax.block_until_ready(exponents(entries, x0, t1, dt))
    shape = len(networks), len(ENERGIES), STARTS
    first = np.asarray(found.exponents)[..., 0].reshape(shape)
    verdict = jd.verdict(found).reshape(shape)
    return [
        {
            "n": n,
            "kind": kind,
            "draw": draw,
            "energy": energy,
            "exponent": float(np.median(first[i, j])),
            "chaotic": float(np.mean(verdict[i, j] == "chaotic")),
            "undecided": float(np.mean(verdict[i, j] == "undecided")),
        }
        for i, (kind, draw) in enumerate(networks)
        for j, energy in enumerate(ENERGIES)
    ]


def draw(rows: list[dict], t1: float) -> plt.Figure:
    """A map for each kind, and below cuts through it: medians over draws, quartiles as bands."""
    sizes = sorted({row["n"] for row in rows})
    # What a vector that grows linearly shows at the end of such a run.
    floor = math.log(10) / (0.9 * t1)
    # Growth by e^10 over the second half, which is what `jaxdyn.verdict` asks for.
    told = 10 / (0.45 * t1)

    def values(kind, n, column):
        cells = [
            [r[column] for r in rows if r["kind"] == kind and r["n"] == n and r["energy"] == e]
            for e in ENERGIES
        ]
        return np.asarray(cells)

    figure, axes = plt.subplots(
        2, len(KINDS), figsize=(10.5, 5.6), layout="constrained", sharey="row", sharex=True
    )
    edges = np.geomspace(ENERGIES[0], ENERGIES[-1], len(ENERGIES))
    ratio = math.sqrt(edges[1] / edges[0])
    borders = np.append(edges / ratio, edges[-1] * ratio)
    image = None
    for column, kind in enumerate(KINDS):
        table = np.asarray([np.median(values(kind, n, "exponent"), axis=1) for n in sizes])
        ax = axes[0, column]
        image = ax.pcolormesh(
            borders,
            np.arange(len(sizes) + 1) - 0.5,
            np.log10(np.maximum(table, floor)),
            cmap="viridis",
            vmin=math.log10(floor),
            vmax=math.log10(0.1),
        )
        for i, n in enumerate(sizes):
            share = values(kind, n, "chaotic").mean(axis=1)
            for e, s in zip(ENERGIES, share, strict=True):
                if s >= 0.005:
                    ax.text(e, i, f"{100 * s:.0f}", ha="center", va="center", fontsize=6, color="w")
        ax.set_xscale("log")
        ax.set_yticks(range(len(sizes)), sizes)
        ax.set_title(kind)
        cut = axes[1, column]
        colors = plt.cm.plasma(np.linspace(0.0, 0.85, len(sizes)))
        for n, color in zip(sizes, colors, strict=True):
            table = np.maximum(values(kind, n, "exponent"), 1e-5)
            low, middle, high = np.percentile(table, [25, 50, 75], axis=1)
            cut.fill_between(ENERGIES, low, high, color=color, alpha=0.15, linewidth=0)
            cut.loglog(ENERGIES, middle, color=color, lw=1.3, label=f"n = {n}")
        cut.axhline(floor, color="0.4", lw=0.9, ls="--")
        cut.axhline(told, color="0.4", lw=0.9, ls=":")
        cut.set_ylim(1e-4, 0.1)
        cut.set_xlabel("energy H")
    axes[1, -1].text(ENERGIES[-1], 1.1 * floor, "finite-time floor", ha="right", va="bottom",
                     fontsize=7, color="0.4")  # fmt: skip
    axes[1, -1].text(ENERGIES[-1], 1.1 * told, "told to be chaotic", ha="right", va="bottom",
                     fontsize=7, color="0.4")  # fmt: skip
    axes[0, 0].set_ylabel("units n")
    axes[1, 0].set_ylabel("largest Lyapunov exponent")
    axes[1, -1].legend(frameon=False, fontsize=8, ncols=2, loc="upper center")
    bar = figure.colorbar(image, ax=axes[0], pad=0.01)
    bar.set_label("log10 of the median exponent")
    figure.suptitle(
        "Numbers: per cent of trajectories that are chaotic. |W| = 1, "
        f"t = {t1:g}; quartiles over draws below.",
        fontsize=9,
    )
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few draws, short runs, small n")
    parser.add_argument("--dt", type=float, default=DT, help="step of the Strang splitting")
    parser.add_argument("--out", type=pathlib.Path, help="folder for the two files")
    arguments = parser.parse_args()
    if arguments.quick and arguments.out is None:
        parser.error("--quick needs --out, so as not to write over the real map")
    out = arguments.out or HERE
    sizes, draws, t1 = ((2, 4), 2, 300.0) if arguments.quick else (SIZES, DRAWS, T1)
    rows = []
    with jax.enable_x64(True):
        for n in sizes:
            start = time.perf_counter()
            rows += measure(n, draws, t1, arguments.dt)
            count = len(KINDS) * draws * len(ENERGIES) * STARTS
            print(f"n = {n}: {count:,} trajectories, {time.perf_counter() - start:.1f} s")
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "chaos_map.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})
    draw(rows, t1).savefig(out / "chaos_map.png", dpi=150)


if __name__ == "__main__":
    main()

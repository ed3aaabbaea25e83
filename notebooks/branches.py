"""Two branches of periodic orbits, their stability and their bifurcations: writes branches.png.

    python notebooks/branches.py

Left, a network of four units that conserves its energy: the family of orbits that begins at its
slow linear mode, over the energy. Right, four units with an attracting energy and uneven damping:
the limit cycle over the damping, from its birth in a Hopf bifurcation to the torus that takes over.
"""

import pathlib

import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt

import jaxdyn as jd

HERE = pathlib.Path(__file__).parent


def conservative() -> jd.OrbitFamily:
    cell = jd.PoissonCell(jd.DenseSkew.random(4, key=jr.key(13)), jd.Tanh())
    return jd.orbit_family(cell, 1, max_energy=4.0, max_step=0.1)


def attracting() -> jd.CycleFamily:
    weights, uneven, _ = jr.split(jr.key(12), 3)
    W = jd.DenseSkew.random(4, key=weights)
    spread = jr.normal(uneven, (4,))
    spread = 0.3 * (spread - jnp.mean(spread))

    def cell(damping):
        shell = jd.EnergyShell(2.5, 0.2)
        return jd.PoissonCell(W, jd.Tanh(), damping=spread + damping, regulator=shell)

    settled = jd.simulate(cell(0.3), 0.5 * jnp.ones(4), t1=2000.0, dt=0.05).ys[-1]
    times = jd.poincare_section(cell(0.3), settled, 60.0, 0.05, normal=0).times
    start = jd.periodic_orbit(cell(0.3), settled, times[1] - times[0])
    return jd.cycle_family(cell, start, 0.3, between=(-0.5, 0.6), max_step=0.05)


def main() -> None:
    left, right = conservative(), attracting()
    figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.4), layout="constrained")
    jd.plot.family(left, ax=axes[0])
    axes[0].set_title("four units, energy conserved")
    jd.plot.family(right, unit=0, ax=axes[1])
    axes[1].set_xlabel("damping")
    axes[1].set_title("four units, one energy attracting")
    figure.savefig(HERE / "branches.png", dpi=150)
    for family in (left, right):
        for point in family.bifurcations:
            print(f"{point.kind} at {point.at:.6f}, period {point.period:.6f}")


if __name__ == "__main__":
    with jax.enable_x64(True):
        main()

"""A batch shared among devices and processes: the numbers of each trajectory to the last bit."""

import os
import pathlib
import socket
import subprocess
import sys

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import zarr
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jaxdyn as jd
from jaxdyn._ensemble.program import Program

DEVICES, PROCESSES = 8, 2
if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    if sys.argv[1] == "processes":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{sys.argv[3]}", PROCESSES, int(sys.argv[4]))

W = jd.DenseSkew.random(5, key=jr.key(0))
CELL = jd.PoissonCell(W, jd.Tanh(), input_matrix=jr.normal(jr.key(3), (5, 2)))
# Not a multiple of any number of devices.
BATCH = 333
SAVEAT = diffrax.SaveAt(ts=[0.0, 0.33, 1.0])
SOLVERS = {"Strang": jd.Strang(), "Taylor": jd.Taylor(6), "RK4": jd.RK4()}
COUNTS = {"Strang": (2, 8), "Taylor": (8,), "RK4": (8,)}


def case(batch=BATCH):
    rng = np.random.default_rng(0)
    return rng.normal(size=(batch, 5)), rng.normal(size=(batch, 2))


def solve(mesh, x0=None, **how):
    given, u = case(BATCH if x0 is None else len(x0))
    how = {"n_steps": 10, "dt": 0.1, "saveat": SAVEAT} | how
    return jd.simulate(CELL, given if x0 is None else x0, args=u, mesh=mesh, **how)


def sweep(**how):
    """With a chunk that does not divide by the number of devices."""
    undriven = jd.PoissonCell(W, jd.Tanh())
    return jd.sweep(undriven, case()[0], n_steps=10, dt=0.1, chunk=150, **how)


def fit(**how):
    signal = jd.signals.van_der_pol(mu=1.0, n_samples=120, dt=0.1)
    return jd.fit(signal, units=2, restarts=3, steps=50, polish=0, key=jr.key(0), **how)


def parameters(fit):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(fit.oscillator)])


def line_of(count):
    return Mesh(np.array(jax.devices()[:count]), ("b",))


def on_many_devices(out):
    """Run in a process of its own, with 8 devices."""
    assert jax.device_count() == DEVICES
    found = {}
    for name, solver in SOLVERS.items():
        for count in COUNTS[name]:
            found[f"{name} {count}"] = solve(line_of(count), solver=solver).ys
    square = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Explicit,) * 2)
    found["Strang square"] = solve(square, solver=SOLVERS["Strang"]).ys
    even = solve(line_of(8), case(4096)[0])
    # Each device keeps what it solved.
    assert even.ys.sharding.is_equivalent_to(
        NamedSharding(line_of(8), PartitionSpec(("b",))), even.ys.ndim
    )
    found["even"] = even.ys
    there = jax.device_put(case(4096)[0], NamedSharding(line_of(8), PartitionSpec("b")))
    found["sharded x0"] = solve(line_of(8), there).ys
    with pytest.raises(ValueError, match=r"`x0` is on .* not part of `mesh`"):
        solve(line_of(2), jax.device_put(case()[0], jax.devices()[5]))

    def loss(cell, adjoint):
        x0, u = case()
        how = {"n_steps": 10, "dt": 0.1, "adjoint": adjoint, "throw": False}
        return jnp.sum(jd.simulate(cell, x0, args=u, mesh=line_of(8), **how).ys ** 2)

    for name, adjoint in (("stored", None), ("reversed", jd.ReversibleAdjoint())):
        gradient = eqx.filter_jit(eqx.filter_grad(loss))(CELL, adjoint)
        found[f"gradient {name}"] = gradient.operator.entries
    found["fit 2"] = parameters(fit(mesh=line_of(2)))
    for count in (2, 8):
        swept = sweep(mesh=line_of(count))
        found |= {f"sweep {count} {name}": value for name, value in swept.arrays.items()}
    np.savez(out, **{name: np.asarray(value) for name, value in found.items()})


def in_many_processes(out):
    """Run in two processes at once, each with one device."""
    assert jax.device_count() == PROCESSES and jax.local_device_count() == 1
    sol = solve(line_of(PROCESSES), case(4096)[0])
    (shard,) = sol.ys.addressable_shards
    np.savez(out, start=shard.index[0].start or 0, ys=np.asarray(shard.data))
    np.testing.assert_array_equal(sol.ts, [0.0, 0.33, 1.0])
    folder = pathlib.Path(out).parent
    sweep(store=folder / "sweep.zarr")
    refused = RuntimeError if jax.process_index() else ValueError
    with pytest.raises(refused, match=r"first process could not|exists"):
        sweep(store=folder / "sweep.zarr")
    sweep(store=folder / "sweep.zarr", resume=True)
    if jax.process_index() == 1:
        Program.__call__ = None
    with pytest.raises(RuntimeError, match=r"Process 1 failed|Chunk 1, .* failed"):
        sweep(store=folder / "failed.zarr")
    linear = jd.PoissonCell(W, jd.Identity())
    how = {"solver": jd.Taylor(1), "dt": 10.0, "n_steps": 2000, "mesh": line_of(PROCESSES)}
    with pytest.raises(Exception, match="infinite or NaN"):
        jd.simulate(linear, np.ones((16, 5)), **how)


def start(*arguments, devices=1):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    env = os.environ | {"XLA_FLAGS": flags}
    env["PYTHONPATH"] = os.pathsep.join(
        [str(pathlib.Path(jd.__file__).parent.parent), env.get("PYTHONPATH", "")]
    )
    return subprocess.Popen([sys.executable, __file__, *map(str, arguments)], env=env)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    out = tmp_path_factory.mktemp("devices") / "found.npz"
    assert start("devices", out, devices=DEVICES).wait(300) == 0
    return dict(np.load(out))


@pytest.mark.parametrize("name", SOLVERS)
def test_numbers_do_not_depend_on_the_number_of_devices(many, name):
    here = solve(line_of(1), solver=SOLVERS[name]).ys
    for count in COUNTS[name]:
        np.testing.assert_array_equal(many[f"{name} {count}"], here)
    plain = solve(None, solver=SOLVERS[name]).ys
    np.testing.assert_allclose(here, plain, rtol=0, atol=4e-15)


def test_any_mesh_and_any_place_of_the_states(many):
    np.testing.assert_array_equal(many["Strang square"], many["Strang 8"])
    np.testing.assert_array_equal(many["sharded x0"], many["even"])
    np.testing.assert_array_equal(many["even"], solve(line_of(1), case(4096)[0]).ys)


def test_gradients_are_those_of_one_program(many):
    @eqx.filter_grad
    def gradient(cell):
        x0, u = case()
        return jnp.sum(jd.simulate(cell, x0, args=u, n_steps=10, dt=0.1).ys ** 2)

    exact = gradient(CELL).operator.entries
    for name in ("stored", "reversed"):
        np.testing.assert_allclose(many[f"gradient {name}"], exact, rtol=1e-12, atol=1e-12)


def test_two_processes_solve_their_halves(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outs = [tmp_path / f"{i}.npz" for i in range(PROCESSES)]
    running = [start("processes", out, port, i) for i, out in enumerate(outs)]
    try:
        assert [process.wait(120) for process in running] == [0] * PROCESSES
    finally:
        for process in running:
            process.kill()
    parts = sorted((dict(np.load(out)) for out in outs), key=lambda part: int(part["start"]))
    assert [int(part["start"]) for part in parts] == [0, 2048]
    stored = zarr.open_group(str(tmp_path / "sweep.zarr"), mode="r")
    for name, value in sweep().arrays.items():
        np.testing.assert_array_equal(stored[name][...], value)
    whole = np.concatenate([part["ys"] for part in parts])
    np.testing.assert_array_equal(whole, solve(line_of(1), case(4096)[0]).ys)


def test_a_sweep_does_not_depend_on_the_number_of_devices(many):
    for name, value in sweep().arrays.items():
        for count in (2, 8):
            np.testing.assert_array_equal(many[f"sweep {count} {name}"], value)


def test_a_fit_does_not_depend_on_the_number_of_devices(many):
    np.testing.assert_array_equal(many["fit 2"], parameters(fit(mesh=line_of(1))))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"x0": jnp.ones(5)}, ValueError, "`mesh` shares a batch"),
        ({"engine": jd.Threads()}, ValueError, "`mesh` and `engine`"),
        ({"progress": True}, ValueError, "`progress=True`"),
        ({"solver": diffrax.Tsit5()}, ValueError, "`mesh` is for solvers of ours"),
    ],
)
def test_bad_input(change, error, says):
    given = {"x0": case()[0], "mesh": line_of(1), "n_steps": 10, "dt": 0.1} | change
    with pytest.raises(error, match=says):
        jd.simulate(CELL, given.pop("x0"), args=jnp.ones(2), **given)


if __name__ == "__main__":
    {"devices": on_many_devices, "processes": in_many_processes}[sys.argv[1]](sys.argv[2])

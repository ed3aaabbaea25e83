"""A solve that cannot fit into memory is refused with the estimate, one that can is not."""

import timeit

import diffrax
import jax
import jax.numpy as jnp
import pytest

from jaxdyn._simulate import memory
from jaxdyn._simulate.memory import cgroup_limits, check_memory, host_memory, memory_of

X0 = jnp.zeros((128, 16))  # 16 KiB in float64
STEPS = diffrax.SaveAt(steps=10)
END = diffrax.SaveAt(t1=True)


@pytest.fixture
def limit(monkeypatch):
    def give(device, host):
        monkeypatch.setattr(memory, "memory_of", lambda devices: device)
        monkeypatch.setattr(memory, "host_memory", lambda: host)

    return give


@pytest.mark.parametrize(
    ("saveat", "n_steps", "saves"),
    [
        (END, 1000, 1),
        (STEPS, 1000, 100),
        (STEPS, 1009, 100),
        (diffrax.SaveAt(steps=10, t0=True), 1000, 101),
        (diffrax.SaveAt(steps=10, t1=True), 5, 1),
        (diffrax.SaveAt(ts=[0.0, 0.5, 1.0]), 1000, 3),
        (diffrax.SaveAt(steps=True), 0, 0),
        (diffrax.SaveAt(dense=True), 1000, 0),
        (diffrax.SaveAt(steps=True, fn=lambda t, x, args: x[0]), 1000, 0),
        (diffrax.SaveAt(subs=[END.subs, STEPS.subs]), 1000, 101),
    ],
)
def test_counts_the_state_and_what_is_saved(limit, saveat, n_steps, saves):
    needed = (1 + saves) * X0.nbytes
    limit(needed, None)
    check_memory(X0, saveat, n_steps)
    limit(needed - 1, None)
    with pytest.raises(ValueError, match=f"saved {saves} times"):
        check_memory(X0, saveat, n_steps)


@pytest.mark.parametrize(
    ("x0", "n_steps", "says"),
    [
        (jnp.zeros((2, 3)), 10**12, "fewer trajectories at a time or save less often or give `x0`"),
        (jnp.zeros((2, 3), jnp.float32), 10**12, "trajectories at a time or save less often or t"),
        (jnp.zeros((1, 3), jnp.float32), 10**12, "memory; save less often or take a device"),
        (jnp.zeros(3, jnp.float32), 10**12, "memory; save less often or take a device"),
        (jax.ShapeDtypeStruct((10**12, 3), jnp.float32), 1, "memory; simulate fewer trajectories"),
    ],
)
def test_says_what_to_do(limit, x0, n_steps, says):
    limit(2**34, 2**34)
    with pytest.raises(ValueError, match=r"`x0` of shape .*`saveat`.* GiB of 16\.0 GiB") as error:
        check_memory(x0, STEPS, n_steps)
    assert says in str(error.value)


def test_estimate_in_gib(limit):
    limit(2**34, None)
    with pytest.raises(ValueError, match=r"needs at least 2,048\.0 GiB of 16\.0 GiB of memory"):
        check_memory(X0, diffrax.SaveAt(steps=True), 2**27 - 1)


@pytest.mark.parametrize(
    ("device", "host", "fits"),
    [(100, 100, True), (100, 1, True), (1, 100, True), (99, 99, False), (None, 1, True)],
)
def test_traced_state_may_be_donated_and_lie_anywhere(limit, device, host, fits):
    scaled = [None if size is None else size * X0.nbytes for size in (device, host)]
    limit(*scaled)

    def trace(x):
        check_memory(x, STEPS, 1000)
        return x

    if fits:
        jax.eval_shape(trace, X0)
    else:
        with pytest.raises(ValueError, match="saved 100 times"):
            jax.eval_shape(trace, X0)


def test_unknown_memory_is_not_checked(limit):
    limit(None, None)
    check_memory(X0, STEPS, 10**15)


class Device:
    platform = "gpu"

    def __init__(self, limit, process_index=0):
        self.limit, self.process_index = limit, process_index

    def memory_stats(self):
        if isinstance(self.limit, Exception):
            raise self.limit
        return self.limit


@pytest.mark.parametrize(
    ("devices", "total"),
    [
        ([Device({"bytes_limit": 5}), Device({"bytes_limit": 7})], 12),
        ([Device({"bytes_limit": 5}), Device(None)], None),
        ([Device({"bytes_in_use": 5})], None),
        ([Device({"bytes_limit": 0})], None),
        ([Device(jax.errors.JaxRuntimeError("UNIMPLEMENTED"))], None),
        ([Device({"bytes_limit": 5}, process_index=1)], None),
    ],
)
def test_memory_of_accelerators(devices, total):
    assert memory_of(frozenset(devices)) == total


def test_cpu_devices_share_the_memory_of_the_host(monkeypatch):
    class Cpu:
        platform, process_index = "cpu", 0

    monkeypatch.setattr(memory, "host_memory", lambda: 7)
    assert memory_of(frozenset([Cpu(), Cpu()])) == 7
    assert memory_of(frozenset([Cpu(), Device({"bytes_limit": 5})])) == 12


def test_host_memory_is_what_this_machine_has():
    assert host_memory() is None or 2**26 < host_memory() < 2**60


def test_control_groups(tmp_path):
    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    write("user/session/memory.max", "max\n")
    write("user/memory.max", "3000\n")
    write("memory/memory.limit_in_bytes", "2000\n")
    assert cgroup_limits("0::/user/session\n", tmp_path) == [3000]
    assert cgroup_limits("0::/\n", tmp_path) == []
    old = "5:cpu,cpuacct:/a\n4:hugetlb,memory:/a/b\n"
    assert cgroup_limits(old, tmp_path) == [2000]
    assert cgroup_limits("", tmp_path) == []


def test_costs_microseconds():
    check_memory(X0, STEPS, 1000)
    # Measured: about 10 us; the rest is for a busy machine.
    assert min(timeit.repeat(lambda: check_memory(X0, STEPS, 1000), number=100)) < 100 * 200e-6

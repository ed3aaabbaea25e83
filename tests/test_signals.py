"""Signals against closed forms, DOP853, SciPy's WAV files and what they hold on the way to a file.

Users do not have the annotation checks of conftest.py, which would refuse some bad input before the
package does: those cases run once in a process of its own, as in test_bad_input.py.
"""

import dataclasses
import errno
import json
import math
import os
import re
import struct
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.io.wavfile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.integrate import solve_ivp

from jaxdyn._files import replacing
from jaxdyn._train import signals as s

# One process serves all cases of bad input: keep them on one worker.
pytestmark = pytest.mark.xdist_group("signals")

KEY = jr.key(0)
RAMP = np.arange(12.0)
IRREGULAR = np.sort(np.random.default_rng(0).uniform(0, 30, 200))


def same(a, b):
    return (
        np.array_equal(a.values, b.values)
        and np.array_equal(a.ts, b.ts)
        and np.array_equal(a.mask, b.mask)
        and (a.name, a.channels, a.time_unit) == (b.name, b.channels, b.time_unit)
    )


# Signal


def test_of_arrays_lists_and_jax_arrays():
    for values in ([1, 2, 4], np.array([1, 2, 4], np.int8), jnp.array([1.0, 2.0, 4.0])):
        signal = s.Signal.of(values, dt=0.5)
        assert signal.values.dtype == np.float64
        np.testing.assert_array_equal(signal.values, [[1.0], [2.0], [4.0]])
        np.testing.assert_array_equal(signal.ts, [0, 0.5, 1])
        assert signal.is_complete and signal.channels == ("x1",)
    assert s.Signal.of(jnp.array([1, 2], jnp.bfloat16), dt=1).values.dtype == np.float64
    assert s.Signal.of(np.array([1, 2], ">f4"), dt=1).values.dtype == np.dtype("=f4")
    assert s.Signal.of(signal) is signal


def test_of_keeps_its_own_copy():
    values, ts, mask = np.ones((3, 2)) * [[1], [2], [3]], np.arange(3.0), np.ones((3, 2), bool)
    signal = s.Signal.of(values, ts=ts, mask=mask, channels=["a", "b"])
    values[:], ts[:], mask[:] = 0, 0, False
    assert signal.values[1, 1] == 2 and signal.ts[1] == 1 and signal.is_complete
    with pytest.raises(ValueError, match="read-only"):
        signal.values[0, 0] = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        signal.name = "other"


def test_what_was_not_measured_is_zero():
    values = np.array([[1.0, math.nan], [2.0, 5.0], [math.inf, 6.0]])
    mask = np.array([[True, False], [True, True], [False, True]])
    signal = s.Signal.of(values, dt=1, mask=mask)
    np.testing.assert_array_equal(signal.values, [[1, 0], [2, 5], [0, 6]])
    assert not signal.is_complete and "2 missing" in repr(signal)
    rows = s.Signal.of(RAMP, dt=1, mask=RAMP != 3)
    np.testing.assert_array_equal(rows.mask[:, 0], RAMP != 3)


def test_dt_is_none_for_irregular_times():
    ts = np.arange(400) * 0.05
    assert s.Signal.of(ts, ts=ts).dt == pytest.approx(0.05, rel=1e-14)
    ts[7] += 2e-7  # 4e-6 of a step
    assert s.Signal.of(ts, ts=ts).dt is None


def test_split_and_window():
    signal = s.Signal.of(RAMP, dt=0.5)
    for tail in (0.25, 3):
        head, last = signal.split(tail)
        np.testing.assert_array_equal(head.values[:, 0], RAMP[:9])
        np.testing.assert_array_equal(last.ts, 0.5 * RAMP[9:])
        assert last.duration == 1.0 and last.n_samples == 3
    part = signal.window(2, 5)
    np.testing.assert_array_equal(part.values[:, 0], [2, 3, 4])
    assert part.dt == 0.5


def test_noise_has_the_power_asked_for():
    signal = s.tones([1.0, 2.7], channels=2, amplitude=[[1.0, 0.5], [30.0, 1.0]], n_samples=20_000)
    noisy = signal.with_noise(7.0, key=KEY)
    noise = noisy.values - signal.values
    ratio = 10 * np.log10(np.var(signal.values, axis=0) / np.var(noise, axis=0))
    # The variance of 20000 draws has a relative spread of 1 %, which is 0.04 dB.
    np.testing.assert_allclose(ratio, 7.0, atol=0.2)
    assert abs(np.corrcoef(noise.T)[0, 1]) < 0.04
    with jax.enable_x64(False):
        assert same(noisy, signal.with_noise(7, key=KEY))
    single = s.Signal.of(signal.values.astype(np.float32), dt=1).with_noise(7, key=KEY)
    assert single.values.dtype == np.float32


def test_noise_leaves_missing_samples_alone():
    signal = s.tones([1.0], n_samples=2000).drop(0.5, key=KEY)
    noisy = signal.with_noise(0, key=KEY)
    assert np.all(noisy.values[~noisy.mask] == 0) and np.array_equal(noisy.mask, signal.mask)
    noise = (noisy.values - signal.values)[signal.mask]
    assert np.var(noise) == pytest.approx(np.var(signal.values[signal.mask]), rel=0.2)


def test_drop_takes_a_share_of_each_channel():
    signal = s.tones([1.0], channels=3, n_samples=200)
    dropped = signal.drop(0.3, key=KEY)
    np.testing.assert_array_equal(np.sum(dropped.mask, axis=0), 140)
    assert not np.array_equal(dropped.mask[:, 0], dropped.mask[:, 1])
    np.testing.assert_array_equal(dropped.values, np.where(dropped.mask, signal.values, 0))
    again = dropped.drop(0.5, key=jr.key(1))
    np.testing.assert_array_equal(np.sum(again.mask, axis=0), 70)
    assert np.all(dropped.mask[again.mask])


# Generators


@pytest.mark.parametrize("ts", [None, IRREGULAR], ids=["uniform", "irregular"])
def test_tones_are_the_formula(ts):
    omega, amplitude = [1.0, 2.5, 4.0], [1.0, 0.5, 0.2]
    signal = s.tones(omega, amplitude=amplitude, channels=4, n_samples=200, dt=0.1, ts=ts)
    t = 0.1 * np.arange(200) if ts is None else ts
    np.testing.assert_array_equal(signal.ts, t)
    for c in range(4):
        turns = (3 * c + np.arange(3)) * (math.sqrt(5) - 1) / 2
        terms = amplitude * np.sin(np.outer(t, omega) + 2 * np.pi * (turns % 1))
        np.testing.assert_allclose(signal.values[:, c], terms.sum(axis=1), atol=1e-13)
    given = s.tones(2.0, amplitude=3, phase=[[0.0], [1.0]], channels=2, ts=ts)
    np.testing.assert_allclose(given.values[:, 1], 3 * np.sin(2 * given.ts + 1), atol=1e-13)


def test_channels_of_tones_differ():
    values = s.tones([1.3], channels=60).values
    gaps = np.abs(values[:, :, None] - values[:, None, :]).max(axis=0) + 9 * np.eye(60)
    assert gaps.min() > 0.02


def test_lissajous_closes_and_crosses():
    signal = s.lissajous(3, 2, omega=2.0, n_samples=1001, dt=math.pi / 1000)
    x, y = signal.values.T
    np.testing.assert_allclose(signal.values[0], signal.values[-1], atol=1e-13)
    assert np.sum(np.diff(np.sign(x)) != 0) == 6 and np.sum((y[1:] > 0) != (y[:-1] > 0)) == 4
    assert x[0] == 1 and y[0] == 0


def test_amplitude_modulated_has_three_lines():
    n, period = 4000, 2 * math.pi
    signal = s.amplitude_modulated(20.0, 3.0, 0.6, n_samples=n, dt=period / n)
    spectrum = 2 * np.abs(np.fft.rfft(signal.values[:, 0])) / n
    np.testing.assert_allclose(spectrum[[17, 20, 23]], [0.3, 1.0, 0.3], atol=1e-12)
    spectrum[[17, 20, 23]] = 0
    assert spectrum.max() < 1e-12


def test_quasi_periodic_is_sum_and_product():
    signal = s.quasi_periodic(1.2, amplitude=2.0)
    a = np.sin(1.2 * signal.ts)
    b = np.sin(1.2 * 1.618033988749895 * signal.ts)
    np.testing.assert_allclose(signal.values, np.stack([a + b, 2 * a * b], axis=1), atol=1e-13)
    assert signal.channels == ("sum", "product")


@pytest.mark.parametrize("mu", [1.0, 0.3, 6.0])
def test_van_der_pol_solves_its_equation(mu):
    signal = s.van_der_pol(mu, channels=2, ts=IRREGULAR)
    solution = solve_ivp(
        lambda t, y: [y[1], mu * (1 - y[0] ** 2) * y[1] - y[0]],
        (IRREGULAR[0], IRREGULAR[-1]),
        signal.values[0],
        method="DOP853",
        t_eval=IRREGULAR,
        rtol=1e-13,
        atol=1e-13,
    )
    # Over 30 time units DOP853's own error is 1e-11.
    np.testing.assert_allclose(signal.values, solution.y.T, atol=1e-9)
    assert abs(signal.values[0, 1]) < 1e-12 and signal.values[0, 0] > 1.99


def test_period_of_van_der_pol():
    period = 6.663286859323
    # Maxima of x: x is even about them to second order, and returns to the first value.
    signal = s.van_der_pol(channels=2, ts=period * np.arange(12))
    np.testing.assert_allclose(signal.values - signal.values[0], 0, atol=1e-9)
    assert signal.values[0, 0] == pytest.approx(2.00861986087484, abs=1e-10)
    one = s.van_der_pol(n_samples=4001, dt=0.01)
    x = one.values[:, 0]
    up = np.flatnonzero((x[:-1] < 0) & (x[1:] >= 0))

    def crossing(i):
        # Four points about the crossing; the interpolation error is (0.01)^4 x'''' / 40.
        t, v = one.ts[i - 1 : i + 3], x[i - 1 : i + 3]
        return np.polyval(np.polyfit(v, t - t[1], 3), 0.0) + t[1]

    times = [crossing(i) for i in up]
    np.testing.assert_allclose(np.diff(times), period, atol=1e-7)


def test_fitzhugh_nagumo_solves_its_equation():
    signal = s.fitzhugh_nagumo(channels=2)
    solution = solve_ivp(
        lambda t, y: [y[0] - y[0] ** 3 / 3 - y[1] + 0.5, (y[0] + 0.7 - 0.8 * y[1]) / 12.5],
        (0, signal.ts[-1]),
        signal.values[0],
        method="DOP853",
        t_eval=signal.ts,
        rtol=1e-13,
        atol=1e-13,
    )
    np.testing.assert_allclose(signal.values, solution.y.T, atol=1e-9)
    # On the cycle from the start: all maxima are one.
    v = s.fitzhugh_nagumo(n_samples=4000, dt=0.05).values[:, 0]
    top = v[1:-1][(v[1:-1] > v[:-2]) & (v[1:-1] >= v[2:])]
    assert len(top) == 5 and np.ptp(top) < 1e-3
    np.testing.assert_allclose(top, v[0], atol=1e-3)


@pytest.mark.parametrize("mu", [0.5, 0.0, -0.7, 1e-12, 40.0])
def test_stuart_landau_solves_its_equation(mu):
    ts = np.linspace(3.0, 15.0, 90)
    signal = s.stuart_landau(mu, -2.0, radius=0.4, phase=0.3, ts=ts)
    solution = solve_ivp(
        lambda t, y: [
            (mu - y[0] ** 2 - y[1] ** 2) * y[0] + 2 * y[1],
            (mu - y[0] ** 2 - y[1] ** 2) * y[1] - 2 * y[0],
        ],
        (3.0, 15.0),
        [0.4 * math.cos(0.3), 0.4 * math.sin(0.3)],
        method="DOP853",
        t_eval=ts,
        rtol=1e-12,
        atol=1e-14,
    )
    np.testing.assert_allclose(signal.values, solution.y.T, atol=1e-9)


def test_generators_do_not_depend_on_x64():
    with jax.enable_x64(False):
        single = s.van_der_pol(n_samples=50)
    assert same(single, s.van_der_pol(n_samples=50)) and single.values.dtype == np.float64


def test_sunspots():
    signal = s.sunspots()
    year = dict(zip(signal.ts.tolist(), signal.values[:, 0].tolist(), strict=True))
    assert (signal.n_samples, signal.dt, signal.time_unit) == (309, 1.0, "year")
    assert (year[1700], year[1957], year[2008]) == (5.0, 190.2, 2.9)
    # Sum and maximum of what statsmodels 0.15 bundles.
    assert max(year, key=year.get) == 1957
    assert sum(year.values()) == pytest.approx(15373.399999999998, abs=1e-9)
    assert signal.channels == ("sunspot number",) and signal.name == "sunspots"


# Files


def written(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("suffix", [".csv", ".npy"])
def test_round_trip(tmp_path, suffix):
    signal = s.tones([1.0, 2.0], channels=3, ts=IRREGULAR).drop(0.2, key=KEY)
    names = ("a;b", 'c,"d"', "Größe m²")
    signal = dataclasses.replace(signal, name="x: y # z", channels=names, time_unit="µs")
    path = tmp_path / f"signal{suffix}"
    s.write(path, signal)
    back = s.read(str(path), time=0 if suffix == ".npy" else None)
    if suffix == ".npy":
        back = dataclasses.replace(back, name=signal.name, channels=names, time_unit="µs")
    assert same(signal, back)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    values=arrays(np.float64, (5, 2), elements=st.floats(-1e150, 1e150)),
    steps=arrays(np.float64, 5, elements=st.floats(1e-6, 1e6)),
    lost=arrays(bool, (5, 2)),
    channel=st.text(min_size=1, max_size=8).filter(
        lambda c: c.isprintable() and c == c.strip() and c != "x"
    ),
)
def test_csv_keeps_every_bit(values, steps, lost, channel):
    try:
        channels = [channel, "x"]
        signal = s.Signal.of(values, ts=np.cumsum(steps), mask=~lost, channels=channels)
    except ValueError:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "signal.csv")
        s.write(path, signal)
        assert same(s.read(path), signal)


def test_wav_round_trip(tmp_path):
    path = tmp_path / "signal.wav"
    signal = s.tones([300.0, 711.0], channels=2, n_samples=801, dt=1 / 8000)
    s.write(path, signal)
    rate, data = scipy.io.wavfile.read(path)
    assert rate == 8000 and data.dtype == np.float32
    np.testing.assert_array_equal(data, signal.values.astype(np.float32))
    back = s.read(path)
    np.testing.assert_array_equal(back.values, data)
    assert back.dt == pytest.approx(1 / 8000, rel=1e-12) and back.time_unit == "s"


@pytest.mark.parametrize("kind", ["u1", "<i2", "<i4", "<f4", "<f8"])
def test_wav_of_scipy(tmp_path, kind):
    path, dtype = tmp_path / "a.wav", np.dtype(kind)
    raw = np.random.default_rng(1).uniform(-1, 1, (101, 3))
    integer = dtype.kind != "f"
    if integer:
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        raw = np.round((raw + 1) / 2 * (high - low) + low).clip(low, high)
        raw[0], raw[1] = low, high
    raw = raw.astype(dtype)
    scipy.io.wavfile.write(path, 44_100, raw)
    signal = s.read(path)
    half = 2.0 ** (8 * dtype.itemsize - 1)
    expected = (raw.astype(float) - (half if kind == "u1" else 0)) / half if integer else raw
    np.testing.assert_array_equal(signal.values, expected)
    assert np.max(np.abs(signal.values)) <= 1
    assert signal.dt == pytest.approx(1 / 44_100, rel=1e-12)


def riff(tag, bits, body, *, channels=1, rate=8000, frame=None, extra=b"", before=b""):
    frame = channels * bits // 8 if frame is None else frame
    fmt = struct.pack("<HHIIHH", tag, channels, rate, rate * frame, frame, bits) + extra
    chunks = before + b"fmt " + struct.pack("<I", len(fmt)) + fmt
    chunks += b"data" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


EXTENSION = bytes.fromhex("1600 1400 00000000 0100 000000001000800000aa00389b71")


@pytest.mark.parametrize("extensible", [False, True])
def test_wav_of_24_bits(tmp_path, extensible):
    numbers = [-(2**23), 2**23 - 1, 0, -1, 4711, -4712]
    body = b"".join(n.to_bytes(3, "little", signed=True) for n in numbers)
    # A chunk of odd length in front, with its byte of padding.
    before = b"LIST" + struct.pack("<I", 3) + b"abc\0"
    tag, extra = (0xFFFE, EXTENSION) if extensible else (1, b"")
    path = written(tmp_path, "a.wav", riff(tag, 24, body, channels=2, extra=extra, before=before))
    expected = np.reshape(numbers, (3, 2)) / 2**23
    np.testing.assert_array_equal(s.read(path).values, expected)
    if not extensible:
        _, data = scipy.io.wavfile.read(written(tmp_path, "b.wav", riff(1, 24, body, channels=2)))
        np.testing.assert_array_equal(data / 2**31, expected)


TABLES = {
    "header and commas": ("t,a,b\n0,1,2\n1,3,5\n", {}),
    "time last, in capitals": ("a,b,TIME\n1,2,0\n3,5,1\n", {}),
    "semicolons": ("t; a; b\n0; 1; 2\n1; 3; 5\n", {}),
    "tabs": ("t\ta\tb\n0\t1\t2\n1\t3\t5\n", {}),
    "blanks": ("  t  a b\n 0  1 2\n 1  3 5\n", {}),
    "quotes": ('"t", "a","b"\n"0","1",2\n1,3,5\n', {}),
    "comments and blank lines": ("# from: me\n\nt,a,b\n\n0,1,2\n# half\n1,3,5\n\n\n", {}),
    "byte order mark, returns": ("\ufefft,a,b\r\n0,1,2\r\n1,3,5", {}),
    "no time": ("a,b\n1,2\n3,5\n", {"dt": 1}),
    "time by number": ("a,b,c\n1,0,2\n3,1,5\n", {"time": 1}),
    "time by name": ("a,clock,b\n1,0,2\n3,1,5\n", {"time": "clock"}),
    "channels by name": ("t,x,b,a\n0,9,2,1\n1,9,5,3\n", {"channels": ["a", "b"]}),
    "channels by number": ("t,x,b,a\n0,9,2,1\n1,9,5,3\n", {"channels": [3, 2]}),
    "names that are numbers": ("t,1,2\n0,1,2\n1,3,5\n", {}),
    "bare": ("1,2\n3,5\n", {"dt": 1}),
    "bare with time": ("0 1 2\n1 3 5\n", {"time": 0}),
}


@pytest.mark.parametrize("table", TABLES)
def test_tables(tmp_path, table):
    text, options = TABLES[table]
    signal = s.read(written(tmp_path, "my table.txt", text), **options)
    np.testing.assert_array_equal(signal.values, [[1, 2], [3, 5]])
    np.testing.assert_array_equal(signal.ts, [0, 1])
    assert signal.name == "my table" and signal.is_complete
    if "bare" in table:
        assert signal.channels == ("x1", "x2")


def test_empty_cells_are_missing(tmp_path):
    text = "t\ta\tb\n0\t1\t\n1\tnan\t2\n2\t3\tNA\n3\t\t\n4\t5\t6\n"
    for name in ("a.tsv", "a.csv"):
        signal = s.read(written(tmp_path, name, text))
        expected = [[1, 0], [0, 1], [1, 0], [0, 0], [1, 1]]
        np.testing.assert_array_equal(signal.mask, np.array(expected, bool))
        np.testing.assert_array_equal(signal.values, [[1, 0], [0, 2], [3, 0], [0, 0], [5, 6]])
    # A line of nothing but tabs is a sample that is missing, not an empty line.
    signal = s.read(written(tmp_path, "b.tsv", "1\t2\n\t\n3\t4\n"), dt=1)
    np.testing.assert_array_equal(signal.mask[:, 0], [True, False, True])


@pytest.mark.parametrize("dtype", [">f8", "<f4", "u1", "<f2"])
def test_arrays(tmp_path, dtype):
    path, values = tmp_path / "a.npy", np.arange(10).reshape(5, 2).astype(dtype)
    np.save(path, np.asfortranarray(values))
    np.testing.assert_array_equal(s.read(path, dt=2).values, values)
    np.save(path, values[:, 0])
    signal = s.read(path, dt=2)
    np.testing.assert_array_equal(signal.values, values[:, :1])
    assert signal.dt == 2


def test_a_failure_leaves_the_file_as_it_was(tmp_path):
    path = written(tmp_path, "a.wav", b"precious")
    with pytest.raises(ValueError, match="whole number"):
        s.write(path, s.Signal.of(RAMP, dt=math.pi))
    with pytest.raises(RuntimeError), replacing(path) as file:
        file.write(b"half")
        raise RuntimeError
    with replacing(path):
        pass
    assert path.read_bytes() == b"precious" and os.listdir(tmp_path) == ["a.wav"]


def test_replacing(tmp_path):
    path, link = tmp_path / "a.txt", tmp_path / "link.txt"
    link.symlink_to("a.txt")
    mask = os.umask(0o027)
    try:
        with replacing(link, "w") as file:
            file.write("µ\n")
            assert not path.exists()
    finally:
        os.umask(mask)
    assert path.read_bytes() == "µ\n".encode() and link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    # What is for the owner only stays so.
    path.chmod(0o600)
    with replacing(path, "w") as file:
        file.write("again")
    assert path.stat().st_mode & 0o777 == 0o600 and path.read_text() == "again"
    for bad in (tmp_path / "missing" / "a.txt", tmp_path, "/dev/null"):
        with pytest.raises(OSError) as caught, replacing(bad):
            pass
        assert caught.value.filename == os.fspath(bad)
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "link.txt"]


def test_a_full_disk_is_an_error_of_the_file_asked_for(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    path = tmp_path / "a.csv"
    with pytest.raises(OSError, match=r"a\.csv"):
        s.write(path, s.Signal.of(RAMP, dt=1))
    assert os.listdir(tmp_path) == []


# Bad input


class Case(NamedTuple):
    what: str
    call: Callable[[Any], Any]
    error: str
    match: str

    @property
    def id(self) -> str:
        return self.what


T, V = "TypeError", "ValueError"
NAN, INF = math.nan, math.inf
HOLED = np.array([1.0, NAN, 3.0])


def of(*args, **options):
    return lambda _: s.Signal.of(*args, **options)


def on(method, *args, **options):
    return lambda _: getattr(s.Signal.of(RAMP, dt=1.0), method)(*args, **options)


def made(function, *args, **options):
    return lambda _: getattr(s, function)(*args, **options)


def file(name, content, **options):
    """Reads a file of that content; messages name it as it was given."""

    def call(folder):
        os.chdir(folder)
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return s.read(name, **options)

    return call


def path_of(name, **options):
    def call(folder):
        os.chdir(folder)
        Path("folder.csv").mkdir(exist_ok=True)
        return s.read(name, **options)

    return call


def saved(name, signal):
    def call(folder):
        os.chdir(folder)
        return s.write(name, signal)

    return call


def npy(value, cut=0, **options):
    def call(folder):
        os.chdir(folder)
        np.save("a.npy", value, allow_pickle=True)
        content = Path("a.npy").read_bytes()
        Path("a.npy").write_bytes(content[: len(content) - cut])
        return s.read("a.npy", **options)

    return call


def fifo(folder):
    os.mkfifo(Path(folder, "pipe.csv"))
    return s.read(Path(folder, "pipe.csv"), dt=1)


HEADER = b"\x93NUMPY\x01\x00v\x00"
HUGE = b"{'descr': '<f8', 'fortran_order': False, 'shape': (9999999999999,), }"
SIGNAL = s.Signal.of(RAMP, dt=1.0)
MASKED = np.ma.masked_array(RAMP, RAMP > 5)
BYTES16 = struct.pack("<4h", 1, 2, 3, 5)

REFUSED = [
    Case("text", of("abc", dt=1), T, "`values` must hold real numbers, got text; convert"),
    Case("list of text", of(["1", "2"], dt=1), T, "`values` must hold real numbers, got text"),
    Case("complex", of(RAMP * 1j, dt=1), T, "`values` .* complex numbers; convert"),
    Case("truth values", of([True, False], dt=1), T, "`values` .* truth values; convert"),
    Case("objects", of([1.0, None], dt=1), T, "`values` .* objects; convert"),
    Case("dates", of(np.arange(3).astype("M8[D]"), dt=1), T, "`values` .*datetime.*; convert"),
    Case("a key", of(KEY, dt=1), V, "`values` must be an array of real numbers"),
    Case("masked array", of(MASKED, dt=1), T, "`values` is a masked array; give .*mask="),
    Case("ragged", of([[1.0, 2.0], [3.0]], dt=1), V, "`values` .* rows of equal length"),
    Case("three axes", of(np.ones((2, 2, 2)), dt=1), V, r"`values` must have shape \(t,\) or"),
    Case("a number", of(1.0, dt=1), V, r"`values` must have shape \(t,\) or"),
    Case("no channels", of(np.ones((3, 0)), dt=1), V, r"`values` must have shape .* \(3, 0\)"),
    Case("empty", of([], dt=1), V, "`values` must hold at least 2 samples, got 0"),
    Case("one sample", of([1.0], dt=1), V, "`values` must hold at least 2 samples, got 1"),
    Case("traced", lambda _: jax.jit(of_traced)(RAMP), T, "`values` has no value yet .* outside"),
    Case("no time", of(RAMP), V, "Give `dt` or `ts`, exactly one"),
    Case("both times", of(RAMP, dt=1, ts=RAMP), V, "Give `dt` or `ts`, exactly one"),
    Case("dt array", of(RAMP, dt=np.ones(12)), T, "`dt` .* single real number, got an array"),
    Case("dt text", of(RAMP, dt="1"), T, r"`dt` must be a single real number, .*float\(dt\)"),
    Case("dt zero", of(RAMP, dt=0), V, "`dt` must be > 0, got 0"),
    Case("dt negative", of(RAMP, dt=-1.0), V, "`dt` must be > 0"),
    Case("dt NaN", of(RAMP, dt=NAN), V, "`dt` must be finite"),
    Case("dt True", of(RAMP, dt=True), T, "`dt` must be a single real number"),
    Case("dt overflows", of(RAMP, dt=1e308), V, "`dt` .* finite, got 1e\\+308; use a larger unit"),
    Case("ts short", of(RAMP, ts=RAMP[1:]), V, r"`ts` must have shape \(12,\), one time per"),
    Case("ts equal", of(RAMP, ts=RAMP // 2), V, "`ts` must be strictly increasing, got 0.0 and"),
    Case("ts reversed", of(RAMP, ts=-RAMP), V, "`ts` .* increasing.*; sort the samples"),
    Case("ts NaN", of([1, 2, 3], ts=HOLED), V, "`ts` must be finite, got nan at sample 1; drop"),
    Case("ts too wide", of([1, 2], ts=[-1e308, 1e308]), V, "`ts` must span a finite time; use"),
    Case("NaN", of(HOLED, dt=1), V, r"`values` has NaN at sample 1 .*mask=~np.isnan\(values\)"),
    Case("NaN measured", of(HOLED, dt=1, mask=[True] * 3), V, "`values` has NaN .* set `mask`"),
    Case("infinite", of([1, INF, 2], dt=1), V, "`values` must be finite, got inf at sample 1"),
    Case("mask of integers", of(RAMP, dt=1, mask=[1] * 12), T, "`mask` must hold truth values"),
    Case("mask too short", of(RAMP, dt=1, mask=[True]), V, r"`mask` must have shape \(12,\) or"),
    Case("all masked", of(RAMP, dt=1, mask=RAMP < 1), V, "'x1' of `values` has fewer than 2 meas"),
    Case("constant", of(RAMP * 0 + 3, dt=1), V, r"'x1' of `values` is constant \(3\).* leave it"),
    Case(
        "constant where measured",
        of(np.stack([RAMP, RAMP > 5], 1) * 1.0, dt=1, mask=RAMP > 5, channels=["a", "step"]),
        V,
        "Channel 'step' of `values` is constant",
    ),
    Case("overflow", of(RAMP * 1e155, dt=1), V, "`values` .* squared and summed in float64.*div"),
    Case("overflow in float32", of(np.float32(RAMP) * 1e19, dt=1), V, "summed in float32"),
    Case("underflow", of(RAMP * 1e-200, dt=1), V, "`values` varies by .* float64; multiply it"),
    Case("few names", of(RAMP, dt=1, channels=["a", "b"]), V, "`channels` must hold 1 names"),
    Case("name text", of(RAMP, dt=1, channels="a"), T, "`channels` must be a list of names"),
    Case("equal names", of(np.outer(RAMP, [1, 2]), dt=1, channels=["a", "a"]), V, "differ .*'a'"),
    Case("name of two lines", of(RAMP, dt=1, name="a\nb"), V, "`name` must be one line of text"),
    Case("unit is number", of(RAMP, dt=1, time_unit=1), T, "`time_unit` must be text"),
    Case("Signal with dt", of(SIGNAL, dt=1), V, "`values` is a Signal, .*; leave `dt`"),
    Case("split 1.0", on("split", 1.0), V, "`tail` must be a share below 1 or a whole number"),
    Case("split 0", on("split", 0.0), V, "`tail` must be > 0"),
    Case("split 11", on("split", 11), V, "`tail` must leave at least 2 samples in either part"),
    Case("split little", on("split", 0.1), V, "`tail` must leave .* 1 in the tail"),
    Case("split text", on("split", "a"), T, "`tail` must be a whole number"),
    Case("window reversed", on("window", 5, 3), V, "`stop` must be >= 7 and <= 12, got 3"),
    Case("window beyond", on("window", 0, 13), V, "`stop` must be >= 2 and <= 12, got 13"),
    Case("window before", on("window", -3, 5), V, "`start` must be >= 0"),
    Case("noise NaN", on("with_noise", NAN, key=KEY), V, "`db` must be finite"),
    Case("noise too loud", on("with_noise", -1e4, key=KEY), V, "`db` .* give a larger ratio"),
    Case("noise without key", on("with_noise", 3, key=0), T, r"`key` .*jax.random.key\(0\)"),
    Case("noise with keys", on("with_noise", 3, key=jr.split(KEY)), T, "`key` must be one random"),
    Case("drop all", on("drop", 0.95, key=KEY), V, "`fraction` must leave a signal.* smaller one"),
    Case("drop negative", on("drop", -0.1, key=KEY), V, "`fraction` must be >= 0"),
    Case("omega zero", made("tones", 0.0), V, "`omega` must be finite and > 0"),
    Case("omega text", made("tones", "a"), T, "`omega` must hold real numbers, got text"),
    Case("omega empty", made("tones", []), V, r"`omega` must have shape \(k,\), k >= 1"),
    Case("omega too fast", made("tones", [1.0, 70.0]), V, "`dt` = 0.05 is too long .*; give a"),
    Case("amplitudes", made("tones", [1.0, 2.0], amplitude=[1.0] * 3), V, "`amplitude` .*shape"),
    Case("phase NaN", made("tones", [1.0], phase=NAN), V, "`phase` must be finite"),
    Case("channels zero", made("tones", [1.0], channels=0), V, "`channels` must be >= 1, got 0"),
    Case("one to make", made("tones", [1.0], n_samples=1), V, "`n_samples` must be >= 2, got 1"),
    Case("half to make", made("tones", [1.0], n_samples=2.5), T, "`n_samples` .* whole number"),
    Case("times", made("tones", [1.0], ts=[0.0, 0.0]), V, "`ts` must be strictly increasing"),
    Case("p zero", made("lissajous", 0), V, "`p` must be >= 1"),
    Case("q half", made("lissajous", 3, 2.5), T, "`q` must be a whole number"),
    Case("depth", made("amplitude_modulated", 5, 1, 1.5), V, "`depth` must be >= 0 and <= 1"),
    Case("carrier", made("amplitude_modulated", -5, 1, 1), V, "`carrier` must be > 0, got -5"),
    Case("quasi", made("quasi_periodic", INF), V, "`omega` must be finite"),
    Case("mu", made("van_der_pol", 0.0), V, "`mu` must be >= 0.01 and <= 100, got 0"),
    Case("three channels", made("van_der_pol", channels=3), V, "`channels` must be >= 1 and <= 2"),
    Case("far", made("van_der_pol", dt=1e12), V, "`ts` .* fewer than 10000000 steps.*shorter"),
    Case("in jit", lambda _: jax.jit(inside)(1.0), V, "host.* cannot be .* inside jit; make them"),
    Case("quiet", made("fitzhugh_nagumo", 0.0), V, "`current`.* stable state of rest;.* 0.34 to"),
    Case("bistable", made("fitzhugh_nagumo", b=3.0), V, "`current`, .* 3 states of rest; .*give"),
    Case("tau", made("fitzhugh_nagumo", tau=-1.0), V, "`tau` must be >= 0.01"),
    Case("no rotation", made("stuart_landau", 1.0, 0.0), V, "`omega` must not be 0"),
    Case(
        "radius", made("stuart_landau", 1.0, 1.0, radius=0), V, "`radius` must be > 0 and .*, got 0"
    ),
    # Files
    Case("missing", path_of("no.csv"), "FileNotFoundError", "No such file.*'no.csv'"),
    Case("folder", path_of("folder.csv"), "IsADirectoryError", "give a file: 'folder.csv'"),
    Case("pipe", fifo, V, "pipe.csv is not an ordinary file; save its content"),
    Case("no name", path_of(3), T, "`path` must be the name of a file, got 3"),
    Case("suffix", path_of("a.xls"), V, r"`path` .* ends in \.csv, .*'a.xls'"),
    Case("zero byte in name", path_of("a\0.csv"), V, "`path` must be the name of a file"),
    Case("empty file", file("a.csv", ""), V, "a.csv is empty; give a file"),
    Case("comments only", file("a.csv", "# a\n\n"), V, "a.csv holds no numbers; give one line"),
    Case("header only", file("a.csv", "t,a\n"), V, "a.csv: `values` must hold at least 2 samples"),
    Case("too large", file("a.csv", "1\n2\n", dt=1, max_bytes=3), V, "a.csv has 4 .*`max_bytes`"),
    Case("no limit", file("a.csv", "1\n2\n", dt=1, max_bytes=0), V, "`max_bytes` must be >= 1"),
    Case("latin-1", file("a.csv", "t,Größe\n".encode("latin1")), V, "a.csv is not text in UTF-8;"),
    Case("binary", file("a.csv", bytes(range(100))), V, "a.csv is not text, .*; save it as CSV"),
    Case("ragged rows", file("a.csv", "t,a\n0,1\n1,2,3\n"), V, "line 3: has 3 cells .* has 2; giv"),
    Case(
        "text cell", file("a.csv", "t,a\n0,1\n1,x y\n"), V, "line 3, column 2: 'x y' is not a num"
    ),
    Case("text in row 1", file("a.csv", "1,x\n2,3\n", dt=1), V, "line 1, column 2: 'x' is not a"),
    Case("comma", file("a.csv", "t;a\n0;1,5\n"), V, "'1,5' is not a number; write .* a point"),
    Case("underscore", file("a.csv", "t,a\n0,1_0\n1,2\n"), V, "'1_0' is not a number; give"),
    Case("infinite cell", file("a.csv", "t,a\n0,1e999\n"), V, "'1e999' is not finite; give"),
    Case("open quote", file("a.csv", 't,a\n0,"1\n1,2\n'), V, "line 2: has a quoted cell .*; close"),
    Case("empty line", file("a.csv", "1\n\n2\n", dt=1), V, "line 2: empty; write nan"),
    Case("times back", file("a.csv", "t,a\n\n1,1\n0,2\n"), V, "line 4: the time 0.0 .* 1.0; sort"),
    Case("time missing", file("a.csv", "t,a\n0,1\n,2\n"), V, "line 3: has no finite time; give"),
    Case("time alone", file("a.csv", "t\n0\n1\n"), V, "a.csv has no column but that of the times"),
    Case("no dt", file("a.csv", "a,b\n0,1\n1,2\n"), V, "a.csv has no column .*give `dt`.*`time`"),
    Case("needless dt", file("a.csv", "t,a\n0,1\n1,2\n", dt=1), V, "`dt` must be left out.*'t'"),
    Case("dt and time", file("a.csv", "0,1\n1,2\n", dt=1, time=0), V, "`dt` and `time` must not"),
    Case("no such name", file("a.csv", "t,a\n0,1\n", time="b"), V, r"`time` .*\('t', 'a'\), got"),
    Case("no such number", file("a.csv", "t,a\n0,1\n", time=2), V, "`time` must be >= 0 and <= 1"),
    Case("no header", file("a.csv", "0,1\n1,2\n", time="t"), V, "`time` .*number.* no header"),
    Case("channel", file("a.csv", "t,a\n0,1\n1,2\n", channels=["b"]), V, "`channels` .*got 'b'"),
    Case("channel text", file("a.csv", "t,a\n0,1\n", channels="a"), T, "`channels` must be a list"),
    Case("time channel", file("a.csv", "t,a\n0,1\n1,2\n", channels=["t"]), V, "`channels` .*leave"),
    Case("flat column", file("a.csv", "t,a\n0,1\n1,1\n"), V, "a.csv: Channel 'a' .* constant"),
    Case("npy without dt", npy(RAMP), V, "a.npy has no column .* give `dt`"),
    Case("npy of objects", npy(np.array([{}, 1])), V, "a.npy holds objects, not real numbers"),
    Case("npy of complex", npy(RAMP * 1j, dt=1), V, "a.npy holds complex128, not real numbers"),
    Case("npy of three axes", npy(np.ones((2, 2, 2)), dt=1), V, r"shape \(2, 2, 2\); give"),
    Case("npy truncated", npy(RAMP, cut=3, dt=1), V, "a.npy is truncated .* 96 bytes and 93"),
    Case("npy cut in header", npy(RAMP, cut=150, dt=1), V, "a.npy is not a .npy file or is dam"),
    Case("npy with huge claim", file("a.npy", HEADER + HUGE.ljust(118)), V, "a.npy is truncated"),
    Case("npy of zip", file("a.npy", b"PK\3\4" + bytes(40), dt=1), V, "a.npy is not a .npy file"),
    Case("npy times", npy(np.ones((3, 2)), time=0), V, "a.npy, sample 1: the time 1.0 does not"),
    Case("no wav", file("a.wav", b"OggS" + bytes(40)), V, "a.wav is not a RIFF/WAVE .*b'OggS'; s"),
    Case("A-law", file("a.wav", riff(6, 8, b"abcd")), V, r"a.wav .* 0x0006 \(A-law\) .*; save it"),
    Case("ADPCM", file("a.wav", riff(2, 4, b"abcd", frame=1)), V, r"0x0002 \(ADPCM\)"),
    Case("12 bits", file("a.wav", riff(1, 12, b"abcd", frame=2)), V, r"0x0001 \(PCM\) with 12"),
    Case("wav cut", file("a.wav", riff(1, 16, BYTES16)[:-2]), V, "a.wav is truncated: .* 8 bytes"),
    Case("half frame", file("a.wav", riff(1, 16, BYTES16[:7])), V, "a.wav is damaged: its 7 bytes"),
    Case("no rate", file("a.wav", riff(1, 16, BYTES16, rate=0)), V, "a.wav is damaged.* 0 samples"),
    Case("wide frame", file("a.wav", riff(1, 24, bytes(12), frame=4)), V, "damaged: .* 4 bytes"),
    Case("no data", file("a.wav", riff(1, 16, BYTES16)[:36]), V, "a.wav .* no 'data' chunk; save"),
    Case("wav dt", file("a.wav", riff(1, 16, BYTES16), dt=1), V, "`dt` and `time` .*its own rate"),
    Case("silence", file("a.wav", riff(1, 16, bytes(8))), V, "a.wav: Channel 'x1' .* constant"),
    Case("write array", saved("a.csv", RAMP), T, "`signal` must be a Signal, .*; make one with"),
    Case("write text", saved("a.txt", SIGNAL), V, "`path` must end in .csv, .npy or .wav"),
    Case("nowhere", saved("no/a.csv", SIGNAL), "FileNotFoundError", "'no/a.csv'"),
    Case("wav rate", saved("a.wav", s.Signal.of(RAMP, dt=0.7)), V, "`signal` .*1/dt.* whole num"),
    Case("wav slow", saved("a.wav", s.Signal.of(RAMP, dt=3)), V, "`signal` .*change the time unit"),
    Case("wav holes", saved("a.wav", SIGNAL.drop(0.3, key=KEY)), V, "`signal` has missing .*fill"),
    Case("wav irregular", saved("a.wav", s.tones(1.0, ts=[0, 1, 3])), V, "`signal` .* resample it"),
    Case(
        "wav loud", saved("a.wav", s.Signal.of(RAMP * 1e40, dt=1)), V, "32-bit floats in a.wav; d"
    ),
    Case("wav faint", saved("a.wav", s.Signal.of(RAMP * 1e-40, dt=1)), V, "32-bit floats in a.wav"),
]


def of_traced(values):
    return s.Signal.of(values, dt=1)


def inside(x):
    s.van_der_pol()
    return x


def report() -> dict[str, Any]:
    """The classes and the message of the error of each call, or the value it returns."""
    outcomes = {}
    for case in REFUSED:
        with (
            tempfile.TemporaryDirectory() as folder,
            warnings.catch_warnings(record=True) as caught,
        ):
            warnings.simplefilter("always")
            try:
                outcome = {"returned": repr(case.call(folder))}
            except Exception as error:
                kinds = [kind.__name__ for kind in type(error).__mro__]
                outcome = {"kinds": kinds, "message": str(error)}
            os.chdir("/")
        outcomes[case.id] = {**outcome, "warnings": [str(w.message) for w in caught]}
    return outcomes


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Any]:
    # Long solves: here XLA's optimisations take less than they give.
    env = {**os.environ, "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, __file__]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.id)
def test_refused(outcomes, case):
    outcome = outcomes[case.id]
    assert "message" in outcome, f"returned {outcome['returned']}"
    message = outcome["message"]
    assert case.error in outcome["kinds"], f"{outcome['kinds'][0]}: {message}"
    assert re.search(case.match, message), message
    assert "\n" not in message and len(message) < 400 and not outcome["warnings"], outcome


def test_cases_are_named_apart():
    assert len({case.id for case in REFUSED}) == len(REFUSED)


if __name__ == "__main__":
    print(json.dumps(report()))

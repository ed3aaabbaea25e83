"""The yardstick: yardstick.c, compiled for this very processor and called through ctypes.

A few hundred lines of C do nothing but this problem, so no general package should be expected to
beat it. Its tanh costs less than that of the C library's vector library, and is as exact.
"""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from . import Problem, Solve

FLAGS = "-std=gnu11 -O3 -march=native -ffast-math -fopenmp -fPIC".split()
# Not with -ffast-math: linked so, loading the library would flush subnormal numbers of all Python.
LINK = "-shared -fopenmp".split()
# GCC's own choice is half of that where a processor has both.
WIDE = "-mprefer-vector-width=512"


def missing() -> str | None:
    if shutil.which("cc") is None:
        return "C (no C compiler: install gcc or clang, as the command cc)"
    try:
        _library()
    except (subprocess.CalledProcessError, OSError) as error:
        said = (getattr(error, "stderr", None) or str(error)).splitlines()
        why = next((line for line in said if "error" in line), said[0])
        return f"C (cc does not compile it: {why.rpartition('error: ')[2]}; install gcc)"
    return None


def rk4(problem: Problem, steps: int) -> Solve:
    return _solve("rk4", problem, steps)


def strang(problem: Problem, steps: int) -> Solve:
    return _solve("strang", problem, steps)


def tanh(x: np.ndarray) -> np.ndarray:
    """The tanh it uses, of a flat array whose length fills whole vectors."""
    out = np.empty_like(x)
    _function("tanh_array", x.dtype)(_pointer(x), _pointer(out), ctypes.c_long(x.size))
    return out


def _solve(method: str, problem: Problem, steps: int) -> Solve:
    function = _function(method, problem.x0.dtype)
    W, x0 = (np.ascontiguousarray(a) for a in (problem.W, problem.x0))
    b, n = x0.shape
    x1 = np.empty_like(x0)
    numbers = ctypes.c_double(problem.t1 / steps), ctypes.c_long(steps)

    def solve():
        function(
            ctypes.c_int(n), ctypes.c_long(b), _pointer(W), _pointer(x0), _pointer(x1), *numbers
        )
        return x1

    return solve


def _function(name: str, dtype):
    function = getattr(_library(), f"{name}_{'f32' if dtype == np.float32 else 'f64'}")
    function.restype = None
    return function


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@functools.cache
def _library() -> ctypes.CDLL:
    """Compiled into a folder that is gone again once the library is loaded."""
    source = Path(__file__).with_name("yardstick.c")
    with tempfile.TemporaryDirectory() as folder:
        part, out = Path(folder) / "yardstick.o", Path(folder) / "yardstick.so"

        def cc(*arguments: str | Path) -> None:
            subprocess.run(["cc", *arguments], check=True, capture_output=True, text=True)

        try:
            cc(*FLAGS, WIDE, "-c", source, "-o", part)
        except subprocess.CalledProcessError:
            cc(*FLAGS, "-c", source, "-o", part)
        cc(*LINK, part, "-o", out, "-lm")
        return ctypes.CDLL(str(out))

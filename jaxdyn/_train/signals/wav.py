"""RIFF/WAVE.

Microsoft and IBM: Multimedia Programming Interface and Data Specifications 1.0 (1991), with the
extensible format of mmreg.h (1999).
"""

import math
import struct
from typing import Any

import numpy as np
from jaxtyping import Float

_PCM, _FLOAT, _EXTENSIBLE = 0x0001, 0x0003, 0xFFFE
_TAGS = {0x0002: "ADPCM", 0x0006: "A-law", 0x0007: "mu-law", 0x0011: "IMA ADPCM", 0x0055: "MP3"}
# The rest of the 16 bytes that name a format when the first two are its tag.
_GUID = bytes.fromhex("000000001000800000aa00389b71")
_LARGEST = 2**32 - 1
# Below this, samples of 32 bits are subnormal or have lost digits.
_FAINTEST = 1e-30


def parse(data: bytes, path: str) -> tuple[Float[np.ndarray, "t m"], int]:
    """The samples and the sample rate in hertz; integers are scaled to [-1, 1]."""
    if len(data) < 12 or data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise ValueError(
            f"{path} is not a RIFF/WAVE file, it begins with {data[:4]!r}; save it as "
            "uncompressed WAV."
        )
    chunks = _chunks(data, path)
    for name in (b"fmt ", b"data"):
        if name not in chunks:
            raise ValueError(f"{path} is damaged: it has no {name.decode()!r} chunk; save it anew.")
    dtype, channels, rate = _format(chunks[b"fmt "], path)
    body = chunks[b"data"]
    width = 3 if dtype == "i3" else np.dtype(dtype).itemsize
    if len(body) % (width * channels):
        raise ValueError(
            f"{path} is damaged: its {len(body)} bytes of data are no whole number of samples of "
            f"{channels} channels of {width} bytes; save it anew."
        )
    return _scaled(body, dtype).reshape(-1, channels), rate


def _chunks(data: bytes, path: str) -> dict[bytes, memoryview]:
    """The first chunk of each name, up to the data."""
    view, at, chunks = memoryview(data), 12, {}
    while at + 8 <= len(data) and b"data" not in chunks:
        name, size = struct.unpack_from("<4sI", data, at)
        if at + 8 + size > len(data):
            raise ValueError(
                f"{path} is truncated: its {name.decode('latin1')!r} chunk should have {size} "
                f"bytes and has {len(data) - at - 8}; copy or save it anew."
            )
        chunks.setdefault(name, view[at + 8 : at + 8 + size])
        at += 8 + size + size % 2
    return chunks


def _format(chunk: memoryview, path: str) -> tuple[str, int, int]:
    """The NumPy type ("i3" for 24 bits), the number of channels and the sample rate."""
    if len(chunk) < 16:
        raise ValueError(f"{path} is damaged: its 'fmt ' chunk is too short; save it anew.")
    tag, channels, rate, _, frame, bits = struct.unpack_from("<HHIIHH", chunk)
    if tag == _EXTENSIBLE:
        if len(chunk) < 40 or chunk[26:40] != _GUID:
            raise ValueError(
                f"{path} has an unknown extensible WAV format; save it as PCM or float."
            )
        (tag,) = struct.unpack_from("<H", chunk, 24)
    types = {
        (_PCM, 8): "u1",
        (_PCM, 16): "<i2",
        (_PCM, 24): "i3",
        (_PCM, 32): "<i4",
        (_FLOAT, 32): "<f4",
        (_FLOAT, 64): "<f8",
    }
    if (tag, bits) not in types:
        kind = _TAGS.get(tag, {_PCM: "PCM", _FLOAT: "float"}.get(tag, "unknown"))
        raise ValueError(
            f"{path} has WAV format tag 0x{tag:04x} ({kind}) with {bits} bits, which is not read; "
            "save it as PCM of 8, 16, 24 or 32 bits or float of 32 or 64."
        )
    if channels == 0 or rate == 0 or frame != channels * bits // 8:
        raise ValueError(
            f"{path} is damaged: it has {channels} channels of {bits} bits, {frame} bytes for a "
            f"sample of all, and {rate} samples per second; save it anew."
        )
    return types[tag, bits], channels, rate


def _scaled(body: memoryview, dtype: str) -> np.ndarray:
    if dtype == "i3":
        # The upper three of four bytes: the lowest is 0, and the sign comes along.
        whole = np.zeros((len(body) // 3, 4), np.uint8)
        whole[:, 1:] = np.frombuffer(body, np.uint8).reshape(-1, 3)
        return whole.reshape(-1).view("<i4") / 2.0**31
    raw = np.frombuffer(body, dtype)
    if dtype == "u1":
        return (raw.astype(np.float64) - 128) / 128
    if raw.dtype.kind == "i":
        return raw / 2.0 ** (8 * raw.itemsize - 1)
    return raw.astype(raw.dtype.newbyteorder("="))


def save(file: Any, values: Float[np.ndarray, "t m"], dt: float | None, path: str) -> None:
    """Writes samples as 32-bit floats."""
    if dt is None:
        raise ValueError(
            f"`signal` must have uniform times to be written to {path}; resample it or write .csv."
        )
    rate = round(1 / dt) if 1 / dt < _LARGEST else 0
    if rate == 0 or not math.isclose(rate * dt, 1, rel_tol=1e-3):
        raise ValueError(
            f"`signal` has 1/dt = {1 / dt:.6g} samples per time unit, and {path} keeps a whole "
            f"number from 1 to {_LARGEST} only (to a thousandth); change the time unit or write "
            ".csv."
        )
    largest = float(np.max(np.abs(values)))
    if largest > float(np.finfo(np.float32).max) or 0 < largest < _FAINTEST:
        raise ValueError(
            f"`signal` reaches {largest:.3g}, beyond the 32-bit floats in {path}; divide it by its "
            "scale or write .csv."
        )
    samples, channels = values.shape
    size = 4 * samples * channels
    if size + 50 > _LARGEST or channels > 65535 // 4:
        raise ValueError(
            f"`signal` is too large for {path}: WAV ends at 4 GiB and {65535 // 4} channels; write "
            "it in parts or as .npy."
        )
    # 18 bytes of format and a 'fact' chunk: what all formats but PCM must have.
    fmt = struct.pack("<HHIIHHH", _FLOAT, channels, rate, 0, 4 * channels, 32, 0)
    fmt = fmt[:8] + struct.pack("<I", min(4 * channels * rate, _LARGEST)) + fmt[12:]
    file.write(struct.pack("<4sI4s", b"RIFF", 50 + size, b"WAVE"))
    file.write(struct.pack("<4sI", b"fmt ", len(fmt)) + fmt)
    file.write(struct.pack("<4sII", b"fact", 4, samples))
    file.write(struct.pack("<4sI", b"data", size))
    file.write(np.ascontiguousarray(values, "<f4").tobytes())

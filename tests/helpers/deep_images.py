"""PNG and TIFF files of any depth, written sample by sample: Pillow writes few of them."""

import struct
import zlib

import numpy as np


def png(samples: np.ndarray, significant: int | None = None) -> dict:
    """A 16-bit PNG of samples (height, width[, channels]); `significant` bits are said in `sBIT`."""
    height, width = samples.shape[:2]
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = [(b"IHDR", header)]
    if significant is not None:
        chunks.append((b"sBIT", bytes([significant] * channels)))
    chunks += [(b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    content = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)
    return {"bytes": content, "path": None}


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def tiff(samples: np.ndarray, photometric: int | None = None, planar: bool = False, **tags: tuple[int, ...]) -> dict:
    """An uncompressed TIFF of samples (height, width[, channels]), of their dtype and byte order.

    Args:
        photometric: 0 white is zero, 1 black is zero, 2 RGB, 5 CMYK, 8 LAB; the usual one if None.
        planar: channel after channel.
        tags: more tags, as `t338=(2,)`, of 16-bit numbers; they replace ours.
    """
    height, width = samples.shape[:2]
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    order = ">" if samples.dtype.byteorder == ">" else "<"
    photometric = (1 if channels < 3 else 2) if photometric is None else photometric
    parts = [samples[..., channel].tobytes() for channel in range(channels)] if planar else [samples.tobytes()]
    entries: dict[int, tuple[str, tuple[int, ...]]] = {
        256: ("H", (width,)),
        257: ("H", (height,)),
        258: ("H", (8 * samples.dtype.itemsize,) * channels),
        259: ("H", (1,)),
        262: ("H", (photometric,)),
        273: ("I", (0,) * len(parts)),
        277: ("H", (channels,)),
        278: ("H", (height,)),
        279: ("I", tuple(map(len, parts))),
        284: ("H", (2 if planar else 1,)),
        339: ("H", ({"u": 1, "i": 2, "f": 3}[samples.dtype.kind],) * channels),
    }
    entries |= {int(name[1:]): ("H", values) for name, values in tags.items()}

    def packed(number: int) -> bytes:
        letter, values = entries[number]
        return struct.pack(f"{order}{len(values)}{letter}", *values)

    beside = 8 + 2 + 12 * len(entries) + 4  # where values lie that do not fit into an entry
    places = {}
    for number in entries:
        if len(packed(number)) > 4:
            places[number], beside = beside, beside + len(packed(number))
    starts = [beside + sum(map(len, parts[:index])) for index in range(len(parts))]
    entries[273] = ("I", tuple(starts))
    directory = struct.pack(f"{order}H", len(entries))
    for number in sorted(entries):
        letter, values = entries[number]
        value = struct.pack(f"{order}I", places[number]) if number in places else packed(number).ljust(4, b"\0")
        directory += struct.pack(f"{order}HHI", number, {"H": 3, "I": 4}[letter], len(values)) + value
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    content = start + directory + bytes(4) + b"".join(packed(number) for number in places) + b"".join(parts)
    return {"bytes": content, "path": None}

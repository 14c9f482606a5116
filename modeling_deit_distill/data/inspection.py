"""Images are decoded before anything is trained, so that a broken one does not show after hours; it is remembered."""

import contextlib
import json
import os
from collections.abc import Callable
from importlib.metadata import version
from multiprocessing.pool import ThreadPool
from pathlib import Path

import datasets
import numpy as np
from datasets import Dataset
from tqdm import tqdm

from ..errors import InputError
from ..files import sha256, write_json
from .bad_images import BadImages
from .columns import image_paths
from .datasets import encoded_row
from .decoding import BadImageError, decode_image, decode_pixels

SAMPLE = 256  # training images that are tried
MAX_THREADS = 32


def try_held_out(rows: Dataset, on_bad_image: str = "warn", max_fraction: float = 0.01, show: bool = True) -> list[int]:
    """Decode all held-out images, and name those that are bad.

    Args:
        rows: with `image`.
        on_bad_image, max_fraction: as for [`BadImages`].
        show: a bar.

    Returns:
        The rows that cannot be read.

    Raises:
        InputError: too many are bad, all are, or any with `on_bad_image="error"`.
    """
    bad = unreadable(rows, decode_image, "held-out images" if show else None)
    words = {"kind": "held-out ", "consequence": "it is left out of the measurement", "decode": decode_image}
    BadImages(rows, on_bad_image, max_fraction, **words).note(bad)
    if len(bad) == len(rows):
        raise InputError(f"none of the {len(bad)} held-out image(s) can be read; mend them, or hold out others")
    return bad


def try_sample(rows: Dataset, on_bad_image: str = "warn", max_fraction: float = 0.01, show: bool = True):
    """Decode some training images, evenly spaced, and name those that are bad; as [`try_held_out`]."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(int))
    bad = unreadable(rows.select(chosen), decode_pixels, "training images" if show else None)
    BadImages(rows, on_bad_image, max_fraction).note(chosen[bad].tolist())


def readable(rows: Dataset, bad: list[int]) -> Dataset:
    """The rows but for the bad ones."""
    return rows.select(np.setdiff1d(np.arange(len(rows)), bad)) if bad else rows


def unreadable(rows: Dataset, decode: Callable, description: str | None = None) -> list[int]:
    """The rows whose images cannot be decoded. What could be once is not decoded again as long as it is the same.

    Args:
        rows: with `image`.
        decode: what they are decoded with.
        description: of the bar; None for no bar.
    """
    memory = _memory(rows, decode)
    tried = range(len(rows))
    if memory.exists():  # only what was bad, which a library may read by now
        tried = json.loads(memory.read_text())["bad"]

    def is_bad(row: int) -> bool:
        try:
            decode(encoded_row(rows, row)[0])
        except BadImageError:
            return True
        return False

    # Threads: decoders let others run meanwhile, and neither a fork beside a GPU nor spawned imports are needed.
    with ThreadPool(min(len(os.sched_getaffinity(0)), MAX_THREADS)) as pool:
        shown = tqdm(pool.imap(is_bad, tried, 8), description, len(tried), disable=description is None, delay=1)
        bad = [row for row, each in zip(tried, shown, strict=True) if each]
    with contextlib.suppress(OSError):  # a disk that is full or read-only: they are decoded again next time
        write_json(memory, {"bad": bad}, indent=None)
    return bad


def _memory(rows: Dataset, decode: Callable) -> Path:
    """The file that remembers rows: another one if a file among them changes."""
    digest = [rows._fingerprint, decode.__name__, *map(version, ("pillow", "torchvision"))]
    for path in image_paths(rows, only_files=True).to_pylist():
        try:
            state = path and os.stat(path)
        except OSError:
            state = None
        digest.append(f"{path} {state and (state.st_size, state.st_mtime_ns)}")
    folder = Path(datasets.config.HF_DATASETS_CACHE, "modeling_deit_distill")
    return folder / f"{sha256(chr(10).join(digest).encode())[:32]}.json"

"""Images are decoded before anything is trained, so that a broken one does not show after hours; it is remembered."""

import contextlib
import json
import math
import os
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path

import datasets
import numpy as np
from datasets import Dataset
from tqdm import tqdm
from transformers.utils import logging

from ..errors import InputError
from ..files import sha256, write_json
from .bad_images import BadImages, describe_row, why_bad
from .columns import image_paths
from .datasets import encoded_row
from .decoding import BadImageError, decode_pixels, decoder_versions, decoding_notes, encoded_bytes, jpeg_size
from .scaled import LARGE

logger = logging.get_logger(__name__)
NUM_NAMED = 3  # images that a message names
SAMPLE = 256  # training images that are tried
NUM_SIZES = 64  # training images whose size is looked at
MAX_THREADS = 32


def has_large_photographs(rows: Dataset) -> bool:
    """Whether at least half of some images, evenly spaced, are JPEGs of `LARGE` pixels or more; reads headers.

    Images that cannot be read count as small.
    """
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(NUM_SIZES, len(rows))).astype(int)).tolist()
    num_large = 0
    for row in chosen:
        with contextlib.suppress(BadImageError, OSError):
            size = jpeg_size(encoded_bytes(encoded_row(rows, row)[0]))
            num_large += size is not None and math.prod(size[:2]) >= LARGE
    return 2 * num_large >= len(chosen)


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
    bad, notes = looked_at(rows, decoding_notes, "held-out images" if show else None)
    _warn_of_assumptions(rows, notes, f"{len(rows):,} held-out images")
    words = {"kind": "held-out ", "consequence": "it is left out of the measurement", "decode": decoding_notes}
    BadImages(rows, on_bad_image, max_fraction, **words).note(bad)
    if len(bad) == len(rows):
        raise InputError(
            f"none of the {len(bad)} held-out image(s) can be read; the first, {describe_row(rows, 0)}: "
            f"{why_bad(rows, 0, decoding_notes)}; repair or remove them, or hold out others"
        )
    return bad


def try_sample(rows: Dataset, on_bad_image: str = "warn", max_fraction: float = 0.01, show: bool = True):
    """Decode some training images, evenly spaced, and name those that are bad; as [`try_held_out`]."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(int))
    bad, notes = looked_at(rows.select(chosen), _pixels_and_notes, "training images" if show else None)
    _warn_of_assumptions(rows, {int(chosen[row]): note for row, note in notes.items()}, f"{len(chosen)} images tried")
    BadImages(rows, on_bad_image, max_fraction).note(chosen[bad].tolist(), num_shown=len(chosen))


def readable(rows: Dataset, bad: list[int]) -> Dataset:
    """The rows but for the bad ones."""
    return rows.select(np.setdiff1d(np.arange(len(rows)), bad)) if bad else rows


def looked_at(rows: Dataset, decode: Callable, description: str | None = None) -> tuple[list[int], dict[int, str]]:
    """The rows whose images cannot be decoded, and what was assumed about others.

    What could be decoded once is not decoded again as long as it is the same.

    Args:
        rows: with `image`.
        decode: from an encoded image to what was assumed about it, as [`decoding_notes`].
        description: of the bar; None for no bar.
    """
    memory, known = _memory(rows, decode), {"bad": range(len(rows)), "notes": {}}
    if memory.exists():  # only what was bad is tried again: a library may read it by now
        known = json.loads(memory.read_text())

    def notes_of(row: int) -> list[str] | None:
        """What was assumed about a row's image; None if it cannot be decoded."""
        try:
            return decode(encoded_row(rows, row)[0])
        except BadImageError:
            return None

    bad, notes = [], {int(row): note for row, note in known["notes"].items()}
    # Threads: decoders let others run meanwhile, and neither a fork beside a GPU nor spawned imports are needed.
    with ThreadPool(min(os.cpu_count() or 1, MAX_THREADS)) as pool:
        found = zip(known["bad"], pool.imap(notes_of, known["bad"], 8), strict=True)
        is_off = True if description is None else None  # None: outside a terminal
        for row, words in tqdm(found, description, len(known["bad"]), disable=is_off, delay=1):
            if words is None:
                bad.append(row)
            elif words:
                notes[row] = "; ".join(words)
    with contextlib.suppress(OSError):  # a disk that is full or read-only: they are decoded again next time
        write_json(memory, {"bad": bad, "notes": notes}, indent=None)
    return bad, notes


def _pixels_and_notes(image: dict) -> list[str]:
    """Notes of an image that both decoders read: training's is not that of [`decoding_notes`]."""
    decode_pixels(image)
    return decoding_notes(image)


def _warn_of_assumptions(rows: Dataset, notes: dict[int, str], of_which: str):
    if notes:
        first = [f"{describe_row(rows, row)}: {note}" for row, note in list(notes.items())[:NUM_NAMED]]
        more = f"; and {len(notes) - NUM_NAMED:,} others" if len(notes) > NUM_NAMED else ""
        logger.warning(f"{len(notes):,} of {of_which} are shown by an assumption. {'; '.join(first)}{more}")


def _memory(rows: Dataset, decode: Callable) -> Path:
    """The file that remembers rows: another one if a file among them changes."""
    digest = [rows._fingerprint, decode.__name__, *decoder_versions()]
    for path in image_paths(rows, only_files=True).to_pylist():
        try:
            state = path and os.stat(path)
        except OSError:
            state = None
        digest.append(f"{path} {state and (state.st_size, state.st_mtime_ns)}")
    folder = Path(datasets.config.HF_DATASETS_CACHE, "modeling_deit_distill")
    return folder / f"{sha256(chr(10).join(digest).encode())[:32]}.json"

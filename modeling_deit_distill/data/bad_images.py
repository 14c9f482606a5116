"""Images that cannot be read, and why: each is named once, and too many end the run."""

import math
import os
from collections.abc import Callable

from datasets import Dataset
from transformers.utils import logging

from ..errors import LocalInputError
from .decoding import BadImageError, decode_pixels

logger = logging.get_logger(__name__)
STREAM_TRIAL = 1000  # images of a stream before it is judged by its bad ones
ALWAYS_ALLOWED = 5  # a share of a small set would be less than an image
ROUNDING = 1e-9  # of a share that is written as a decimal number
NUM_NAMED = 10  # images that an error names
_said: set[str] = set()  # in this process: the teacher's training meets the same images as the student's


class BadImages:
    """Which rows could not be read: each is named once, and too many end the run.

    Args:
        rows: the training split of [`ImageData`]; None for a stream, which has no length.
        on_bad_image: `"warn"`, or `"error"` to stop at the first.
        max_fraction: of the rows; with more than that, and more than `ALWAYS_ALLOWED`, unreadable, the run stops.
        num_processes: each of which sees its share of the rows.
        kind, consequence: words for a message: which images they are, and what is done about a bad one.
        decode: what could not decode them.
    """

    def __init__(
        self,
        rows: Dataset | None,
        on_bad_image: str = "warn",
        max_fraction: float = 0.01,
        num_processes: int = 1,
        kind: str = "",
        consequence: str = "another is shown in its place",
        decode: Callable = decode_pixels,
    ):
        self.rows = rows
        self.on_bad_image = on_bad_image
        self.max_fraction = max_fraction
        self.kind, self.consequence, self.decode = kind, consequence, decode
        self.num_processes = num_processes
        self.num_shown = 0
        self.seen: set[int | str] = set()

    def note(self, bad: list[int] | list[str], num_shown: float = 0):
        """Take note of a batch's unreadable rows; of a stream, what is wrong with which, in words.

        They are judged by the images that were shown, to which the `num_shown` of the batch are added: at least this
        process's share of the rows, at most all rows.

        Raises:
            InputError: at the first with `on_bad_image="error"`, or when there are too many.
        """
        self.num_shown += num_shown
        new = [row for row in dict.fromkeys(bad) if row not in self.seen]
        self.seen.update(new)
        messages = [self._message(row) for row in new]
        if messages and self.on_bad_image == "error":
            raise LocalInputError(f"{messages[0]}; repair it or move it away, or give --on_bad_image warn")
        if len(self.seen) > max(self.max_fraction * self._num_judged() + ROUNDING, ALWAYS_ALLOWED):
            raise LocalInputError(self._too_many())
        for message in messages:
            words = f"{message}; {self.consequence}"
            if words not in _said:
                logger.warning(words)
            _said.add(words)

    def _message(self, row: int | str) -> str:
        """What is wrong with an image; of a stream the row says so itself."""
        if self.rows is None:
            return row
        return f"{self.kind}{describe_row(self.rows, row)} is a bad image: {why_bad(self.rows, row, self.decode)}"

    def _too_many(self) -> str:
        number, rows = len(self.seen), sorted(self.seen)
        named = [str(row) if self.rows is None else describe_row(self.rows, row) for row in rows]
        # Nothing was logged yet; and often all have one cause, such as a package that is missing.
        reason = "" if self.rows is None else f"; the first: {why_bad(self.rows, rows[0], self.decode)}"
        more = f", and {number - NUM_NAMED:,} others" if number > NUM_NAMED else ""
        return (
            f"{number:,} {self.kind}images cannot be read, more than {ALWAYS_ALLOWED} and than "
            f"--max_bad_image_fraction {self.max_fraction:g} of {self._num_judged():,.0f}: "
            f"{', '.join(named[:NUM_NAMED])}{more}{reason}; repair these or move them away, or give "
            f"--max_bad_image_fraction {self._share_to_allow():g}"
        )

    def _share_to_allow(self) -> float:
        """The share that would have allowed what was seen so far, and as many of what was not; one digit of it."""
        seen_of = min(self.num_shown, self._num_judged()) or self._num_judged()
        share = max(len(self.seen) / max(seen_of, len(self.seen)), math.nextafter(self.max_fraction, 1))
        digit = 10.0 ** math.floor(math.log10(share))
        return min(math.ceil(share / digit - ROUNDING) * digit, 1.0)

    def _num_judged(self) -> float:
        """How many images the unreadable ones are a part of. A process sees others of the rows in each epoch."""
        if self.rows is None:
            return max(self.num_shown, STREAM_TRIAL)
        return min(max(self.num_shown, len(self.rows) / self.num_processes), len(self.rows))


def describe_row(rows: Dataset, row: int) -> str:
    """A row in words: its file, or its number and the name that its file had in the data."""
    path = (rows[int(row)]["image"] or {}).get("path")
    if path and os.path.dirname(path):
        return path
    return f"row {row}" + (f" ({path})" if path else "")


def why_bad(rows: Dataset, row: int, decode: Callable = decode_pixels) -> str:
    """What is wrong with the image of a row that could not be read, in words."""
    try:
        decode(rows[int(row)]["image"])
    except BadImageError as error:
        return str(error)
    return "it could not be read before, and can be now"

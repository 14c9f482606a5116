"""Images that cannot be read, and why: each is named once, and too many end the run."""

from collections.abc import Callable

from datasets import Dataset
from transformers.utils import logging

from ..errors import LocalInputError
from .decoding import BadImageError, decode_pixels

logger = logging.get_logger(__name__)
STREAM_TRIAL = 1000  # images of a stream before it is judged by its bad ones


class BadImages:
    """Which rows could not be read: each is named once, and too many end the run.

    Args:
        rows: the training split of [`ImageData`]; None for a stream, which has no length.
        on_bad_image: `"warn"`, or `"error"` to stop at the first.
        max_fraction: of the rows; with more than that (and more than one) unreadable, the run stops.
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
        for row in bad:
            if row in self.seen:
                continue
            self.seen.add(row)
            message = row
            if self.rows is not None:
                why = why_bad(self.rows, row, self.decode)
                message = f"{self.kind}{describe_row(self.rows, row)} is a bad image: {why}"
            if self.on_bad_image == "error":
                raise LocalInputError(f"{message}; mend or remove it, or set on_bad_image to warn")
            logger.warning(f"{message}; {self.consequence}")
        if len(self.seen) > max(self.max_fraction * self._num_judged(), 1):
            raise LocalInputError(
                f"{len(self.seen)} {self.kind}images are bad, more than max_bad_image_fraction {self.max_fraction:g} "
                "allows; mend the dataset, or allow more"
            )

    def _num_judged(self) -> float:
        """How many images the unreadable ones are a part of. A process sees others of the rows in each epoch."""
        if self.rows is None:
            return max(self.num_shown, STREAM_TRIAL)
        return min(max(self.num_shown, len(self.rows) / self.num_processes), len(self.rows))


def describe_row(rows: Dataset, row: int) -> str:
    """A row in words: its number and, where it has one, its file."""
    image = rows[int(row)]["image"]
    return f"row {row}" + (f" ({image['path']})" if image and image["path"] else "")


def why_bad(rows: Dataset, row: int, decode: Callable = decode_pixels) -> str:
    """What is wrong with a row's image, in words; empty if nothing is."""
    try:
        decode(rows[int(row)]["image"])
    except BadImageError as error:
        return str(error)
    return ""

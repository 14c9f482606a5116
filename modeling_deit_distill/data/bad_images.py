"""Training images that cannot be read, and why."""

from datasets import Dataset
from transformers.utils import logging

from ..errors import LocalInputError
from .decoding import BadImageError, decode_pixels

logger = logging.get_logger(__name__)
STREAM_TRIAL = 1000  # images of a stream before it is judged by its bad ones


class BadImages:
    """Which rows could not be read: each is named once, and too many end the run.

    The rows are the training split of [`ImageData`]; None for a stream, which has no length. Each process sees its
    share. With more than `max_fraction` of it (and more than one) unreadable the run stops; with `on_bad_image` of
    `"error"` at the first.
    """

    def __init__(
        self, rows: Dataset | None, on_bad_image: str = "warn", max_fraction: float = 0.01, num_processes: int = 1
    ):
        self.rows = rows
        self.on_bad_image = on_bad_image
        self.max_fraction = max_fraction
        self.num_images = len(rows) / num_processes if rows is not None else STREAM_TRIAL
        self.num_shown = 0
        self.seen: set[int | str] = set()

    def note(self, bad: list[int] | list[str], num_shown: float = 0):
        """Take note of a batch's unreadable rows; of a stream, what is wrong with which, in words.

        A stream's are judged by `num_shown`, the images in the batch.

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
                message = f"{describe_row(self.rows, row)} is a bad image: {why_bad(self.rows, row)}"
            if self.on_bad_image == "error":
                raise LocalInputError(f"{message}; mend or remove it, or set on_bad_image to warn")
            logger.warning(f"{message}; another is shown in its place")
        num_images = self.num_images if self.rows is not None else max(self.num_shown, self.num_images)
        if len(self.seen) > max(self.max_fraction * num_images, 1):
            raise LocalInputError(
                f"{len(self.seen)} images are bad, more than max_bad_image_fraction {self.max_fraction:g} allows; mend "
                "the dataset, or allow more"
            )


def describe_row(rows: Dataset, row: int) -> str:
    """A row in words: its number and, where it has one, its file."""
    image = rows[int(row)]["image"]
    return f"row {row}" + (f" ({image['path']})" if image and image["path"] else "")


def why_bad(rows: Dataset, row: int) -> str:
    """What is wrong with a row's image, in words; empty if nothing is."""
    try:
        decode_pixels(rows[int(row)]["image"])
    except BadImageError as error:
        return str(error)
    return ""

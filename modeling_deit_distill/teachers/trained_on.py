"""Held-out images that a teacher of ours may have been trained on: by them it would be judged too well.

The held-out part of a set is drawn anew when images are added. A teacher of an earlier run then knows some of them.
"""

from pathlib import Path

from ..data.fingerprint import hash_of_listed
from ..data.listing import num_trained
from ..data.sources import ImageData
from ..output_folder import IMAGES, read_run_file
from .training import TRAINING_RECORD

REMEDY = (
    "take the images as they were then, hold out images that it was not trained on (--validation_dir), or train a new "
    "teacher"
)


def known_held_out(name: str, data: ImageData) -> str | None:
    """A warning where a teacher was, or may have been, trained on images that are held out now; None where it was not.

    Args:
        name: of the teacher; one that no run of ours trained says nothing of its images.
        data: of the run. A held-out part that is cut from the training images changes with these; one of its own
            is looked at where it is known what the teacher was trained on.

    Raises:
        InputError: a record that cannot be read.
    """
    kept = read_run_file(Path(name, TRAINING_RECORD)).get("dataset")
    if kept is None or kept == data.fingerprint(kept):
        return None
    total, number = f"{len(data.validation):,} held-out images", _number_known(Path(name).parent, kept, data)
    if number == 0 or number is None and not data.is_cut:
        return None
    if number is None:
        return f"{name} was trained on another set, perhaps on some of the {total}, and may seem too good; {REMEDY}"
    return f"{name} seems to have been trained on {number:,} of the {total}: its accuracy is then too high; {REMEDY}"


def _number_known(folder: Path, kept: str, data: ImageData) -> int | None:
    """How many held-out images are in the training part of the run in a folder; None if its listing is not of `kept`.

    A later run into the same folder replaces the listing.
    """
    listing = read_run_file(folder / IMAGES)
    if "checksums" not in listing or hash_of_listed(listing["checksums"]) != kept:
        return None
    return num_trained(data.validation, listing)

"""One ONNX file for each precision, checked against PyTorch on random and on real images."""

import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import PIL.Image

from ..errors import InputError
from ..modeling_deit_distill import DeiTDistillForImageClassification
from .agreement import MIN_AGREEMENT, Agreement, check_agreement, compare, decoded
from .checkpoint import draw_images
from .onnx import MODEL, OPSET, check_answers, open_session, output_names, quantize, to_half, write_onnx
from .photograph import as_photograph, take_photographs

# The names under which transformers.js looks for them.
FILES = {"fp32": MODEL, "fp16": "model_fp16.onnx", "int8": "model_quantized.onnx"}
# Layers that int8 leaves in fp32, one attempt after the other: the second maps of the MLPs, which see the largest
# activations; then the whole first and last blocks with the heads.
KEPT = ((), ("mlp.fc2",), ("mlp.fc2", "classifier", "layers.0.", "layers.{last}."))
ROUNDS, FEW = 4, 10


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        precision: `"fp32"`, `"fp16"` or `"int8"`.
        file: its path within the export's folder.
        megabytes: of 10^6 bytes.
        milliseconds: from an image to the answer on this CPU, one image at a time, the median of a few images.
        agreement: with PyTorch on real images; None where none were given.
        differences: largest difference of each output from PyTorch's on random images.
        kept: layers that int8 left in fp32, by parts of their names.
    """

    precision: str
    file: str
    megabytes: float
    milliseconds: float
    agreement: Agreement | None
    differences: dict[str, float]
    kept: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """What is exported, and what it is judged on.

    Attributes:
        model, processor: see [`load_model`].
        images, rows: real images and which of them are looked at, see [`chosen_images`]; none to be judged on noise.
        min_agreement: the least share of equal decisions.
    """

    model: DeiTDistillForImageClassification
    processor: object
    images: Sequence[dict | str] = ()
    rows: Sequence[int] = ()
    min_agreement: float = MIN_AGREEMENT


def write_precisions(
    source: Source,
    folder: Path,
    precisions: Sequence[str],
    takes_photographs: bool,
    leave_out: Callable[[InputError], None] | None = None,
) -> list[Exported]:
    """Write a file for each precision.

    Args:
        source: what to export.
        folder: an empty one.
        precisions: of `FILES`.
        takes_photographs: whether the image processor is part of the files, see [`take_photographs`]; else they take
            what it makes.
        leave_out: called where fp16 or int8 is refused, which is then left out; None makes that an error.

    Raises:
        InputError: answers that are not PyTorch's, or an image processor that does not fit into a file.
    """
    plain, written = folder / "plain.onnx", []
    write_onnx(source.model, plain)
    for precision in precisions:
        try:
            written.append(_write_precision(source, plain, precision, takes_photographs))
        except InputError as error:
            if leave_out is None or precision == "fp32":
                raise
            plain.with_name(FILES[precision]).unlink()
            leave_out(error)
    plain.unlink()
    return written


def _write_precision(source: Source, plain: Path, precision: str, takes_photographs: bool) -> Exported:
    """The first attempt that agrees often enough, else the last one's error."""
    attempts = KEPT if precision == "int8" else KEPT[:1]
    last = source.model.config.num_hidden_layers - 1
    for kept in [tuple(part.format(last=last) for part in attempt) for attempt in attempts]:
        try:
            exported = _attempt(source, plain, precision, takes_photographs, kept)
            if exported.agreement is not None:
                check_agreement(FILES[precision], exported.agreement, source.min_agreement)
            return exported
        except InputError as error:
            refused = error
    raise refused


def _attempt(source: Source, plain: Path, precision: str, takes_photographs: bool, kept: tuple[str, ...]) -> Exported:
    path = plain.with_name(FILES[precision])
    shutil.copy(plain, path)
    if precision == "int8":
        quantize(path, kept)
    elif precision == "fp16":
        to_half(path)
    session, names = open_session(path), output_names(source.model)
    differences = check_answers(
        source.model, lambda pixel_values: session.run(names, {"pixel_values": pixel_values}), precision
    )
    if takes_photographs:
        take_photographs(path, source.processor, OPSET)
    return measure(
        source, path, precision, differences, answering(path, None if takes_photographs else source.processor), kept
    )


def measure(
    source: Source,
    path: Path,
    precision: str,
    differences: dict[str, float],
    answer: Callable[[PIL.Image.Image], np.ndarray],
    kept: tuple[str, ...] = (),
) -> Exported:
    """A file that was written with its size, its speed and, on real images, its agreement.

    Args:
        answer: the file, from an RGB image to logits (classes,).
        source, path, precision, differences, kept: see [`Exported`].
    """
    agreement = None
    if source.rows:
        images = (image for _, image in decoded(source.images, source.rows))
        agreement = compare(source.model, source.processor, {precision: answer}, images)[precision]
    megabytes = round(path.stat().st_size / 1e6, 2)
    return Exported(precision, path.name, megabytes, _milliseconds(answer, source), agreement, differences, kept)


def answering(path: Path, processor=None, threads: int | None = None) -> Callable[[PIL.Image.Image], np.ndarray]:
    """A file as a function from an RGB image to logits (classes,).

    Args:
        path: of the file.
        processor: the image processor, unless it is part of the file.
        threads: as of [`open_session`].
    """
    session = open_session(path, threads)

    def answer(image: PIL.Image.Image) -> np.ndarray:
        """Logits (classes,)."""
        pixels = as_photograph(image) if processor is None else processor(image, return_tensors="np")["pixel_values"]
        return session.run(["logits"], {"pixel_values": pixels})[0][0]

    return answer


def _milliseconds(answer: Callable[[PIL.Image.Image], np.ndarray], source: Source) -> float:
    """The median of a few images, of each the fastest round: other programs can make a round many times slower."""
    images = [image for _, image in decoded(source.images, source.rows[:FEW])] or draw_images(1, source.model.config)
    times: list[list[float]] = [[] for _ in images]
    for _ in range(ROUNDS):
        for image, taken in zip(images, times, strict=True):
            began = time.perf_counter()
            answer(image)
            taken.append(1000 * (time.perf_counter() - began))
    return round(statistics.median(map(min, times)), 2)


def placed(exported: Sequence[Exported], folder: str) -> list[Exported]:
    """The same files, named from the folder above theirs."""
    return [replace(each, file=f"{folder}/{each.file}") for each in exported]

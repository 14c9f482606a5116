"""A student as an ExecuTorch program for phones: XNNPACK on the CPU, in fp32 or int8, checked against PyTorch."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from io import StringIO
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError, one_line
from .agreement import check_agreement
from .checkpoint import input_shape
from .onnx import AllOutputs, check_answers, check_packages, output_names
from .precisions import Exported, Source, measure

FILES = {"fp32": "model.pte", "int8": "model_quantized.pte"}


def write_executorch(source: Source, folder: Path, precisions: Sequence[str] = tuple(FILES)) -> list[Exported]:
    """Write a program for each precision.

    Its input is one image as the image processor makes it, float32 (1, 3, height, width). Its outputs are those of
    [`output_names`], in this order; the method `output_names` says them, with commas between. XNNPACK's memory is
    planned for one batch size, so there is no other.

    Args:
        source: what to export.
        folder: an empty one.
        precisions: of `FILES`. In int8 the weights of linear maps are rounded once, with a scale for each row, and
            activations as they come, with a scale for each token.

    Raises:
        InputError: answers that are not PyTorch's, or versions of torch and executorch that do not fit each other.
    """
    return [_write_precision(source, folder / FILES[precision], precision) for precision in precisions]


def _write_precision(source: Source, path: Path, precision: str) -> Exported:
    with _quiet():
        path.write_bytes(_lowered(source.model, precision))
    answer = open_executorch(path)
    differences = check_answers(source.model, lambda pixel_values: list(answer(pixel_values).values()), precision)

    def answer_image(image) -> np.ndarray:
        """Logits (classes,) of an RGB image."""
        return answer(source.processor(image, return_tensors="np")["pixel_values"])["logits"][0]

    exported = measure(source, path, precision, differences, answer_image)
    if exported.agreement is not None:
        check_agreement(path.name, exported.agreement, source.min_agreement)
    return exported


def _lowered(model, precision: str) -> bytes:
    """The program. Attention is written out, in products that XNNPACK has; copies that change nothing are dropped."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.utils.configs import get_transform_passes
    from executorch.exir import to_edge_transform_and_lower

    image = torch.zeros(1, *input_shape(model.config))
    program = torch.export.export(AllOutputs(model).eval(), (image,))
    if precision == "int8":
        program = torch.export.export(_rounded(program.module(), image), (image,))
    edge = to_edge_transform_and_lower(
        program,
        transform_passes=get_transform_passes(),
        partitioner=[XnnpackPartitioner()],
        constant_methods={"output_names": ",".join(output_names(model))},
    )
    return edge.to_executorch().buffer


def _rounded(graph: torch.fx.GraphModule, image: torch.Tensor) -> torch.fx.GraphModule:
    """Activations are scaled as they come: scales from calibration changed 4 of 200 decisions on digits, these none."""
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    config = xnnpack_quantizer.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    prepared = prepare_pt2e(graph, xnnpack_quantizer.XNNPACKQuantizer().set_global(config))
    prepared(image)
    return convert_pt2e(prepared)


def open_executorch(path: str | Path) -> Callable[[np.ndarray | torch.Tensor], dict[str, np.ndarray]]:
    """A program as a function from `pixel_values` (batch, 3, height, width) to its outputs (batch, ...) by name.

    Images are answered one after the other, by ExecuTorch's Python runtime.

    Raises:
        InputError: no such program, or no package. The function: images of another shape, or a torch that executorch
            does not fit.
    """
    check_packages("executorch")
    with _quiet():
        from executorch.runtime import Runtime

        try:
            program = Runtime.get().load_program(Path(path))
            names = program.load_method("output_names").execute([])[0].split(",")
            method = program.load_method("forward")
        except RuntimeError as error:
            raise InputError(f"{path} is no program of this export ({one_line(error)}): export it again") from error
    shape = tuple(method.metadata.input_tensor_meta(0).sizes()[1:])

    def answer(pixel_values: np.ndarray | torch.Tensor) -> dict[str, np.ndarray]:
        """Outputs by name."""
        images = torch.as_tensor(pixel_values, dtype=torch.float32)
        if images.shape[1:] != shape or not len(images):
            raise InputError(
                f"{path} takes one or more images {shape}, not {tuple(images.shape)}: prepare them by the image "
                "processor beside it"
            )
        try:
            rows = [[output.numpy() for output in method.execute([image[None]])] for image in images]
        except RuntimeError as error:
            cause, _, _ = str(error).partition("\n")  # where in C++ follows
            raise InputError(
                f"executorch was compiled for another torch than {torch.__version__} ({cause}): "
                "pip install --upgrade -e '.[executorch]'"
            ) from error
        return {name: np.concatenate(outputs) for name, outputs in zip(names, zip(*rows, strict=True), strict=True)}

    return answer


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the libraries note: deprecations, files of phones that a PC lacks. What goes wrong is raised."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)

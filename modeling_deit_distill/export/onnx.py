"""A student as an ONNX file with its weights, checked against PyTorch, in fp32, fp16 or int8."""

import copy
import logging
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..analysis import attention_maps
from ..errors import InputError, one_line
from ..modeling_deit_distill import DeiTDistillForImageClassification, fuse_logits
from .checkpoint import input_shape

MODEL = "model.onnx"
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "executorch": ("executorch",)}
# The first opset in which GELU is one operator. Opset 23 also has attention, but onnxruntime runs that no faster than
# the products and the softmax it is made of, and only releases from 1.23 on read it.
OPSET = 20
PRECISIONS = ("fp32", "fp16", "int8")
ROUNDED = ("MatMul", "Gemm")
MAPS_OF_A_BLOCK = ("attention.qkv", "attention.proj", "mlp.fc1", "mlp.fc2")
TOLERANCE = 1e-4
# What rounding may change on the average, as a share of the logits' spread.
ROUNDING = 0.1
BATCH_SIZES = {"fp32": (1, 2, 5), "fp16": (1, 2, 5), "int8": (16,)}


def check_packages(extra: str = "onnx"):
    """Raise `InputError` where a package of an extra, `onnx` or `executorch`, is missing, before anything is read."""
    for name in PACKAGES[extra]:
        try:
            import_module(name)
        except ImportError as error:
            raise InputError(f"exporting needs {name} ({one_line(error)}): pip install -e '.[{extra}]'") from error


class AllOutputs(nn.Module):
    """A student's answers and its attention in one forward, for tracing.

    As `DeiTDistillForImageClassification`, but the last block computes the prefix tokens alone and yet says what they
    attend to.
    """

    def __init__(self, model: DeiTDistillForImageClassification):
        super().__init__()
        self.model = model
        self.has_distillation_head = has_distillation_head(model)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Tensors in the order of [`output_names`], of `pixel_values` (batch, channels, height, width)."""
        model, embeddings = self.model, self.model.deit.embeddings
        encoded = model.deit(pixel_values, output_attentions=True, return_dict=True, prefix_only=True)
        tokens = encoded.last_hidden_state  # (B, 1 or 2, D)
        heads = [model.cls_classifier(tokens[:, 0])]
        if model.distillation_classifier is not None:
            heads.append(model.distillation_classifier(tokens[:, 1]))
        logits = fuse_logits(heads[0], heads[1] if len(heads) > 1 else None, model.config.fusion)
        grid = embeddings.grid(embeddings.image_size)
        heads = heads if self.has_distillation_head else heads[:1]
        return logits.clone(), *heads, attention_maps(encoded.attentions, grid, tokens.shape[1])


def output_names(model: DeiTDistillForImageClassification) -> list[str]:
    """What a file answers with, in order: logits (batch, classes) each, then attentions.

    `attentions` (batch, tokens, grid height, grid width) say where class and distillation token look in the last block,
    see [`attention_maps`].
    """
    heads = ["cls_logits", "distillation_logits"] if has_distillation_head(model) else ["cls_logits"]
    return ["logits", *heads, "attentions"]


def has_distillation_head(model: DeiTDistillForImageClassification) -> bool:
    """Whether the distillation token has a head that answers.

    That of transformers' `DeiTForImageClassification` has none: we read it as zeros.
    """
    return model.distillation_classifier is not None and bool(model.distillation_classifier.weight.any())


def write_onnx(model: DeiTDistillForImageClassification, path: Path):
    """One file with the weights inside. Written-out attention exports to fewer operators than the fused kernel."""
    from onnxscript.ir.passes.common import ClearMetadataAndDocStringPass

    traced = copy.deepcopy(model)
    traced.set_attn_implementation("eager")
    with redirect_stdout(StringIO()), warnings.catch_warnings():  # the exporter counts its steps, and warns of itself
        warnings.simplefilter("ignore", FutureWarning)
        program = torch.onnx.export(
            AllOutputs(traced).eval(),
            (torch.zeros(2, *input_shape(model.config)),),
            input_names=["pixel_values"],
            output_names=output_names(model),
            opset_version=OPSET,
            dynamic_shapes=({0: "batch"},),
            dynamo=True,
            verbose=False,
        )
    ClearMetadataAndDocStringPass()(program.model)  # stack traces, with the paths of this machine
    program.save(path, external_data=False)


def quantize(path: Path, kept: tuple[str, ...] = ()):
    """Round the weights of linear maps to 8 bits, in place; activations will be as they come.

    Each row of a weight has a scale of its own. Weights take 7 of the 8 bits: processors without instructions for such
    products (VNNI) add pairs in 16 bits, which would overflow.

    Args:
        path: the file.
        kept: parts of the names of layers that stay in fp32, such as `"mlp.fc2"`, see [`linear_maps`].
    """
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    model = onnx.load(path)
    del model.graph.value_info[:]  # shapes within the graph: they are inferred anew, and torch 2.11 notes wrong ones
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it recommends what does not apply to such models
    excluded = [node for node, layer in linear_maps(model).items() if any(part in layer for part in kept)]
    excluded += [f"{node}_MatMul" for node in excluded]  # what the quantiser makes of a Gemm
    kinds = {"op_types_to_quantize": list(ROUNDED), "nodes_to_exclude": excluded}
    try:
        quantize_dynamic(model, path, **kinds, per_channel=True, reduce_range=True)
    finally:
        logging.root.setLevel(level)


def linear_maps(model) -> dict[str, str]:
    """The nodes that multiply by weights, in order, and the layers that they are: `layers.0.mlp.fc2`, `classifier`."""
    weights = {value.name for value in model.graph.initializer}
    nodes = [node.name for node in model.graph.node if node.op_type in ROUNDED and node.input[1] in weights]
    layers = [f"layers.{number // 4}.{MAPS_OF_A_BLOCK[number % 4]}" for number in range(len(nodes) // 4 * 4)]
    return dict(zip(nodes, [*layers, *["classifier"] * (len(nodes) % 4)], strict=True))


def to_half(path: Path):
    """Weights and arithmetic in fp16, in place; what goes in and what comes out stays float32."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    model = onnx.load(path)
    del model.graph.value_info[:]  # they would still say float32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of numbers that are raised to the least that fp16 holds
        halved = OnnxModel(convert_float_to_float16(model, keep_io_types=True))
    halved.topological_sort()  # the converter appends its casts
    onnx.save(halved.model, path)


def open_session(path: Path | bytes, threads: int | None = None):
    """A file, or its bytes, in onnxruntime on the CPU, with as many threads as PyTorch unless a number is given."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads or torch.get_num_threads()
    # Threads that spin after an answer would take the cores from PyTorch, which is timed next.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])


def answer_by_core(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """From `pixel_values` (batch, channels, height, width) to logits (batch, classes), each image on one core.

    A single image has all cores.
    """
    by_all, by_one = open_session(path), open_session(path, threads=1)
    cores = ThreadPoolExecutor(torch.get_num_threads())

    def answer(pixel_values: np.ndarray) -> np.ndarray:
        """Logits (batch, classes)."""
        if len(pixel_values) < 2:
            return by_all.run(["logits"], {"pixel_values": pixel_values})[0]
        images = np.split(pixel_values, len(pixel_values))
        return np.concatenate([*cores.map(lambda image: by_one.run(["logits"], {"pixel_values": image})[0], images)])

    return answer


@torch.inference_mode()
def check_answers(
    model: DeiTDistillForImageClassification,
    answer: Callable[[np.ndarray], Sequence[np.ndarray]],
    precision: str = "fp32",
) -> dict[str, float]:
    """The largest absolute difference of each output from PyTorch's, on random images.

    Args:
        model: in PyTorch.
        answer: the export, from `pixel_values` (batch, channels, height, width) to the outputs of [`output_names`].
        precision: of the export.

    Raises:
        InputError: one is above `TOLERANCE` (fp32), logits differ on the average by more than `ROUNDING` of their
            spread (fp16, int8), or are no numbers.
    """
    generator, largest = torch.Generator().manual_seed(0), dict.fromkeys(output_names(model), 0.0)
    for batch_size in BATCH_SIZES[precision]:
        pixel_values = torch.randn(batch_size, *input_shape(model.config), generator=generator)
        answers = answer(pixel_values.numpy())
        for name, found, expected in zip(largest, answers, AllOutputs(model)(pixel_values), strict=True):
            difference = np.abs(found - expected.numpy())
            _check_difference(name, difference, expected.std().item(), precision)
            largest[name] = max(largest[name], difference.max().item())
    return largest


def _check_difference(name: str, difference: np.ndarray, spread: float, precision: str):
    if precision == "fp32" and not difference.max() <= TOLERANCE:
        raise InputError(
            f"{name} of batch size {len(difference)} differ from PyTorch's by {difference.max():.1e}, more than "
            f"{TOLERANCE:.0e}; nothing was written, try other versions of torch and of the packages that export"
        )
    # No quotient: a head of zeros has no spread.
    if precision != "fp32" and name != "attentions" and not difference.mean() <= ROUNDING * spread:
        raise InputError(
            f"{name} of the model rounded to {precision} differ from PyTorch's by {difference.mean():.2g} on the "
            f"average, more than {ROUNDING:.0%} of their spread ({spread:.2g}); nothing was written: leave {precision} "
            "out by --precisions"
        )

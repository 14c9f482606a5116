"""Export a checkpoint to ONNX: one file with its weights, and beside it what a deployer needs.

    python examples/export_onnx.py SOURCE DESTINATION [--image_size 384] [--precision int8] [--batch_size 16]

SOURCE is a checkpoint of ours, a folder or a Hub id. DESTINATION becomes a folder of `model.onnx`, `config.json` and
`preprocessor_config.json`. Nothing is written unless onnxruntime answers as PyTorch does (rounded, nearly so); then
both are timed on the CPU with batches of `--batch_size`. Input: `pixel_values`, float32 (batch, channels, height,
width) with any batch size. Outputs, each (batch, classes): `logits`, `cls_logits`, and `distillation_logits` if the
model has that token.

With `--precision int8` the linear maps multiply whole numbers: weights are rounded once, activations as they come
(dynamic quantisation), and the file is a quarter as large. Such a model decides some images otherwise; how many tells

    python examples/evaluate_checkpoint.py SOURCE DESTINATION --train_dir DATA

Many images are answered soonest one by one, each on a core of its own (`answer_by_core` below, which is what is timed):
nobody waits for the others, and what a layer leaves for the next one stays in the core's cache. In int8 an answer then
also has nothing to do with the other images of its batch, with which it would share the scale of its rounding.

To classify an image with neither this package nor PyTorch's model (imports: json, onnxruntime, PIL.Image, and
AutoImageProcessor of transformers):

    processor = AutoImageProcessor.from_pretrained("DESTINATION")
    session = onnxruntime.InferenceSession("DESTINATION/model.onnx")
    pixel_values = processor(PIL.Image.open("photo.jpg"), return_tensors="np")["pixel_values"]
    [logits] = session.run(["logits"], {"pixel_values": pixel_values})
    print(json.load(open("DESTINATION/config.json"))["id2label"][str(logits[0].argmax())])
"""

import argparse
import copy
import json
import logging
import re
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from safetensors import SafetensorError
from transformers import AutoImageProcessor, PreTrainedConfig, pipeline

from ..configuration_deit_distill import DeiTDistillConfig, as_pair
from ..conversion.saving import new_folder
from ..errors import InputError, one_line
from ..files import write_json
from ..modeling_deit_distill import DeiTDistillForImageClassification

# The first opset in which GELU is one operator. Opset 23 also has attention, but onnxruntime runs that no faster than
# the products and the softmax it is made of, and only releases from 1.23 on read it.
OPSET = 20
MODEL = "model.onnx"  # the file in the folder of an export
PRECISIONS = ("fp32", "int8")
TOLERANCE = 1e-4
# What rounding may change on the average, as a share of the logits' spread.
ROUNDING = 0.1
BATCH_SIZES = {"fp32": (1, 2, 5), "int8": (16,)}
ROUNDS = 5


def main(arguments: list[str]):
    """Export, check against PyTorch, then time both."""
    options = parse_options(arguments)
    check_packages()
    with new_folder(options.destination) as folder:
        model = load_model(options.source, options.image_size)
        processor = load_processor(options.source, model.config)
        path = folder / MODEL
        write_onnx(model, path)
        fields = json.loads(model.config.to_json_string())
        fields.pop("auto_map", None)  # the pointer to its code, which does not lie here
        write_json(folder / "config.json", fields)
        processor.save_pretrained(folder)
        differences = check_answers(model, open_session(path))
        if options.precision == "int8":
            quantize(path)
            differences = check_answers(model, open_session(path), "int8")
    path = Path(options.destination).resolve() / MODEL
    size = f"{path.stat().st_size / 1e6:.1f} MB, {options.precision}"
    print(f"{path}: {size}, opset {OPSET}, {input_shape(model.config)} for each image")
    found = ", ".join(f"{name} {difference:.1e}" for name, difference in differences.items())
    sizes = ", ".join(map(str, BATCH_SIZES[options.precision]))
    print(f"largest difference from PyTorch, batch sizes {sizes}: {found}", flush=True)
    print(compare_speed(model, processor, answer_by_core(path), options.batch_size))


def parse_options(arguments: list[str]) -> argparse.Namespace:
    """The command line; the module's text is its help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("destination", metavar="DESTINATION")
    parser.add_argument("--image_size", help="pixels, 384 or HEIGHTxWIDTH; the checkpoint's own unless given")
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", help="of weights and products (default fp32)"
    )
    parser.add_argument("--batch_size", type=int, default=16, help="images in a batch when timing (default 16)")
    options = parser.parse_args(arguments)
    if options.batch_size < 1:
        raise InputError(f"--batch_size is {options.batch_size}; it must be at least 1")
    if not re.fullmatch(r"[0-9]+(x[0-9]+)?", options.image_size or "0"):
        raise InputError(f"--image_size is {options.image_size}; give pixels as 384, or as 384x512 (height, width)")
    return options


def check_packages():
    """Raise `InputError` where a package of the extra `onnx` is missing, before anything is read."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            import_module(name)
        except ImportError as error:
            raise InputError(f"exporting needs {name} ({one_line(error)}): pip install -e '.[onnx]'") from error


def load_model(source: str, image_size: str | None) -> DeiTDistillForImageClassification:
    """The checkpoint in float32, its position embeddings resized if another size was asked for."""
    remedy = f"convert other models first: python -m modeling_deit_distill.conversion {source} FOLDER"
    try:
        model_type = PreTrainedConfig.get_config_dict(source)[0].get("model_type")
    except (OSError, ValueError) as error:
        raise InputError(f"SOURCE {source} is no checkpoint ({one_line(error)}); {remedy}") from error
    if model_type != DeiTDistillForImageClassification.config_class.model_type:
        raise InputError(f"SOURCE {source} is of model_type {model_type}, not deit_distill; {remedy}")
    overrides = {"dtype": torch.float32}
    if image_size is not None:
        sides = [int(side) for side in image_size.split("x")]
        overrides["image_size"] = sides[0] if len(sides) == 1 else tuple(sides)
    try:
        model, report = DeiTDistillForImageClassification.from_pretrained(source, output_loading_info=True, **overrides)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"SOURCE {source} cannot be loaded: {one_line(error)}") from error
    if report["missing_keys"]:
        raise InputError(f"SOURCE {source} has no {min(report['missing_keys'])}; export a trained classifier")
    return model.eval()


def load_processor(source: str, config: DeiTDistillConfig):
    """The checkpoint's own image processor, fitted to the model's image size."""
    try:
        processor = AutoImageProcessor.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise InputError(
            f"SOURCE {source} has no image processor ({one_line(error)}); put its preprocessor_config.json there"
        ) from error
    fit_processor(processor, as_pair(config.image_size))
    made = processor(draw_images(1, config), return_tensors="np")["pixel_values"].shape[1:]
    if made != input_shape(config):
        raise InputError(
            f"SOURCE {source}: its image processor makes {made} of an image, but the model takes {input_shape(config)} "
            "(channels, height, width); mend preprocessor_config.json"
        )
    return processor


def input_shape(config: DeiTDistillConfig) -> tuple[int, int, int]:
    """(channels, height, width)."""
    return config.num_channels, *as_pair(config.image_size)


def fit_processor(processor, image_size: tuple[int, int]):
    """Change what is cut out to `image_size`, keeping the resized image's ratio to it."""
    height, width = image_size
    if not getattr(processor, "do_center_crop", False):
        processor.size = {"height": height, "width": width}
        return
    # The longer sides: a crop that is wide must fit into an image that is tall, too.
    longest = max(processor.crop_size["height"], processor.crop_size["width"])
    if (height, width) != (processor.crop_size["height"], processor.crop_size["width"]):
        sides = {name: side for name, side in dict(processor.size).items() if side}
        processor.size = {name: side * max(image_size) // longest for name, side in sides.items()}
        processor.crop_size = {"height": height, "width": width}


def quantize(path: Path):
    """Round the weights of all linear maps to 8 bits, in place; activations will be as they come.

    Each row of a weight has a scale of its own. Weights take 7 of the 8 bits: processors without instructions for such
    products (VNNI) add pairs in 16 bits, which would overflow.
    """
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    model = onnx.load(path)
    del model.graph.value_info[:]  # shapes within the graph: they are inferred anew, and torch 2.11 notes wrong ones
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it recommends what does not apply to such models
    try:
        quantize_dynamic(model, path, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, reduce_range=True)
    finally:
        logging.root.setLevel(level)


def write_onnx(model: DeiTDistillForImageClassification, path: Path):
    """One file with the weights inside. Written-out attention exports to fewer operators than the fused kernel."""
    from onnxscript.ir.passes.common import ClearMetadataAndDocStringPass

    traced = copy.deepcopy(model)
    traced.set_attn_implementation("eager")
    traced.config.update({"return_dict": False, "output_attentions": False, "output_hidden_states": False})
    with redirect_stdout(StringIO()), warnings.catch_warnings():  # the exporter counts its steps, and warns of itself
        warnings.simplefilter("ignore", FutureWarning)
        program = torch.onnx.export(
            traced,
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


def output_names(model: DeiTDistillForImageClassification) -> list[str]:
    """What the file answers with, in order."""
    heads = ["cls_logits", "distillation_logits"] if model.config.use_distillation_token else ["cls_logits"]
    return ["logits", *heads]


def open_session(path: Path, threads: int | None = None):
    """The file in onnxruntime, with as many threads as PyTorch has, unless told otherwise."""
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
def check_answers(model: DeiTDistillForImageClassification, session, precision: str = "fp32") -> dict[str, float]:
    """The largest absolute difference of each output from PyTorch's, on random images.

    Raises:
        InputError: one is above `TOLERANCE` (fp32), they differ on the average by more than `ROUNDING` of their spread
            (int8), or are no numbers.
    """
    generator, largest = torch.Generator().manual_seed(0), dict.fromkeys(output_names(model), 0.0)
    for batch_size in BATCH_SIZES[precision]:
        pixel_values = torch.randn(batch_size, *input_shape(model.config), generator=generator)
        answers = session.run(list(largest), {"pixel_values": pixel_values.numpy()})
        outputs = model(pixel_values)
        for name, answer in zip(largest, answers, strict=True):
            expected = outputs[name].numpy()
            difference = np.abs(answer - expected)
            share = difference.mean() / expected.std()
            if precision == "fp32" and not difference.max() <= TOLERANCE:
                raise InputError(
                    f"{name} of batch size {batch_size} differ from PyTorch's by {difference.max():.1e}, more than "
                    f"{TOLERANCE:.0e}; nothing was written, try other versions of torch, onnxscript and onnxruntime"
                )
            if precision == "int8" and not share <= ROUNDING:
                raise InputError(
                    f"{name} of the rounded model differ from PyTorch's by {share:.0%} of their spread on the average, "
                    f"more than {ROUNDING:.0%}; nothing was written, leave --precision int8 out"
                )
            largest[name] = max(largest[name], difference.max().item())
    return largest


def draw_images(number: int, config: DeiTDistillConfig) -> list[PIL.Image.Image]:
    """Noise, a third larger than what the model takes, as a photograph would be."""
    height, width = (side * 4 // 3 for side in as_pair(config.image_size))
    draws = np.random.default_rng(0).integers(0, 256, (number, height, width, 3), dtype=np.uint8)
    return [PIL.Image.fromarray(pixels) for pixels in draws]


@torch.inference_mode()
def compare_speed(model: DeiTDistillForImageClassification, processor, answer: Callable, batch_size: int) -> str:
    """How long a batch takes on the CPU, from images on and in the model alone, in words."""
    classify = pipeline("image-classification", model=model, image_processor=processor, device="cpu")
    images = draw_images(batch_size, model.config)
    pixel_values = processor(images, return_tensors="pt")["pixel_values"]
    pairs = {
        "from images on": alternate(
            lambda: classify(images, batch_size=batch_size),
            lambda: answer(processor(images, return_tensors="np")["pixel_values"]),
        ),
        "model alone": alternate(lambda: model(pixel_values), lambda: answer(pixel_values.numpy())),
    }
    threads = torch.get_num_threads()
    lines = [f"CPU, threads: {threads}, batch size: {batch_size}, medians of {ROUNDS} alternating rounds"]
    for name, (pytorch, onnx) in pairs.items():
        times = f"PyTorch {1000 * pytorch:.2f} ms, onnxruntime {1000 * onnx:.2f} ms"
        lines.append(f"  {name}: {times}, {pytorch / onnx:.2f} times as fast")
    return "\n".join(lines)


def alternate(*functions) -> list[float]:
    """The median seconds of each, taken in turns after a round that does not count."""
    seconds = [[] for _ in functions]
    for _ in range(1 + ROUNDS):
        for function, taken in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken[1:]) for taken in seconds]

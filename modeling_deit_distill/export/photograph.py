"""The image processor as an ONNX graph: from a photograph's raw pixels to what the model sees.

What a browser or a phone does to an image before a model differs from what Python does, and changes answers. So resize,
crop and normalisation are part of the graph, and the photograph goes in as it is. The resize is that of Pillow and
torchvision: width first, then height, each rounded to whole levels.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
from transformers.image_utils import PILImageResampling

from ..errors import InputError
from .onnx import open_session

# Pillow's filters under ONNX's names.
MODES = {PILImageResampling.BILINEAR: "linear", PILImageResampling.BICUBIC: "cubic"}
# `exclude_outside`: at the border the weights of missing pixels go to the others, as in Pillow. Pillow's bicubic has
# a = -0.5, and rounds halves up, which are frequent where a bilinear resize doubles a side; ONNX's Round goes to even.
RESIZE = 'antialias = 1, cubic_coeff_a = -0.5, exclude_outside = 1, mode = "{mode}"'
# Sizes (height, width) on which graph and image processor are compared, and by how many levels they may differ.
TRIED, ALIKE = ((300, 410), (90, 50), (20, 20)), 0.1

RESIZES = ("resize_width", "resize_height")  # the nodes, in order

SHORTER_EDGE = """
    shorter = Min(height, width)
    height_times = Mul(height, size)
    width_times = Mul(width, size)
    new_height = Div(height_times, shorter)
    new_width = Div(width_times, shorter)
"""
SQUASHED = """
    new_height = Identity(size_height)
    new_width = Identity(size_width)
"""
RESIZED = """
    lowest = Constant <value_float = 0.0> ()
    highest = Constant <value_float = 255.0> ()
    half = Constant <value_float = 0.5> ()
    images = Shape <start = 0, end = 2> (photograph)
    wide_size = Concat <axis = 0> (images, height, new_width)
    wide = Resize <{resize}> (photograph, , , wide_size)
    wide_raised = Add(wide, half)
    wide_rounded = Floor(wide_raised)
    wide_levels = Clip(wide_rounded, lowest, highest)
    resized_size = Concat <axis = 0> (images, new_height, new_width)
    resized_sum = Resize <{resize}> (wide_levels, , , resized_size)
    resized_raised = Add(resized_sum, half)
    resized_rounded = Floor(resized_raised)
    resized = Clip(resized_rounded, lowest, highest)
"""
CROPPED = """
    resized_shape = Shape <start = 2, end = 4> (resized)
    margins = Sub(resized_shape, crop)
    two = Constant <value_ints = [2]> ()
    first = Div(margins, two)
    last = Add(first, crop)
    axes = Constant <value_ints = [2, 3]> ()
    cropped = Slice(resized, first, last, axes)
"""


@dataclass
class Preprocessing:
    """What an image processor does, in numbers.

    Args:
        size: the shorter edge after the resize, or (height, width) that images are squashed to.
        mode: `"linear"` or `"cubic"`.
        crop: (height, width) cut from the centre; None for no crop.
        mean, std: of each channel, in levels from 0 to 255.
    """

    size: int | tuple[int, int]
    mode: str
    crop: tuple[int, int] | None
    mean: list[float]
    std: list[float]


def preprocessing_of(processor) -> Preprocessing:
    """The numbers of an image processor.

    Raises:
        InputError: it does something that the graph does not.
    """
    size = {name: side for name, side in dict(processor.size).items() if side}
    if not processor.do_resize or set(size) not in ({"shortest_edge"}, {"height", "width"}):
        raise InputError(f"the image processor resizes to {size}; the graph knows shortest_edge, or height and width")
    if processor.resample not in MODES:
        known = " and ".join(mode.name.lower() for mode in MODES)
        raise InputError(f"the image processor resizes by {processor.resample!r}; the graph knows {known}")
    crop = None
    if getattr(processor, "do_center_crop", False):
        crop = processor.crop_size["height"], processor.crop_size["width"]
        room = [size.get("shortest_edge") or size[name] for name in ("height", "width")]
        if any(side > most for side, most in zip(crop, room, strict=True)):
            raise InputError(f"the image processor crops {crop} from {size}; the graph does not pad: crop at most that")
    scale = processor.rescale_factor if processor.do_rescale else 1.0
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0] * 3, [1.0] * 3)
    return Preprocessing(
        size.get("shortest_edge") or (size["height"], size["width"]),
        MODES[processor.resample],
        crop,
        [value / scale for value in mean],
        [value / scale for value in std],
    )


def preprocessing_graph(steps: Preprocessing, opset: int):
    """An ONNX model from `photograph` to `prepared`.

    `photograph` is float32 (batch, channels, height, width) of levels from 0 to 255 and any size; `prepared` is what
    the image processor makes of it.
    """
    from onnx import checker, numpy_helper, parser

    resize = RESIZE.format(mode=steps.mode)
    body = (SHORTER_EDGE if isinstance(steps.size, int) else SQUASHED) + RESIZED.format(resize=resize)
    body += CROPPED if steps.crop is not None else "    cropped = Identity(resized)\n"
    model = parser.parse_model(f"""<ir_version: 10, opset_import: ["" : {opset}]>
preprocessing (float[batch, {len(steps.mean)}, rows, columns] photograph)
    => (float[batch, {len(steps.mean)}, height, width] prepared) {{
    height = Shape <start = 2, end = 3> (photograph)
    width = Shape <start = 3, end = 4> (photograph)
{body}
    centred = Sub(cropped, mean)
    prepared = Div(centred, std)
}}""")
    # Named, so that a runtime without `antialias` can be configured to keep them on the CPU.
    for name, node in zip(RESIZES, (node for node in model.graph.node if node.op_type == "Resize"), strict=True):
        node.name = name
    for name, array in _constants(steps).items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    checker.check_model(model, full_check=True)
    return model


def _constants(steps: Preprocessing) -> dict[str, np.ndarray]:
    colours = {name: np.array(getattr(steps, name), np.float32).reshape(1, -1, 1, 1) for name in ("mean", "std")}
    if isinstance(steps.size, int):
        sizes = {"size": steps.size}
    else:
        sizes = dict(zip(("size_height", "size_width"), steps.size, strict=True))
    whole = {name: np.array([side], np.int64) for name, side in sizes.items()}
    return colours | whole | ({} if steps.crop is None else {"crop": np.array(steps.crop, np.int64)})


def check_preprocessing(processor, opset: int):
    """Refuse an image processor of which the graph makes something else: it may do more than its fields say.

    Raises:
        InputError: on noise of some sizes they differ by more than `ALIKE` levels on the average; see also
            [`preprocessing_of`].
    """
    steps = preprocessing_of(processor)
    session, draws = open_session(preprocessing_graph(steps, opset).SerializeToString()), np.random.default_rng(0)
    for height, width in TRIED:
        image = PIL.Image.fromarray(draws.integers(0, 256, (height, width, 3), dtype=np.uint8))
        [found] = session.run(None, {"photograph": as_photograph(image)})
        expected = np.asarray(processor(image, return_tensors="np")["pixel_values"])
        levels = np.array(steps.std, np.float32)[:, None, None]
        if found.shape != expected.shape or not np.mean(np.abs(found - expected) * levels) <= ALIKE:
            raise InputError(
                f"the image processor ({type(processor).__name__}) makes something else of {width}x{height} pixels "
                "than its size, crop and statistics say; export with --formats onnx, which leaves it outside"
            )


def take_photographs(path: Path, processor, opset: int):
    """Put the image processor in front of a model, in place: its input is then a photograph of any size.

    The graph in front computes in float32, whatever the model's precision.

    Args:
        path: of an ONNX file with the input `pixel_values`, as the processor makes it.
        processor: the image processor.
        opset: of the file.

    Raises:
        InputError: see [`preprocessing_of`].
    """
    import onnx

    model = onnx.load(path)
    graph = preprocessing_graph(preprocessing_of(processor), opset)
    graph.ir_version = model.ir_version
    graph = onnx.compose.add_prefix(graph, "image_processor.")
    # The whole takes the name that the model's input had, so that the model's becomes another.
    _rename(model.graph, "pixel_values", "prepared_pixel_values")
    _rename(graph.graph, "image_processor.photograph", "pixel_values")
    for domain in {each.domain for each in model.opset_import} - {each.domain for each in graph.opset_import}:
        version = next(each.version for each in model.opset_import if each.domain == domain)
        graph.opset_import.append(onnx.helper.make_opsetid(domain, version))
    io_map = [("image_processor.prepared", "prepared_pixel_values")]
    onnx.save(onnx.compose.merge_models(graph, model, io_map), path)


def as_photograph(image: PIL.Image.Image) -> np.ndarray:
    """What such a model takes of an RGB image: `pixel_values` (1, 3, height, width), float32 levels from 0 to 255."""
    return np.asarray(image.convert("RGB"), np.float32).transpose(2, 0, 1)[None]


def _rename(graph, old: str, new: str):
    for value in graph.input:
        value.name = new if value.name == old else value.name
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]

"""The checkpoint that is exported: a model in float32 and the image processor that fits it."""

import os
import re

import numpy as np
import PIL.Image
import torch
from transformers import AutoImageProcessor
from transformers.utils import logging

from ..configuration_deit_distill import DeiTDistillConfig, as_pair
from ..conversion.checkpoint import PretrainedStudent, build_model, load_checkpoint
from ..errors import InputError, one_line
from ..modeling_deit_distill import DeiTDistillForImageClassification

logger = logging.get_logger(__name__)
MAX_SIDE = 4096  # pixels; attention to the patches of more fits into no memory


def load_model(source: str, image_size: str | None = None) -> tuple[DeiTDistillForImageClassification, object]:
    """The model of a checkpoint, in eval mode and float32, and its image processor.

    Args:
        source: whatever [`load_checkpoint`] reads: ours, transformers' DeiT and ViT, timm's, the public code's.
        image_size: pixels as `"384"` or `"384x512"` (height, width), to which position embeddings and processor are
            fitted; by default the checkpoint's own.

    Raises:
        InputError: no checkpoint, one without a softmax over classes, or a size that does not fit it.
    """
    checkpoint = load_checkpoint(source)
    model, processor = build_model(checkpoint).float(), _own_processor(source, checkpoint)
    model.config.dtype = torch.float32
    if model.config.problem_type not in (None, "single_label_classification") or model.config.num_labels < 2:
        raise InputError(
            f"{source!r} has problem_type {model.config.problem_type!r} and {model.config.num_labels} class(es); an "
            "export answers with probabilities of several classes"
        )
    if image_size is not None:
        try:
            model.resize_position_embeddings(_sides(image_size))
        except ValueError as error:
            raise InputError(f"image_size {image_size}: {one_line(error)}") from error
    fit_processor(processor, as_pair(model.config.image_size))
    made = processor(draw_images(1, model.config), return_tensors="np")["pixel_values"].shape[1:]
    if made != input_shape(model.config):
        raise InputError(
            f"{source!r}: its image processor makes {made} of an image, but the model takes "
            f"{input_shape(model.config)} (channels, height, width); correct preprocessor_config.json"
        )
    return model, processor


def _own_processor(source: str, checkpoint: PretrainedStudent):
    """The one that `pipeline` would use; where there is none, the evaluation transform of the paper, which is said."""
    if checkpoint.format in ("public", "timm"):
        return checkpoint.processor
    try:
        place = os.path.dirname(os.path.abspath(source)) if os.path.isfile(source) else source
        return AutoImageProcessor.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError):
        shorter = checkpoint.processor.size["shortest_edge"]
        logger.warning(
            f"{source} has no preprocessor_config.json: images are prepared as in the paper, the shorter side to "
            f"{shorter} pixels, bicubic, with ImageNet's statistics"
        )
        return checkpoint.processor


def check_image_size(image_size: str | None):
    """Refuse what is no size, before anything is loaded.

    Raises:
        InputError: neither pixels nor pixels by pixels, or more than `MAX_SIDE`.
    """
    if not re.fullmatch(r"[0-9]+(x[0-9]+)?", image_size or "0"):
        raise InputError(f"--image_size is {image_size}; give pixels as 384, or as 384x512 (height, width)")
    if image_size is not None and max(map(int, image_size.split("x"))) > MAX_SIDE:
        raise InputError(f"--image_size is {image_size}; give at most {MAX_SIDE:,} pixels a side")


def _sides(image_size: str) -> int | tuple[int, int]:
    sides = [int(side) for side in image_size.split("x")]
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


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


def draw_images(number: int, config: DeiTDistillConfig) -> list[PIL.Image.Image]:
    """Noise, a third larger than what the model takes, as a photograph would be."""
    height, width = (side * 4 // 3 for side in as_pair(config.image_size))
    draws = np.random.default_rng(0).integers(0, 256, (number, height, width, 3), dtype=np.uint8)
    return [PIL.Image.fromarray(pixels) for pixels in draws]

"""What tests of exports share: class names, and a run of a file."""

import numpy as np
import onnxruntime
import PIL.Image

ANIMALS = dict(enumerate(["ape", "bat", "cat", "dog", "elk"]))
HEADS = ["logits", "cls_logits", "distillation_logits"]
OUTPUTS = [*HEADS, "attentions"]


def run(path, pixel_values, names=None) -> list[np.ndarray]:
    """What a file answers to `pixel_values`, a tensor or an array."""
    return onnxruntime.InferenceSession(path).run(names, {"pixel_values": np.asarray(pixel_values)})


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def smooth(height: int, width: int) -> PIL.Image.Image:
    """A picture with edges and gradients, as photographs have."""
    draws = np.random.default_rng(height * width)
    coarse = PIL.Image.fromarray(draws.integers(0, 256, (9, 7, 3), dtype=np.uint8))
    return coarse.resize((width, height), PIL.Image.Resampling.BICUBIC)

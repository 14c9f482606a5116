"""How long an export takes to answer on this machine's CPU, beside PyTorch."""

import time
from collections.abc import Callable

import torch
from transformers import pipeline

from ..modeling_deit_distill import DeiTDistillForImageClassification
from .checkpoint import draw_images

ROUNDS = 5


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
    lines = [f"CPU, threads: {threads}, batch size: {batch_size}, the fastest of {ROUNDS} alternating rounds"]
    for name, (pytorch, onnx) in pairs.items():
        times = f"PyTorch {1000 * pytorch:.2f} ms, onnxruntime {1000 * onnx:.2f} ms"
        lines.append(f"  {name}: {times}, {pytorch / onnx:.2f} times as fast")
    return "\n".join(lines)


def alternate(*functions) -> list[float]:
    """The fewest seconds of each, taken in turns after a round that does not count."""
    seconds = [[] for _ in functions]
    for _ in range(1 + ROUNDS):
        for function, taken in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
    return [min(taken[1:]) for taken in seconds]

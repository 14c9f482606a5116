"""What a finished model makes of some held-out images: pictures for the card, and figures of its tokens."""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoImageProcessor

from ..analysis import describe_tokens
from ..data.evaluation import EvaluationDataset
from ..files import write_json
from ..modeling_deit_distill import DeiTDistillForImageClassification
from ..output_folder import MISTAKES, PREDICTIONS, TOKENS
from .pictures import choose_examples, choose_mistakes, draw_predictions

NUM_IMAGES = 64  # evenly spaced, on which the tokens are measured


def look_inside(output_dir: str | Path, held_out: EvaluationDataset, decisions: dict[str, np.ndarray], device):
    """Draw predictions and describe the tokens of a model, as it was saved in the folder of its run.

    `decisions` are those on the held-out images, see `HeldOutMetrics.decisions`.
    """
    model = DeiTDistillForImageClassification.from_pretrained(output_dir).to(device)
    processor = AutoImageProcessor.from_pretrained(output_dir)
    sets = decisions["labels"], decisions["fused"]
    chosen = {PREDICTIONS: choose_examples(*sets), MISTAKES: choose_mistakes(*sets, decisions["confidence"])}
    for name, indices in chosen.items():
        path = Path(output_dir, name)
        if not indices:  # no mistake
            path.unlink(missing_ok=True)
            continue
        teacher = decisions["teacher"][indices] if "teacher" in decisions else None
        draw_predictions(model, _images(held_out, indices), decisions["labels"][indices], teacher, processor, path)
    spread = np.unique(np.linspace(0, len(held_out) - 1, NUM_IMAGES).astype(int)).tolist()
    write_json(Path(output_dir, TOKENS), describe_tokens(model, _images(held_out, spread)))


def _images(held_out: EvaluationDataset, indices: list[int]) -> torch.Tensor:
    return torch.stack([held_out[index]["pixel_values"] for index in indices])

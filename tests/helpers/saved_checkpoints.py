"""Checkpoints of a run: made up, or saved each step."""

import functools
import json

import torch
from transformers.trainer_utils import IntervalStrategy

from modeling_deit_distill.output_folder import begin_checkpoint, commit_checkpoint

SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4, "num_train_epochs": 3}


def checkpoint(folder, step=1):
    """A small folder that passes for a checkpoint."""
    saved = folder / f"checkpoint-{step}"
    begin_checkpoint(saved)
    (saved / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    (saved / "model.safetensors").write_bytes(b"weights" * 100)
    (saved / "optimizer.pt").write_bytes(b"moments" * 200)
    (saved / "training_args.bin").write_bytes(b"a pickle")
    commit_checkpoint(saved, {"seed": 42})
    return saved


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def evaluate_each(run, strategy, steps):
    """Give a trainer an evaluation set, and its times; the metric `score` falls with every step."""
    run.eval_dataset = [{"pixel_values": torch.zeros(3, 16, 16), "labels": 0}]
    run.args.eval_strategy, run.args.eval_steps = IntervalStrategy(strategy), steps
    run.compute_metrics = lambda evaluated: {"score": 1 / run.state.global_step}
    noted, plain = run.compute_loss, functools.partial(type(run).compute_loss, run)
    run.compute_loss = lambda model, inputs, **how: (noted if "epoch" in inputs else plain)(model, inputs, **how)

"""What distillation costs: a training step without a teacher, with a live one, and with its stored answers.

    python examples/benchmarks/distillation_cost.py [--json FILE]

One student, one batch of views, one optimiser; the kinds of step alternate in one process, figures are medians:

    none                       labels alone, a student of one head
    stored                     hard distillation, the answers read from a store on the disk
    live_fp32                  hard distillation, the teacher asked in each step in fp32, as public code does
    live_fp32_channels_last    the same through our `Teacher`, which puts a convnet's pixels channels last
    live_bf16                  through our `Teacher` in bf16, compiled on a GPU; only where it has units for bf16

A step is forward, loss, backward and AdamW on views that are augmented already: what is measured is the teacher. Its
weights are random, which costs the same. Default: DeiT-Ti and RegNetY-16GF (83.6 M parameters, 16 GFLOPs an image).

`live_over_none` is reckoned from these steps for a run of 300 epochs that repeats its views after 50
(`--view_epochs 50`): the teacher is asked in 50 epochs, and read from its answers in the other 250. With the faster of
the live teachers it is

    (50 · live + 250 · stored) / (300 · none)

With `--teacher_batch_size N` the teacher is also asked alone, about the batch and about N views at once (`ask_*`):
`at_once_over_each` is what a view costs then, against what it costs in the batch.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from timing import alternate
from transformers import AutoModelForImageClassification, TimmWrapperConfig

from modeling_deit_distill import DeiTDistillConfig, DeiTDistillForImageClassification
from modeling_deit_distill.hardware import keep_freed_memory
from modeling_deit_distill.losses import hard_distillation_loss, label_loss
from modeling_deit_distill.precision import multiplies_bf16
from modeling_deit_distill.script import run_script
from modeling_deit_distill.teachers.entries import decode_labels
from modeling_deit_distill.teachers.store import create_store
from modeling_deit_distill.teachers.teacher import InputView, Teacher

NUM_CLASSES = 1000
EPOCHS, VIEW_EPOCHS = 300, 50


def main(arguments: list[str]):
    options = parse_options(arguments)
    keep_freed_memory(torch.device(options.device).type)  # for all, as train_deit.py does
    torch.manual_seed(0)
    batch = make_batch(options, options.batch_size)
    many = make_batch(options, options.teacher_batch_size) if options.teacher_batch_size else None
    teachers = make_teachers(options)
    with tempfile.TemporaryDirectory() as folder:
        store = filled_store(folder, options.batch_size)
        steps = {
            "none": make_step(options, batch, None),
            "stored": make_step(options, batch, lambda views: read_labels(store, views)),
        }
        for kind, teacher in teachers.items():
            steps[f"live_{kind}"] = make_step(options, batch, lambda views, teacher=teacher: ask(teacher, views))
            if options.teacher_batch_size:
                steps[f"ask_{kind}"] = lambda teacher=teacher: ask(teacher, batch)
                steps[f"ask_{kind}_at_once"] = lambda teacher=teacher: ask(teacher, many)
        seconds = alternate(steps, options.rounds, options.device)
    for name, value in seconds.items():
        views = options.teacher_batch_size if name.endswith("at_once") else options.batch_size
        print(f"{name:24} {1000 * value:9.1f} ms for {views} views, {value / seconds['none']:6.2f} x none")
    fastest = min(taken for name, taken in seconds.items() if name.startswith("live_"))
    ratios = {
        "stored_over_none": seconds["stored"] / seconds["none"],
        "stored_over_live": seconds["stored"] / seconds["live_fp32"],
        "stored_over_fastest_live": seconds["stored"] / fastest,
        "live_over_none": live_over_none(fastest, seconds["stored"], seconds["none"]),
    }
    for kind in teachers if options.teacher_batch_size else ():
        each = seconds[f"ask_{kind}_at_once"] / options.teacher_batch_size * options.batch_size
        ratios[f"at_once_over_each_{kind}"] = each / seconds[f"ask_{kind}"]
    print(json.dumps({name: round(ratio, 4) for name, ratio in ratios.items()}))
    if options.json:
        figures = {"seconds": seconds, "ratios": ratios, "options": vars(options)}
        Path(options.json).write_text(json.dumps(figures, indent=2))


def live_over_none(live: float, stored: float, none: float) -> float:
    """What a run of 300 epochs costs that repeats its views after 50, against one without a teacher.

    Args:
        live, stored, none: seconds of a step, of any unit.
    """
    return (VIEW_EPOCHS * live + (EPOCHS - VIEW_EPOCHS) * stored) / (EPOCHS * none)


def parse_options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", choices=["tiny", "small", "base"], default="tiny", help="size of the student")
    parser.add_argument("--teacher", default="regnety_160", help="architecture of the teacher, by timm's name")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--teacher_batch_size", type=int, help="ask the teacher also about so many views at once")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=9, help="steps of each kind, alternating")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true", help="the student's steps in bf16 autocast")
    parser.add_argument("--json", help="write the figures here")
    return parser.parse_args(arguments)


def make_batch(options, size: int) -> dict:
    """Views as they are after augmentation, and where they stand in the store."""
    return {
        "pixel_values": torch.randn(size, 3, options.image_size, options.image_size).to(options.device),
        "labels": torch.rand(size, NUM_CLASSES).softmax(-1).to(options.device),  # as mixing makes them
        "position": np.arange(size),
    }


def filled_store(folder: str, num_views: int):
    """A store with an answer for every view."""
    fingerprint = {"num_classes": NUM_CLASSES, "num_views": num_views, "distillation_type": "hard"}
    store = create_store(Path(folder, "store"), fingerprint, {})
    store.write(0, np.arange(num_views), np.ones(num_views, store.dtype))
    return store


def make_classifier(options) -> torch.nn.Module:
    """The teacher as it is loaded."""
    config = TimmWrapperConfig(architecture=options.teacher, num_labels=NUM_CLASSES)
    return AutoModelForImageClassification.from_config(config).to(options.device).requires_grad_(False).eval()


def make_teachers(options) -> dict[str, torch.nn.Module]:
    """The teacher by how it is asked; in bf16 only where the device has units for it."""
    teachers = {"fp32": make_classifier(options), "fp32_channels_last": make_teacher(options, "fp32")}
    if multiplies_bf16(torch.device(options.device).type):
        teachers["bf16"] = make_teacher(options, "bf16", compile=options.device.startswith("cuda"))
    return teachers


def make_teacher(options, precision: str, compile: bool = False) -> Teacher:
    """The teacher as `train_deit.py` asks it with this `--teacher_precision`."""
    view = InputView(options.image_size)
    return Teacher(make_classifier(options), view, view, precision=precision, compile=compile).to(options.device)


@torch.inference_mode()
def ask(teacher: torch.nn.Module, batch: dict) -> torch.Tensor:
    answer = teacher(batch["pixel_values"])
    return getattr(answer, "logits", answer).argmax(dim=-1)


def read_labels(store, batch: dict) -> torch.Tensor:
    entries, known = store.read(0, batch["position"])
    assert known.all()
    return decode_labels(entries, batch["pixel_values"].device)


def make_step(options, batch: dict, teacher_labels):
    """A training step; `teacher_labels` gives the second term's labels, None leaves it out."""
    config = DeiTDistillConfig.from_size(
        options.student,
        num_labels=NUM_CLASSES,
        image_size=options.image_size,
        use_distillation_token=teacher_labels is not None,
    )
    model = DeiTDistillForImageClassification(config).to(options.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    device_type = torch.device(options.device).type

    def step():
        decided = None if teacher_labels is None else teacher_labels(batch).clone()  # of inference mode
        with torch.autocast(device_type, torch.bfloat16, enabled=options.bf16):
            outputs = model(batch["pixel_values"])
            loss = label_loss(outputs.cls_logits, batch["labels"], 0.1)
            if decided is not None:
                loss = 0.5 * loss + 0.5 * hard_distillation_loss(outputs.distillation_logits, decided)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    run_script(main)

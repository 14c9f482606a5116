"""How fast the student trains and answers, against the same network of transformers, timm and the public code.

    python examples/benchmarks/student_speed.py [--size tiny] [--image_size 224] [--device cpu] [--json FILE]

    ours            DeiTDistillForImageClassification
    transformers    DeiTForImageClassificationWithTeacher, with PyTorch's fused attention (sdpa)
    timm            deit_*_distilled_patch16, with the same fused attention
    public          timm's with attention written out, the formula of the public code

A training step is forward, the loss of both heads, backward and fused AdamW, without stochastic depth, which
transformers' class does not have. All take turns in one process on one batch; figures are medians. `share of peak` is
the matrix products that a model really does (FlopCounterMode) over the fastest product measured in the same run.
Peak memory is measured in a process for each.

`ratios`: ours over the faster peer in images a second (`train_fp32`, `train_bf16`, `infer_fp32` eager; `infer_best`:
our best shipped path over the faster peer's eager; `pipeline_1`, `pipeline_64`: our pipeline over transformers', by
batch; `..._compiled` where compiled), and our peak memory over that of the thriftier peer (`memory`, to be at most 1).
"""

import argparse
import copy
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from timing import alternate, matrix_peak
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from modeling_deit_distill import DeiTDistillConfig, DeiTDistillForImageClassification
from modeling_deit_distill.configuration_deit_distill import SIZES
from modeling_deit_distill.hardware import keep_freed_memory
from modeling_deit_distill.losses import hard_distillation_loss, label_loss
from modeling_deit_distill.precision import multiplies_bf16
from modeling_deit_distill.script import run_script

NUM_CLASSES = 1000
PEERS = ("transformers", "timm", "public")
PIPELINE_BATCHES = (1, 64)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main(arguments: list[str]):
    options = parse_options(arguments)
    if options.memory_of:
        return print(peak_memory(options))
    keep_freed_memory(torch.device(options.device).type)  # for all, as train_deit.py does
    peaks = {name: matrix_peak(options.device, DTYPES[name]) for name in options.precisions}
    figures = {}
    for precision in options.precisions:
        for task in options.tasks:
            for is_compiled in (False, True) if options.compile else (False,):
                name = f"{task}_{precision}" + "_compiled" * is_compiled
                figures[name] = measure(options, task, precision, is_compiled, peaks[precision])
                show(name, figures[name])
    ratios = {name: over_the_faster_peer(table, "images_per_second") for name, table in figures.items()}
    if "infer" in options.tasks and "fp32" in options.precisions:
        figures["shipped"] = measure_shipped(options)
        show("shipped", figures["shipped"])
        ratios["infer_best"] = best_over_eager(figures["shipped"])
        for batch_size in PIPELINE_BATCHES:
            name = f"pipeline_{batch_size}"
            figures[name] = measure_pipeline(options, batch_size)
            show(name, figures[name])
            ratios[name] = over_the_faster_peer(figures[name], "images_per_second")
    if options.memory:
        figures["memory"] = {name: memory_elsewhere(name, options) for name in ("ours", *PEERS)}
        show("memory", figures["memory"])
        ratios["memory"] = figures["memory"]["ours"]["MB"] / min(figures["memory"][name]["MB"] for name in PEERS)
    report(options, peaks, figures, {name: round(ratio, 3) for name, ratio in ratios.items()})


def parse_options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=[*SIZES], default="tiny")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch_size", type=int, help="default: 16 on a CPU, 256 on a GPU")
    parser.add_argument(
        "--precisions", nargs="+", choices=[*DTYPES], help="default: fp32, and bf16 where the device has units for it"
    )
    parser.add_argument("--tasks", nargs="+", choices=["train", "infer"], default=["train", "infer"])
    parser.add_argument("--compile", action="store_true", help="measure compiled models too")
    parser.add_argument("--rounds", type=int, default=9, help="measurements of each, alternating")
    parser.add_argument("--no_memory", dest="memory", action="store_false", help="leave peak memory out")
    parser.add_argument("--json", help="write the figures here")
    parser.add_argument("--plot", help="draw the figures here (.png)")
    parser.add_argument("--memory_of", choices=["ours", *PEERS], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.batch_size = options.batch_size or (256 if options.device.startswith("cuda") else 16)
    options.precisions = options.precisions or ["fp32"] + ["bf16"] * multiplies_bf16(torch.device(options.device).type)
    return options


def make_model(name: str, options, drop_path_rate: float = 0.0) -> torch.nn.Module:
    """One of the four, with both heads and random weights. Only what it needs is imported: memory is measured."""
    torch.manual_seed(0)
    sizes, image_size = dict(SIZES[options.size]), options.image_size
    if name == "ours":
        config = DeiTDistillConfig(
            **sizes, image_size=image_size, num_labels=NUM_CLASSES, drop_path_rate=drop_path_rate
        )
        model = DeiTDistillForImageClassification(config)
    elif name == "transformers":
        from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

        config = DeiTConfig(**sizes, image_size=image_size, num_labels=NUM_CLASSES, layer_norm_eps=1e-6)
        model = DeiTForImageClassificationWithTeacher._from_config(config, attn_implementation="sdpa")
    else:
        import timm

        before = timm.layers.use_fused_attn()
        timm.layers.set_fused_attn(name == "timm")
        name = f"deit_{options.size}_distilled_patch16_224"
        model = timm.create_model(name, img_size=image_size, drop_path_rate=drop_path_rate)
        timm.layers.set_fused_attn(before)
        model.set_distilled_training(True)
    return model.to(options.device)


def both_heads(output) -> tuple[torch.Tensor, torch.Tensor]:
    """Class and distillation logits (batch, classes) of anyone's output."""
    return output if isinstance(output, tuple) else (output.cls_logits, output.distillation_logits)


def make_batch(options) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Augmented views (batch, 3, height, width), their mixed labels (batch, classes), and the teacher's (batch,)."""
    pixel_values = torch.randn(options.batch_size, 3, options.image_size, options.image_size)
    labels = torch.rand(options.batch_size, NUM_CLASSES).softmax(-1)
    decided = torch.randint(NUM_CLASSES, (options.batch_size,))
    return tuple(value.to(options.device) for value in (pixel_values, labels, decided))


def training_step(model: torch.nn.Module, forward, batch, precision: str, device: str):
    """A step of hard distillation on `batch`; `forward` is the model, compiled or not."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.05, fused=True)

    def step():
        pixel_values, labels, decided = batch  # at each step, since a loader may have changed it
        with autocast(precision, device):
            cls_logits, distillation_logits = both_heads(forward(pixel_values))
            loss = 0.5 * label_loss(cls_logits, labels, 0.1)
            loss = loss + 0.5 * hard_distillation_loss(distillation_logits, decided)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def answering(forward, pixel_values: torch.Tensor, precision: str, device: str):
    """The model's answers about a batch."""

    @torch.inference_mode()
    def step():
        with autocast(precision, device):
            forward(pixel_values)

    return step


def autocast(precision: str, device: str):
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, DTYPES[precision])


def measure(options, task: str, precision: str, is_compiled: bool, peak: float) -> dict[str, dict[str, float]]:
    """Images a second and share of the matrix peak of the four, alternating."""
    batch, steps, flops = make_batch(options), {}, {}
    torch._dynamo.reset()  # models of one class share a cache, which holds a few only
    for name in ("ours", *PEERS):
        model = make_model(name, options).train(task == "train")
        if task == "infer" and name in ("timm", "public"):
            model.set_distilled_training(False)
        forward = torch.compile(model) if is_compiled else model
        if task == "train":
            steps[name] = training_step(model, forward, batch, precision, options.device)
        else:
            steps[name] = answering(forward, batch[0], precision, options.device)
        flops[name] = products_of(model, batch[0], task)
    seconds = alternate(steps, options.rounds, options.device, warm_up=3 if is_compiled else 2)
    return {
        name: {"images_per_second": options.batch_size / taken, "share_of_peak": flops[name] / taken / peak}
        for name, taken in seconds.items()
    }


def products_of(model: torch.nn.Module, pixel_values: torch.Tensor, task: str) -> float:
    """FLOPs of all matrix products of a step; the backward pass has two for each of the forward's."""
    # Of a CPU's fused attention the counter knows nothing; written out, it has the same products.
    written_out = sdpa_kernel(SDPBackend.MATH)
    with written_out, FlopCounterMode(display=False) as counter, torch.no_grad():
        model(pixel_values)
    return counter.get_total_flops() * (3 if task == "train" else 1)


def measure_shipped(options) -> dict[str, dict[str, float]]:
    """The peers' eager answers, and our ways to answer faster: compiled, bf16 where it is native, ONNX on a CPU.

    In bf16 the weights are loaded in it too, as by `pipeline(..., dtype="bfloat16")`.
    """
    kind, pixel_values = torch.device(options.device).type, make_batch(options)[0]
    model = make_model("ours", options).eval()
    steps = {name: answering(make_model(name, options).eval(), pixel_values, "fp32", options.device) for name in PEERS}
    steps |= {"compiled": answering(torch.compile(model), pixel_values, "fp32", options.device)}
    if multiplies_bf16(kind):
        half = copy.deepcopy(model).to(torch.bfloat16)
        steps["bf16"] = answering(half, pixel_values, "fp32", options.device)
        steps["bf16_compiled"] = answering(torch.compile(half), pixel_values, "fp32", options.device)
    if kind == "cpu":
        steps |= onnx_steps(model, pixel_values)
    seconds = alternate(steps, options.rounds, options.device, warm_up=3)
    return {name: {"images_per_second": options.batch_size / taken} for name, taken in seconds.items()}


def onnx_steps(model, pixel_values: torch.Tensor) -> dict:
    """The files that `export_onnx.py` writes, in onnxruntime, each image on a core of its own."""
    from modeling_deit_distill.export import onnx

    steps = {}
    with tempfile.TemporaryDirectory() as folder:
        for precision in onnx.PRECISIONS:
            file = Path(folder, f"{precision}.onnx")
            onnx.write_onnx(model, file)
            if precision == "int8":
                onnx.quantize(file)
            steps[f"onnx_{precision}"] = functools.partial(onnx.answer_by_core(file), pixel_values.numpy())
    return steps


def measure_pipeline(options, batch_size: int) -> dict[str, dict[str, float]]:
    """Images a second of `pipeline("image-classification")`, from photographs on; the image processor is the same."""
    from transformers import pipeline

    from modeling_deit_distill.data.evaluation import evaluation_processor

    processor = evaluation_processor(options.image_size)
    pixels = np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)
    images = [PIL.Image.fromarray(pixels)] * max(batch_size, 8)
    steps = {}
    for name in ("ours", "transformers"):
        model = make_model(name, options).eval()
        classify = pipeline("image-classification", model=model, image_processor=processor, device=options.device)
        steps[name] = functools.partial(classify, images, batch_size=batch_size)
    seconds = alternate(steps, options.rounds, options.device, warm_up=1)
    return {name: {"images_per_second": len(images) / taken} for name, taken in seconds.items()}


def over_the_faster_peer(table: dict[str, dict[str, float]], key: str) -> float:
    return table["ours"][key] / max(row[key] for name, row in table.items() if name != "ours")


def best_over_eager(table: dict[str, dict[str, float]]) -> float:
    """Our best path over the faster peer's eager one."""
    peers = [row["images_per_second"] for name, row in table.items() if name in PEERS]
    ours = [row["images_per_second"] for name, row in table.items() if name not in PEERS]
    return max(ours) / max(peers)


def memory_elsewhere(name: str, options) -> dict[str, float]:
    """Peak memory of training steps in fp32, in a process of its own."""
    words = ["--size", options.size, "--image_size", str(options.image_size), "--device", options.device]
    words += ["--batch_size", str(options.batch_size), "--memory_of", name]
    # glibc then gives freed tensors back, so that holes in its heap do not count: they differ from run to run.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    done = subprocess.run([sys.executable, __file__, *words], env=environment, stdout=subprocess.PIPE, check=True)
    return {"MB": float(done.stdout.split()[-1])}


def peak_memory(options) -> float:
    """MB that three training steps need at the most, beyond what was there before the model."""
    make_model(options.memory_of, options)  # imports its library
    before = memory_in_mb("VmRSS")
    model = make_model(options.memory_of, options).train()
    step = training_step(model, model, make_batch(options), "fp32", options.device)
    for _ in range(3):
        step()
    if options.device != "cpu":
        return torch.cuda.max_memory_allocated() / 1e6
    return memory_in_mb("VmHWM") - before


def memory_in_mb(kind: str) -> float:
    """This process's memory now (VmRSS) or at its most (VmHWM)."""
    return int(re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024 / 1e6


def show(title: str, table: dict[str, dict[str, float]]):
    for name, row in table.items():
        print(f"{title:20} {name:14}", *(f"{key} {value:10.3f}" for key, value in row.items()), flush=True)


def report(options, peaks, figures, ratios):
    """Print the ratios last; keep all in a file and a picture if asked."""
    peaks = {name: round(peak / 1e9, 1) for name, peak in peaks.items()}
    print("fastest matrix product, GFLOP/s:", peaks)
    print(json.dumps({"ratios": ratios}))
    if options.json:
        content = {"ratios": ratios, "figures": figures, "peaks": peaks, "options": vars(options)}
        Path(options.json).write_text(json.dumps(content, indent=2) + "\n")
    if options.plot:
        draw(options, figures)


def draw(options, figures):
    """One panel for each kind of step: images a second of everyone."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {name: table for name, table in figures.items() if name != "memory" and "pipeline" not in name}
    figure, axes = pyplot.subplots(1, len(panels), figsize=(2.6 * len(panels), 3), layout="constrained", squeeze=False)
    for axis, (title, table) in zip(axes[0], panels.items(), strict=True):
        rates = [row["images_per_second"] for row in table.values()]
        colours = ["lightgrey" if name in PEERS else "tab:blue" for name in table]
        bars = axis.bar([*table], rates, color=colours)
        axis.bar_label(bars, fmt="%.3g", fontsize=8)
        axis.set_xticks(range(len(table)), [*table], rotation=40, ha="right")
        axis.margins(y=0.15)
        axis.set_title(title.replace("_", " "))
    axes[0, 0].set_ylabel("images/s")
    figure.suptitle(f"DeiT {options.size}, {options.image_size} pixels, batch {options.batch_size}, {options.device}")
    figure.savefig(options.plot, dpi=100)


if __name__ == "__main__":
    run_script(main)

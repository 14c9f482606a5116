"""The model card and the training curves, from what a run left in its `output_dir`."""

import json
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from .report import ACCURACY_NAMES

CURVES = "training_curves.png"
TEMPLATE = Path(__file__).with_name("model_card_template.md")


def write_model_card(output_dir: str | Path, facts: Mapping[str, object]) -> Path:
    """Write `README.md` into `output_dir` from its `config.json`, `all_results.json` and `facts` about the run.

    Args:
        output_dir: a finished run.
        facts: what was run, as printed before it: data, teacher, student, recipe.
    """
    output_dir = Path(output_dir)
    results = json.loads((output_dir / "all_results.json").read_text())
    config = json.loads((output_dir / "config.json").read_text())
    accuracies = [(name, f"{results[key]:.4f}") for key, name in ACCURACY_NAMES.items() if key in results]
    card = ModelCard.from_template(
        ModelCardData(
            license="apache-2.0",
            library_name="transformers",
            pipeline_tag="image-classification",
            tags=["image-classification", "deit", "distillation", "vision"],
        ),
        template_path=str(TEMPLATE),
        title=output_dir.resolve().name,
        two_heads=config["use_distillation_token"],
        classes=", ".join(config["id2label"].values()),
        accuracies=_table(("top-1 and agreement", "share of validation images"), accuracies),
        facts=_table(("run", ""), [(name, value) for name, value in facts.items()]),
        curves=CURVES if (output_dir / CURVES).exists() else None,
    )
    path = output_dir / "README.md"
    card.save(path)
    return path


def plot_training_curves(log_history: list[dict], path: str | Path) -> Path | None:
    """Losses and accuracies over epochs as a PNG; nothing is drawn (None) where nothing was logged.

    Args:
        log_history: `trainer.state.log_history`.
        path: where the picture is written.
    """
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    losses = {"loss": "total", "label_loss": "label term", "teacher_loss": "teacher term", "eval_loss": "validation"}
    shares = {
        "eval_accuracy": "validation accuracy",
        "eval_teacher_agreement": "agreement with teacher, validation",
        "teacher_agreement": "agreement with teacher, training",
    }
    figure = Figure(figsize=(10, 4), layout="constrained")
    drawn = 0
    for axes, title, names in zip(figure.subplots(1, 2), ("Loss", "Share of images"), (losses, shares), strict=True):
        for key, label in names.items():
            points = [(entry["epoch"], entry[key]) for entry in log_history if key in entry and "epoch" in entry]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 50 else None)
                drawn += 1
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    if not drawn:
        return None
    figure.savefig(path, dpi=120)
    return Path(path)


def _table(header: tuple[str, str], rows: list[tuple[str, object]]) -> str:
    lines = [
        f"| {header[0]} | {header[1]} |",
        "|---|---|",
        *(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows),
    ]
    return "\n".join(lines)


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")

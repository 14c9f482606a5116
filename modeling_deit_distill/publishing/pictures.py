"""The card's pictures: training curves, and predictions on held-out images with what the tokens attend to."""

import copy
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..analysis import attention_maps
from ..files import written_whole

MAX_EXAMPLES = 8
# The rule of `choose_examples`, for the reader of the picture.
HOW_CHOSEN = (
    "The images were chosen by a fixed rule, not by hand: from as many classes as possible, with about the share of "
    "wrong answers that the whole held-out set has, but at least one if there is any."
)
TOKEN_NAMES = ("class token", "distillation token")
RIGHT, WRONG = "#1a1a1a", "#b3261e"
MAX_NAME = 32  # characters of a class name in a caption
PART_WIDTH = 5.25  # inches of one image with its attention


def plot_training_curves(log_history: list[dict], path: str | Path) -> Path | None:
    """Losses and accuracies of `trainer.state.log_history` over epochs, as a PNG; None where nothing was logged."""
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    losses = {"loss": "total", "label_loss": "label term", "teacher_loss": "teacher term", "eval_loss": "validation"}
    shares = {
        "eval_accuracy": "validation accuracy",
        "eval_teacher_agreement": "agreement with teacher, validation",
        "teacher_agreement": "agreement with teacher, training",
    }
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, title, names in zip(figure.subplots(1, 2), ("Loss", "Share of images"), (losses, shares), strict=True):
        for key, label in names.items():
            points = [(entry["epoch"], entry[key]) for entry in log_history if key in entry and "epoch" in entry]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 50 else None)
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    return save_figure(figure, path) if any(axes.lines for axes in figure.axes) else None


def choose_examples(labels: Sequence[int], decisions: Sequence[int]) -> list[int]:
    """Which held-out images to show: a fixed rule, so that nobody picks the flattering ones (see `HOW_CHOSEN`).

    Args:
        labels, decisions: (images,) class indices, true and answered.

    Returns:
        Indices of images, ordered by class.
    """
    labels, decisions = np.asarray(labels), np.asarray(decisions)
    wrong, right = np.flatnonzero(labels != decisions), np.flatnonzero(labels == decisions)
    count = min(MAX_EXAMPLES, len(labels))
    num_wrong = 0
    if len(wrong):
        num_wrong = max(round(count * len(wrong) / len(labels)), 1)
        num_wrong = max(min(num_wrong, len(wrong)), count - len(right))
    chosen = _spread(wrong, labels, num_wrong, ())
    chosen += _spread(right, labels, count - num_wrong, labels[chosen])
    return sorted(chosen, key=lambda index: (labels[index], index))


def choose_mistakes(labels: Sequence[int], decisions: Sequence[int], confidence: Sequence[float]) -> list[int]:
    """The wrong answers that were given with the highest probability: a fixed rule too.

    Args:
        labels, decisions: (images,) class indices, true and answered.
        confidence: (images,) the probability of each answer, from 0 to 1.

    Returns:
        Indices of images, the surest mistake first.
    """
    wrong = np.flatnonzero(np.asarray(labels) != np.asarray(decisions))
    surest = np.argsort(-np.asarray(confidence, dtype=float)[wrong], kind="stable")
    return wrong[surest][:MAX_EXAMPLES].tolist()


def distinct_names(id2label: Mapping[int, str]) -> list[str]:
    """Class names in the order of their indices; where two classes share one, as ImageNet's cranes do, with its index.

    By their names alone an answer of the one to an image of the other would pass for right.
    """
    names = [str(name) for _, name in sorted(id2label.items())]
    counts = Counter(names)
    return [name if counts[name] == 1 else f"{name} ({index})" for index, name in enumerate(names)]


def draw_predictions(model, pixel_values: torch.Tensor, labels, teacher_labels, processor, path: str | Path) -> Path:
    """Ask a model about some images and draw what it answers and where its tokens look.

    The model is left as it was: its training state, and its attention kernel.

    Args:
        model: a [`DeiTDistillForImageClassification`]; class names come from its configuration.
        pixel_values: (images, 3, height, width), normalised by `processor`; the first eight are drawn.
        labels, teacher_labels: (images,) true classes, and the teacher's answers or None.
    """
    pixel_values = pixel_values[:MAX_EXAMPLES]
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        output = model(pixel_values.to(model.device, model.dtype), output_attentions=True)
    grid = model.base_model.embeddings.grid(tuple(pixel_values.shape[-2:]))
    num_prefix_tokens = 1 if output.distillation_logits is None else 2
    probabilities, answers = output.logits.float().softmax(dim=-1).max(dim=-1)
    names, count = distinct_names(model.config.id2label), len(pixel_values)
    return plot_predictions(
        _as_images(pixel_values, processor),
        attention_maps(output.attentions, grid, num_prefix_tokens).cpu().numpy(),
        [names[int(label)] for label in labels[:count]],
        [(names[answer], share) for answer, share in zip(answers.tolist(), probabilities.tolist(), strict=True)],
        None if teacher_labels is None else [names[int(label)] for label in teacher_labels[:count]],
        path,
    )


def plot_predictions(
    images: Sequence[np.ndarray],
    maps: np.ndarray,
    truths: Sequence[str],
    answers: Sequence[tuple[str, float]],
    teacher_answers: Sequence[str] | None,
    path: str | Path,
) -> Path:
    """Images with the attention of each token beside them, and what was answered above, as a PNG.

    Args:
        images: (height, width, 3) uint8, as the model saw them.
        maps: (images, tokens, rows, columns), the attention of the class token and, if there are two tokens, of the
            distillation token to the patches.
        truths, answers, teacher_answers: names of classes; the model's answers with their probability, from 0 to 1.
    """
    from matplotlib.figure import Figure

    num_panels, per_line = 1 + maps.shape[1], min(2, len(images))
    lines = -(-len(images) // per_line)
    height, width = images[0].shape[:2]
    line_height = PART_WIDTH / num_panels * height / width + 0.75
    figure = Figure(figsize=(PART_WIDTH * per_line, line_height * lines), layout="constrained", facecolor="white")
    parts = figure.subfigures(lines, per_line, squeeze=False, wspace=0.04, hspace=0.02).flatten()
    for index, (part, image) in enumerate(zip(parts, images, strict=False)):
        teacher = None if teacher_answers is None else teacher_answers[index]
        _draw_caption(part, truths[index], *answers[index], teacher)
        _draw_panels(part.subplots(1, num_panels, squeeze=False)[0], image, maps[index])
    return save_figure(figure, path)


def _draw_caption(part, truth: str, answer: str, probability: float, teacher: str | None):
    is_right = truth == answer
    verdict = "right" if is_right else "WRONG"  # in words too: not everybody sees the colour
    lines = [f"truth: {short_name(truth)}", f"answer: {short_name(answer)}, {probability:.0%} ({verdict})"]
    if teacher is not None:
        lines.append(f"teacher: {short_name(teacher)}")
    colour, weight = (RIGHT, "normal") if is_right else (WRONG, "bold")
    text = {"fontsize": 9, "color": colour, "fontweight": weight, "x": 0.01, "ha": "left"}
    part.suptitle("\n".join(lines), parse_math=False, **text)  # a dollar in a class's name is no formula


def _draw_panels(panels, image: np.ndarray, maps: np.ndarray):
    """The image, then each token's attention over the image in grey, so that an even attention stays dim."""
    height, width = image.shape[:2]
    panels[0].imshow(image)
    panels[0].set_xlabel("image", fontsize=8)
    grey = image.mean(axis=-1)
    for panel, name, attention in zip(panels[1:], TOKEN_NAMES, maps, strict=False):
        panel.imshow(grey, cmap="gray", vmin=0, vmax=255)
        smooth = F.interpolate(torch.from_numpy(attention)[None, None], (height, width), mode="bicubic")[0, 0].numpy()
        brightest = max(attention.max(), 3 / attention.size)  # three times an even share, or the map's own maximum
        panel.imshow(smooth, cmap="inferno", vmin=0, vmax=brightest, alpha=0.6)
        panel.set_xlabel(name, fontsize=8)
    for panel in panels:
        panel.set(xticks=[], yticks=[])


def _spread(candidates: np.ndarray, labels: np.ndarray, count: int, taken_labels: Sequence[int]) -> list[int]:
    """`count` of the candidates: one of each class before a second of any; of too many classes, evenly spaced ones.

    `taken_labels` are the classes of images chosen before.
    """
    seen, rounds = Counter(map(int, taken_labels)), defaultdict(list)
    for index in candidates[np.argsort(labels[candidates], kind="stable")].tolist():
        label = int(labels[index])
        rounds[seen[label]].append(index)
        seen[label] += 1
    chosen: list[int] = []
    for number in sorted(rounds):
        wanted = min(count - len(chosen), len(rounds[number]))
        chosen += [rounds[number][place * len(rounds[number]) // wanted] for place in range(wanted)]
    return chosen


def _as_images(pixel_values: torch.Tensor, processor) -> np.ndarray:
    """(images, height, width, 3) uint8 of normalised `pixel_values`."""
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (processor.image_mean, processor.image_std))
    pixels = pixel_values.detach().cpu().float() * std + mean
    return pixels.clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def short_name(name: str) -> str:
    """The name of a class on one line, cut off if it is long."""
    name = " ".join(name.split())
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1].rstrip(" ,") + "…"


def save_figure(figure, path: str | Path) -> Path:
    """Write a PNG without the library's version, so that the same figure gives the same file."""
    with warnings.catch_warnings(), written_whole(path) as partial:
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a box in a caption, no line for each
        figure.savefig(partial, format="png", dpi=120, metadata={"Software": None})
    return Path(path)

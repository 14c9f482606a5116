"""What a run left for its card, and how to find one's way in a card."""

import re

from huggingface_hub import ModelCard

from modeling_deit_distill.publishing.card import write_model_card

NAMES = ["ant", "bee", "cat", "dog", "eel"]
RESULTS = {
    "teacher_accuracy": 0.9,
    "eval_accuracy": 0.8,
    "eval_accuracy_cls": 0.7,
    "eval_accuracy_distillation": 0.75,
    "eval_accuracy_logit_mean": 0.8,
    "eval_accuracy_softmax_mean": 0.78125,
    "eval_top5_accuracy": 1.0,
    "eval_teacher_agreement": 0.6,
    "eval_loss": 0.4321,
    "num_parameters": 5_910_000,
    "train_runtime": 200.0,
    "teacher_views_asked": 84480,
    "bad_images": 3,
}
# Ten held-out images of the first four classes. Wrong: the model on 3 (bee for ant) and 9 (ant for dog), the teacher on
# 3 (bee for ant) alone.
DECISIONS = {
    "labels": [0, 0, 0, 0, 1, 1, 2, 2, 3, 3],
    "fused": [0, 0, 0, 1, 1, 1, 2, 2, 3, 0],
    "cls": [0, 0, 0, 1, 1, 1, 2, 2, 0, 0],
    "distillation": [0, 0, 0, 1, 1, 1, 2, 2, 3, 3],
    "teacher": [0, 0, 0, 1, 1, 1, 2, 2, 3, 3],
}
RECORD = {
    "name": "me/my-small-deit",
    "facts": {
        "data": "photos: 90 images",
        "held out": "10 images, 10% of split 'train'",
        "teacher": "me/resnet",
        "learning rate": "0.001",
    },
    "command": "accelerate launch --quiet train_deit.py recipe.yaml --seed 3",
    "recipe": {"dataset_name": "photos", "learning_rate": 0.001, "seed": 3},
    "versions": {"python": "3.12.1", "torch": "2.15.0"},
    "hardware": "1 × NVIDIA A100",
    "finished": "2026-11-24",
    "base_model": "facebook/deit-tiny",
    "teacher": "me/resnet",
    "dataset": {"name": "Photos of animals", "id": "me/photos", "split": "10 images, 10% of split 'train'"},
    "native": False,
}
STATE = {
    "log_history": [{"loss": 2.0, "epoch": 1.0}, {"loss": 1.0, "eval_accuracy": 0.5, "eval_loss": 1.5, "epoch": 2.0}],
    "num_train_epochs": 10,
}
PROCESSOR = {"do_center_crop": True, "size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}


def classes(names) -> dict:
    """A configuration's part."""
    label2id = {name: index for index, name in enumerate(names)}
    return {"num_labels": len(names), "id2label": dict(enumerate(names)), "label2id": label2id}


def card_of(output_dir) -> ModelCard:
    return ModelCard.load(write_model_card(output_dir))


def section(text: str, heading: str) -> str:
    return re.split(r"^## ", text.split(f"\n## {heading}\n")[1], flags=re.MULTILINE)[0]


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a language; fails where a block is not closed."""
    assert len(re.findall(r"^```", text, re.MULTILINE)) % 2 == 0
    return re.findall(rf"^```{language}\n(.*?)\n```$", text, re.MULTILINE | re.DOTALL)


def assert_no_trace_of_what_is_missing(text: str):
    prose = re.sub(r"^```(python|bibtex)\n.*?\n```$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"\b(None|nan|NaN|null|Undefined)\b|\{\{|\{%|\(\)|\[\]", prose)
    assert "\n\n\n" not in text
    assert not re.search(r"\n#+ [^\n]*\n+(?=#|$)", text), "a heading with nothing under it"
    assert not re.search(r":\n\n(?=#|$)", text), "something announced that does not come"

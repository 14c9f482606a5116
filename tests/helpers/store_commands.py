"""What the tests of the store's command line share: a folder with all that it needs, and its commands."""

import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import CommitOperationAdd, HfApi

from helpers.examples import load_example
from helpers.teachers import save_resnet
from modeling_deit_distill import InputError
from modeling_deit_distill.data.evaluation import evaluation_processor, evaluation_view
from modeling_deit_distill.teachers.command_line import main

NAMES = ["day", "night"]
REPOSITORY = "me/answers"
VIEW = evaluation_view(evaluation_processor(16))
NUM_VIEWS = 18  # of 20 images, two are held out


class Place:
    """A folder with a teacher, photos, and a store of hard answers about two epochs of them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.teacher, self.photos, self.answers = folder / "teacher", folder / "photos", folder / "answers"

    def fill(self, epochs: str, answers: Path | None = None, **changes):
        words = {
            "train_dir": self.photos,
            "teacher_name_or_path": self.teacher,
            "teacher_store": answers or self.answers,
            "epochs": epochs,
            "output_dir": self.folder / "out",
            "distillation_type": "hard",
            "image_size": 16,
            "per_device_train_batch_size": 4,
            "bf16": "false",
            "report_to": "none",
            **changes,
        }
        label = load_example("label_with_teacher").main
        several = {key: value if isinstance(value, list) else [value] for key, value in words.items()}
        label([word for key, values in several.items() for word in (f"--{key}", *map(str, values))])


def save_undecided_resnet(folder: Path, bias: float = 0.0):
    """A teacher that says now the one, now the other."""
    model = save_resnet(folder, NAMES)
    with torch.no_grad():
        model.classifier[-1].bias -= model(torch.randn(64, 3, 16, 16)).logits.mean(0)
        model.classifier[-1].bias += bias
    model.save_pretrained(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, but for what the client keeps beside them."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def cli(*words) -> int:
    return main([str(word) for word in words])


def push(place, *words) -> int:
    return cli("push", place.answers, REPOSITORY, *words)


def facts(printed: str) -> dict[str, str]:
    return dict(re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in printed.splitlines())


def refused(*words) -> str:
    """The message, in one line, of a command that is refused."""
    with pytest.raises(InputError) as caught:
        cli(*words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def replace_file(server, name: str, content: bytes):
    """Put a file into the repository by a commit of its own, leaving the checksums."""
    api = HfApi(endpoint=server.endpoint, token=server.token)
    api.create_commit(REPOSITORY, [CommitOperationAdd(name, content)], commit_message="by hand", repo_type="dataset")

"""Promises of `docs/exactness.md` that no other file tests, and whether each test named there exists."""

import re
from pathlib import Path

import pytest
import torch
from helpers.examples import load_example
from helpers.paths import ROOT
from transformers import ResNetConfig, ResNetForImageClassification

import train_deit
from modeling_deit_distill.precision import multiplies_bf16

COLOURS = {"blue": (30, 60, 220), "green": (40, 200, 60), "red": (220, 40, 40)}
PRECISIONS = [
    pytest.param("false", id="fp32"),
    pytest.param(
        *("true",), id="bf16", marks=pytest.mark.skipif(not multiplies_bf16("cpu"), reason="no units for bf16 here")
    ),
]


@pytest.fixture(scope="module")
def words(save_photos, tmp_path_factory):
    """`words(output_dir, bf16, **changes)`: the command line of a short run with a teacher of random weights."""
    folder = tmp_path_factory.mktemp("teacher") / "resnet"
    torch.manual_seed(0)
    # Wide enough that a product is shared out to several threads.
    sizes = {"embedding_size": 64, "hidden_sizes": [64, 256], "depths": [1, 1], "layer_type": "basic"}
    names = dict(enumerate(COLOURS))
    config = ResNetConfig(**sizes, id2label=names, label2id={name: index for index, name in names.items()})
    ResNetForImageClassification(config).save_pretrained(folder)
    given = {
        **{"train_dir": save_photos(COLOURS, 16), "validation_fraction": 0.25, "teacher_name_or_path": folder},
        **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
        **{"image_size": 32, "patch_size": 8, "num_train_epochs": 2, "per_device_train_batch_size": 12},
        **{"learning_rate": "1e-2", "report_to": "none", "disable_tqdm": "true", "use_cpu": "true"},
        **{"allow_weak_teacher": "true", "save_strategy": "no"},
    }

    def make(output_dir, bf16, **changes):
        chosen = {**given, "output_dir": output_dir, "bf16": bf16, **changes}
        return [word for key, value in chosen.items() for word in (f"--{key}", str(value))]

    return make


def answers(store) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in sorted(Path(store).glob("epoch-*.bin"))}
    assert len(found) == 2
    return found


@pytest.mark.slow
@pytest.mark.parametrize("bf16", PRECISIONS)
def test_one_thread_and_two_give_the_same_answers_of_a_teacher(words, tmp_path, bf16):
    label, threads = load_example("label_with_teacher"), torch.get_num_threads()
    soft = {"distillation_type": "soft", "teacher_store_top_k": 3}
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            label.main(words(tmp_path / "out", bf16, teacher_store=tmp_path / str(count), **soft))
    finally:
        torch.set_num_threads(threads)
    assert answers(tmp_path / "1") == answers(tmp_path / "2")


@pytest.mark.slow
@pytest.mark.parametrize("bf16", PRECISIONS)
@pytest.mark.parametrize("workers", [0, 2])
def test_live_answers_and_stored_ones_train_the_same_student(words, tmp_path, bf16, workers):
    weights = []
    stored = {"teacher_store": tmp_path / "answers"}
    # Live, live while the store is filled, and from the full store.
    for name, changes in (("live", {}), ("filling", stored), ("full", {**stored, "dataloader_num_workers": workers})):
        train_deit.main(words(tmp_path / name, bf16, distillation_type="hard", **changes))
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] == weights[2]


def test_each_test_that_the_page_names_exists():
    page = (ROOT / "docs" / "exactness.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+)::(test_\w+)`", page)
    assert len(named) > 10
    for module, name in named:
        path = ROOT / "tests" / f"{module}.py"
        assert re.search(rf"^def {name}\(", path.read_text(encoding="utf-8"), re.MULTILINE), (module, name)

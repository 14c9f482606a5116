"""The card and the curves, from what a run leaves behind."""

import json

import PIL.Image
import pytest
from huggingface_hub import ModelCard

from modeling_deit_distill.model_card import CURVES, plot_training_curves, write_model_card
from modeling_deit_distill.report import ACCURACY_NAMES

FACTS = {"data": "photos: 90 images", "learning rate": "0.001"}


@pytest.fixture
def run(tmp_path, tiny_config):
    """`run(results, **config)`: a folder as a finished run leaves it."""

    def make(results=None, **overrides):
        output_dir = tmp_path / "my-small-deit"
        tiny_config(**overrides).save_pretrained(output_dir)
        (output_dir / "all_results.json").write_text(json.dumps(results or {"eval_accuracy": 0.97123}))
        return output_dir

    return make


def card_of(output_dir) -> ModelCard:
    write_model_card(output_dir, FACTS)
    return ModelCard.load(output_dir / "README.md")


def test_metadata(run):
    output_dir = run()
    assert write_model_card(output_dir, FACTS) == output_dir / "README.md"
    data = ModelCard.load(output_dir / "README.md").data
    assert data.license == "apache-2.0"
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "image-classification"
    assert {"deit", "distillation"} <= set(data.tags)


def test_only_what_was_measured_is_in_the_card(run):
    results = {"eval_accuracy": 0.97123, "teacher_accuracy": 1.0, "eval_loss": 0.4321}
    text = card_of(run(results)).text
    assert "| teacher | 1.0000 |" in text
    assert "| student (configured fusion) | 0.9712 |" in text
    assert "0.432" not in text
    for key, name in ACCURACY_NAMES.items():
        assert (f"| {name} |" in text) == (key in results)


def test_title_facts_and_use(run):
    text = card_of(run()).text
    assert text.strip().startswith("# my-small-deit")
    assert "| data | photos: 90 images |" in text and "| learning rate | 0.001 |" in text
    assert 'pipeline("image-classification"' in text and "trust_remote_code=True" in text
    assert "{{" not in text and "{%" not in text


def test_classes_stand_in_the_order_of_their_indices(run):
    names = [f"class{index}" for index in range(12)]
    text = card_of(run(num_labels=12, id2label=dict(enumerate(names)))).text
    assert ", ".join(names) in text


def test_a_bar_in_a_class_name_keeps_the_table_whole(run):
    output_dir = run()
    write_model_card(output_dir, {"classes": "2: cat|dog, cow"})
    (row,) = [line for line in (output_dir / "README.md").read_text().splitlines() if line.startswith("| classes")]
    assert row == r"| classes | 2: cat\|dog, cow |"


@pytest.mark.parametrize("two_heads", [True, False])
def test_the_distillation_token_is_mentioned_where_there_is_one(run, two_heads):
    text = card_of(run(use_distillation_token=two_heads)).text
    assert ("a distillation token learned" in text) == two_heads
    assert ("class token and one head" in text) == (not two_heads)


@pytest.mark.parametrize("present", [True, False])
def test_the_curves_are_linked_if_they_are_there(run, present):
    output_dir = run()
    if present:
        (output_dir / CURVES).write_bytes(b"picture")
    assert (f"({CURVES})" in card_of(output_dir).text) == present


@pytest.mark.parametrize(
    "log",
    [
        [{"loss": 2.0, "label_loss": 1.0, "teacher_loss": 3.0, "epoch": 1.0}, {"loss": 1.0, "epoch": 2.0}],
        [{"eval_accuracy": 0.5, "epoch": 1.0}],
        [{"loss": 2.0 / step, "teacher_agreement": 0.5, "epoch": step / 50} for step in range(1, 101)],
    ],
    ids=["losses", "accuracy", "many points"],
)
def test_curves_are_a_png(tmp_path, log):
    path = tmp_path / CURVES
    assert plot_training_curves(log, path) == path
    with PIL.Image.open(path) as picture:
        assert picture.format == "PNG" and picture.width > picture.height
        assert len(set(picture.convert("RGB").get_flattened_data())) > 10


@pytest.mark.parametrize("log", [[], [{"train_runtime": 3.0, "epoch": 1.0}], [{"loss": 1.0}]])
def test_no_curves_without_a_log(tmp_path, log):
    assert plot_training_curves(log, tmp_path / CURVES) is None
    assert list(tmp_path.iterdir()) == []

"""The card, from what a run leaves behind: its figures are the run's, and what is not there leaves no trace."""

import ast
import inspect
import re

import pytest
import yaml
from helpers.cards import (
    DECISIONS,
    RECORD,
    RESULTS,
    assert_no_trace_of_what_is_missing,
    blocks,
    card_of,
    classes,
    section,
)
from helpers.hub_server import HubServer, use_hub
from huggingface_hub import ModelCard, RepoCard

from modeling_deit_distill import InputError
from modeling_deit_distill.output_folder import CONFUSION, CURVES, MISTAKES, PICTURES, PREDICTIONS
from modeling_deit_distill.publishing.card import main, write_model_card

# Metadata


def test_metadata(run):
    output_dir = run()
    assert write_model_card(output_dir) == output_dir / "README.md"
    data = ModelCard.load(output_dir / "README.md").data
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "image-classification"
    assert set(data.tags) == {"image-classification", "vision", "vit", "deit", "distillation"}
    assert (data.base_model, data.datasets, data.metrics) == ("facebook/deit-tiny", ["me/photos"], ["accuracy"])


def test_the_results_come_back_from_the_model_index(run):
    results = {**RESULTS, "eval_balanced_accuracy": 0.75, "eval_macro_f1": 0.7}
    data = card_of(run(all_results=results)).data
    assert data.model_name == "me/my-small-deit"
    found = {result.metric_name: (result.metric_type, result.metric_value) for result in data.eval_results}
    assert found == {
        "top-1 accuracy": ("accuracy", 0.8),
        "top-5 accuracy": ("accuracy", 1.0),
        "balanced accuracy": ("balanced_accuracy", 0.75),
        "macro-F1": ("f1", 0.7),
        "agreement with the teacher": ("teacher_agreement", 0.6),
    }
    for result in data.eval_results:
        assert result.task_type == "image-classification"
        assert (result.dataset_type, result.dataset_name) == ("me/photos", "Photos of animals")
        assert result.verified is None and result.verify_token is None
    again = ModelCard(str(card_of(run(all_results=results))))
    assert again.data.eval_results == data.eval_results


def test_data_that_is_not_on_the_hub_is_an_image_folder(run):
    data = card_of(run(run={**RECORD, "dataset": {"name": "photos", "id": None, "split": None}})).data
    assert {result.dataset_type for result in data.eval_results} == {"imagefolder"}
    assert data.datasets is None


def test_a_card_has_no_licence_that_nobody_gave(run):
    card = card_of(run())
    assert card.data.license is None and "\nlicense:" not in str(card)
    expected = "No licence was given for this model. The checkpoint that it started from, [facebook/deit-tiny]"
    assert expected in section(card.text, "Licence") and "has a licence of its own" in card.text
    assert "licence of its own" not in card_of(run(run={**RECORD, "base_model": None})).text


def test_a_licence_that_was_given_is_on_the_card(run):
    card = card_of(run(run={**RECORD, "card": {"license": "cc-by-4.0"}}))
    assert card.data.license == "cc-by-4.0"
    assert "The model's licence is cc-by-4.0." in section(card.text, "Licence")


def test_a_licence_may_be_given_later(run, capsys):
    output_dir = run()
    assert main([str(output_dir), "--license", "mit"]) == 0
    assert ModelCard.load(output_dir / "README.md").data.license == "mit"
    assert main([str(output_dir)]) == 0  # and it stays
    assert ModelCard.load(output_dir / "README.md").data.license == "mit"
    with pytest.raises(InputError, match="'MIT License'; give the Hub's identifier"):
        main([str(output_dir), "--license", "MIT License"])


@pytest.mark.skipif(
    "https://huggingface.co" in inspect.getsource(RepoCard.validate), reason="this client asks no other host"
)
def test_the_hub_is_asked_whether_the_metadata_are_valid(run, monkeypatch):
    card = card_of(run())
    with HubServer() as server:
        use_hub(monkeypatch, server)
        card.validate()
        assert server.count("POST", "/api/validate-yaml") == 1


def test_a_model_without_a_teacher_is_not_tagged_as_distilled(run):
    facts = {**RECORD["facts"], "teacher": "none"}
    config = {"use_distillation_token": False}
    card = card_of(run(config, run={**RECORD, "facts": facts, "teacher": None}))
    assert "distillation" not in card.data.tags
    assert "learned from a teacher" not in card.text
    taught = card_of(run(config))
    assert "distillation" in taught.data.tags and "and from a teacher's answers" in taught.text


# The first screen


def test_it_says_what_the_model_is_and_how_good(run):
    text = card_of(run()).text
    first_screen = text.split("\n## ")[0]
    assert first_screen.strip().startswith("# my-small-deit\n")
    assert "5.91 million parameters" in first_screen and "images of 32 × 32 pixels" in first_screen
    assert "into 5 classes: ant, bee, cat, dog, eel." in first_screen
    assert "distillation token from a teacher's answers. Its answer is the mean of both heads' logits." in first_screen
    # Wilson: 8 of 10
    expected = "right on **80.00 %** of 10 held-out images (95 % interval: 49.0 to 94.3 %), its teacher on 90.00 %."
    assert expected in first_screen


def test_it_says_which_head_answers(run):
    for fusion, words in (
        ("softmax_mean", "the mean of both heads' probabilities"),
        ("cls", "the class head's"),
        ("distillation", "the distillation head's"),
    ):
        assert f"Its answer is {words}." in card_of(run({"fusion": fusion})).text


def test_pictures_are_shown_if_they_are_there(run):
    output_dir = run()
    text = card_of(output_dir).text
    assert "![" not in text and "fixed rule" not in text
    for name in PICTURES:
        (output_dir / name).write_bytes(b"picture")
    text = card_of(output_dir).text
    assert f"]({PREDICTIONS})" in text.split("\n## ")[0] and "fixed rule, not by hand" in text
    assert f"]({MISTAKES})" in text.split("\n## ")[0] and "that it gave with the highest probability" in text
    assert f"]({CONFUSION})" in section(text, "How good it is") and "The true class by row" in text
    assert f"]({CURVES})" in section(text, "How it was trained")


def test_the_tokens_cosine_is_shown_where_it_was_measured(run):
    one = {"images": 64, "attention_distance": [[5.0], [6.0]]}
    both = {**one, "cosine_learned": 0.0625, "cosine_by_block": [0.5, 0.93125]}
    sentence = (
        "Cosine similarity of the two token embeddings: 0.06 as learned, 0.50 after the first block and 0.93 after the "
        "last (mean over 64 held-out images)."
    )
    assert sentence in card_of(run(tokens=both)).text
    for nothing in (one, None):
        (run(tokens=None) / "tokens.json").unlink(missing_ok=True)
        assert "Cosine" not in card_of(run(tokens=nothing)).text


def test_classes_stand_in_the_order_of_their_indices(run):
    names = [f"class{index}" for index in range(12)]
    text = card_of(run(classes(names))).text
    assert f"12 classes: {', '.join(names)}." in text


def test_of_a_thousand_classes_ten_are_listed(run):
    names = [f"class{index}" for index in range(1000)]
    labels = [index for index in range(998) for _ in range(2)]
    fused = [label if index % 2 else (label + 1) % 1000 for index, label in enumerate(labels)]
    config = classes(names)
    text = card_of(run(config, predictions={"labels": labels, "fused": fused})).text
    assert f"1,000 classes: {', '.join(names[:10])}, ... and 990 others." in text
    assert "Of 2 of the 1,000 classes no image was held out" in text and "class998, class999" in text
    assert len(re.findall(r"^\| class\d+ \| 50.00 % \| 50.00 % \| 50.00 % \| 2 \|$", text, re.MULTILINE)) == 20
    assert "the 20 classes with the lowest F1; the other 979 are left out (`predictions.json` has every" in text
    assert len(text) < 12_000


# Use


def test_python_and_shell_are_ready_to_be_pasted(run):
    text = card_of(run()).text
    for block in blocks(text, "python"):
        ast.parse(block)
    assert 'model="me/my-small-deit", trust_remote_code=True' in blocks(text, "python")[0]
    shell = "\n".join(blocks(text, "bash"))
    assert "python -m modeling_deit_distill.conversion me/my-small-deit native_model --to native" in shell
    assert "python -m modeling_deit_distill.export me/my-small-deit browser_model" in shell


def test_a_pushed_native_export_comes_first(run):
    text = card_of(run(run={**RECORD, "native": True})).text
    native, ours = blocks(text, "python")[:2]
    assert 'model="me/my-small-deit", revision="native"' in native and "trust_remote_code" not in native
    assert "trust_remote_code=True" in ours
    assert "--to native" not in text


EXPORTS = [
    {
        "precision": precision,
        "file": f"onnx/model{kind}.onnx",
        "megabytes": megabytes,
        "milliseconds": 4.21,
        "agreement": {"images": 180, "equal": equal, "largest": 0.01},
    }
    for precision, kind, megabytes, equal in (("fp32", "", 23.04, 180), ("int8", "_quantized", 6.2, 178))
]


def test_the_card_leads_with_where_the_model_runs(run):
    text = card_of(run(run={**RECORD, "browser": True, "demo": True, "exports": EXPORTS})).text
    use = section(text, "How to use it")
    assert use.startswith("\n**[Try it in this browser](https://huggingface.co/spaces/me/my-small-deit-demo)**")
    rows = re.findall(r"^\| (.*) \| `(.*)` \| (.*) \| (.*) \|$", use, re.MULTILINE)
    assert [row[1:] for row in rows[1:]] == [
        ("onnx/model.onnx", "23.0", "4.2"),
        ("onnx/model_quantized.onnx", "6.2", "4.2"),
    ]
    assert "Of 180 held-out images the exports decide as PyTorch does: fp32 180, int8 178." in use
    [script] = blocks(use, "js")
    assert 'pipeline("image-classification", "me/my-small-deit", { revision: "browser" })' in script
    assert "https://huggingface.co/me/my-small-deit/tree/browser" in use
    assert_no_trace_of_what_is_missing(text.replace(script, ""))


def test_without_int8_the_code_for_browsers_names_the_precision_there_is(run):
    text = card_of(run(run={**RECORD, "browser": True, "exports": EXPORTS[:1]})).text
    assert '"me/my-small-deit", { revision: "browser", dtype: "fp32" })' in text
    assert "Try it" not in text


def test_copies_are_not_promised_before_the_end(run):
    text = card_of(run(all_results=None, run={**RECORD, "browser": True, "demo": True})).text
    assert "Try it" not in text and 'revision: "browser"' not in text


@pytest.mark.parametrize("changes", [{"run": {}}, {"all_results": None, "run": {"browser": True}}])
def test_files_of_an_export_are_named_only_where_they_can_be_had(run, changes):
    text = card_of(run(**{**changes, "run": {**RECORD, "exports": EXPORTS, **changes["run"]}})).text
    assert "onnx/model.onnx" not in text


def test_no_export_is_offered_that_would_fail(run):
    text = card_of(run({"fusion": "softmax_mean"})).text
    assert "--to native" not in text and "native_model" not in text
    assert_no_trace_of_what_is_missing(text)


# Figures


def test_the_teacher_stands_beside_the_model_with_a_verdict(run):
    text = section(card_of(run(all_results={**RESULTS, "milliseconds_per_image": 2.5})).text, "How good it is")
    lines = text.splitlines()
    start = lines.index("|  | this model | its teacher | always ant |")
    assert lines[start + 2 : start + 5] == [
        "| accuracy | 80.00 % | 90.00 % | 40.00 % |",
        "| balanced accuracy | – | – | 25.00 % |",
        "| macro-F1 | – | – | 14.29 % |",
    ]
    assert "| parameters | 5.91 M | – | – |" in lines and "| milliseconds an image | 2.50 | – | – |" in lines
    assert "Milliseconds are of one image at a time, in fp32, on 1 × NVIDIA A100." in lines
    expected = "**Verdict:** Too few held-out images (10) to say: the student is right on 8, the teacher is right on 9"
    assert any(line.startswith(expected) for line in lines)


def test_the_table_of_accuracies_has_the_runs_figures_and_intervals(run):
    rows = section(card_of(run()).text, "How good it is")
    assert "| teacher | 90.00 % | 59.6 to 98.2 % |" in rows
    assert "| **this model**, the mean of both heads' logits | 80.00 % | 49.0 to 94.3 % |" in rows
    assert "| class head | 70.00 % |" in rows and "| distillation head | 75.00 % |" in rows
    assert "| mean of softmaxes | 78.12 % |" in rows and "| top-5 | 100.00 % |" in rows
    assert "| this model agrees with the teacher | 60.00 % |" in rows
    assert "mean of logits |" not in rows  # the model's own answer, which stands there already
    assert "Measured on 10 held-out images." in rows


def test_only_what_was_measured_is_in_the_card(run):
    text = card_of(run(all_results={"eval_accuracy": 0.8, "eval_top5_accuracy": float("nan"), "bad_images": None})).text
    assert "| **this model**, the mean of both heads' logits | 80.00 % |" in text
    absent = ("top-5", "| class head | 7", "agrees", "its teacher on", "could not be read", "training time", "million")
    assert [word for word in absent if word in text] == []
    assert_no_trace_of_what_is_missing(text)


def test_disagreement_is_between_truth_teacher_and_heads(run):
    lines = section(card_of(run()).text, "How good it is").splitlines()
    assert "| differs from | truth | teacher | class head | distillation head | this model |" in lines
    assert "| truth | – | 10.00 % | 30.00 % | 10.00 % | 20.00 % |" in lines
    assert "| class head | 30.00 % | 20.00 % | – | 20.00 % | 10.00 % |" in lines


def test_each_class_has_its_figures(run):
    lines = section(card_of(run()).text, "How good it is").splitlines()
    start = lines.index("| class | precision | recall | F1 | images |") + 2
    assert lines[start : start + 5] == [
        "| ant | 75.00 % | 75.00 % | 75.00 % | 4 |",
        "| bee | 66.67 % | 100.00 % | 80.00 % | 2 |",
        "| cat | 100.00 % | 100.00 % | 100.00 % | 2 |",
        "| dog | 100.00 % | 50.00 % | 66.67 % | 2 |",
        "",  # eel has no image and is no answer
    ]


def test_a_class_that_is_never_answered_has_no_precision(run):
    text = card_of(run(predictions={"labels": [0, 1], "fused": [0, 0]})).text
    assert "| bee | – | 0.00 % | 0.00 % | 1 |" in text


def test_the_worst_confusions(run):
    lines = section(card_of(run()).text, "How good it is").splitlines()
    start = lines.index("| class | taken for | images | share of the class |") + 2
    assert lines[start : start + 2] == ["| dog | ant | 1 | 50.00 % |", "| ant | bee | 1 | 25.00 % |"]


def test_classes_of_one_name_are_confused_by_their_indices(run):
    names = ["crane", "hen", "crane", "ox", "pig"]
    text = card_of(run(classes(names), predictions={"labels": [0, 0, 1], "fused": [2, 0, 1]})).text
    assert "| crane (0) | crane (2) | 1 | 50.00 % |" in text


def test_a_model_without_mistakes_has_no_confusions(run):
    text = card_of(run(predictions={**DECISIONS, "fused": DECISIONS["labels"]})).text
    assert "taken for" not in text and text.count("| 100.00 % | 100.00 % | 100.00 % |") == 4
    assert_no_trace_of_what_is_missing(text)


def test_a_model_with_one_head_has_no_rows_of_heads(run):
    decisions = {name: DECISIONS[name] for name in ("labels", "fused", "cls", "teacher")}
    results = {key: RESULTS[key] for key in ("teacher_accuracy", "eval_accuracy", "eval_accuracy_cls")}
    text = card_of(run({"use_distillation_token": False}, predictions=decisions, all_results=results)).text
    assert "It has a class token and one head, which learned from labels and from a teacher's answers." in text
    assert "| **this model** | 80.00 % |" in text
    assert "| differs from | truth | teacher | this model |" in text
    assert "class head" not in text and "distillation token" not in text
    assert_no_trace_of_what_is_missing(text)


def test_two_sets_of_answers_make_no_table_of_disagreement(run):
    decisions = {name: DECISIONS[name] for name in ("labels", "fused", "cls")}
    text = card_of(run({"use_distillation_token": False}, predictions=decisions)).text
    assert "differs from" not in text and "taken for" in text


# Training


def test_a_run_that_is_not_pushed_is_used_where_it_lies_and_heic_photos_are_registered(run):
    record = {**RECORD, "name": "photos", "path": "outputs/photos", "heic": True}
    use = section(card_of(run(run=record)).text, "How to use it")
    assert 'model="outputs/photos", trust_remote_code=True' in use and "conversion outputs/photos native_model" in use
    first, *_ = blocks(use, "python")
    assert first.index("import pillow_heif; pillow_heif.register_heif_opener()") < first.index("classify = ")
    assert "pillow_heif" not in card_of(run()).text


def test_the_hardware_of_each_part_of_a_resumed_run(run):
    parts = {"0": "one thread", "12": "two threads"}
    trained = section(card_of(run(run={**RECORD, "hardware_by_step": parts})).text, "How it was trained")
    assert "| hardware | one thread; from step 12 on two threads |" in trained


def test_how_it_was_trained(run):
    trained = section(card_of(run()).text, "How it was trained")
    assert "starting from [facebook/deit-tiny](https://huggingface.co/facebook/deit-tiny)" in trained
    assert "on [me/photos](https://huggingface.co/datasets/me/photos)" in trained
    assert "taught by [me/resnet](https://huggingface.co/me/resnet)" in trained
    for name, value in RECORD["facts"].items():
        assert f"| {name} | {value} |" in trained
    assert "| hardware | 1 × NVIDIA A100 |" in trained and "| training time | 3 min 20 s |" in trained
    assert "| views the teacher was asked about | 84,480 |" in trained and "| finished | 2026-11-24 |" in trained
    assert "The versions: python 3.12.1, torch 2.15.0." in trained
    assert yaml.safe_load(blocks(trained, "yaml")[0]) == RECORD["recipe"]
    assert blocks(trained, "bash") == [RECORD["command"]]


def test_no_folder_of_this_machine_is_in_the_card(run, tmp_path):
    facts = {**RECORD["facts"], "output": str(tmp_path / "a-folder")}
    for record in ({**RECORD, "facts": facts}, {"facts": facts}):
        assert str(tmp_path) not in str(card_of(run(run=record)))


# Limitations


def test_limitations_come_from_the_run(run):
    limits = section(card_of(run()).text, "Limitations")
    assert "It knows the 5 classes above and no others" in limits
    assert "the shorter side is resized to 36 pixels, and 32 × 32 are cut from the centre" in limits
    assert "trained on photos: 90 images, and measured on 10 images, 10% of split 'train'. How" in limits
    assert "The teacher is wrong on 1 of the 10 held-out images, and this model repeats 1 of these answers." in limits
    assert "Of 1 of the 5 classes no image was held out" in limits and "recognises them: eel." in limits
    assert "3 training image(s) could not be read" in limits


def test_a_teacher_without_mistakes_is_said_to_have_none(run):
    limits = section(card_of(run(predictions={**DECISIONS, "teacher": DECISIONS["labels"]})).text, "Limitations")
    assert "On the 10 held-out images the teacher made none." in limits

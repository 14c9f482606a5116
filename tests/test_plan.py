"""What a plan refuses before anything is loaded."""

import json
import re
import types

import pytest
import torch
from helpers.images import encode, picture
from helpers.trainers import student

from modeling_deit_distill import InputError
from modeling_deit_distill import student as student_module
from modeling_deit_distill.output_folder import check_contents
from modeling_deit_distill.plan import Plan
from modeling_deit_distill.summary import decoding_in_words
from modeling_deit_distill.teachers.store import check_store_folder

# --- before anything is loaded or trained -----------------------------------------------------------------------------


def file(name, content="mine"):
    def make(folder):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)

    return make


def empty_folder(name):
    return lambda folder: (folder / name).mkdir(parents=True)


def start_with_nan(folder):
    model = student()
    with torch.no_grad():
        model.deit.layers[1].mlp.fc1.weight[0, 0] = torch.nan
    model.save_pretrained(folder / "start")


def start_of_a_billion_layers(folder):
    student().save_pretrained(folder / "start")
    config = json.loads((folder / "start" / "config.json").read_text())
    (folder / "start" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 10**9}))


STORE = ["--distillation_type", "hard", "--teacher_name_or_path", "somewhere", "--teacher_store", "store"]
# What is in the folder, what the command says besides, and the line that refuses it.
REFUSED = {
    "metric": (None, ["--metric_for_best_model", "f1"], "metric_for_best_model is 'f1'; choose from: loss, accuracy"),
    "folder for a file": (empty_folder("out/README.md"), [], "'out/README.md' is a folder, and a run writes a file"),
    "foreign run.json": (file("out/run.json", "[1]"), [], "'out/run.json' holds a list, not names with values"),
    "foreign text": (file("out/predictions.json"), [], "'out/predictions.json' is no JSON"),
    "nested too deep": (file("out/images.json", "[" * 10**5), ["--overwrite_output_dir", "true"], "is no JSON"),
    "overwritten folder": (empty_folder("out/run.json"), ["--overwrite_output_dir", "true"], "'out/run.json' is a fol"),
    "foreign store": (file("store/validation.json"), STORE, "teacher_store 'store' exists and is no store"),
    "file as store": (file("store"), STORE, "teacher_store 'store' exists and is no store"),
    "NaN": (
        start_with_nan,
        ["--model_name_or_path", "start"],
        "'start' holds weights that are not finite, first deit.layers.1.mlp.fc1.weight",
    ),
    "layers": (
        start_of_a_billion_layers,
        ["--model_name_or_path", "start"],
        "'start' holds 2 layers, its config.json says 1000000000",
    ),
}


@pytest.fixture
def refused_before_loading(tmp_path, monkeypatch):
    """From what a command says besides to the line that refuses it; nothing was loaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("modeling_deit_distill.plan.load_image_data", lambda **_: pytest.fail("the data were loaded"))

    def refusal(*words):
        command = ["--dataset_name", "digits", "--output_dir", "out", "--distillation_type", "none", *words]
        with pytest.raises(InputError) as caught:
            Plan.from_arguments([*command, "--use_cpu", "true", "--bf16", "false"]).check()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return refusal


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_be_known_is_refused_before_anything_is_loaded(refused_before_loading, tmp_path, case):
    make, words, expected = REFUSED[case]
    if make is not None:
        make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert re.search(expected, refused_before_loading(*words))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("reporter", ["tensorboard", "wandb"])
def test_a_reporter_that_is_not_installed_is_refused_before_anything_is_loaded(
    refused_before_loading, monkeypatch, reporter
):
    monkeypatch.setattr("modeling_deit_distill.supported.get_available_reporting_integrations", lambda: ["codecarbon"])
    line = refused_before_loading("--report_to", reporter)
    assert line.startswith(f"report_to names '{reporter}', which is unknown or not installed; install it, or choose")


def test_a_store_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    check_store_folder(tmp_path / "new" / "store", is_written=True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="cannot be written to; choose another folder, or make .*file' writable"):
        check_store_folder(tmp_path / "file" / "store", is_written=True)
    (tmp_path / "store.json").write_text("{}")
    monkeypatch.setattr("os.access", lambda path, mode: False)  # a read-only disk, to a user who may do everything
    check_store_folder(tmp_path, is_written=False)  # a full one is only read
    with pytest.raises(InputError, match="cannot be written to"):
        check_store_folder(tmp_path, is_written=True)
    (tmp_path / "validation.json").mkdir()
    with pytest.raises(InputError, match="holds a folder 'validation.json', where a file belongs"):
        check_store_folder(tmp_path, is_written=False)


def test_what_is_overwritten_may_hold_anything(tmp_path):
    (tmp_path / "run.json").write_text("[1]")
    check_contents(tmp_path, is_cleared=True)
    with pytest.raises(InputError, match="holds a list"):
        check_contents(tmp_path, is_cleared=False)


def test_without_a_network_the_recipe_that_needs_none_is_named(monkeypatch):
    def unreached(name):
        raise InputError(f"{name!r} cannot be read") from ConnectionError("no network")

    monkeypatch.setattr(student_module, "load_checkpoint", unreached)
    words = ["--dataset_name", "digits", "--distillation_type", "none", "--use_cpu", "true"]
    plan = Plan.from_arguments([*words, "--model_name_or_path", "facebook/deit"])
    with pytest.raises(InputError, match="cannot be read; .* no download: examples/recipes/own_images.yaml"):
        _ = plan.start


# --- large photographs ------------------------------------------------------------------------------------------------


@pytest.fixture
def plan_of_jpegs(tmp_path, monkeypatch):
    """`plan_of_jpegs(*words)`: the plan of a run on a folder of twelve JPEGs of 80 × 60 pixels, which are large."""
    monkeypatch.setattr("modeling_deit_distill.data.inspection.LARGE", 80 * 60)
    for row in range(12):
        path = tmp_path / "images" / "ab"[row % 2] / f"{row}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(picture(80, 60), "JPEG")["bytes"])

    def make(*words):
        command = ["--train_dir", str(tmp_path / "images"), "--output_dir", str(tmp_path / "out"), "--use_cpu", "true"]
        small = ["--image_size", "16", "--patch_size", "8", "--hidden_size", "16", "--num_attention_heads", "2"]
        return Plan.from_arguments([*command, *small, "--distillation_type", "none", *words])

    return make


def test_large_photographs_are_scaled_by_themselves(plan_of_jpegs, monkeypatch):
    plan = plan_of_jpegs()
    assert plan.views.settings.scaled_decoding is True
    assert decoding_in_words(plan.args)["decoding"].endswith("; --scaled_decoding false decodes them whole")
    assert plan_of_jpegs("--scaled_decoding", "false").views.settings.scaled_decoding is False
    monkeypatch.setattr("modeling_deit_distill.data.inspection.LARGE", 80 * 60 + 1)
    plan = plan_of_jpegs()
    assert plan.views.settings.scaled_decoding is False and decoding_in_words(plan.args) == {}
    plan = plan_of_jpegs("--scaled_decoding", "true")
    assert plan.views.settings.scaled_decoding is True
    assert decoding_in_words(plan.args)["decoding"].endswith("where no crop is enlarged by it")


@pytest.mark.parametrize("scales", [True, False, None])
def test_a_run_goes_on_decoding_as_it_began(plan_of_jpegs, tmp_path, monkeypatch, scales):
    checkpoint = tmp_path / "out" / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    facts = {} if scales is None else {"scaled_decoding": scales}  # those of an earlier version say nothing
    (checkpoint / "complete.json").write_text(json.dumps({"facts": facts}))
    monkeypatch.setattr("modeling_deit_distill.plan.find_checkpoint", lambda args: str(checkpoint))
    monkeypatch.setattr("modeling_deit_distill.plan.last_complete", lambda folder, contents: (checkpoint, {}))
    for resumed in ("true", str(checkpoint)):
        words = ("--resume_from_checkpoint", resumed)
        assert plan_of_jpegs(*words).views.settings.scaled_decoding is bool(scales)
        assert (
            plan_of_jpegs(*words, "--scaled_decoding", "true").views.settings.scaled_decoding is True
        )  # refused later


@pytest.mark.parametrize("record", [{"scaled_decoding": True}, {"seed": 42}])
def test_a_run_decodes_as_its_teacher_was_trained(plan_of_jpegs, tmp_path, record):
    (tmp_path / "out" / "teacher").mkdir(parents=True)
    (tmp_path / "out" / "teacher" / "teacher_training.json").write_text(json.dumps(record))
    trained = ("--distillation_type", "hard", "--train_teacher", "true", "--teacher_config_name", "resnet")
    expected = record.get("scaled_decoding", False)
    assert plan_of_jpegs(*trained).views.settings.scaled_decoding is expected


def test_a_run_decodes_as_its_store_says(plan_of_jpegs, tmp_path, monkeypatch):
    asked = ("--distillation_type", "hard", "--teacher_name_or_path", "somewhere", "--teacher_store", str(tmp_path))
    monkeypatch.setattr("modeling_deit_distill.plan.is_store", lambda folder: True)
    for scales in (True, False):
        store = types.SimpleNamespace(fingerprint={"scaled_decoding": scales})
        monkeypatch.setattr("modeling_deit_distill.plan.TeacherStore", lambda folder, store=store: store)
        assert plan_of_jpegs(*asked).views.settings.scaled_decoding is scales

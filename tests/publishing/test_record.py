"""What is kept of how a model was made: enough to do it again, nothing that is nobody's business."""

import json
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
from helpers.images import undecoded
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_deit_distill.arguments import DistillationTrainingArguments, ModelArguments
from modeling_deit_distill.output_folder import RUN_RECORD
from modeling_deit_distill.plan import Plan
from modeling_deit_distill.publishing.record import (
    NO_MATTER,
    NO_MATTER_BY_PREFIX,
    base_model,
    changed_arguments,
    command,
    hub_id,
    note_repository,
    path_as_given,
    path_in_set,
    versions,
    write_run_record,
)
from modeling_deit_distill.recipes import parse_arguments

FACTS = {"data": "{folder}: 12 images", "held out": "4 images, a tenth of {folder}", "device": "cpu", "output": "here"}


def written(tmp_path, *words, name="me/model", summary=FACTS, store=None, train=None):
    """The record of a run with these arguments."""
    words = ["--use_cpu", "true", *words]
    plan = Plan(parse_arguments(words), words)
    plan.args.output_dir = str(tmp_path / "run")
    plan.data = SimpleNamespace(train=train, validation=train, unlabelled=None)
    summary = {key: text.format(folder=tmp_path / "photos") for key, text in summary.items()}
    plan.summary, plan.store = lambda: summary, store
    return json.loads(write_run_record(plan, name).read_text())


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    return str(tmp_path / "photos")


def test_the_record_tells_how_to_do_it_again(tmp_path, photos):
    record = written(tmp_path, "--train_dir", photos, "--distillation_type", "none", "--seed", "3")
    assert record["name"] == "me/model"
    assert record["command"].startswith("accelerate launch --quiet train_deit.py --use_cpu true --train_dir photos")
    assert record["recipe"] == {"use_cpu": True, "train_dir": "photos", "distillation_type": "none", "seed": 3}
    assert torch.__version__.startswith(record["versions"]["torch"])
    assert record["hardware"].startswith("CPU")
    assert (record["base_model"], record["teacher"], record["native"]) == (None, None, False)
    assert record["dataset"] == {"name": "photos", "id": None, "split": "4 images, a tenth of photos"}


def test_a_command_is_another_by_what_changes_the_model_alone(tmp_path, photos):
    words = ["--train_dir", photos, "--distillation_type", "none"]
    written(tmp_path, *words)
    words += ["--use_cpu", "true"]
    later = ["--do_predict", "true", "--do_eval", "true", "--run_name", "again", "--report_to", "none"]
    later += ["--disable_tqdm", "true", "--log_level", "info", "--hub_private_repo", "true", "--on_bad_image", "error"]
    assert changed_arguments(tmp_path / "run", words + later) == []
    assert changed_arguments(tmp_path / "run", [*words, *later, "--weight_decay", "0.1"]) == ["weight_decay"]


def test_the_arguments_of_no_matter_are_there():
    names = {field.name for kind in (DistillationTrainingArguments, ModelArguments) for field in fields(kind)}
    assert set(NO_MATTER) <= names
    assert all(any(name.startswith(prefix) for name in names) for prefix in NO_MATTER_BY_PREFIX if prefix != "trackio_")


def test_the_command_goes_without_resuming_and_with_as_many_threads(tmp_path, photos, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    words = ["--train_dir", photos, "--distillation_type", "none", "--resume_from_checkpoint", "true", "--seed", "3"]
    (tmp_path / "run").mkdir()
    record = written(tmp_path, *words)
    start = "accelerate launch --quiet --num_cpu_threads_per_process 2 train_deit.py --use_cpu true"
    assert record["command"].startswith(start) and "resume" not in json.dumps([record["command"], record["recipe"]])
    (tmp_path / "run" / "run.json").write_text(json.dumps({"parts": [{"steps": 4}]}))  # an extension
    assert "--resume_from_checkpoint true" in written(tmp_path, *words)["command"]


def test_the_folder_of_a_run_is_called_as_it_was_given(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for given_path, shown in (
        ("outputs/photos", "outputs/photos"),
        ("./photos/", "photos"),
        ("../photos", "photos"),
        ("~/photos", "photos"),
        (str(tmp_path / "photos"), "photos"),
        (".", "work"),
    ):
        assert path_as_given(given_path) == shown


def test_a_run_that_is_not_pushed_is_loaded_from_its_path(tmp_path, photos, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--train_dir", photos, "--distillation_type", "none", "--output_dir", "outputs/photos"]
    record = written(tmp_path, *words, name=None)
    assert record["path"] == "run" and "--output_dir outputs/photos" in record["command"]  # `run` is the test's own
    assert "path" not in written(tmp_path, *words, name="me/photos")


def test_heic_among_the_images_is_noted(tmp_path, photos):
    words = ["--train_dir", photos, "--distillation_type", "none"]
    for names, is_noted in ((["a/1.jpg", None], False), (["a/1.jpg", "a/2.HEIC", None], True)):
        train = undecoded([{"bytes": b"", "path": name} for name in names])
        assert ("heic" in written(tmp_path, *words, train=train)) == is_noted


def test_an_expression_is_no_path(tmp_path, photos):
    record = written(tmp_path, "--train_dir", photos, "--distillation_type", "none", "--group_by", ".*/(a+)")
    assert record["recipe"]["group_by"] == ".*/(a+)"


def test_no_folder_of_this_machine_and_no_token(tmp_path, photos):
    words = ["--train_dir", photos, "--hub_token", "hf_secret", "--output_dir", str(tmp_path / "run")]
    record = written(tmp_path, *words, "--teacher_store", str(tmp_path / "answers"))
    text = json.dumps(record)
    assert str(tmp_path) not in text and "hf_secret" not in text
    assert record["facts"] == {"data": "photos: 12 images", "held out": "4 images, a tenth of photos"}
    table, more = str(tmp_path / "labels.csv"), str(tmp_path / "more.csv")
    facts = {"data": f"{table}: 12 images", "held out": f"4 images of {more}"}
    record = written(tmp_path, "--train_csv", table, "--validation_csv", more, summary=facts)
    assert str(tmp_path) not in json.dumps(record)
    names = [f"{tmp_path.name}/{name}" for name in ("labels.csv", "more.csv")]
    assert record["dataset"] == {"name": names[0], "id": None, "split": f"4 images of {names[1]}"}


def test_data_are_named_by_their_path_from_the_sets_root(tmp_path, monkeypatch):
    for path, name in (
        ("/anywhere/clothing/train", "clothing/train"),
        ("/anywhere/clothing/validation/", "clothing/validation"),
        ("/anywhere/clothing/Train-224", "clothing/Train-224"),
        ("/anywhere/photos", "photos"),
        ("/anywhere/trains", "trains"),  # of railways
        ("/anywhere/valley", "valley"),
        ("/home/me/train", "train"),  # nobody's name
        ("/train", "train"),
    ):
        assert path_in_set(path) == name
    assert path_in_set("/anywhere/clothing/labels.csv", is_table=True) == "clothing/labels.csv"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert path_in_set("~/train") == "train" and path_in_set("~/clothing/train") == "clothing/train"
    (tmp_path / "clothing").mkdir()
    monkeypatch.chdir(tmp_path / "clothing")
    assert path_in_set("train") == path_in_set("../clothing/./train") == "clothing/train"


@pytest.mark.parametrize("is_relative", [False, True])
def test_the_record_and_the_command_name_the_set(tmp_path, monkeypatch, is_relative):
    (tmp_path / "clothing" / "train").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "clothing")
    path = "train" if is_relative else str(tmp_path / "clothing" / "train")
    facts = {"data": f"{path}: 12 images", "held out": "2 images, 10% of split 'train'", "teacher": "none, untrained"}
    record = written(tmp_path, "--train_dir", path, "--distillation_type", "none", summary=facts)
    assert record["dataset"]["name"] == record["recipe"]["train_dir"] == "clothing/train"
    assert record["facts"] == {**facts, "data": "clothing/train: 12 images"}  # a split is called as it is
    assert "--train_dir clothing/train " in record["command"]
    assert str(tmp_path) not in json.dumps(record)


def test_the_licence_is_the_users(tmp_path, photos):
    words = ["--train_dir", photos, "--distillation_type", "none"]
    assert "card" not in written(tmp_path, *words)
    assert written(tmp_path, *words, "--license", "cc-by-4.0")["card"] == {"license": "cc-by-4.0"}


def test_names_on_the_hub_are_kept(tmp_path):
    words = ["--dataset_name", "me/photos", "--model_name_or_path", "you/deit", "--teacher_name_or_path", "you/convnet"]
    record = written(tmp_path, *words)
    assert (record["base_model"], record["teacher"]) == ("you/deit", "you/convnet")
    assert record["dataset"]["id"] == "me/photos"


def test_a_name_of_timms_stands_for_its_repository():
    assert base_model("deit_small_distilled_patch16_224") == "timm/deit_small_distilled_patch16_224.fb_in1k"
    assert base_model("deit_tiny_patch16_224.fb_in1k") == "timm/deit_tiny_patch16_224.fb_in1k"
    assert base_model("timm/deit_tiny_patch16_224.fb_in1k") == "timm/deit_tiny_patch16_224.fb_in1k"
    assert base_model("weights.pth") is None
    assert base_model(None) is None


def test_a_folder_that_is_named_like_one_of_timms_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deit_tiny_patch16_224").mkdir()
    assert base_model("deit_tiny_patch16_224") is None


def test_a_teacher_that_teaches_nothing_is_not_named(tmp_path):
    words = ["--dataset_name", "me/photos", "--teacher_name_or_path", "you/convnet", "--distillation_type", "none"]
    assert written(tmp_path, *words)["teacher"] is None


def test_what_is_a_name_on_the_hub():
    assert hub_id("owner/name") == "owner/name"
    for name in ("digits", "./owner", "/owner/name", "a/b/c", None):
        assert hub_id(name) is None


def test_a_folder_is_no_name_on_the_hub(tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_id("owner/name") is None


def test_the_command_names_no_folder_of_this_machine():
    args = parse_arguments(["--dataset_name", "digits", "--use_cpu", "true"])[2]
    for words, shown in (
        (
            ["examples/recipes/digits.yaml", "--output_dir", "/tmp/mine"],
            "examples/recipes/digits.yaml --output_dir mine",
        ),
        (["/home/me/my recipe.yaml"], "'my recipe.yaml'"),
        (["--train_dir=/home/me/photos", "--seed=3"], "--train_dir=photos --seed=3"),
        (["--group_by", ".*/(a+)", "--seed=3"], "--group_by '.*/(a+)' --seed=3"),  # no path, though it looks like one
        (["--group_by=.*/(a+)"], "'--group_by=.*/(a+)'"),
    ):
        assert command(words, args) == f"accelerate launch --quiet train_deit.py {shown}"


FOLDER_NAMES = st.text("abc", min_size=6, max_size=12)


@settings(max_examples=30, deadline=None)
@given(st.lists(FOLDER_NAMES, min_size=1, max_size=5), FOLDER_NAMES, st.booleans())
def test_of_any_absolute_path_the_last_name_is_left(parents, name, is_joined):
    args = parse_arguments(["--dataset_name", "digits", "--use_cpu", "true"])[2]
    path = f"/{'/'.join(parents)}/{name}"
    shown = command([f"--train_dir={path}"] if is_joined else ["--train_dir", path], args)
    assert shown.endswith(f"{'=' if is_joined else ' '}{name}") and "/" not in shown


def test_a_folder_that_a_store_remembers_is_left_out(tmp_path):
    summary = {"held out": "4 images", "teacher": "/home/you/convnet"}
    store = SimpleNamespace(about={"teacher": "/home/you/convnet"})
    record = written(tmp_path, "--dataset_name", "digits", summary=summary, store=store)
    assert record["facts"]["teacher"] == "convnet"


def test_the_repository_is_noted(tmp_path, photos):
    record = written(tmp_path, "--train_dir", photos, name="run")
    note_repository(tmp_path / "run", "me/run", ["native", "demo"], revision="trial")
    noted = json.loads((tmp_path / "run" / RUN_RECORD).read_text())
    assert noted == {**record, "name": "me/run", "native": True, "browser": False, "demo": True, "revision": "trial"}
    note_repository(tmp_path / "run", "me/run")
    assert json.loads((tmp_path / "run" / RUN_RECORD).read_text())["native"]  # the branch is still there
    note_repository(tmp_path / "run", "me/other")
    assert not json.loads((tmp_path / "run" / RUN_RECORD).read_text())["native"]


def test_a_run_without_a_record_gets_a_small_one(tmp_path):
    note_repository(tmp_path, "me/mine")
    record = json.loads((tmp_path / RUN_RECORD).read_text())
    assert record["name"] == "me/mine" and "torch" in record["versions"]


def test_versions_are_those_that_are_there():
    assert {"python", "torch", "transformers"} <= versions().keys()

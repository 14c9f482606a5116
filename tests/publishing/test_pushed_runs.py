"""What a run pushed, under each strategy, and how others load it."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from helpers.hub_server import use_hub
from helpers.published import CODE, COLOURS, TOKEN, same, weights
from safetensors.torch import load as load_safetensors
from transformers import AutoModel, AutoModelForImageClassification, pipeline

from modeling_deit_distill import InputError
from modeling_deit_distill.data.evaluation import EvaluationDataset, evaluation_processor, evaluation_transform
from modeling_deit_distill.data.sources import load_image_data
from modeling_deit_distill.output_folder import damage, step_of
from modeling_deit_distill.signals import Interrupted

pytestmark = pytest.mark.usefixtures("blank_pictures")

# --- what is pushed ---------------------------------------------------------------------------------------------------


def test_a_finished_run_is_pushed_whole(pushed):
    server, folder = pushed("end")
    files = server.files("models", "me/colours")
    assert files.keys() > CODE
    expected = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", "run.json"}
    assert (
        expected | {"training_curves.png", "predictions.png", "confusion.png", "predictions.json", "all_results.json"}
        < files.keys()
    )
    assert set(json.loads(files["config.json"])["auto_map"]) == {
        "AutoConfig",
        "AutoModel",
        "AutoModelForImageClassification",
    }
    assert same(weights(files), load_safetensors((folder / "model.safetensors").read_bytes()))
    assert files["README.md"] == (folder / "README.md").read_bytes()
    assert b'model="me/colours"' in files["README.md"]
    assert not [name for name in files if name.startswith(("checkpoint-", "_push", "training_args", "teacher"))]
    assert not list(folder.glob("_push*"))


@pytest.mark.parametrize(
    ("strategy", "folders"),
    [
        ("end", set()),
        ("every_save", set()),
        ("checkpoint", {"last-checkpoint"}),
        ("all_checkpoints", {"checkpoint-2", "checkpoint-4"}),
    ],
)
@pytest.mark.slow
def test_every_strategy_pushes_whole_checkpoints_with_code_and_card(pushed, strategy, folders):
    server, _ = pushed(strategy)
    files = server.files("models", "me/colours")
    assert {name.split("/")[0] for name in files if "/" in name} == folders
    for kept in folders:
        inside = {name.removeprefix(f"{kept}/") for name in files if name.startswith(f"{kept}/")}
        assert CODE | {"model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"} < inside
        assert "training_args.bin" not in inside
    commits = [commit for commit in server.commits("models", "me/colours") if "model.safetensors" in commit.files]
    assert len(commits) == (1 if strategy == "end" else 3)
    for commit in commits:
        assert CODE | {"README.md", "config.json", "preprocessor_config.json", "run.json"} <= commit.files.keys()


def test_a_signal_during_a_push_is_one_line_and_the_same_command_pushes(server, train_again, monkeypatch):
    with monkeypatch.context() as patched:
        push = "modeling_deit_distill.publishing.folder.push_all"
        patched.setattr(push, lambda *args: signal.raise_signal(signal.SIGUSR1))
        with pytest.raises(
            Interrupted, match="by SIGUSR1: the run in .* is finished; go on with .*python"
        ) as interrupted:
            train_again()
    assert TOKEN not in str(interrupted.value)
    folder = train_again()
    assert server.files("models", "me/colours").keys() > CODE
    assert not (folder / "interrupted.json").exists()


def test_a_commit_of_training_is_one_checkpoint_never_a_mixture(pushed, tmp_path):
    server, folder = pushed("checkpoint")
    commits = {commit.message: commit.files for commit in server.commits("models", "me/colours")}
    for step in (2, 4):
        files = commits[f"Training in progress, step {step}"]
        kept = folder / f"checkpoint-{step}"
        assert json.loads(files["trainer_state.json"])["global_step"] == step
        assert files["model.safetensors"] == (kept / "model.safetensors").read_bytes()
        assert files["last-checkpoint/optimizer.pt"] == (kept / "optimizer.pt").read_bytes()
        downloaded = tmp_path / str(step) / "last-checkpoint"
        downloaded.mkdir(parents=True)
        for name in [name for name in files if name.startswith("last-checkpoint/")]:
            (downloaded / Path(name).name).write_bytes(files[name])
        assert (damage(downloaded), step_of(downloaded)) == (None, step)
    early, late = commits["Training in progress, step 2"], commits["Training in progress, step 4"]
    assert not same(weights(early), weights(late))


def test_the_token_is_in_no_file(pushed):
    server, folder = pushed("all_checkpoints")
    local = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert any(path.name == "training_args.bin" for path in local)  # Trainer's own, which keeps all but the token
    assert not [path for path, content in local.items() if TOKEN.encode() in content]
    for commit in (*server.commits("models", "me/colours"), *server.commits("models", "me/colours", "native")):
        assert not [name for name, content in commit.files.items() if TOKEN.encode() in content]
        assert not [name for name in commit.files if name.endswith("training_args.bin")]
    arguments = torch.load(folder / "training_args.bin", weights_only=False)
    assert arguments.hub_token is None
    assert TOKEN not in json.loads((folder / "run.json").read_text())["command"]


def test_nothing_published_names_a_folder_of_this_machine(pushed, tmp_path_factory):
    server, folder = pushed("all_checkpoints")
    assert json.loads((folder / "trainer_state.json").read_text())["best_model_checkpoint"]  # which names a folder
    files = server.files("models", "me/colours")
    assert "checkpoint-2/trainer_state.json" in files
    for name, content in files.items():
        assert str(tmp_path_factory.getbasetemp()).encode() not in content, name


def test_a_private_repository_and_a_branch(server, train_again):
    train_again(hub_private_repo="true", hub_revision="trial", hub_strategy="end")
    assert server.repositories["models", "me/colours"].private
    assert "model.safetensors" in server.files("models", "me/colours", "trial")
    assert "model.safetensors" not in server.files("models", "me/colours")


def test_the_folder_names_the_repository_by_default(server, train_again):
    train_again(hub_model_id=None)
    assert "model.safetensors" in server.files("models", "me/colours")
    train_again(hub_model_id="colours-of-mine")
    assert "model.safetensors" in server.files("models", "me/colours-of-mine")


# --- how it is loaded -------------------------------------------------------------------------------------------------


def test_the_pushed_model_answers_as_the_evaluation_did(pushed, photos, monkeypatch, tmp_path):
    server, folder = pushed("end")
    use_hub(monkeypatch, server, tmp_path / "home")
    loaded = AutoModelForImageClassification.from_pretrained("me/colours", trust_remote_code=True)
    rows = load_image_data(train_dir=str(photos), validation_fraction=0.25).validation
    held_out = EvaluationDataset(rows, evaluation_transform(evaluation_processor(16)))
    with torch.no_grad():
        decided = loaded(torch.stack([sample["pixel_values"] for sample in held_out])).logits.argmax(dim=-1)
    evaluated = json.loads((folder / "predictions.json").read_text())
    assert decided.tolist() == evaluated["fused"]
    assert [sample["labels"] for sample in held_out] == evaluated["labels"]
    assert AutoModel.from_pretrained("me/colours", trust_remote_code=True).config.image_size == 16
    answers = pipeline("image-classification", model="me/colours", trust_remote_code=True)(
        str(photos / "red" / "1.png")
    )
    assert {answer["label"] for answer in answers} == set(COLOURS)


def test_a_revision_is_the_model_as_it_was(pushed, monkeypatch, tmp_path):
    server, folder = pushed("checkpoint")
    use_hub(monkeypatch, server, tmp_path / "home")
    (early,) = [commit for commit in server.commits("models", "me/colours") if commit.message.endswith("step 2")]
    loaded = AutoModel.from_pretrained("me/colours", revision=early.sha, trust_remote_code=True)
    kept = AutoModel.from_pretrained(folder / "checkpoint-2")
    assert same(loaded.state_dict(), kept.state_dict())


DEPLOYER = """
import importlib.util, json, sys
import torch
from transformers import AutoModel, pipeline

image, revision, kept = sys.argv[1:]
others = ("accelerate", "datasets", "evaluate", "matplotlib", "modeling_deit_distill", "scipy", "timm")
answers = {"others": [name for name in others if importlib.util.find_spec(name)]}
for name, form in {
    "remote": {"trust_remote_code": True},
    "native": {"revision": "native"},
    "early": {"trust_remote_code": True, "revision": revision},
}.items():
    classify = pipeline("image-classification", model="me/colours", **form)
    answers[name] = {answer["label"]: answer["score"] for answer in classify(image)}
torch.save(AutoModel.from_pretrained("me/colours", trust_remote_code=True, revision=revision).state_dict(), kept)
print(json.dumps(answers))
"""


@pytest.mark.slow
def test_a_deployer_with_four_packages_and_an_empty_cache_loads_every_form(
    server, train, photos, tmp_path, deployers_python
):
    folder = train(hub_strategy="every_save", hub_always_push="true", push_native="true", save_total_limit=10)
    (early,) = [commit for commit in server.commits("models", "me/colours") if commit.message.endswith("step 2")]
    image, kept = str(photos / "red" / "1.png"), tmp_path / "early.pt"
    environment = {**os.environ, **server.environment(tmp_path / "empty"), "HF_TOKEN": TOKEN, "PYTHONPATH": ""}
    command = [str(deployers_python), "-c", DEPLOYER, image, early.sha, str(kept)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    assert answers["others"] == []
    places = {"remote": folder, "native": folder, "early": folder / "checkpoint-2"}
    for name, place in places.items():
        expected = pipeline("image-classification", model=place)(image)
        assert answers[name] == pytest.approx({answer["label"]: answer["score"] for answer in expected}, abs=1e-6)
    assert answers["early"] != pytest.approx(answers["remote"], abs=1e-4)
    assert same(torch.load(kept), AutoModel.from_pretrained(folder / "checkpoint-2").state_dict())


# --- the native export ------------------------------------------------------------------------------------------------


def test_the_native_revision_holds_transformers_own_class_and_the_card_leads_with_it(pushed):
    server, _ = pushed("every_save")
    files = server.files("models", "me/colours", "native")
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"} < files.keys()
    assert not CODE & files.keys()
    config = json.loads(files["config.json"])
    assert config["architectures"] == ["DeiTForImageClassificationWithTeacher"] and "auto_map" not in config
    card = server.files("models", "me/colours")["README.md"].decode()
    assert card.index('revision="native"') < card.index("trust_remote_code=True")
    for commit in server.commits("models", "me/colours"):
        if commit.message.startswith("Training in progress"):  # not promised before it is there
            assert b'revision="native"' not in commit.files["README.md"]


def test_a_fusion_without_a_native_form_is_refused_before_training(server, train, tmp_path):
    with pytest.raises(InputError, match="push_native"):
        train(push_native="true", fusion="softmax_mean")
    assert not (tmp_path / "colours" / "all_results.json").exists()

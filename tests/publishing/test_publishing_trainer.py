"""Runs pushed to a Hub on the loopback by the real client: whole commits, no token, faults passing and lasting."""

import contextlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import PIL.Image
import pytest
import torch
from helpers.hub_server import HubServer, skip_waits, use_hub
from helpers.paths import ROOT
from safetensors.torch import load as load_safetensors
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    pipeline,
)

import train_deit
from modeling_deit_distill import (
    DeiTDistillForImageClassification,
    DistillationTrainer,
    DistillationTrainingArguments,
    InputError,
    hub,
)
from modeling_deit_distill.data.evaluation import EvaluationDataset, evaluation_processor, evaluation_transform
from modeling_deit_distill.data.sources import load_image_data
from modeling_deit_distill.publishing import publishing_trainer, repository
from modeling_deit_distill.publishing.card import write_model_card
from modeling_deit_distill.publishing.repository import (
    PUBLISHED,
    open_repository,
    push,
    push_all,
    push_checkpoint,
    stage_checkpoint,
    stage_run,
)

TOKEN = "hf_secret_of_the_test"
CODE = {"configuration_deit_distill.py", "modeling_deit_distill.py"}
COLOURS = {"blue": (30, 60, 220), "red": (220, 40, 40)}
RECIPE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 4,
    "allow_weak_teacher": "true",
    "validation_fraction": 0.25,
    "max_steps": 4,
    "learning_rate": 1e-2,
    "repeated_augmentation": 1,
    "per_device_train_batch_size": 8,
    "rand_augment_magnitude": 0,
    "logging_steps": 1,
    "save_steps": 2,
    "report_to": "none",
    "use_cpu": "true",
    "disable_tqdm": "true",
    "bf16": "false",
    "push_to_hub": "true",
    "hub_token": TOKEN,
}


# Of each strategy one run, which several tests look at.
STRATEGIES = {
    "end": {},
    "every_save": {"push_native": "true"},
    "checkpoint": {"save_total_limit": 10},
    "all_checkpoints": {
        "push_native": "true",
        "load_best_model_at_end": "true",
        "eval_strategy": "steps",
        "eval_steps": 2,
    },
}


@pytest.fixture(scope="module", autouse=True)
def blank_pictures():
    """Pictures of one colour: drawing them takes longer than a run here."""

    def draw(*arguments):
        PIL.Image.new("RGB", (8, 8)).save(arguments[-1])

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(train_deit, "draw_predictions", draw)
        for module in (repository, publishing_trainer):
            monkeypatch.setattr(module, "plot_training_curves", draw)
        yield


@pytest.fixture(scope="module")
def photos(save_photos):
    """Eight noisy pictures of each of two colours, wider than high."""
    return save_photos(COLOURS, 8)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A small convnet that knows the two colours' names."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("teacher")
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=2)
    config.id2label, config.label2id = dict(enumerate(COLOURS)), {name: index for index, name in enumerate(COLOURS)}
    ResNetForImageClassification(config).save_pretrained(folder)
    evaluation_processor(32).save_pretrained(folder)
    return folder


@pytest.fixture
def server(monkeypatch, tmp_path):
    with HubServer(token=TOKEN) as server:
        use_hub(monkeypatch, server, tmp_path / "home")
        monkeypatch.setenv("HF_TOKEN", "hf_not_the_one")  # the argument's must be used
        yield server


@pytest.fixture
def waits(monkeypatch):
    """The seconds between tries, which no test waits."""
    waited = skip_waits(monkeypatch)
    monkeypatch.setattr(hub, "time", SimpleNamespace(sleep=waited.append))
    return waited


@pytest.fixture(scope="module")
def train_into(photos, teacher):
    """`train_into(folder, **changes)`: run the script, the command line in the log included."""

    def run(folder: Path, **changes):
        given = {"train_dir": photos, "teacher_name_or_path": teacher, "output_dir": folder}
        words = {**RECIPE, **given, "hub_model_id": "me/colours", **changes}
        words = {key: value for key, value in words.items() if value is not None}
        train_deit.main([word for key, value in words.items() for word in (f"--{key}", str(value))])

    return run


@pytest.fixture
def train(train_into, tmp_path):
    """`train(**changes)`: run the script; the run's folder."""

    def run(**changes) -> Path:
        train_into(tmp_path / "colours", **changes)
        return tmp_path / "colours"

    return run


@pytest.fixture(scope="module")
def without_push(train_into, tmp_path_factory):
    """The folder of a finished run that was not pushed; to be copied."""
    folder = tmp_path_factory.mktemp("without_push") / "colours"
    train_into(folder, push_to_hub="false", hub_model_id=None)
    return folder


@pytest.fixture
def train_again(without_push, train, tmp_path):
    """`train_again(**changes)`: the script on a finished run, which it does not train again; the run's folder."""
    shutil.copytree(without_push, tmp_path / "colours")
    return train


@pytest.fixture(scope="module")
def pushed(train_into, tmp_path_factory):
    """`pushed(strategy)`: the Hub and the folder after a run with this `hub_strategy`, which no test changes."""
    runs = {}
    with contextlib.ExitStack() as servers:

        def get(strategy: str) -> tuple[HubServer, Path]:
            if strategy not in runs:
                folder = tmp_path_factory.mktemp(strategy)
                server = servers.enter_context(HubServer(token=TOKEN))
                with pytest.MonkeyPatch.context() as monkeypatch:
                    use_hub(monkeypatch, server, folder / "home")
                    monkeypatch.setenv("HF_TOKEN", "hf_not_the_one")
                    always = {"hub_strategy": strategy, "hub_always_push": "true"}
                    train_into(folder / "colours", **always, **STRATEGIES[strategy])
                runs[strategy] = server, folder / "colours"
            return runs[strategy]

        yield get


def weights(files):
    return load_safetensors(files["model.safetensors"])


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def messages(server, revision="main"):
    return [commit.message for commit in server.commits("models", "me/colours", revision)]


# --- what is pushed ---------------------------------------------------------------------------------------------------


def test_a_finished_run_is_pushed_whole(pushed):
    server, folder = pushed("end")
    files = server.files("models", "me/colours")
    assert files.keys() > CODE
    expected = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", "run.json"}
    assert expected | {"training_curves.png", "predictions.png", "predictions.json", "all_results.json"} < files.keys()
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


def test_a_commit_of_training_is_one_checkpoint_never_a_mixture(pushed):
    server, folder = pushed("checkpoint")
    commits = {commit.message: commit.files for commit in server.commits("models", "me/colours")}
    for step in (2, 4):
        files = commits[f"Training in progress, step {step}"]
        kept = folder / f"checkpoint-{step}"
        assert json.loads(files["trainer_state.json"])["global_step"] == step
        assert files["model.safetensors"] == (kept / "model.safetensors").read_bytes()
        assert files["last-checkpoint/optimizer.pt"] == (kept / "optimizer.pt").read_bytes()
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


def test_the_folder_names_the_repository_unless_told(server, train_again):
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


# --- faults -----------------------------------------------------------------------------------------------------------


def test_the_repositorys_creation_and_the_commit_are_tried_again(server, train_again, waits):
    server.fail("POST", "/api/repos/create", times=2)
    server.fail("POST", "/commit/", times=3)
    train_again()
    assert "model.safetensors" in server.files("models", "me/colours")
    assert waits[:2] == [1, 2]


def fail_some(server, monkeypatch, chosen, statuses=(503,)) -> list[str]:
    """Fail the requests whose numbers `chosen` is true of, with one of these statuses; the paths of all that come."""
    respond, paths = server.respond, []

    def unreliable(request):
        number = len(paths)
        paths.append(request.path)
        if chosen(number):
            server.fail("*", "", statuses[number % len(statuses)])
        return respond(request)

    monkeypatch.setattr(server, "respond", unreliable)
    return paths


def test_one_request_in_twenty_may_fail(server, train, waits, monkeypatch):
    paths = fail_some(server, monkeypatch, lambda number: number % 20 == 5)
    train(hub_strategy="all_checkpoints", hub_always_push="true", push_native="true")
    assert {"checkpoint-2/model.safetensors", "model.safetensors"} < server.files("models", "me/colours").keys()
    assert "model.safetensors" in server.files("models", "me/colours", "native")
    assert len(paths) > 20 and waits


KINDS = ("/repos/create", "/validate-yaml", "/preupload/", "/objects/batch", "/lfs/", "/verify", "/commit/", "/branch/")


def test_any_one_request_may_fail(finished, waits, monkeypatch, tmp_path):
    write_model_card(finished)
    failed = []
    while True:
        with HubServer(token=TOKEN) as server, monkeypatch.context() as patched:
            use_hub(patched, server, tmp_path / "home")
            unlucky = len(failed)
            paths = fail_some(server, patched, unlucky.__eq__, (500, 502, 503, 504))
            push_all(stage_run(finished, "End of training"), open_repository("me/colours", TOKEN, revision="trial"))
            assert "model.safetensors" in server.files("models", "me/colours", "trial"), paths
        if unlucky >= len(paths):  # a push has no more requests
            break
        failed.append(paths[unlucky])
    assert [kind for kind in KINDS if not any(kind in path for path in failed)] == []
    assert len(waits) == len(failed)


def test_a_commit_whose_answer_is_lost_is_not_made_twice(server, train_again, waits):
    server.fail("POST", "/commit/", 503, applied=True)
    train_again()
    assert messages(server).count("End of training") == 1


def test_five_failures_end_in_a_clear_error_and_the_same_command_pushes(server, train, waits, monkeypatch, capsys):
    server.fail("POST", "/commit/", times=5)
    with pytest.raises(InputError, match=r"push to 'me/colours' failed .*run it again"):
        train(hub_strategy="end")
    assert "model.safetensors" not in server.files("models", "me/colours")
    folder = train(hub_strategy="end")
    assert "pushed to me/colours" in capsys.readouterr().out
    files = server.files("models", "me/colours")
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert files["README.md"] == (folder / "README.md").read_bytes()
    assert not list(folder.glob("_push*"))


def test_a_run_finished_without_a_push_can_be_pushed_later(server, without_push, train_again):
    assert b'model="me/late"' not in (without_push / "README.md").read_bytes()
    train_again(hub_model_id="me/late", push_native="true")
    files = server.files("models", "me/late")
    assert b'model="me/late"' in files["README.md"]
    assert "model.safetensors" in server.files("models", "me/late", "native")


def test_a_push_that_fails_during_training_is_named_and_does_not_stop_it(server, train, waits, caplog):
    server.fail("POST", "/commit/", times=5)
    train(hub_strategy="every_save", hub_always_push="true")
    assert "push to 'me/colours' failed" in caplog.text and "training goes on" in caplog.text
    assert "End of training" in messages(server) and "Training in progress, step 2" not in messages(server)


def test_a_wrong_token_is_found_before_any_training(server, train, tmp_path, monkeypatch):
    monkeypatch.setattr(train_deit, "prepare_teacher", lambda *_: pytest.fail("a teacher may take hours"))
    with pytest.raises(InputError, match="hf auth login"):
        train(hub_token="hf_wrong")
    assert not list((tmp_path / "colours").glob("checkpoint-*"))


# --- two runs, a library user, several processes ----------------------------------------------------------------------


def test_a_second_run_into_the_same_repository_mixes_nothing(server, train_again):
    train_again()
    assert "all_results.json" in server.files("models", "me/colours")
    folder = train_again(overwrite_output_dir="true", hub_strategy="every_save", hub_always_push="true", seed=1)
    early, late = (
        next(commit for commit in reversed(server.commits("models", "me/colours")) if commit.message == message)
        for message in ("Training in progress, step 2", "End of training")
    )
    assert not {"all_results.json", "predictions.json", "predictions.png"} & early.files.keys()
    assert b"still under way" in early.files["README.md"]
    assert json.loads(late.files["run.json"])["recipe"]["seed"] == 1
    assert late.files["predictions.json"] == (folder / "predictions.json").read_bytes()


def test_a_run_that_is_begun_anew_keeps_nothing_of_the_old_ones_card(train_again, monkeypatch, tmp_path):
    folder = tmp_path / "colours"
    assert (folder / "README.md").exists()
    monkeypatch.setattr(train_deit, "distil", lambda *_: pytest.fail("as if killed here"))
    with pytest.raises(pytest.fail.Exception):
        train_again(push_to_hub="false", overwrite_output_dir="true", seed=1)
    assert not {"all_results.json", "predictions.json", "predictions.png", "README.md"} & {
        path.name for path in folder.iterdir()
    }


def test_the_card_comes_before_the_mark_that_a_run_is_finished(train, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(pytest.fail.Exception):
        patched.setattr(train_deit, "look_inside", lambda *_: pytest.fail("as if killed here"))
        train(push_to_hub="false")
    folder = train(push_to_hub="false", resume_from_checkpoint="true")
    assert {"all_results.json", "README.md", "predictions.png"} < {path.name for path in folder.iterdir()}


def test_a_finished_run_pushed_again_still_promises_its_native_branch(server, train_again):
    train_again(push_native="true")
    train_again()
    assert b'revision="native"' in server.files("models", "me/colours")["README.md"]
    train_again(hub_model_id="me/elsewhere")
    assert b'revision="native"' not in server.files("models", "me/elsewhere")["README.md"]


def test_the_card_on_a_branch_loads_that_branch(server, train_again):
    train_again(hub_revision="trial")
    card = server.files("models", "me/colours", "trial")["README.md"].decode()
    assert 'model="me/colours", revision="trial", trust_remote_code=True' in card
    assert "hf download me/colours --revision trial" in card


@pytest.fixture
def library_user(server, tiny_model, tmp_path):
    """A trainer on random images, as one's own script makes it."""

    def make(**changes):
        torch.manual_seed(0)
        samples = [{"pixel_values": torch.randn(3, 32, 32), "labels": index % 5} for index in range(8)]
        args = DistillationTrainingArguments(
            output_dir=str(tmp_path / "mine"),
            distillation_type="none",
            max_steps=2,
            per_device_train_batch_size=4,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
            push_to_hub=True,
            hub_token=TOKEN,
            **changes,
        )
        model = tiny_model(use_distillation_token=False, fusion=changes.pop("fusion", "logit_mean"))
        return DistillationTrainer(
            model, args, train_dataset=samples, eval_dataset=samples, processing_class=evaluation_processor(32)
        )

    return make


def test_a_library_user_gets_a_card_that_names_the_repository(library_user, server):
    trainer = library_user(push_native=True)
    trainer.train()
    trainer.push_to_hub()
    files = server.files("models", "me/mine")
    assert files.keys() > CODE and b'model="me/mine"' in files["README.md"]
    assert b"ViTForImageClassification" in server.files("models", "me/mine", "native")["config.json"]


def test_pushes_of_training_follow_one_another(library_user, server, monkeypatch):
    push_checkpoint, threads = publishing_trainer.push_checkpoint, []

    def remember_thread(*arguments):
        threads.append(threading.current_thread())
        return push_checkpoint(*arguments)

    monkeypatch.setattr(publishing_trainer, "push_checkpoint", remember_thread)
    library_user(save_strategy="steps", save_steps=1, hub_strategy="every_save", hub_always_push=True).train()
    assert len(threads) == 2
    assert threads[0] is threads[1]  # which has one push at a time


def test_saving_by_hand_pushes_whole_commits_too(library_user, server):
    library_user().save_model()
    assert CODE | {"README.md", "model.safetensors"} < server.files("models", "me/mine").keys()
    assert "Model save" in [commit.message for commit in server.commits("models", "me/mine")]


def test_a_push_in_the_background_holds_what_was_saved_at_the_call(library_user, server):
    trainer = library_user(push_native=True)
    job = trainer.push_to_hub("first", blocking=False)
    at_the_call = trainer.model.cls_classifier.weight.detach().clone()
    with torch.no_grad():
        trainer.model.cls_classifier.weight.add_(1.0)
    trainer.push_to_hub("second", token=TOKEN)  # waits for the first
    assert job.done()
    commits = {commit.message: commit.files for commit in server.commits("models", "me/mine")}
    assert torch.equal(weights(commits["first"])["cls_classifier.weight"], at_the_call)
    assert torch.equal(weights(commits["second"])["cls_classifier.weight"], at_the_call + 1.0)


def test_a_trainer_refuses_a_native_push_that_cannot_be(tiny_model, tmp_path):
    args = DistillationTrainingArguments(
        output_dir=str(tmp_path), push_to_hub=True, push_native=True, hub_token=TOKEN, report_to="none"
    )
    with pytest.raises(InputError, match="push_native: fusion 'softmax_mean'"):
        DistillationTrainer(tiny_model(fusion="softmax_mean"), args, torch.nn.Identity(), train_dataset=[])


TWO_PROCESSES = """
import sys, time
import train_deit
from transformers import Trainer

from modeling_deit_distill.script import end_process

save = Trainer._save_rng_state


def late(self, folder):
    if self.args.process_index == 1:
        time.sleep(1)
    save(self, folder)


Trainer._save_rng_state = late
train_deit.main(sys.argv[1:])
end_process()
"""


@pytest.mark.slow
def test_a_checkpoint_of_two_processes_is_pushed_with_both_their_states(server, photos, teacher, tmp_path):
    (tmp_path / "two.py").write_text(TWO_PROCESSES)
    given = {"train_dir": photos, "teacher_name_or_path": teacher, "output_dir": tmp_path / "two"}
    words = {**RECIPE, **given, "hub_model_id": "me/colours", "hub_strategy": "all_checkpoints"}
    words |= {"hub_always_push": "true", "per_device_train_batch_size": 4, "push_native": "true"}
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", tmp_path / "two.py"]
    command += [word for key, value in words.items() for word in (f"--{key}", value)]
    environment = {**os.environ, **server.environment(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *map(str, command)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    files = server.files("models", "me/colours").keys()
    assert {f"checkpoint-{step}/rng_state_{rank}.pth" for step in (2, 4) for rank in (0, 1)} < files
    assert "model.safetensors" in server.files("models", "me/colours", "native")


# --- the pieces -------------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(tiny_model, tmp_path):
    """A folder with a model, its processor and things that are nobody's business."""
    folder = tmp_path / "run"
    tiny_model().save_pretrained(folder)
    evaluation_processor(32).save_pretrained(folder)
    state = {"global_step": 1, "log_history": [], "best_model_checkpoint": "/home/me/run/checkpoint-1"}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    (folder / "training_args.bin").write_bytes(pickle.dumps("anything"))
    (folder / "diary.txt").write_text("private")
    (folder / "teacher").mkdir()
    return folder


def test_only_what_is_listed_is_staged(finished):
    (finished / "secrets.py").write_text("password = 1")
    (finished / "private.png").write_bytes(b"")
    [commit] = stage_run(finished, "End of training")
    stage = commit.stage
    staged = {path.name for path in stage.iterdir()}
    assert staged == {*CODE, "config.json", "model.safetensors", "preprocessor_config.json", "trainer_state.json"}
    assert not any(Path("training_args.bin").match(pattern) for pattern in PUBLISHED)
    assert "/home/me" not in (stage / "trainer_state.json").read_text()
    assert "/home/me" in (finished / "trainer_state.json").read_text()


def test_a_staged_checkpoint_outlives_its_folder(finished):
    checkpoint = finished / "checkpoint-1"
    shutil.copytree(finished, checkpoint, ignore=shutil.ignore_patterns("checkpoint-1"))
    kept, state = ((checkpoint / name).read_bytes() for name in ("model.safetensors", "trainer_state.json"))
    stage = stage_checkpoint(checkpoint, finished, "step 1", "last-checkpoint").stage
    assert (checkpoint / "trainer_state.json").read_bytes() == state  # though its copies name no folder
    shutil.rmtree(checkpoint)
    for folder in (stage, stage / "last-checkpoint"):
        assert (folder / "model.safetensors").read_bytes() == kept
        assert "/home/me" not in (folder / "trainer_state.json").read_text()
    assert not (stage / "last-checkpoint" / "training_args.bin").exists()


def test_a_checkpoint_takes_no_room_twice(finished):
    checkpoint = finished / "checkpoint-1"
    shutil.copytree(finished, checkpoint, ignore=shutil.ignore_patterns("checkpoint-1"))
    stage = stage_checkpoint(checkpoint, finished, "step 1", "last-checkpoint").stage
    assert (stage / "model.safetensors").samefile(checkpoint / "model.safetensors")


def test_a_stage_that_cannot_be_filled_is_removed(finished, monkeypatch):
    model = DeiTDistillForImageClassification.from_pretrained(finished)
    model.config.fusion = "softmax_mean"
    model.save_pretrained(finished)
    with pytest.raises(InputError, match="softmax_mean"):
        stage_run(finished, "End of training", native=True)
    assert not list(finished.glob("_push*"))


def test_a_card_that_cannot_be_written_leaves_no_stage(server, finished):
    (finished / "trainer_state.json").write_text('{"log_history": []}')
    commit = stage_checkpoint(finished, finished.parent, "step 1")
    (commit.stage / "config.json").unlink()
    with pytest.raises(InputError, match="config.json"):
        push_checkpoint(commit, open_repository("me/colours", TOKEN))
    assert not list(finished.parent.glob("_push*"))


def test_a_commit_keeps_nothing_of_an_earlier_checkpoint(server, finished):
    destination, output_dir = open_repository("me/colours", TOKEN), finished.parent
    commit = stage_checkpoint(finished, output_dir, "first", "last-checkpoint")
    (commit.stage / "last-checkpoint" / "rng_state_7.pth").write_bytes(b"of eight processes")
    (commit.stage / "model-00002-of-00002.safetensors").write_bytes(b"of a larger model")
    (commit.stage / "all_results.json").write_bytes(b"{}")
    push(commit, destination)
    assert "all_results.json" in server.files("models", "me/colours")
    push(stage_checkpoint(finished, output_dir, "second", "last-checkpoint"), destination)
    files = server.files("models", "me/colours").keys()
    assert {"last-checkpoint/model.safetensors", "model.safetensors", ".gitattributes"} < files
    assert not {"last-checkpoint/rng_state_7.pth", "model-00002-of-00002.safetensors", "all_results.json"} & files


def test_pushing_again_makes_no_second_commit(server, finished):
    destination = open_repository("me/colours", TOKEN)
    push_all(stage_run(finished, "End of training"), destination)
    push_all(stage_run(finished, "End of training"), destination)
    assert messages(server).count("End of training") == 1


def test_a_destination_shows_no_token(server):
    assert TOKEN not in repr(open_repository("me/colours", TOKEN))

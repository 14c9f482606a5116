"""Runs pushed to a Hub on the loopback by the real client: whole commits, no token, faults passing and lasting."""

import json
import math
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch
from helpers.hub_server import HANG
from helpers.paths import ROOT
from helpers.published import CODE, RECIPE, TOKEN, messages, weights

import train_deit
from modeling_deit_distill import (
    DistillationTrainer,
    DistillationTrainingArguments,
    InputError,
)
from modeling_deit_distill.data.evaluation import evaluation_processor
from modeling_deit_distill.publishing import folder as folder_of_a_run
from modeling_deit_distill.publishing import publisher

pytestmark = pytest.mark.usefixtures("blank_pictures")

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
        patched.setattr(folder_of_a_run, "look_inside", lambda *_: pytest.fail("as if killed here"))
        train(push_to_hub="false")
    folder = train(push_to_hub="false", resume_from_checkpoint="true")
    assert {"all_results.json", "README.md", "predictions.png"} < {path.name for path in folder.iterdir()}


def test_a_finished_run_pushed_again_still_promises_its_native_branch(server, train_again):
    train_again(push_native="true")
    train_again()
    assert b'revision="native"' in server.files("models", "me/colours")["README.md"]
    train_again(hub_model_id="me/elsewhere")
    assert b'revision="native"' not in server.files("models", "me/elsewhere")["README.md"]


def test_a_finished_run_may_be_given_a_licence_when_it_is_pushed(server, train_again):
    train_again(license="mit")
    assert server.files("models", "me/colours")["README.md"].split(b"---")[1].count(b"\nlicense: mit\n") == 1


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
    push_checkpoint, threads = publisher.push_checkpoint, []

    def remember_thread(*arguments):
        threads.append(threading.current_thread())
        return push_checkpoint(*arguments)

    monkeypatch.setattr(publisher, "push_checkpoint", remember_thread)
    trainer = library_user(save_strategy="steps", save_steps=1, hub_strategy="every_save", hub_always_push=True)
    trainer.train()
    trainer.publisher.pushes.drain()
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


@pytest.fixture
def run_process(server, photos, teacher, tmp_path):
    """`run_process(script, **changes)`: a process that runs a script as a run that pushes, to its end."""

    def run(script, **changes) -> subprocess.CompletedProcess:
        given = {"train_dir": photos, "teacher_name_or_path": teacher, "output_dir": tmp_path / "colours"}
        words = {**RECIPE, **given, "hub_model_id": "me/colours", **changes}
        command = [sys.executable, script, *(word for key, value in words.items() for word in (f"--{key}", value))]
        environment = {**os.environ, **server.environment(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
        return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=600)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/lfs/models", "/commit/"])
def test_a_process_ends_by_itself_though_an_upload_never_does(server, run_process, tmp_path, path):
    server.fail("*", path, HANG, times=math.inf)
    done = run_process(ROOT / "train_deit.py", hub_strategy="every_save", hub_max_wait=3)
    assert done.returncode == 2, done.stderr[-3000:]
    # The request and the whole wait have the same limit; on a busy machine the request may be the first to end.
    waited = "waiting for the Hub: push to 'me/colours', for 3 s of at most 3 s" in done.stdout
    end = "is not done after 3 s; run the same command again" if waited else "failed (timed out); run it again"
    assert f"error: push to 'me/colours' {end}" in done.stderr
    kept = {path.name for path in (tmp_path / "colours").iterdir()}
    assert {"model.safetensors", "all_results.json", "README.md"} < kept
    server.mend()
    done = run_process(ROOT / "train_deit.py", hub_strategy="every_save", hub_max_wait=300)
    assert done.returncode == 0 and "pushed to me/colours" in done.stdout, done.stderr[-3000:]
    assert "End of training" in messages(server)


INTERRUPTED = """
import signal, time
import train_deit
from modeling_deit_distill.publishing import publisher
from modeling_deit_distill.script import run_script
from transformers import TrainerCallback

push, train = publisher.push_checkpoint, train_deit.DistillationTrainer.train


class Interrupt(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1:
            signal.raise_signal(signal.SIGTERM)


def interrupted(self, **kwargs):
    self.add_callback(Interrupt())
    return train(self, **kwargs)


publisher.push_checkpoint = lambda *words: (time.sleep(2), push(*words))
train_deit.DistillationTrainer.train = interrupted
run_script(train_deit.main)
"""


@pytest.mark.slow
def test_an_interrupted_run_pushes_the_checkpoint_that_it_leaves(server, run_process, tmp_path):
    (tmp_path / "interrupted.py").write_text(INTERRUPTED)
    done = run_process(tmp_path / "interrupted.py", hub_strategy="checkpoint", save_strategy="no")
    assert done.returncode == 128 + signal.SIGTERM, done.stderr[-3000:]
    assert "last-checkpoint/optimizer.pt" in server.files("models", "me/colours")

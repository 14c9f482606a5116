"""What is staged, committed and tried again: whole commits, whatever fails."""

import math
import shutil
from pathlib import Path

import pytest
from helpers.hub_server import CUT, HANG, HubServer, use_hub
from helpers.published import CODE, TOKEN, messages

from modeling_deit_distill import DeiTDistillForImageClassification, InputError
from modeling_deit_distill.hub import HubUnavailable
from modeling_deit_distill.output_folder import PUBLISHED
from modeling_deit_distill.plan import Plan
from modeling_deit_distill.publishing.card import write_model_card
from modeling_deit_distill.publishing.repository import (
    open_repository,
    push_all,
    push_checkpoint,
    stage_checkpoint,
    stage_run,
)

pytestmark = pytest.mark.usefixtures("blank_pictures")


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
    assert b'model="me/colours"' in server.files("models", "me/colours")["README.md"]
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


BUSY = {"status": 429, "Retry-After": "3600"}


@pytest.mark.parametrize(
    ("method", "path", "fault", "strategy"),
    [
        pytest.param("*", "/api/models/|/lfs/", BUSY, "every_save", id="busy"),
        pytest.param("*", "/api/models/|/lfs/", {"status": HANG}, "end", id="stopped", marks=pytest.mark.slow),
        pytest.param("PUT", "", {"status": CUT}, "end", id="every upload is cut"),
        *[
            pytest.param("*", "", fault, strategy, marks=pytest.mark.slow)
            for fault in (BUSY, {"status": HANG}, {"status": CUT}, {"status": 503})
            for strategy in ("every_save", "all_checkpoints")
        ],
    ],
)
def test_a_run_is_whole_whatever_the_hub_does(server, train, waits, capsys, tmp_path, method, path, fault, strategy):
    folder, given = tmp_path / "colours", {"hub_strategy": strategy, "hub_always_push": "true", "hub_max_wait": 0.5}
    server.fail(method, path, times=math.inf, **fault)
    for _ in ("at its end", "as a finished run"):
        with pytest.raises(HubUnavailable, match="run (it|the same command) again"):
            train(**given, do_predict="true")
        (folder / "predictions.csv").unlink()
    whole = {"model.safetensors", "config.json", "all_results.json", "predictions.json", "README.md"}
    assert whole < {path.name for path in folder.iterdir()}
    assert sum(waits) < 3600  # what the Hub asked for
    server.mend()
    train(**{**given, "hub_max_wait": 600})
    assert "holds a finished run; nothing is trained" in capsys.readouterr().out
    files = server.files("models", "me/colours")
    assert "predictions.csv" not in files
    assert all(files[name] == (folder / name).read_bytes() for name in whole)
    assert not list(folder.glob("_push*"))


def test_where_the_hub_answers_later_the_run_pushes_all_the_same(server, train, waits, caplog, capsys):
    server.fail("POST", "/repos/create", times=10)  # before the teacher, and before training
    train(hub_strategy="every_save", hub_always_push="true")
    assert caplog.text.count("Training goes on, and the push is tried again later") == 2
    assert "pushed to me/colours" in capsys.readouterr().out
    assert {"Training in progress, step 2", "End of training"} < set(messages(server))


def test_a_wrong_token_is_found_before_any_training(server, train, tmp_path, monkeypatch):
    monkeypatch.setattr(Plan, "teacher", lambda *_: pytest.fail("a teacher may take hours"))
    with pytest.raises(InputError, match="hf auth login"):
        train(hub_token="hf_wrong")
    assert not list((tmp_path / "colours").glob("checkpoint-*"))


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
        stage_run(finished, "End of training", ["native"])
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
    push_all([commit], destination)
    assert "all_results.json" in server.files("models", "me/colours")
    push_all([stage_checkpoint(finished, output_dir, "second", "last-checkpoint")], destination)
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

"""A finished run goes on with a greater length, and tells both parts."""

import json
import shutil
import signal

import pytest
from helpers.runs import arguments

import train_deit
from modeling_deit_distill import DistillationTrainer, InputError
from modeling_deit_distill.signals import Interrupted


@pytest.fixture
def copied(run, tmp_path):
    """A copy of the finished run of four epochs."""
    return shutil.copytree(run[0], tmp_path / "colours")


def extend(folder, photos, **changes):
    settings = {"train_dir": photos, "validation_fraction": 0.25, "output_dir": folder}
    train_deit.main(arguments(**{**settings, "resume_from_checkpoint": "true", **changes}))
    return json.loads((folder / "all_results.json").read_text())


@pytest.mark.slow
def test_a_finished_run_goes_on_from_its_last_checkpoint_and_tells_both_parts(copied, run, photos, capsys):
    before = json.loads((copied / "run.json").read_text())
    last = json.loads((copied / "trainer_state.json").read_text())["global_step"]
    extend(copied, photos, num_train_epochs=6)
    said = capsys.readouterr().out
    assert f"{copied} holds a finished run of {last} steps; it goes on to 6 epochs" in said
    assert f"resuming from {copied / f'checkpoint-{last}'}" in said and f"from step {last} on" in said
    state = json.loads((copied / "trainer_state.json").read_text())
    assert state["global_step"] == last // 4 * 6 and state["epoch"] == 6
    rates = [
        entry["learning_rate"] for entry in state["log_history"] if entry.get("step", 0) > last and "loss" in entry
    ]
    assert 0 < rates[-1] < rates[0] < 1e-2  # the cosine of six epochs
    record = json.loads((copied / "run.json").read_text())
    (part,) = record["parts"]
    assert part["results"] == run[1] and part["steps"] == last and part["command"] == before["command"]
    assert part["length"] == before["facts"]["length"] != record["facts"]["length"]
    card = (copied / "README.md").read_text()
    assert "The run was extended" in card and before["command"] in card and record["command"] in card
    assert f"{100 * run[1]['eval_accuracy']:.2f} %" in card.partition("The run was extended")[2]
    extend(copied, photos, num_train_epochs=7)
    assert [each["steps"] for each in json.loads((copied / "run.json").read_text())["parts"]] == [last, last // 4 * 6]


@pytest.mark.parametrize("epochs", [4, 2])
def test_without_a_greater_length_nothing_is_trained(copied, run, photos, capsys, epochs):
    assert extend(copied, photos, num_train_epochs=epochs) == run[1]
    assert "nothing is trained" in capsys.readouterr().out


def test_a_run_without_a_checkpoint_is_not_begun_anew(copied, run, photos):
    for checkpoint in copied.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    with pytest.raises(InputError, match="left no whole checkpoint to go on from; start from its weights"):
        extend(copied, photos, num_train_epochs=6)
    assert json.loads((copied / "all_results.json").read_text()) == run[1]


@pytest.mark.slow
def test_an_extension_that_is_interrupted_goes_on(copied, photos, monkeypatch):
    compute_loss = DistillationTrainer.compute_loss

    def signalled(self, model, inputs, *args, **kwargs):
        if model.training:
            signal.raise_signal(signal.SIGTERM)
        return compute_loss(self, model, inputs, *args, **kwargs)

    last = json.loads((copied / "trainer_state.json").read_text())["global_step"]
    with monkeypatch.context() as patched:
        patched.setattr(DistillationTrainer, "compute_loss", signalled)
        with pytest.raises(Interrupted, match=f"checkpoint-{last + 1} is whole; go on with .*python train_deit.py"):
            extend(copied, photos, num_train_epochs=6)
    assert not (copied / "all_results.json").exists()
    extend(copied, photos, num_train_epochs=6)
    assert [each["steps"] for each in json.loads((copied / "run.json").read_text())["parts"]] == [last]

"""The moving average of the weights: its arithmetic, and a run that keeps it, resumes it and may end with it."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from helpers.paths import ROOT
from helpers.runs import STUDENT, arguments
from helpers.trainers import CountingTeacher, snapshot, student, trainer, views_trainer
from helpers.trainers import rows as image_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import train_deit
from modeling_deit_distill import DeiTDistillForImageClassification, InputError
from modeling_deit_distill.arguments import decay_of_half_life
from modeling_deit_distill.publishing.card import accuracy_table
from modeling_deit_distill.publishing.comparison import results_table
from modeling_deit_distill.publishing.run import read_run
from modeling_deit_distill.recipes import parse_arguments
from modeling_deit_distill.summary import average_in_words
from modeling_deit_distill.training.average import (
    AVERAGE_FILE,
    WeightAverage,
    choose_weights,
    start_average,
    update_average,
)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


# --- arithmetic -------------------------------------------------------------------------------------------------------


def test_a_skipped_step_is_known_on_the_device():
    for skipped, expected in ((True, [1.0, 3.0]), (False, [1.25, 3.5])):
        average, weights = [torch.tensor([1.0, 3.0])], [torch.tensor([2.0, 5.0])]
        update_average(average, weights, 0.75, torch.tensor(skipped))
        assert average[0].tolist() == expected


def test_an_update_by_hand():
    average = [torch.tensor([1.0, -2.0]), torch.tensor([[4.0]])]
    update_average(average, [torch.tensor([2.0, 2.0]), torch.tensor([[0.0]])], 0.75)
    assert torch.equal(average[0], torch.tensor([1.25, -1.0])) and torch.equal(average[1], torch.tensor([[3.0]]))
    update_average(average, [torch.tensor([1.25, -1.0]), torch.tensor([[3.0]])], 0.99996)
    assert torch.equal(average[0], torch.tensor([1.25, -1.0]))  # at rest it stays, to the bit


def test_half_precision_is_averaged_in_full():
    average = [torch.ones(3)]
    update_average(average, [torch.full((3,), 2.0, dtype=torch.bfloat16)], 0.999)
    torch.testing.assert_close(average[0], torch.full((3,), 1.001))  # bfloat16 has no number between 1 and 1.0078
    model = torch.nn.Linear(2, 2).to(torch.bfloat16)
    kept = WeightAverage(model, 0.5)
    assert {weight.dtype for weight in kept.weights.values()} == {torch.float32}
    with kept.swapped_in(model):
        assert model.weight.dtype == torch.bfloat16


@settings(max_examples=30, deadline=None)
@given(half_life=st.integers(1, 50), start=st.floats(-8, 8, width=32), weight=st.floats(-8, 8, width=32))
def test_after_a_half_life_half_of_the_distance_is_left(half_life, start, weight):
    average = [torch.tensor([start])]
    for _ in range(half_life):
        update_average(average, [torch.tensor([weight])], decay_of_half_life(half_life))
    assert average[0].item() == pytest.approx((start + weight) / 2, abs=1e-4)


def test_a_half_life_of_one_step_is_a_decay_of_a_half():
    assert decay_of_half_life(1) == 0.5


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=20), st.floats(0.01, 0.99))
def test_an_average_lies_between_the_weights_that_it_has_seen(weights, decay):
    average = [torch.tensor([weights[0]])]
    for weight in weights[1:]:
        update_average(average, [torch.tensor([weight])], decay)
    assert min(weights) - 1e-5 <= average[0].item() <= max(weights) + 1e-5


def test_the_average_starts_as_the_weights_and_is_no_view_of_them():
    model = torch.nn.Linear(3, 2)
    kept = WeightAverage(model, 0.9)
    assert same(kept.weights, snapshot(model))
    before = snapshot(model)
    with torch.no_grad():
        model.weight.add_(1.0)
    assert same(kept.weights, before)
    kept.update(model)
    torch.testing.assert_close(kept.weights["weight"], before["weight"] + 0.1)
    assert torch.equal(kept.weights["bias"], before["bias"])


def test_swapping_gives_every_bit_back_even_after_an_error():
    model = torch.nn.Linear(3, 2)
    kept = WeightAverage(model, 0.9)
    with torch.no_grad():
        model.weight.mul_(1 / 3)
    own, average = snapshot(model), {name: value.clone() for name, value in kept.weights.items()}
    pointers = [parameter.data_ptr() for parameter in model.parameters()]
    with pytest.raises(RuntimeError), kept.swapped_in(model):
        assert same(snapshot(model), average)
        raise RuntimeError
    assert same(snapshot(model), own) and same(kept.weights, average)
    assert [parameter.data_ptr() for parameter in model.parameters()] == pointers  # optimiser and DDP hold on to them


def test_saved_and_loaded_to_the_bit(tmp_path):
    model = torch.nn.Linear(3, 2)
    kept = WeightAverage(model, 0.9)
    with torch.no_grad():
        model.weight.mul_(1 / 3)
    kept.update(model)
    kept.save(tmp_path)
    assert same(start_average(model, 0.9, tmp_path).weights, kept.weights)
    assert start_average(model, None, tmp_path) is None


def test_what_is_no_average_of_this_model_is_refused(tmp_path):
    model = torch.nn.Linear(3, 2)
    with pytest.raises(InputError, match="holds no ema.safetensors.*leave out ema_decay"):
        start_average(model, 0.9, tmp_path)
    save_file({"weight": torch.zeros(2, 3)}, tmp_path / AVERAGE_FILE)
    with pytest.raises(InputError, match="of another model"):
        start_average(model, 0.9, tmp_path)
    (tmp_path / AVERAGE_FILE).write_bytes(b"cut off")
    with pytest.raises(InputError, match="is damaged"):
        start_average(model, 0.9, tmp_path)


def test_the_average_is_chosen_only_where_it_is_better():
    for ema, raw, final in ((0.75, 0.5, "ema"), (0.5, 0.75, "raw"), (0.5, 0.5, "raw")):
        metrics = {"eval_accuracy": raw, "eval_ema_accuracy": ema, "eval_loss": 1.0, "eval_ema_loss": 2.0, "epoch": 3.0}
        assert choose_weights(metrics) == {
            "final_weights": final,
            "eval_accuracy": max(ema, raw),
            "eval_loss": 2.0 if final == "ema" else 1.0,
            "eval_raw_accuracy": raw,
            "eval_raw_loss": 1.0,
        }


def test_a_half_life_on_the_command_line_replaces_the_recipes_decay(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("dataset_name: digits\nema_decay: 0.99996\n")
    args = parse_arguments([str(recipe)])[2]
    assert args.weight_average_decay == 0.99996
    assert average_in_words(args)["average of weights"].startswith("decay 0.99996 a step (half-life 17,328 steps)")
    args = parse_arguments([str(recipe), "--ema_half_life", "1"])[2]
    assert args.weight_average_decay == 0.5
    assert parse_arguments(["--dataset_name", "digits"])[2].weight_average_decay is None


SHARDED = """
import sys
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from modeling_deit_distill.training.average import WeightAverage, start_average
from modeling_deit_distill.script import end_process

torch.distributed.init_process_group("gloo")

def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3))

def whole(tensors):
    return [tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach() for tensor in tensors]

def same(one, other):
    return all(torch.equal(*pair) for pair in zip(whole(one), whole(other), strict=True))

plain, sharded = network(), network()
mesh = init_device_mesh("cpu", (2,))
fully_shard(sharded[0], mesh=mesh)
fully_shard(sharded, mesh=mesh)
averages = [WeightAverage(model, 0.9) for model in (plain, sharded)]
for model, average in zip((plain, sharded), averages):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 / 3)
    average.update(model)
expected, found = averages
assert same(found.weights.values(), expected.weights.values())
own, images = whole(sharded.parameters()), torch.ones(2, 5)
with torch.no_grad():
    before = sharded(images)  # leaves the last layer's weights whole
    with found.swapped_in(sharded), expected.swapped_in(plain):
        torch.testing.assert_close(sharded(images), plain(images))
        assert not torch.equal(sharded(images), before)
    assert torch.equal(sharded(images), before)
for module in (sharded, sharded[0]):
    module.reshard()
assert same(sharded.parameters(), own)
found.save(sys.argv[1], is_writer=torch.distributed.get_rank() == 0)
torch.distributed.barrier()
assert same(start_average(sharded, 0.9, sys.argv[1]).weights.values(), expected.weights.values())
assert same(start_average(plain, 0.9, sys.argv[1]).weights.values(), expected.weights.values())
end_process()
"""


@pytest.mark.slow
def test_shards_are_averaged_swapped_and_saved_like_whole_weights(tmp_path):
    # What the trainer calls, alone; `test_processes.py` has the trainer itself.
    (tmp_path / "sharded.py").write_text(SHARDED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(tmp_path / "sharded.py"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"sharded.py", AVERAGE_FILE}


# --- in the trainer ---------------------------------------------------------------------------------------------------


def test_the_trainer_averages_after_every_optimiser_step(tmp_path):
    run = trainer(tmp_path, teacher=CountingTeacher(), max_steps=3, ema_decay=0.75, gradient_accumulation_steps=2)
    expected, steps = {name: value.clone() for name, value in run.model.named_parameters()}, []
    step = run.create_optimizer().step

    def watched(*args, **kwargs):
        result = step(*args, **kwargs)
        steps.append(snapshot(run.model))
        return result

    run.optimizer.step = watched
    run.train()
    assert len(steps) == 3
    for weights in steps:
        expected = {name: 0.75 * value + 0.25 * weights[name] for name, value in expected.items()}
    for name, value in run.average.average.weights.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
        assert not torch.equal(value, run.model.state_dict()[name])


def test_a_step_that_was_left_out_does_not_count(tmp_path, monkeypatch):
    run = trainer(tmp_path, teacher=CountingTeacher(), max_steps=2, ema_decay=0.5)
    start = snapshot(run.model)
    monkeypatch.setattr(run.finite, "step_was_skipped", lambda accelerator: torch.tensor(True))
    run.train()
    assert same(run.average.average.weights, start)


def test_the_average_only_watches(tmp_path):
    # The same weights with and without it, although evaluations in between read the loader twice.
    settings = {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 2}
    weights = []
    for decay in (None, 0.9):
        run = trainer(tmp_path, student(drop_path_rate=0.3), CountingTeacher(), ema_decay=decay, **settings)
        run.train()
        weights.append(snapshot(run.model))
    assert same(*weights)


def test_both_are_evaluated_beside_each_other(tmp_path):
    run = trainer(tmp_path, teacher=CountingTeacher(), max_steps=4, ema_half_life=2, learning_rate=5e-2)
    run.train()
    own = snapshot(run.model)
    metrics = run.evaluate()
    assert same(own, snapshot(run.model))
    expected = {}
    for prefix, weights in (("eval", own), ("eval_ema", run.average.average.weights)):
        model = student()
        model.load_state_dict(weights)
        alone = trainer(tmp_path / prefix, model, CountingTeacher()).evaluate()
        kinds = ("loss", "accuracy", "accuracy_cls", "accuracy_distillation", "accuracy_softmax_mean", "top5_accuracy")
        expected |= {f"{prefix}_{kind}": alone[f"eval_{kind}"] for kind in kinds}
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert metrics["eval_loss"] != metrics["eval_ema_loss"]
    assert sum("eval_accuracy" in entry for entry in run.state.log_history) == 1  # one entry tells both
    assert metrics.items() >= {"eval_ema_loss": run.state.log_history[-1]["eval_ema_loss"]}.items()


@pytest.mark.parametrize("better", ["ema", "raw"])
def test_the_better_weights_and_their_decisions_stay(tmp_path, better):
    run = trainer(tmp_path, teacher=CountingTeacher(), max_steps=2, ema_half_life=2, learning_rate=0.3)
    run.train()
    metrics = run.evaluate()
    own, averaged = snapshot(run.model), dict(run.average.average.weights)
    metrics |= {"eval_accuracy": 0.5, "eval_ema_accuracy": 0.75 if better == "ema" else 0.25}
    results = metrics | run.average.choose(run.model, run.metrics, metrics)
    assert results["final_weights"] == better
    assert same(snapshot(run.model), averaged if better == "ema" else own)
    decided = run.model.eval()(run.eval_dataset.pixel_values).logits.argmax(-1)
    assert run.metrics.decisions["fused"].tolist() == decided.tolist()
    assert run.average.average is None and run.average.choose(run.model, run.metrics, metrics) == {}
    assert "eval_ema_accuracy" not in run.evaluate()


def test_the_best_checkpoint_brings_its_own_average(tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": "ema_score", "greater_is_better": True}
    run = trainer(tmp_path, teacher=CountingTeacher(), ema_decay=0.5, lr_scheduler_type="constant", **settings)
    run.compute_metrics = lambda evaluated: {"score": 1 / run.state.global_step}
    run.train()
    best, last = (load_file(tmp_path / f"checkpoint-{step}" / AVERAGE_FILE) for step in (2, 4))
    assert run.state.best_global_step == 2
    assert same(run.average.average.weights, best) and not same(best, last)


def test_views_and_paths_of_a_resumed_run_give_the_same_average(tmp_path):
    settings = {"ema_decay": 0.9, "save_strategy": "steps", "save_steps": 5, "num_train_epochs": 1}
    whole = views_trainer(tmp_path, image_rows(), **settings)
    whole.train()
    resumed = views_trainer(tmp_path, image_rows(), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert same(whole.average.average.weights, resumed.average.average.weights)
    assert same(snapshot(whole.model), snapshot(resumed.model))


# --- from end to end --------------------------------------------------------------------------------------------------

RUN = {
    "bf16": "false",
    "distillation_type": "none",
    "train_teacher": "false",
    "max_steps": 8,
    "ema_half_life": 4,
    "validation_fraction": 0.25,
    "eval_strategy": "steps",
    "eval_steps": 4,
    "save_strategy": "steps",
    "save_steps": 3,
    "drop_path_rate": 0.2,
}


def run_script(photos, folder, **changes):
    words = arguments(train_dir=photos, output_dir=folder, **{**RUN, **changes})
    without = ("--teacher_config_name", "--teacher_config_overrides")
    pairs = [(key, value) for key, value in zip(words[::2], words[1::2], strict=True) if key not in without]
    train_deit.main([word for pair in pairs for word in pair])
    return json.loads((folder / "all_results.json").read_text())


@pytest.fixture(scope="module")
def averaged(photos, tmp_path_factory):
    """A finished run with an average: its folder and results."""
    folder = tmp_path_factory.mktemp("averaged") / "run"
    return folder, run_script(photos, folder)


@pytest.mark.slow
def test_a_run_says_and_keeps_both(averaged, capsys):
    folder, results = averaged
    assert results["final_weights"] in ("ema", "raw")
    assert results["eval_accuracy"] == max(results["eval_raw_accuracy"], results["eval_ema_accuracy"])
    final = load_file(folder / "model.safetensors")
    last = folder / "checkpoint-8"
    kept = {"ema": load_file(last / AVERAGE_FILE), "raw": load_file(last / "model.safetensors")}
    assert same(final, kept[results["final_weights"]]) and not same(kept["ema"], kept["raw"])
    assert not (folder / AVERAGE_FILE).exists()
    (row,) = [line for line in results_table(read_run(folder).outcome).splitlines() if "weights that were kept" in line]
    assert f"average {100 * results['eval_ema_accuracy']:.2f} %" in row
    assert f"last {100 * results['eval_raw_accuracy']:.2f} %" in row
    card = accuracy_table(read_run(folder))
    assert "average of the weights (EMA)" in card and "weights of the last step" in card
    assert "half-life 4 steps" in (folder / "README.md").read_text()
    assert DeiTDistillForImageClassification.from_pretrained(folder).config.hidden_size == STUDENT["hidden_size"]


@pytest.fixture(scope="module")
def resumed(averaged, photos, tmp_path_factory):
    """The same run, resumed after three steps; at its end the weights are chosen that the whole run left."""
    folder, results = averaged
    again = tmp_path_factory.mktemp("resumed") / "run"
    again.mkdir()
    shutil.copytree(folder / "checkpoint-3", again / "checkpoint-3")
    accuracy = 0.25 if results["final_weights"] == "ema" else 0.75

    def choose_the_other(metrics):
        return choose_weights({**metrics, "eval_accuracy": 0.5, "eval_ema_accuracy": accuracy})

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("modeling_deit_distill.training.average.choose_weights", choose_the_other)
        return again, run_script(photos, again, resume_from_checkpoint="true")


@pytest.mark.slow
def test_a_resumed_run_has_the_same_bits(averaged, resumed):
    (folder, results), (again, found) = averaged, resumed
    for step in (6, 8):
        for name in (AVERAGE_FILE, "model.safetensors"):
            assert same(load_file(again / f"checkpoint-{step}" / name), load_file(folder / f"checkpoint-{step}" / name))
    keys = ("eval_raw_loss", "eval_ema_loss", "eval_ema_accuracy")
    assert {key: found[key] for key in keys} == {key: results[key] for key in keys}


@pytest.mark.slow
def test_the_final_model_is_what_the_results_say(averaged, resumed):
    assert {results["final_weights"] for _, results in (averaged, resumed)} == {"ema", "raw"}
    for folder, results in (averaged, resumed):
        source = {"ema": AVERAGE_FILE, "raw": "model.safetensors"}[results["final_weights"]]
        assert same(load_file(folder / "model.safetensors"), load_file(folder / "checkpoint-8" / source))


@pytest.mark.slow
def test_without_a_decay_nothing_is_kept_or_said(photos, tmp_path):
    folder = tmp_path / "run"
    words = {**RUN, "max_steps": 2, "save_steps": 2}
    del words["ema_half_life"]
    pairs = arguments(train_dir=photos, output_dir=folder, **words)
    pairs = [pair for pair in zip(pairs[::2], pairs[1::2], strict=True) if not pair[0].startswith("--teacher_c")]
    train_deit.main([word for pair in pairs for word in pair])
    results = json.loads((folder / "all_results.json").read_text())
    assert not [key for key in results if "ema" in key or "raw" in key or key == "final_weights"]
    assert not list(folder.rglob(AVERAGE_FILE))
    with pytest.raises(InputError, match="checkpoint-2 was made with ema_decay null"):
        (folder / "all_results.json").unlink()
        run_script(photos, folder, max_steps=4, resume_from_checkpoint="true")

"""Many processes: the same run whatever their number, sharded or not, and launch files that Accelerate accepts."""

import json
import os
import subprocess
import sys

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from helpers import process_worker
from helpers.paths import PYTHONPATH, ROOT
from safetensors.torch import load_file

from modeling_deit_distill import DeiTDistillForImageClassification, DistillationTrainingArguments, InputError
from modeling_deit_distill.modeling_deit_distill import DeiTDistillLayer
from modeling_deit_distill.precision import BF16_VARIABLE, multiplies_bf16
from modeling_deit_distill.training.checkpoints import check_sharding
from modeling_deit_distill.training.layers import layer_of

CONFIGURATIONS = ROOT / "examples" / "accelerate"
AVERAGED = {"ema_half_life": 3, "eval_strategy": "steps", "eval_steps": 7}
SMALL_SET = {"freeze_blocks": "1", "layer_decay": 0.5, "balanced_views": True}
EIGHT, SAVING = {"per_device_train_batch_size": 8}, {"save_strategy": "steps", "save_steps": 7, **AVERAGED}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One folder for each run: alone, accumulated, on two processes, sharded, resumed on another number of them."""
    folder = tmp_path_factory.mktemp("runs")
    process_worker.train(folder / "one", {"per_device_train_batch_size": 16, **SAVING})
    process_worker.train(folder / "small_set", {"per_device_train_batch_size": 16, **SMALL_SET})
    process_worker.train(folder / "frozen", {"per_device_train_batch_size": 16, "freeze_blocks": "all"})
    process_worker.train(folder / "four", {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4})
    launch(
        ["train", folder / "two", {**EIGHT, **SAVING}],
        ["train", folder / "one_to_two", {**EIGHT, **SAVING}, folder / "one" / "checkpoint-7"],
        ["train", folder / "small_set_two", {**EIGHT, **SMALL_SET}],
        ["train", folder / "frozen_two", {**EIGHT, "freeze_blocks": "all", "ddp_find_unused_parameters": True}],
        ["poisoned", folder / "poisoned", EIGHT],
        ["sharded", folder / "sharded", {**EIGHT, **SAVING}],
        ["sharded", folder / "sharded_again", {**EIGHT, **SAVING}, folder / "sharded" / "checkpoint-7"],
        ["poisoned", folder / "poisoned_sharded", EIGHT, True],
    )
    resumed = {"per_device_train_batch_size": 16, **SAVING}
    process_worker.train(folder / "two_to_one", resumed, str(folder / "two" / "checkpoint-7"))
    return folder


def launch(*scenarios, num_processes: int = 2):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
    command = [
        *launcher,
        *("-m", "helpers.process_worker"),
        *(json.dumps(line, default=str) for line in scenarios),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]


def report(folder):
    return json.loads((folder / "report.json").read_text())


def has_learned(weights) -> bool:
    """Whether they are others than those that every run starts from."""
    start = process_worker.student().state_dict()
    return not all(torch.equal(value, start[key]) for key, value in weights.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["four", "two", "one_to_two", "two_to_one", "sharded", "sharded_again"])
def test_the_run_is_the_same_whatever_the_processes(runs, name):
    expected, found = report(runs / "one"), report(runs / name)
    assert len(expected["losses"]) == len(found["losses"]) == 20  # a resumed run's log has the steps before
    assert found["losses"] == pytest.approx(expected["losses"], abs=1e-5)
    weights, others = (load_file(runs / run / "model.safetensors") for run in ("one", name))
    assert weights.keys() == others.keys() and has_learned(weights)
    for key, value in weights.items():
        torch.testing.assert_close(others[key], value, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small_set", "frozen"])
def test_a_frozen_body_and_what_small_sets_need_are_the_same_on_two_processes(runs, name):
    expected, found = report(runs / name), report(runs / f"{name}_two")
    assert found["losses"] == pytest.approx(expected["losses"], abs=1e-5)
    weights, others = (load_file(runs / run / "model.safetensors") for run in (name, f"{name}_two"))
    start = process_worker.student().state_dict()
    for key, value in weights.items():
        torch.testing.assert_close(others[key], value, rtol=0, atol=1e-4)
        is_frozen = layer_of(key, 2) < (2 if name == "small_set" else 3) or (name == "frozen" and "deit.norm" in key)
        assert torch.equal(others[key], start[key]) == is_frozen, key


@pytest.mark.slow
def test_evaluation_counts_every_image_once(runs):
    expected = report(runs / "one")
    assert expected["num_evaluated"] == process_worker.NUM_HELD_OUT == 37
    for name in ("two", "one_to_two"):
        found = report(runs / name)
        assert (found["num_evaluated"], found["accuracy"]) == (37, expected["accuracy"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two", "one_to_two", "two_to_one", "sharded", "sharded_again"])
def test_losses_of_an_evaluation_and_the_average_are_the_same_too(runs, name):
    one, other = (runs / run / "checkpoint-14" for run in ("one", name))
    expected, found = (
        [
            [entry["step"], entry["eval_loss"], entry["eval_ema_loss"]]
            for entry in json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
            if "eval_loss" in entry
        ]
        for checkpoint in (one, other)
    )
    assert len(expected) == 2
    assert found == [pytest.approx(entry, abs=1e-5) for entry in expected]
    averages, weights = load_file(one / "ema.safetensors"), load_file(one / "model.safetensors")
    assert not all(torch.equal(value, weights[key]) for key, value in averages.items())
    for key, value in load_file(other / "ema.safetensors").items():
        torch.testing.assert_close(value, averages[key], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_sharded_checkpoint_and_a_whole_one_are_not_mixed_up(runs, tmp_path):
    settings = {"per_device_train_batch_size": 16, **AVERAGED}
    with pytest.raises(InputError, match="checkpoint-7 was made with FSDP, this run is launched without it"):
        process_worker.train(tmp_path, settings, str(runs / "sharded" / "checkpoint-7"))
    with pytest.raises(InputError, match="was made without FSDP, .*launch it without FSDP to go on, or start anew"):
        check_sharding(runs / "one" / "checkpoint-7", is_sharded=True)
    check_sharding(runs / "sharded" / "checkpoint-7", is_sharded=True)


@pytest.mark.slow
def test_the_teacher_is_on_every_process_as_it_is(runs):
    assert report(runs / "two")["teacher"] == "CountingTeacher"  # not wrapped
    sharded = report(runs / "sharded")
    assert sharded["teacher"] == "CountingTeacher"
    assert sharded["all_sharded"] and sharded["teacher_is_whole"]


@pytest.mark.slow
def test_what_a_sharded_run_saves_loads_like_any_other(runs):
    for folder in (runs / "sharded", runs / "sharded" / "checkpoint-7"):
        model, info = DeiTDistillForImageClassification.from_pretrained(folder, output_loading_info=True)
        assert not any(info.values())
        code = {path.name for path in folder.glob("*.py")}
        assert code == {"configuration_deit_distill.py", "modeling_deit_distill.py"}
        assert model.config.auto_map == {
            "AutoConfig": "configuration_deit_distill.DeiTDistillConfig",
            "AutoModel": "modeling_deit_distill.DeiTDistillModel",
            "AutoModelForImageClassification": "modeling_deit_distill.DeiTDistillForImageClassification",
        }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["poisoned", "poisoned_sharded"])
def test_a_loss_that_is_not_finite_on_one_process_stops_the_step_on_all(runs, name):
    found = report(runs / name)
    # Between the optimiser's steps 1-2, 2-3, ...: the third, and from the sixth on, changed nothing. The eighth raises.
    assert found["unchanged"] == [[False, True, False, False, True, True]] * 2
    assert "3 steps in a row" in found["error"]
    assert "step 8, epoch 1, positions 48-63: label_loss nan (positions 56-63)" in found["error"]
    assert all(value.isfinite().all() for value in load_file(runs / name / "model.safetensors").values())


@pytest.mark.slow
def test_the_first_layer_that_overflows_is_named_of_a_sharded_student_too(tmp_path):
    launch(["overflowing", tmp_path, EIGHT])
    first, second = ((tmp_path / f"error_{rank}.txt").read_text() for rank in (0, 1))
    assert first == second and "the student overflows, first in deit.norm: try a lower" in first


@pytest.mark.slow
def test_a_compiled_student_has_the_same_losses_and_clean_names(tmp_path):
    arguments = {"per_device_train_batch_size": 16, "max_steps": 4, "save_strategy": "steps", "save_steps": 4}
    compiled = {**arguments, "torch_compile": True}
    # In a process of its own: the compiler imports setuptools, which takes the place of a `distutils` imported before.
    launch(["train", tmp_path / "plain", arguments], ["train", tmp_path / "compiled", compiled], num_processes=1)
    expected, found = (report(tmp_path / name) for name in ("plain", "compiled"))
    assert found["losses"] == pytest.approx(expected["losses"], abs=1e-4)
    names = load_file(tmp_path / "plain" / "model.safetensors").keys()
    for folder in (tmp_path / "compiled", tmp_path / "compiled" / "checkpoint-4"):
        assert load_file(folder / "model.safetensors").keys() == names


@pytest.mark.slow
def test_bf16_learns_the_same_but_for_its_rounding_and_keeps_full_weights(tmp_path):
    arguments = {"per_device_train_batch_size": 16, "max_steps": 8, "save_strategy": "steps", "save_steps": 4}
    for name, changes in (("fp32", {}), ("bf16", {"bf16": True})):
        process_worker.train(tmp_path / name, {**arguments, **changes})
    expected, found = (report(tmp_path / name)["losses"] for name in ("fp32", "bf16"))
    assert found == pytest.approx(expected, abs=0.02) and found != expected
    process_worker.train(tmp_path / "again", {**arguments, "bf16": True}, str(tmp_path / "bf16" / "checkpoint-4"))
    weights, again = (load_file(tmp_path / name / "model.safetensors") for name in ("bf16", "again"))
    assert all(value.dtype == torch.float32 and torch.equal(again[key], value) for key, value in weights.items())


@pytest.fixture(scope="module")
def bf16_runs(tmp_path_factory):
    """The same run in bf16: in one process, on two, and in one process with another number of threads."""
    folder, settings, threads = tmp_path_factory.mktemp("bf16"), {"bf16": True}, torch.get_num_threads()
    try:
        for name, count in (("one", 1), ("threads", 2)):
            torch.set_num_threads(count)
            process_worker.train(folder / name, {"per_device_train_batch_size": 16, **settings})
    finally:
        torch.set_num_threads(threads)
    launch(["train", folder / "two", {**EIGHT, **settings}])
    return folder


# Bits are not promised: sums are taken in another order, by another number of threads as well. Measured: 1.2e-4 between
# one process and two; between one thread and two none here, and 2.5e-4 with a width of 192.
@pytest.mark.slow
@pytest.mark.skipif(not multiplies_bf16("cpu"), reason="this processor has no units for bf16")
@pytest.mark.parametrize("name", ["two", "threads"])
def test_in_bf16_losses_are_close_whatever_the_processes_and_threads(bf16_runs, name):
    expected, found = report(bf16_runs / "one"), report(bf16_runs / name)
    assert expected["precision"] == found["precision"] == "bf16"
    assert len(expected["losses"]) == len(found["losses"]) == 20
    assert found["losses"] == pytest.approx(expected["losses"], abs=1e-3)
    weights = load_file(bf16_runs / name / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32} and has_learned(weights)


# Arguments that act with several processes, in as few runs as they fit together.
TOGETHER = {
    "whole": {"batch_eval_metrics": True, "ddp_static_graph": True, "ddp_backend": "gloo", "dataloader_num_workers": 1},
    "lists": {"eval_do_concat_batches": False, "bf16_full_eval": True, "ddp_bucket_cap_mb": 1, "ddp_timeout": 100},
    "others": {"eval_accumulation_steps": 1, "ddp_broadcast_buffers": False, "ddp_find_unused_parameters": True},
}


@pytest.mark.slow
def test_arguments_that_act_with_several_processes_end_as_they_should(tmp_path):
    settings = {**EIGHT, "max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "ema_half_life": 3}
    process_worker.train(tmp_path / "one", {**settings, "per_device_train_batch_size": 16})
    launch(*(["train", tmp_path / name, {**settings, **given}] for name, given in TOGETHER.items()))
    expected = report(tmp_path / "one")
    for name in TOGETHER:
        found = report(tmp_path / name)
        assert found["losses"] == pytest.approx(expected["losses"], abs=1e-5), name
        assert found["num_evaluated"] == expected["num_evaluated"] == 37, name
        weights = load_file(tmp_path / name / "model.safetensors")
        assert {value.dtype for value in weights.values()} == {torch.float32}, name


# --- launch files -----------------------------------------------------------------------------------------------------

EXPECTED = {
    "cpu": ("NO", 1, 1, True),
    "one_gpu": ("NO", 1, 1, False),
    "eight_gpus": ("MULTI_GPU", 8, 1, False),
    "fsdp2": ("FSDP", 8, 1, False),
    "two_nodes": ("MULTI_GPU", 16, 2, False),
}


def test_every_launch_file_is_looked_at():
    assert {path.stem for path in CONFIGURATIONS.glob("*")} == EXPECTED.keys()


def test_accelerate_reads_the_launch_files():
    for name, (kind, num_processes, num_machines, use_cpu) in EXPECTED.items():
        found = load_config_from_file(str(CONFIGURATIONS / f"{name}.yaml"))
        assert str(found.distributed_type).removeprefix("DistributedType.") == kind
        assert (found.num_processes, found.num_machines, found.use_cpu) == (num_processes, num_machines, use_cpu)
        assert found.mixed_precision == "no"  # else the launcher's word would go over a recipe's `bf16: false`


def test_fsdp2_shards_block_by_block_and_saves_whole_models():
    settings = load_config_from_file(str(CONFIGURATIONS / "fsdp2.yaml")).fsdp_config
    assert settings["fsdp_version"] == 2
    assert settings["fsdp_auto_wrap_policy"] == "TRANSFORMER_BASED_WRAP"
    assert settings["fsdp_transformer_layer_cls_to_wrap"] == DeiTDistillLayer.__name__
    assert settings["fsdp_state_dict_type"] == "FULL_STATE_DICT"


def test_the_launchers_precision_is_the_one_that_is_reported(tmp_path, monkeypatch):
    settings = {"output_dir": str(tmp_path), "report_to": "none", "use_cpu": True}
    monkeypatch.setenv(BF16_VARIABLE, "false")
    assert not DistillationTrainingArguments(**settings).bf16
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert DistillationTrainingArguments(**settings).bf16


@pytest.mark.slow
def test_accelerate_launches_with_the_file_for_a_cpu(tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGURATIONS / "cpu.yaml")]
    command += [
        "train_deit.py",
        "examples/recipes/digits.yaml",
        "--dry_run",
        "true",
        "--num_train_epochs",
        "1",
        "--teacher_num_train_epochs",
        "1",
        "--output_dir",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "What will run" in done.stdout and "fp32" in done.stdout

"""Every field of `TrainingArguments`, with a value other than its default: the run ends as it should, or is refused.

The fields are read from the installed transformers, so that one which a new release adds fails the first test here
until it stands in one of the two tables.
"""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import TrainingArguments

import train_deit
from modeling_deit_distill import DistillationTrainingArguments, InputError
from modeling_deit_distill.errors import LocalInputError
from modeling_deit_distill.recipes import parse_arguments
from modeling_deit_distill.supported import REFUSED as ALWAYS_REFUSED
from modeling_deit_distill.supported import check_launched
from modeling_deit_distill.training.metrics import check_metric
from modeling_deit_distill.training.schedule import check_optimisation

FIELDS = [field.name for field in fields(TrainingArguments)]
STEPS = 2
BASE = {
    **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
    **{"image_size": 16, "patch_size": 8, "distillation_type": "none", "use_distillation_token": "false"},
    **{"max_steps": STEPS, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2},
    **{"per_device_train_batch_size": 8, "per_device_eval_batch_size": 4, "repeated_augmentation": 1},
    **{"learning_rate": "1e-3", "report_to": "none", "disable_tqdm": "true", "bf16": "false"},
    "validation_fraction": 0.25,
}

# Whose run ends as it should. The words go over those of BASE.
RUNS = {
    # length, batch and data
    "output_dir": [],  # every run has another
    "per_device_train_batch_size": ["--per_device_train_batch_size", "4"],
    "per_device_eval_batch_size": ["--per_device_eval_batch_size", "5"],
    "num_train_epochs": ["--num_train_epochs", "1", "--max_steps", "-1"],
    "max_steps": ["--max_steps", "2"],
    "gradient_accumulation_steps": ["--gradient_accumulation_steps", "2"],
    "average_tokens_across_devices": ["--average_tokens_across_devices", "false"],
    "seed": ["--seed", "1"],
    "data_seed": ["--data_seed", "1"],
    "full_determinism": ["--full_determinism", "true"],
    "do_predict": ["--do_predict", "true"],
    "dataloader_drop_last": ["--dataloader_drop_last", "true", "--per_device_eval_batch_size", "64"],
    "dataloader_num_workers": ["--dataloader_num_workers", "1"],
    "dataloader_pin_memory": ["--dataloader_pin_memory", "false"],
    "dataloader_persistent_workers": ["--dataloader_persistent_workers", "true", "--dataloader_num_workers", "1"],
    "dataloader_prefetch_factor": ["--dataloader_prefetch_factor", "4", "--dataloader_num_workers", "1"],
    "dataloader_multiprocessing_context": [
        *("--dataloader_multiprocessing_context", "fork"),
        *("--dataloader_num_workers", "1"),
    ],
    "length_column_name": ["--length_column_name", "size"],
    # optimiser and schedule
    "learning_rate": ["--learning_rate", "1e-4"],
    "lr_scheduler_type": ["--lr_scheduler_type", "reduce_lr_on_plateau"],
    "lr_scheduler_kwargs": [
        *("--lr_scheduler_type", "cosine_with_min_lr"),
        *("--lr_scheduler_kwargs", '{"min_lr_rate": 0.1}'),
    ],
    "warmup_steps": ["--warmup_steps", "1"],
    "optim": ["--optim", "adafactor"],
    "optim_args": ["--optim", "sgd", "--optim_args", "momentum=0.9"],
    "optim_target_modules": ["--optim_target_modules", "attention"],
    "weight_decay": ["--weight_decay", "0.1"],
    "adam_beta1": ["--adam_beta1", "0.8"],
    "adam_beta2": ["--adam_beta2", "0.9"],
    "adam_epsilon": ["--adam_epsilon", "1e-6"],
    "max_grad_norm": ["--max_grad_norm", "1.0"],
    "label_smoothing_factor": ["--label_smoothing_factor", "0.2"],
    # precision, memory and speed
    "bf16": ["--bf16", "true"],
    "bf16_full_eval": ["--bf16_full_eval", "true", "--ema_half_life", "2"],
    "fp16_full_eval": ["--fp16_full_eval", "true"],
    "tf32": ["--tf32", "false"],
    "activation_checkpointing": ["--activation_checkpointing", "true"],
    "activation_checkpointing_kwargs": [
        *("--activation_checkpointing", "true"),
        *("--activation_checkpointing_kwargs", '{"use_reentrant": false}'),
    ],
    "gradient_checkpointing": ["--gradient_checkpointing", "true"],
    "gradient_checkpointing_kwargs": [
        *("--gradient_checkpointing", "true"),
        *("--gradient_checkpointing_kwargs", '{"use_reentrant": false}'),
    ],
    "torch_compile": ["--torch_compile", "true", "--torch_compile_backend", "eager"],
    "torch_compile_backend": ["--torch_compile_backend", "eager"],
    "torch_compile_mode": ["--torch_compile_mode", "default", "--torch_compile_backend", "eager"],
    "torch_empty_cache_steps": ["--torch_empty_cache_steps", "1"],
    "use_cache": ["--use_cache", "true"],
    "use_cpu": ["--use_cpu", "true"],
    "skip_memory_metrics": ["--skip_memory_metrics", "false"],
    # log
    "logging_strategy": ["--logging_strategy", "epoch"],
    "logging_steps": ["--logging_steps", "1"],
    "logging_first_step": ["--logging_first_step", "true"],
    "log_on_each_node": ["--log_on_each_node", "false"],
    "logging_nan_inf_filter": ["--logging_nan_inf_filter", "true"],
    "log_level": ["--log_level", "error"],
    "log_level_replica": ["--log_level_replica", "error"],
    "disable_tqdm": ["--disable_tqdm", "false"],
    "report_to": ["--report_to", "all"],
    "run_name": ["--run_name", "mine"],
    "project": ["--project", "mine"],
    "trackio_space_id": ["--trackio_space_id", "mine"],
    "trackio_bucket_id": ["--trackio_bucket_id", "mine"],
    "trackio_static_space_id": ["--trackio_static_space_id", "mine"],
    "debug": ["--debug", "underflow_overflow"],
    # evaluation
    "eval_strategy": ["--eval_strategy", "epoch"],
    "eval_steps": ["--eval_steps", "1"],
    "eval_delay": ["--eval_delay", "1"],
    "eval_on_start": ["--eval_on_start", "true"],
    "eval_do_concat_batches": ["--eval_do_concat_batches", "false", "--ema_half_life", "2"],
    "eval_accumulation_steps": ["--eval_accumulation_steps", "1"],
    "include_for_metrics": ["--include_for_metrics", "inputs", "loss"],
    "batch_eval_metrics": ["--batch_eval_metrics", "true", "--ema_half_life", "2"],
    "metric_for_best_model": ["--metric_for_best_model", "accuracy", "--load_best_model_at_end", "true"],
    "greater_is_better": ["--greater_is_better", "false", "--load_best_model_at_end", "true"],
    "load_best_model_at_end": ["--load_best_model_at_end", "true"],
    # checkpoints
    "save_strategy": ["--save_strategy", "best", "--metric_for_best_model", "accuracy"],
    "save_steps": ["--save_steps", "1"],
    "save_total_limit": ["--save_total_limit", "1", "--save_steps", "1"],
    "save_only_model": ["--save_only_model", "true"],
    "save_on_each_node": ["--save_on_each_node", "true"],
    "resume_from_checkpoint": ["--resume_from_checkpoint", "true"],
    "restore_callback_states_from_checkpoint": ["--restore_callback_states_from_checkpoint", "true"],
    # several processes, which this run has not
    "accelerator_config": ["--accelerator_config", '{"non_blocking": true, "use_seedable_sampler": false}'],
    "ddp_find_unused_parameters": ["--ddp_find_unused_parameters", "true"],
    "ddp_bucket_cap_mb": ["--ddp_bucket_cap_mb", "10"],
    "ddp_broadcast_buffers": ["--ddp_broadcast_buffers", "false"],
    "ddp_static_graph": ["--ddp_static_graph", "true"],
    "ddp_timeout": ["--ddp_timeout", "100"],
    "fsdp_config": ["--fsdp_config", '{"min_num_params": 1}'],
    "local_rank": ["--local_rank", "0"],
    # the Hub: with a server on the loopback
    "push_to_hub": ["--push_to_hub", "true", "--hub_model_id", "me/it"],
    "hub_model_id": ["--push_to_hub", "true", "--hub_model_id", "me/it"],
    "hub_token": ["--push_to_hub", "true", "--hub_model_id", "me/it", "--hub_token", "hf_test"],
    "hub_private_repo": ["--push_to_hub", "true", "--hub_model_id", "me/it", "--hub_private_repo", "true"],
    "hub_strategy": ["--push_to_hub", "true", "--hub_model_id", "me/it", "--hub_strategy", "checkpoint"],
    "hub_always_push": ["--push_to_hub", "true", "--hub_model_id", "me/it", "--hub_always_push", "true"],
    "hub_revision": ["--push_to_hub", "true", "--hub_model_id", "me/it", "--hub_revision", "mine"],
}

# What is refused when the arguments are parsed, and what the message says besides the name of the field.
REFUSED = {
    "accelerator_config": [
        (['{"split_batches": true}'], "split_batches is True.*leave split_batches out"),
        (['{"dispatch_batches": true}'], "dispatch_batches is True"),
        (['{"even_batches": false}'], "even_batches is False"),
        (['{"gradient_accumulation_kwargs": {"num_steps": 2}}'], "num_steps .*--gradient_accumulation_steps instead"),
        (['{"gradient_accumulation_kwargs": {"bogus": 2}}'], "only sync_each_batch"),
        (['{"gradient_accumulation_kwargs": 3}'], "only sync_each_batch"),
        (['{"splitbatches": true}'], "no field 'splitbatches'; choose from: split_batches, "),
        (["nowhere.json"], "'nowhere.json' is no JSON object and no file"),
    ],
    "auto_find_batch_size": [(["true"], "halve per_device_train_batch_size and double gradient_accumulation_steps")],
    "dataloader_in_order": [(["false"], "no run could be repeated; leave it out")],
    "dataloader_multiprocessing_context": [(["spawn"], "dataloader_num_workers is 0; give workers")],
    "dataloader_persistent_workers": [(["true"], "dataloader_num_workers is 0; give workers")],
    "dataloader_prefetch_factor": [
        (["4"], "dataloader_num_workers is 0; give workers"),
        (["0", "--dataloader_num_workers", "1"], "must be at least 1"),
    ],
    "activation_checkpointing_kwargs": [(['{"bogus": 1}'], "choose its keys from .*use_reentrant")],
    "gradient_checkpointing_kwargs": [(['{"bogus": 1}'], "choose its keys from .*use_reentrant")],
    "learning_rate": [(["inf"], "give a finite number")],
    "torch_compile_mode": [(["bogus"], "'bogus'; choose one of default, ")],
    "warmup_steps": [(["nan"], "give a finite number")],
    "weight_decay": [(["nan"], "give a finite number")],
    "ddp_backend": [(["gloo"], "there is one process; launch several")],
    "debug": [(["tpu_metrics_debug"], "there is no TPU; leave it out")],
    "deepspeed": [(["stage1.json"], "cannot be resumed here; use FSDP 2")],
    "do_eval": [(["false"], "need the evaluation; leave it out")],
    "do_train": [(["false"], "holds no finished model to judge; give .*--model_name_or_path")],
    "enable_jit_checkpoint": [(["true"], "SIGTERM saves a checkpoint already; leave it out")],
    "eval_accumulation_steps": [(["0"], "must be at least 1")],
    "eval_use_gather_object": [(["true"], "gathers tensors alone; leave it out")],
    "fp16": [(["true", "--use_cpu", "true"], "a CPU does not train in it; use --bf16 true")],
    "fp16_full_eval": [(["true", "--bf16", "true"], "the run computes in bf16; give --bf16_full_eval true")],
    "fsdp": [(["full_shard"], "there is one process; launch several")],
    "hub_strategy": [(["sometimes"], "invalid choice: 'sometimes'")],
    "ignore_data_skip": [(["true"], "a resumed run would see the first views of its epoch again; leave it out")],
    "include_num_input_tokens_seen": [(["true"], "models of text; leave it out")],
    "label_names": [(["classes"], "leave it out")],
    "liger_kernel_config": [(['{"rope": true}'], "invalid dict value")],
    "neftune_noise_alpha": [(["5"], "models of text; leave it out")],
    "parallelism_config": [(["{}"], "invalid .* value")],
    "prediction_loss_only": [(["true"], "need the accuracies; leave it out")],
    "remove_unused_columns": [(["true"], "leave it out")],
    "report_to": [(["nobody"], "'nobody', which is unknown or not installed; install it, or choose from: none")],
    "resume_from_checkpoint": [(["nowhere", "--overwrite_output_dir", "true"], "keep one")],
    "save_strategy": [
        (["best"], "add --metric_for_best_model accuracy"),
        (["best", "--eval_strategy", "no", "--metric_for_best_model", "accuracy"], "add --eval_strategy epoch"),
    ],
    "tf32": [(["true", "--use_cpu", "true"], "leave it out")],
    "torch_compile_backend": [
        (["nobody"], "'nobody'; choose one of eager, "),
        (["onnxrt"], "'onnxrt'; choose one of eager, "),
    ],
    "train_sampling_strategy": [
        (["sequential"], "the order of views; leave it out"),
        (["group_by_length"], "the order of views; leave it out"),
        (["batch_rebalance"], "the order of views; leave it out|invalid choice"),  # not in transformers 5.16
    ],
    "use_liger_kernel": [(["true"], "models of text; leave it out")],
}
FOUND_WHEN_THE_RUN_STARTS = ("do_train", "resume_from_checkpoint")

# Trainer finds these only when it trains the student; here they are found before the teacher is trained.
REFUSED_WITH_THE_STUDENT = {
    "optim": (["--optim", "galore_adamw"], "optim 'galore_adamw' with optim_args None, .*; correct it, or choose"),
    "optim_args": (["--optim", "sgd", "--optim_args", "momentum"], "with optim_args 'momentum'"),
    "optim_args: momentum": (["--optim", "sgd", "--optim_args", "momentum=nan"], "optim_args: momentum is nan; give a"),
    "lr_scheduler_type": (["--lr_scheduler_type", "cosine_with_min_lr"], "'cosine_with_min_lr' .*min_lr_rate should"),
    "lr_scheduler_kwargs": (["--lr_scheduler_kwargs", '{"cycles": 2}'], "lr_scheduler_kwargs .*'cycles'.*; correct"),
    "metric_for_best_model": (
        ["--metric_for_best_model", "f1"],
        "'f1'; choose from: loss, accuracy, balanced_accuracy, macro_f1, accuracy_cls",
    ),
}


@pytest.fixture(scope="module")
def photos(save_photos):
    """Eight noisy pictures of each of three colours, a quarter of which is held out."""
    return save_photos({"blue": (30, 60, 220), "green": (40, 200, 60), "red": (220, 40, 40)}, 8)


@pytest.fixture
def settings_restored():
    """What some arguments change in the whole process."""
    yield
    torch.use_deterministic_algorithms(False)
    torch._dynamo.reset()
    transformers.logging.set_verbosity_warning()


def check_run(args, student):
    """What `train_deit.py` checks between the building of the student and the training of the teacher."""
    check_optimisation(args, student)
    check_metric(args, student.config)


def words_of(photos, folder, words) -> list[str]:
    given = {**BASE, "train_dir": photos, "output_dir": folder}
    return [word for key, value in given.items() for word in (f"--{key}", str(value))] + list(words)


def test_each_field_of_the_installed_transformers_is_looked_at():
    unknown = [name for name in FIELDS if name not in RUNS and name not in REFUSED]
    assert not unknown, f"transformers {transformers.__version__} has new arguments: {unknown}"


def test_what_is_always_refused_is_tried_here():
    assert ALWAYS_REFUSED.keys() <= REFUSED.keys()
    assert all(f"--{name}" in words for name, words in RUNS.items() if words)


def test_refusals_name_the_argument_and_the_remedy(photos, tmp_path, monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    for name, cases in REFUSED.items():
        for value, remedy in cases if name in FIELDS else ():
            words = words_of(photos, tmp_path / "out", [f"--{name}", *value])
            with pytest.raises(InputError) as caught:
                _, _, args = parse_arguments(words)
                assert name in FOUND_WHEN_THE_RUN_STARTS, f"{name} {value} was not refused"
                train_deit.main(words)
            message = str(caught.value)
            assert name in message and re.search(remedy, message), message
            assert "\n" not in message
            assert not (tmp_path / "out").exists()


def test_refusals_that_need_the_student(photos, tmp_path, tiny_model):
    student = tiny_model()
    for name, (words, remedy) in REFUSED_WITH_THE_STUDENT.items():
        _, _, args = parse_arguments(words_of(photos, tmp_path / "out", words))
        with pytest.raises(InputError, match=remedy) as caught:
            check_run(args, student)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    _, _, args = parse_arguments(words_of(photos, tmp_path / "out", ["--metric_for_best_model", "ema_accuracy"]))
    with pytest.raises(InputError, match="'ema_accuracy'; choose from"):  # no average is kept
        check_run(args, student)
    _, _, args = parse_arguments(words_of(photos, tmp_path / "out", ["--metric_for_best_model", "teacher_agreement"]))
    with pytest.raises(InputError, match="'teacher_agreement'; choose from"):  # there is no teacher
        check_run(args, student)
    args.metric_for_best_model, args.ema_half_life = "ema_accuracy", 2
    check_run(args, student)


def test_the_teacher_is_not_trained_before_a_refusal(photos, tmp_path):
    teacher = ["--distillation_type", "hard", "--use_distillation_token", "true", "--train_teacher", "true"]
    words = [*teacher, "--teacher_config_name", "resnet", "--optim", "galore_adamw"]
    with pytest.raises(InputError, match="galore_adamw"):
        train_deit.main(words_of(photos, tmp_path / "out", words))
    assert not (tmp_path / "out" / "teacher").exists()


def test_a_dry_run_refuses_what_the_run_would(photos, tmp_path):
    with pytest.raises(InputError, match="metric_for_best_model is 'f1'"):
        train_deit.main(words_of(photos, tmp_path / "out", ["--dry_run", "true", "--metric_for_best_model", "f1"]))
    assert not (tmp_path / "out").exists()


def test_an_accelerators_settings_may_be_a_file_or_an_object(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text('{"non_blocking": true}')
    settings = {"output_dir": str(tmp_path), "report_to": "none"}
    for given in (str(path), {"non_blocking": True}, '{"non_blocking": true}'):
        args = DistillationTrainingArguments(**settings, accelerator_config=given)
        assert args.accelerator_config.non_blocking is True
        again = DistillationTrainingArguments(**settings, accelerator_config=args.accelerator_config)
        assert again.accelerator_config.non_blocking is True


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RUNS if name in FIELDS])
def test_a_run_ends_as_it_should(photos, tmp_path, server, settings_restored, name):
    folder = tmp_path / "out"
    train_deit.main(words_of(photos, folder, RUNS[name]))
    results = json.loads((folder / "all_results.json").read_text())
    assert 0.0 <= results["eval_accuracy"] <= 1.0
    decisions = json.loads((folder / "predictions.json").read_text())
    assert len(decisions["labels"]) == len(decisions["fused"]) == 6  # every held-out image
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["global_step"] == STEPS
    assert {value.dtype for value in load_file(folder / "model.safetensors").values()} == {torch.float32}
    checkpoints = {path.name for path in Path(folder).glob("checkpoint-*")}
    assert f"checkpoint-{STEPS}" in checkpoints


@pytest.mark.parametrize(
    ("visible", "words"),
    [
        ("0", r"they see 1 GPU\(s\); launch 1, or `unset CUDA_VISIBLE_DEVICES`, which is '0'$"),
        (None, r"^8 processes were launched, but they see 1 GPU\(s\); launch 1$"),
    ],
)
def test_more_processes_than_gpus_are_refused(monkeypatch, visible, words):
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        with pytest.raises(InputError, match=words) as caught:
            check_launched("cuda")
        assert isinstance(caught.value, LocalInputError) == (rank == "0")  # printed once on each machine
    check_launched("cpu")
    monkeypatch.delenv("LOCAL_WORLD_SIZE")  # srun's processes may see one each
    check_launched("cuda")


def test_several_gpus_in_one_process_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(DistillationTrainingArguments, "n_gpu", 8)
    words = "sees 8 GPUs; for one .* CUDA_VISIBLE_DEVICES=0 .* for all .*launch --multi_gpu --num_processes 8`"
    with pytest.raises(InputError, match=words):
        DistillationTrainingArguments(output_dir=str(tmp_path))

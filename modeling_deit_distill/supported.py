"""Which of transformers' `TrainingArguments` are refused, and why; every other one does what transformers documents.

Arguments are refused if they would break a promise of this project, do not apply to image classifiers, or are untested.
The check runs before anything is loaded. What needs the student is checked by `schedule.check_optimisation` and
`metrics.check_metric`, before anything is trained.
"""

import dataclasses
import inspect
import json
import os
from pathlib import Path

import torch
from accelerate.utils import DynamoBackend
from torch.utils.checkpoint import checkpoint
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.utils import is_torch_tf32_available

from .errors import InputError, LocalInputError

_FOR_TEXT = "it is made for models of text; leave it out"
# By name: the values that are accepted, why no other is, and what to do instead.
REFUSED = {
    "auto_find_batch_size": (
        (False,),
        "it would change the batch in the middle of a run, and with it the learning rate and the pairs that are mixed; "
        "halve per_device_train_batch_size and double gradient_accumulation_steps, which trains the same",
    ),
    "dataloader_in_order": (
        (True,),
        "batches would come in the order in which workers finish, so that no run could be repeated; leave it out",
    ),
    "deepspeed": ((None,), "its checkpoints cannot be resumed here; use FSDP 2 (examples/accelerate/fsdp2.yaml)"),
    "do_eval": ((True,), "the results and the model card need the evaluation; leave it out"),
    "enable_jit_checkpoint": ((False,), "SIGTERM saves a checkpoint already; leave it out"),
    "eval_use_gather_object": ((False,), "an evaluation gathers tensors alone; leave it out"),
    "ignore_data_skip": (
        (False,),
        "a resumed run would see the first views of its epoch again; leave it out: views are skipped without being "
        "decoded",
    ),
    "include_num_input_tokens_seen": ((False, "no"), _FOR_TEXT),
    "label_names": ((None, ["labels"]), "labels are called 'labels' here; leave it out"),
    "neftune_noise_alpha": ((None,), _FOR_TEXT),
    "parallelism_config": ((None,), "it was never tried here; use DDP or FSDP 2 (examples/accelerate)"),
    "prediction_loss_only": (
        (False,),
        "the results, the model card and the choice of the final weights need the accuracies; leave it out: an "
        "evaluation keeps a few bytes of each image",
    ),
    "remove_unused_columns": (
        (False,),
        "views carry more than the model's forward takes; leave it out, and select the columns of a dataset of yours "
        "before",
    ),
    "train_sampling_strategy": (("random",), "resuming and stored answers rely on the order of views; leave it out"),
    "use_liger_kernel": ((False,), _FOR_TEXT),
}
NEED_WORKERS = (
    "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context",
)
NEED_PROCESSES = ("ddp_backend", "fsdp")
# Fields of `accelerator_config` that change how batches are shared out, and their one accepted value.
ACCELERATOR_FIXED = {"split_batches": False, "dispatch_batches": None, "even_batches": True}


def check_supported(args):
    """Refuse arguments, of those that [`DistillationTrainingArguments`] inherits, that would not do what they say.

    Raises:
        InputError: the first such argument, why it is refused, and the remedy.
    """
    for name, (accepted, reason) in REFUSED.items():
        value = getattr(args, name, accepted[0])
        if value not in accepted:
            raise InputError(f"{name} is {value!r}, which is refused: {reason}")
    for name in NEED_WORKERS:
        value = getattr(args, name, None)  # not every version has every field
        if value is not None and value is not False and args.dataloader_num_workers == 0:
            raise InputError(
                f"{name} is {value!r} but dataloader_num_workers is 0; give workers "
                f"(--dataloader_num_workers 4), or leave {name} out"
            )
    for name in NEED_PROCESSES:
        if getattr(args, name) and int(os.environ.get("WORLD_SIZE", "1")) == 1:
            raise InputError(
                f"{name} is {getattr(args, name)!r} but there is one process; launch several "
                f"(torchrun, or accelerate launch with a file of examples/accelerate), or leave {name} out"
            )
    _check_compilation(args)
    _check_recomputation(args)
    _check_what_is_installed(args)
    args.accelerator_config = _accelerator_settings(args.accelerator_config)


def check_launched(device_type: str):
    """Refuse more processes than GPUs, which would share them: torchrun's see the same ones, srun's need not.

    Raises:
        InputError: with both numbers and the remedy.
    """
    launched = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device_type == "cpu" or launched <= (seen := torch.accelerator.device_count()):
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    more = f", or `unset CUDA_VISIBLE_DEVICES`, which is {visible!r}" if visible else ""
    # Of several machines each says it, by its first process: another one may have all its GPUs.
    refusal = LocalInputError if os.environ.get("LOCAL_RANK", "0") == "0" else InputError
    raise refusal(f"{launched} processes were launched, but they see {seen} GPU(s); launch {seen}{more}")


def check_devices(args):
    """Refuse several GPUs in one process: Trainer would use torch's DataParallel, which was never tried here.

    Raises:
        InputError: with the remedy.
    """
    if args.n_gpu > 1:
        raise InputError(
            f"one process sees {args.n_gpu} GPUs; for one of them put CUDA_VISIBLE_DEVICES=0 before the command, for "
            f"all start it with `accelerate launch --multi_gpu --num_processes {args.n_gpu}`"
        )


def check_precision(args):
    """Refuse a precision that the device does not support, once it is known what trains, and on what.

    Raises:
        InputError: with the remedy.
    """
    if args.fp16 and args.device.type == "cpu":
        raise InputError("fp16 is asked for, but a CPU does not train in it; use --bf16 true, or leave fp16 out")
    for trained, evaluated in (("fp16", "bf16"), ("bf16", "fp16")):
        if getattr(args, trained) and getattr(args, f"{evaluated}_full_eval"):
            raise InputError(
                f"{evaluated}_full_eval is True, but the run computes in {trained}; give --{trained}_full_eval true "
                f"instead, or --{trained} false"
            )


def _check_compilation(args):
    for name, list_choices in (("torch_compile_backend", _backends), ("torch_compile_mode", _modes)):
        value = getattr(args, name)
        if value is not None and value.lower() not in (choices := list_choices()):
            raise InputError(f"{name} is {value!r}; choose one of {', '.join(choices)}")


def _backends() -> list[str]:
    known = torch._dynamo.list_backends(exclude_tags=())  # Accelerate also names some that torch has no longer
    return [name.lower() for name in DynamoBackend.list() if name.lower() in known]


def _modes() -> list[str]:
    return list(torch._inductor.list_mode_options())


def _check_recomputation(args):
    known = {"every_n_layers", "offload", *inspect.signature(checkpoint).parameters} - {"function", "args", "kwargs"}
    for name in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):
        value = getattr(args, name, None)
        given = json.loads(value) if isinstance(value, str) and value.startswith("{") else value
        if isinstance(given, dict) and given.keys() - known:
            raise InputError(f"{name} is {value!r}; choose its keys from {', '.join(sorted(known))}")


def _check_what_is_installed(args):
    wanted = [args.report_to] if isinstance(args.report_to, str) else list(args.report_to)
    known = get_available_reporting_integrations()
    for name in wanted:
        if name not in ("all", "none", *known):
            raise InputError(
                f"report_to names {name!r}, which is unknown or not installed; install it, or choose from: "
                f"{', '.join(['none', *known])}"
            )
    if args.tf32 and not is_torch_tf32_available():
        raise InputError("tf32 is True, but only NVIDIA GPUs since Ampere have it; leave it out")
    if "tpu_metrics_debug" in str(args.debug).lower():
        raise InputError("debug is 'tpu_metrics_debug', but there is no TPU; leave it out")
    if args.save_strategy == "best" and args.eval_strategy == "no":
        raise InputError(
            "save_strategy is 'best' but eval_strategy is 'no', so nothing would be saved; add --eval_strategy epoch"
        )
    if args.save_strategy == "best" and args.metric_for_best_model is None:
        raise InputError(
            "save_strategy is 'best' but metric_for_best_model is not given; add --metric_for_best_model accuracy"
        )


def _accelerator_settings(value) -> dict | None:
    """`accelerator_config`, given as a dictionary, as JSON or as a file of JSON, checked."""
    if value is None:
        return None
    if isinstance(value, AcceleratorConfig):
        value = value.to_dict()
    if isinstance(value, str):
        try:
            value = json.loads(value if value.lstrip().startswith("{") else Path(value).read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"accelerator_config {value!r} is no JSON object and no file of one: {error}") from error
    known = [field.name for field in dataclasses.fields(AcceleratorConfig)]
    for name, setting in value.items():
        if name not in known:
            raise InputError(f"accelerator_config has no field {name!r}; choose from: {', '.join(known)}")
        if name in ACCELERATOR_FIXED and setting != ACCELERATOR_FIXED[name]:
            raise InputError(
                f"accelerator_config: {name} is {setting!r}, which is refused: each process draws its own share of the "
                f"views; leave {name} out"
            )
    accumulation = value.get("gradient_accumulation_kwargs") or {}
    if not isinstance(accumulation, dict) or accumulation.keys() - {"sync_each_batch", "sync_with_dataloader"}:
        raise InputError(
            f"accelerator_config: gradient_accumulation_kwargs is {accumulation!r}; only sync_each_batch and "
            "sync_with_dataloader are taken, num_steps is refused: give --gradient_accumulation_steps instead"
        )
    return value

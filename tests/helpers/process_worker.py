"""What `test_processes.py` runs, here or under a launcher: `-m helpers.process_worker JSON...`."""

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType, gather_object
from torch.distributed.tensor import DTensor

from helpers.trainers import CountingTeacher, rows, student
from modeling_deit_distill import DistillationTrainer, DistillationTrainingArguments, InputError
from modeling_deit_distill.data.datasets import ViewDataset
from modeling_deit_distill.data.evaluation import EvaluationDataset, evaluation_processor, evaluation_transform
from modeling_deit_distill.data.views import AugmentationSettings
from modeling_deit_distill.script import end_process

NUM_IMAGES, NUM_HELD_OUT = 64, 37  # the latter shared unevenly by two processes, whatever their batch


def do_nothing():
    """No preparation."""


def make(folder, prepare=do_nothing, **arguments) -> DistillationTrainer:
    """A trainer on views whose losses are kept, one a step; 16 images a step in all by default."""
    settings = {"output_dir": str(folder), "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    settings |= {"max_steps": 20, "learning_rate": 1e-3, "logging_steps": 1, "save_strategy": "no", "bf16": False}
    settings |= {"per_device_eval_batch_size": 8, "repeated_augmentation": 1}
    args = DistillationTrainingArguments(**{**settings, **arguments})
    processor = evaluation_processor(16)
    prepare()
    return DistillationTrainer(
        student(),
        args,
        CountingTeacher(),
        train_dataset=ViewDataset(rows(NUM_IMAGES), AugmentationSettings(16), args.seed),
        eval_dataset=EvaluationDataset(rows(NUM_HELD_OUT), evaluation_transform(processor)),
        processing_class=processor,
    )


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def report(trainer, folder, **more):
    """Leave what the test looks at in `folder`."""
    trainer.save_model(str(folder))
    if trainer.is_world_process_zero():
        facts = {"losses": losses(trainer), "teacher": type(trainer.answers.teacher).__name__}
        facts |= {"precision": trainer.args.precision, **more}
        Path(folder, "report.json").write_text(json.dumps(facts))


def train(folder, arguments: dict, resume: str | None = None):
    """Train, evaluate, save."""
    trainer = make(folder, **arguments)
    trainer.train(resume_from_checkpoint=resume)
    metrics = trainer.evaluate()
    seen = int(trainer.metrics.decisions["labels"].shape[0])
    report(trainer, folder, accuracy=metrics["eval_accuracy"], num_evaluated=seen)


def poisoned(folder, arguments: dict, is_sharded: bool = False):
    """The last process's loss becomes NaN in the third step, and from the sixth on."""
    trainer = make(folder, prepare=shard_here if is_sharded else do_nothing, max_nonfinite_steps=3, **arguments)
    original, calls = trainer.views, []

    def spoil(inputs):
        pixel_values, *rest = original(inputs)
        calls.append(1)
        spoilt = trainer.args.process_index == trainer.args.world_size - 1 and (len(calls) == 3 or len(calls) > 5)
        return (pixel_values * float("nan") if spoilt else pixel_values), *rest

    spoil.bad_images, spoil.class_weights = original.bad_images, original.class_weights
    trainer.views = spoil
    before, original_step = [], trainer.callback_handler.on_optimizer_step

    def remember(*rest):
        before.append([value.detach().clone() for value in shares(trainer.model)])
        return original_step(*rest)

    trainer.callback_handler.on_optimizer_step = remember
    try:
        trainer.train()
    except InputError as error:
        same = [all(map(torch.equal, one, other)) for one, other in zip(before, before[1:], strict=False)]
        report(trainer, folder, error=str(error), unchanged=gather_object([same]))


def overflowing(folder, arguments: dict):
    """The answers of a sharded student overflow."""
    trainer = make(folder, prepare=shard_here, max_nonfinite_steps=2, **arguments)
    trainer.model.deit.layers[1].mlp.fc2.weight.data.fill_(3e38)
    try:
        trainer.train()
    except InputError as error:
        Path(folder, f"error_{trainer.args.process_index}.txt").write_text(str(error))


def shares(module) -> list[torch.Tensor]:
    """What this process holds of each parameter."""
    return [value.to_local() if isinstance(value, DTensor) else value for value in module.parameters()]


def shard_here():
    """Accelerate asks for FSDP on GPUs alone, and else quietly does DDP; all processes share this state."""
    state = Accelerator(cpu=True).state
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    state._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["DeiTDistillLayer"],
        state_dict_type="FULL_STATE_DICT",
    )


def sharded(folder, arguments: dict, resume: str | None = None):
    """Train with FSDP2, all of it as on GPUs but for the one place where Accelerate shards on no CPU."""
    trainer = make(folder, prepare=shard_here, **arguments)
    trainer.train(resume_from_checkpoint=resume)
    sharded = {name for name, value in trainer.model.named_parameters() if isinstance(value, DTensor)}
    whole = not any(isinstance(value, DTensor) for value in trainer.answers.teacher.parameters())
    everything = sharded == {name for name, _ in trainer.model.named_parameters()}
    report(trainer, folder, all_sharded=everything, teacher_is_whole=whole)


if __name__ == "__main__":
    scenarios = {"train": train, "poisoned": poisoned, "sharded": sharded, "overflowing": overflowing}
    for line in sys.argv[1:]:  # one launch may run several: starting costs more than they do
        name, place, *rest = json.loads(line)
        torch.manual_seed(0)
        scenarios[name](place, *rest)
    end_process()

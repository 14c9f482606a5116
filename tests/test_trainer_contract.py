"""What we rely on in transformers' own Trainer. After an update of transformers this file tells what has changed."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.modeling_outputs import ImageClassifierOutput

from modeling_deit_distill import DistillationTrainer

# Methods that a class of ours overrides, with the parameters that Trainer calls them with.
OVERRIDDEN = {
    "compute_loss": ["model", "inputs", "return_outputs", "num_items_in_batch"],
    "create_model_card": ["language", "license", "tags", "model_name", "finetuned_from", "tasks"],
    "create_scheduler": ["num_training_steps", "optimizer"],
    "evaluation_loop": ["dataloader", "description", "prediction_loss_only", "ignore_keys", "metric_key_prefix"],
    "floating_point_ops": ["inputs"],
    "get_decay_parameter_names": ["model"],
    "get_train_dataloader": [],
    "init_hf_repo": ["token"],
    "log": ["logs", "start_time"],
    "push_to_hub": ["commit_message", "blocking", "token", "revision"],
    "save_model": ["output_dir", "_internal_call"],
    "set_initial_training_values": ["args", "dataloader"],
    "train": ["resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
    "training_step": ["model", "inputs", "num_items_in_batch"],
    "_get_dataloader": ["dataset", "description", "batch_size", "sampler_fn", "is_training", "dataloader_key"],
    "_get_grad_norm": ["model", "grad_norm"],
    "_get_output_dir": ["trial"],
    "_get_train_sampler": ["train_dataset"],
    "_init_training_state": [
        *("max_steps", "num_update_steps_per_epoch", "num_train_epochs"),
        *("resume_from_checkpoint", "trial"),
    ],
    "_load_best_model": [],
    "_prepare_for_training": ["max_steps", "train_dataloader", "resume_from_checkpoint"],
    "_push_from_checkpoint": ["checkpoint_folder"],
    "_save_checkpoint": ["model", "trial"],
    "_save_rng_state": ["output_dir"],
}
# A run of two steps, each with a log, an evaluation and a checkpoint; the first checkpoint is the best.
STEP = ["on_step_begin", "training_step", "_get_grad_norm", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end"]
AFTER_A_STEP = ["log", "on_log", "evaluation_loop", "log", "on_log", "on_evaluate", "_save_checkpoint"]
SAVING = ["_get_output_dir", "save_model", "_save_rng_state", "on_save"]  # pushes come from `_save_checkpoint` too
EVENTS = [
    *["train", "get_train_dataloader", "_get_dataloader", "_get_train_sampler", "set_initial_training_values"],
    *["_init_training_state", "_prepare_for_training", "create_scheduler", "on_train_begin", "on_epoch_begin"],
    *[*STEP, *AFTER_A_STEP, *SAVING, *STEP, *AFTER_A_STEP, *SAVING],
    *["on_epoch_end", "log", "on_log", "_load_best_model", "_get_output_dir", "on_train_end"],
]
# Asked so often that their place in the order means nothing.
NOT_RECORDED = {"compute_loss", "floating_point_ops", "get_decay_parameter_names", "_get_dataloader"}


class Images(torch.utils.data.Dataset):
    """Eight random images of three classes."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.randn(3, 4, 4, generator=generator), "labels": index % 3}


class Linear(torch.nn.Module):
    """The smallest model that Trainer takes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.map = torch.nn.Linear(48, 3)

    def forward(self, pixel_values, labels=None):
        logits = self.map(pixel_values.flatten(1))
        return ImageClassifierOutput(loss=torch.nn.functional.cross_entropy(logits, labels), logits=logits)


class Recorder(TrainerCallback):
    """Keeps the names of events."""

    def __init__(self, events):
        for name in dir(TrainerCallback):
            if name.startswith("on_") and name not in ("on_init_end", "on_prediction_step", "on_substep_end"):
                setattr(self, name, lambda *args, _name=name, **kwargs: events.append(_name))


def recorded_trainer(folder, events, **arguments):
    """Transformers' own Trainer, whose overridden methods and events are written to `events`."""
    args = TrainingArguments(
        **{"output_dir": str(folder), "max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True},
        **{"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "logging_steps": 1},
        **{"load_best_model_at_end": True, "metric_for_best_model": "score", "report_to": "none", "disable_tqdm": True},
        **arguments,
    )
    scores = iter((0.9, 0.5, 0.5, 0.5))
    data = Images()
    trainer = Trainer(
        *(Linear(), args),
        train_dataset=data,
        eval_dataset=data,
        compute_metrics=lambda evaluated: {"score": next(scores)},
        callbacks=[Recorder(events)],
    )
    for name in OVERRIDDEN.keys() - NOT_RECORDED:
        setattr(trainer, name, recording(getattr(trainer, name), name, events))
    return trainer


def recording(method, name, events):
    def recorded(*args, **kwargs):
        events.append(name)
        return method(*args, **kwargs)

    return recorded


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of two steps: the trainer, and what happened."""
    events = []
    trainer = recorded_trainer(tmp_path_factory.mktemp("run"), events)
    trainer.train()
    return SimpleNamespace(trainer=trainer, events=events)


def test_all_that_is_overridden_is_listed():
    overridden = {
        name
        for each in DistillationTrainer.__mro__[: DistillationTrainer.__mro__.index(Trainer)]
        for name, value in vars(each).items()
        if callable(value) and hasattr(Trainer, name) and not name.startswith("__")
    }
    assert overridden == OVERRIDDEN.keys()


def test_what_is_overridden_is_called_with_the_parameters_that_we_take():
    for name, parameters in OVERRIDDEN.items():
        found = list(inspect.signature(getattr(Trainer, name)).parameters)[1:]
        assert found[: len(parameters)] == parameters, name


def test_the_order_of_events(run):
    assert run.events == [name for name in EVENTS if name not in NOT_RECORDED]


def test_the_attributes_that_we_read(run):
    trainer, state = run.trainer, run.trainer.state
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    assert trainer._total_loss_scalar == pytest.approx(sum(losses), rel=1e-3)  # what is logged is rounded
    assert isinstance(trainer._tr_loss, torch.Tensor)
    assert trainer._created_lr_scheduler is True
    assert state.best_global_step == 1 and state.best_model_checkpoint.endswith("checkpoint-1")
    summary = state.log_history[-1]
    assert {"train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss"} <= summary.keys()


def test_the_best_weights_are_the_final_ones(run):
    from safetensors.torch import load_file

    best = load_file(f"{run.trainer.state.best_model_checkpoint}/model.safetensors")
    assert all(torch.equal(best[name], value) for name, value in run.trainer.model.state_dict().items())


def test_set_initial_training_values_gives_epochs_steps_and_length(tmp_path):
    trainer = recorded_trainer(tmp_path, [])
    values = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    assert values[0] == 1  # epochs
    assert values[1] == 2  # steps of an epoch
    assert values[-1] == 2  # steps of the run

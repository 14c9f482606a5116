"""What we rely on in transformers' own Trainer. After an update of transformers this file tells what has changed."""

import ast
import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.modeling_outputs import ImageClassifierOutput

import modeling_deit_distill
from modeling_deit_distill import DistillationTrainer

PACKAGE = Path(modeling_deit_distill.__file__).parent

# Methods that a class of ours overrides, with the parameters that Trainer calls them with.
OVERRIDDEN = {
    "call_model_init": ["trial"],
    "compute_loss": ["model", "inputs", "return_outputs", "num_items_in_batch"],
    "create_model_card": ["language", "license", "tags", "model_name", "finetuned_from", "tasks"],
    "create_optimizer": ["model"],
    "create_scheduler": ["num_training_steps", "optimizer"],
    "evaluation_loop": ["dataloader", "description", "prediction_loss_only", "ignore_keys", "metric_key_prefix"],
    "floating_point_ops": ["inputs"],
    "get_batch_samples": ["epoch_iterator", "num_batches", "device"],
    "get_decay_parameter_names": ["model"],
    "get_eval_dataloader": ["eval_dataset"],
    "get_test_dataloader": ["test_dataset"],
    "get_train_dataloader": [],
    "init_hf_repo": ["token"],
    "log": ["logs", "start_time"],
    "predict": ["test_dataset", "ignore_keys", "metric_key_prefix"],
    "push_to_hub": ["commit_message", "blocking", "token", "revision"],
    "save_model": ["output_dir", "_internal_call"],
    "set_initial_training_values": ["args", "dataloader"],
    "train": ["resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
    "_get_grad_norm": ["model", "grad_norm"],
}
# A run of two steps, each with a log, an evaluation and a checkpoint; the first checkpoint is the best.
STEP = [
    "get_batch_samples",
    "on_step_begin",
    "_get_grad_norm",
    "on_pre_optimizer_step",
    "on_optimizer_step",
    "on_step_end",
]
AFTER_A_STEP = ["log", "on_log", "get_eval_dataloader", "evaluation_loop", "log", "on_log", "on_evaluate"]
SAVING = ["save_model", "on_save"]  # by now all files are written, but for ours
EVENTS = [
    *["train", "get_train_dataloader", "set_initial_training_values", "create_optimizer", "create_scheduler"],
    *["on_train_begin", "on_epoch_begin", *[*STEP, *AFTER_A_STEP, *SAVING, *STEP, *AFTER_A_STEP, *SAVING]],
    *["on_epoch_end", "log", "on_log", "on_train_end"],
]
# Asked so often that their place in the order means nothing.
NOT_RECORDED = {"compute_loss", "floating_point_ops", "get_decay_parameter_names"}
OURS = [PACKAGE / "trainer.py", *PACKAGE.glob("training/*.py"), PACKAGE / "publishing" / "publisher.py"]
OURS += [PACKAGE / "teachers" / "training.py"]


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
    """Keeps the names of events, and what a checkpoint holds when it is saved."""

    def __init__(self, events, saved):
        self.events, self.saved = events, saved
        for name in dir(TrainerCallback):
            if name.startswith("on_") and name not in (
                "on_init_end",
                "on_prediction_step",
                "on_save",
                "on_substep_end",
            ):
                setattr(self, name, lambda *args, _name=name, **kwargs: events.append(_name))

    def on_save(self, args, state, control, **kwargs):
        self.events.append("on_save")
        names = {path.name for path in Path(args.output_dir, f"checkpoint-{state.global_step}").iterdir()}
        self.saved.append(sorted(names - {"training_args.bin"}))


def recorded_trainer(folder, events, saved, **arguments):
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
        callbacks=[Recorder(events, saved)],
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
    events, saved = [], []
    trainer = recorded_trainer(tmp_path_factory.mktemp("run"), events, saved)
    trainer.train()
    return SimpleNamespace(trainer=trainer, events=events, saved=saved)


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


def test_at_most_one_private_name_of_trainer_is_overridden_or_read():
    theirs = {name for name in vars(Trainer) if name.startswith("_") and not name.startswith("__")}
    theirs |= set(re.findall(r"self\.(_[a-z]\w*)", inspect.getsource(Trainer)))
    used = set()
    for path in OURS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and path.name in ("trainer.py", "training.py"):
                used.add(node.name)
            # `super()._x`, `self._x` in a trainer, `trainer._x` anywhere
            if isinstance(node, ast.Attribute) and (path.name == "trainer.py" or "trainer" in ast.unparse(node.value)):
                used.add(node.attr)
    assert used & theirs == {"_get_grad_norm"}


def test_what_the_state_and_the_summary_hold(run):
    state = run.trainer.state
    assert state.best_global_step == 1 and state.best_model_checkpoint.endswith("checkpoint-1")
    summary = state.log_history[-1]
    assert {"train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss"} <= summary.keys()


def test_a_checkpoint_has_all_its_files_when_on_save_is_called(run):
    assert (
        run.saved == [["model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"]] * 2
    )


def test_the_best_weights_are_the_final_ones(run):
    from safetensors.torch import load_file

    best = load_file(f"{run.trainer.state.best_model_checkpoint}/model.safetensors")
    assert all(torch.equal(best[name], value) for name, value in run.trainer.model.state_dict().items())


def test_set_initial_training_values_gives_epochs_steps_and_length(tmp_path):
    trainer = recorded_trainer(tmp_path, [], [])
    values = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    assert values[0] == 1  # epochs
    assert values[1] == 2  # steps of an epoch
    assert values[-1] == 2  # steps of the run

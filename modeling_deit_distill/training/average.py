"""The exponential moving average of the weights: optional in the paper's recipe (Table 9), 0.99996 in the public code.

As there (timm's `ModelEma`), it starts as a copy of the initial weights and moves after every optimiser step by the
same decay from the first on. The public code keeps the average but evaluates the weights themselves; here both are
evaluated and the better one becomes the final model.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import DistributedType
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback

from ..errors import InputError
from ..output_folder import checkpoint_folder
from ..weights import weights_kept
from .metrics import HeldOutMetrics

AVERAGE_FILE = "ema.safetensors"


@torch.no_grad()
def update_average(
    average: list[torch.Tensor], weights: list[torch.Tensor], decay: float, skipped: torch.Tensor | None = None
):
    """average ← decay · average + (1 - decay) · weights, in place.

    All tensors in a few kernels, and nothing is read back: the host does not wait for the device.

    Args:
        average: float32 tensors.
        weights: tensors of the same shapes on the same devices, of any floating type.
        decay: between 0 and 1.
        skipped: bool, a scalar on that device: the average stays as it is, to the bit, where it is true.
    """
    weights = [weight.detach().to(torch.float32) for weight in weights]
    if skipped is None:
        get_ema_multi_avg_fn(decay)(average, weights, None)
        return
    moves = torch._foreach_sub(weights, average)
    torch._foreach_mul_(moves, (1.0 - decay) * ~skipped)
    torch._foreach_add_(average, moves)


class WeightAverage:
    """The average of a model's parameters, in float32 on their device; sharded as they are (FSDP2).

    Args:
        model: the model itself, without what DDP or `torch.compile` wraps around it; its weights are the first average.
        decay: between 0 and 1.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.weights = {
            name: parameter.detach().to(torch.float32, copy=True) for name, parameter in model.named_parameters()
        }

    def update(self, model: nn.Module, skipped: torch.Tensor | None = None):
        """Take in the weights after an optimiser step, unless `skipped` says that there was none."""
        update_average(list(self.weights.values()), list(model.parameters()), self.decay, skipped)

    @torch.no_grad()
    def copy_to(self, model: nn.Module):
        """Make the average the model's weights."""
        _reshard(model)
        for name, parameter in model.named_parameters():
            parameter.copy_(self.weights[name])

    @contextmanager
    def swapped_in(self, model: nn.Module) -> Iterator[None]:
        """The model with the average for its weights; afterwards it has its own again, to the bit."""
        _reshard(model)
        own = [parameter.detach().clone() for parameter in model.parameters()]
        self.copy_to(model)
        try:
            yield
        finally:
            _reshard(model)
            with torch.no_grad():
                for parameter, weight in zip(model.parameters(), own, strict=True):
                    parameter.copy_(weight)

    def save(self, folder: str | Path, is_writer: bool = True):
        """Write `ema.safetensors` into a checkpoint's folder; whole tensors, however they are sharded.

        Args:
            is_writer: whether this process writes; all must call, since shards are gathered.
        """
        weights = {name: _whole(weight).contiguous() for name, weight in self.weights.items()}
        if is_writer:
            save_file(weights, Path(folder, AVERAGE_FILE), metadata={"format": "pt"})

    def load(self, folder: str | Path):
        """Read it from a checkpoint's folder.

        Raises:
            InputError: there is none, it is damaged, or it is that of another model.
        """
        path = Path(folder, AVERAGE_FILE)
        if not path.exists():
            raise InputError(
                f"checkpoint {str(folder)!r} holds no {AVERAGE_FILE}, so its run kept no average of the weights; leave "
                "out ema_decay and ema_half_life to resume it, or start again"
            )
        try:
            kept = load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{str(path)!r} is damaged ({error}); resume from another checkpoint") from error
        if {name: value.shape for name, value in kept.items()} != {n: w.shape for n, w in self.weights.items()}:
            raise InputError(f"{str(path)!r} is the average of another model; resume with the model of its run")
        for name, weight in self.weights.items():
            if isinstance(weight, DTensor):
                kept[name] = distribute_tensor(kept[name].to(weight.device), weight.device_mesh, weight.placements)
            weight.copy_(kept[name])


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _reshard(model: nn.Module):
    # After a forward pass FSDP2 may leave whole copies in the place of the parameters; what is written there is lost.
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def start_average(model: nn.Module, decay: float | None, checkpoint: str | Path | None = None) -> WeightAverage | None:
    """The average at the start of training, or as a checkpoint kept it; None without a decay.

    Raises:
        InputError: as [`WeightAverage.load`].
    """
    if decay is None:
        return None
    average = WeightAverage(model, decay)
    if checkpoint is not None:
        average.load(checkpoint)
    return average


class AverageWeights(TrainerCallback):
    """Keeps the average of the weights through a training, and in its checkpoints.

    Args:
        decay: between 0 and 1; None for no average.
        step_was_skipped: called after an optimiser step: bool on the device, whether it was left out.

    Attributes:
        average: a [`WeightAverage`] from the start of training on; None without a decay, or once it has ended.
        decisions: its decisions on the held-out images, as in [`HeldOutMetrics`].
    """

    def __init__(self, decay: float | None, step_was_skipped: Callable[[], torch.Tensor]):
        self.decay, self._step_was_skipped = decay, step_was_skipped
        self.average: WeightAverage | None = None
        self.decisions: dict[str, np.ndarray] = {}
        self._resumed: Path | None = None

    def check(self, accelerator):
        """Refuse weights that the average cannot follow.

        Raises:
            InputError: DeepSpeed, or FSDP 1.
        """
        is_deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
        fsdp = getattr(accelerator.state, "fsdp_plugin", None)
        if self.decay is not None and (is_deepspeed or getattr(fsdp, "fsdp_version", 2) != 2):
            raise InputError(
                "ema_decay and ema_half_life cannot follow weights that DeepSpeed or FSDP 1 shards; leave them out, or "
                "launch with DDP or FSDP 2"
            )

    def evaluated_too(
        self,
        evaluate: Callable,
        model: nn.Module,
        metrics: HeldOutMetrics,
        prefix: str,
        description: str = "Evaluation",
    ):
        """Evaluate a model, and its average beside it.

        Args:
            evaluate: Trainer's `evaluation_loop`, called with `metric_key_prefix`.
            model: the model; its weights come back to the bit.
            metrics: keeps the decisions of the model; those of the average are kept here.
            prefix: of the model's metrics; those of the average stand beside under `<prefix>_ema_`.
            description: Trainer's; another than "Evaluation" is a prediction, which is of the model alone.

        Returns:
            What `evaluate` returns.
        """
        is_evaluation = description == "Evaluation"
        metrics.start(is_evaluation)
        with weights_kept(model):
            output = evaluate(metric_key_prefix=prefix)
        if self.average is None or not is_evaluation:
            return output
        decisions = metrics.decisions
        # A loader draws a seed whenever it is read; training is to go on as it would without an average.
        with torch.random.fork_rng(devices=[]), self.average.swapped_in(model), weights_kept(model):
            output.metrics.update(evaluate(metric_key_prefix=f"{prefix}_ema").metrics)
        self.decisions, metrics.decisions = metrics.decisions, decisions
        return output

    def choose(
        self, model: nn.Module, held_out: HeldOutMetrics, metrics: Mapping[str, float]
    ) -> dict[str, float | str]:
        """Put the average in the model's place if it is better, and end it.

        Args:
            model: the model.
            held_out: whose decisions become those of the chosen weights.
            metrics: of the last evaluation.

        Returns:
            See [`choose_weights`]; empty where no average is kept.
        """
        if self.average is None:
            return {}
        chosen = choose_weights(metrics)
        if chosen["final_weights"] == "ema":
            self.average.copy_to(model)
            held_out.decisions = self.decisions
        self.average = None
        return chosen

    def start(self, resumed: Path | None):
        """Called before training, with the checkpoint to resume from."""
        self._resumed = resumed

    def end(self, args, state):
        """After training: with the best weights goes the average that was kept with them."""
        if self.average is not None and args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self.average.load(state.best_model_checkpoint)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Start it: only here the weights are those to start from, on their device."""
        self.average = start_average(model, self.decay, self._resumed)

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        """Move it. A step that was left out has changed nothing, and does not count."""
        if self.average is None:
            return
        skipped = self._step_was_skipped()
        if skipped.device.type != "cpu" and not any(isinstance(weight, DTensor) for weight in model.parameters()):
            self.average.update(model, skipped)  # the host does not wait to know
        elif not skipped:
            self.average.update(model)

    def on_save(self, args, state, control, **kwargs):
        """Write it into the checkpoint."""
        if self.average is not None:
            self.average.save(checkpoint_folder(args.output_dir, state.global_step), is_writer=args.should_save)


def choose_weights(metrics: Mapping[str, float]) -> dict[str, float | str]:
    """Which weights a run ends with: the average if it is right more often on the held-out images.

    Args:
        metrics: of an evaluation, those of the weights themselves under `eval_`, of the average under `eval_ema_`.

    Returns:
        `final_weights`, "ema" or "raw"; the metrics of these under `eval_`; those of the weights themselves under
        `eval_raw_`.
    """
    averaged = {key.removeprefix("eval_ema_"): metrics[key] for key in metrics if key.startswith("eval_ema_")}
    raw = {name: metrics[f"eval_{name}"] for name in averaged}
    is_better = averaged["accuracy"] > raw["accuracy"]
    chosen = {f"eval_{name}": value for name, value in (averaged if is_better else raw).items()}
    return {"final_weights": "ema" if is_better else "raw", **chosen, **{f"eval_raw_{n}": v for n, v in raw.items()}}

"""The exponential moving average of the weights: optional in the paper's recipe (Table 9), 0.99996 in the public code.

As there (timm's `ModelEma`), it starts as a copy of the initial weights and moves after every optimiser step by the
same decay from the first on. The public code keeps the average but evaluates the weights themselves; here both are
evaluated and the better one becomes the final model.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from ..errors import InputError

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
        torch._foreach_lerp_(average, weights, 1.0 - decay)
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

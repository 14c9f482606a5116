"""Numbers that go wrong: a step that is not finite changes nothing and is named, and too many in a row end the run.

Nothing here makes the host wait for the device at each step. The norm of the gradient, which Trainer computes anyway,
tells whether a step is finite; torch's fused optimisers take that verdict as a tensor and leave weights and state as
they are. The host reads verdicts a few steps later, when they have long been computed.
"""

import functools
import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from accelerate.utils import gather_object
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from ..errors import InputError
from .causes import Evidence, explain

logger = logging.getLogger(__name__)

# Steps after which a GPU's verdict is read. It is a fixed number, so that all processes stop at the same step.
LAG = 4
# A gradient scaler halves its scale at each overflow; while it is above this the overflow is its own affair.
SMALLEST_SCALE = 1.0


@dataclass
class _Part:
    """One backward pass of a step: which views, and its losses by name, on the device."""

    epoch: int | None
    positions: list[int]
    losses: dict[str, torch.Tensor]


@dataclass
class _Step:
    """A step whose verdict is still to be read: [skipped, gradient norm, losses of each part]."""

    number: int
    parts: list[_Part]
    values: torch.Tensor = field(default_factory=lambda: torch.zeros(2))
    event: torch.cuda.Event | None = None


class FiniteGuard:
    """Keeps steps whose loss or gradient is not finite from changing anything, and counts them.

    Each step calls `watch` once a backward pass, then `decide` between gradients and optimiser. Skipped are steps whose
    gradient norm is not finite; `watch` makes that so for a loss. The norm is of the reduced gradient, so all processes
    decide alike. With a gradient scaler (fp16), skipping is the scaler's; steps count once its scale is at its lowest.

    Args:
        max_steps: skipped steps in a row after which the run stops. The count starts anew with a resumed run.
        gather: from a list of one process to the joined lists of all; only called where all processes do.
        explain: called when the run stops, on all processes: the cause and the remedy, in words.

    Attributes:
        skipped: bool on the device, whether the last step was skipped. No host has waited for it.
        num_steps, num_skipped: steps, and skipped ones, read so far.
    """

    def __init__(
        self,
        max_steps: int,
        gather: Callable[[list], list] = list,
        explain: Callable[[Evidence], str] = lambda evidence: "",
    ):
        self.max_steps = max_steps
        self.gather = gather
        self.explain = explain
        self.start()

    @classmethod
    def from_arguments(cls, args, teacher: torch.nn.Module | None) -> "FiniteGuard":
        """The guard of a run, which has several processes or one, and a teacher that it asks, or none."""
        gather = gather_object if args.world_size > 1 else list
        return cls(args.max_nonfinite_steps, gather, functools.partial(explain, args, teacher, gather))

    def start(self):
        """Forget all steps."""
        self.skipped = torch.tensor(False)
        self.num_steps = 0
        self.num_skipped = 0
        self._in_a_row = 0
        self._parts: list[_Part] = []
        self._unread: deque[_Step] = deque()
        self._model = self._pixel_values = None  # of the last step

    @property
    def all_skipped(self) -> bool:
        """Whether no step that was read was finite."""
        return self.num_steps == self.num_skipped

    def watch(
        self,
        loss: torch.Tensor,
        losses: dict[str, torch.Tensor],
        inputs: dict,
        pixel_values: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Take note of a loss; one that is not finite comes back as NaN, as do all gradients that it gives.

        Args:
            loss: scalar, to be differentiated.
            losses: scalars that it is made of, by name.
            inputs: the batch; `epoch` and `position` (views,) are named in messages, if it has them.
            pixel_values: (batch, channels, height, width), what the model saw of it; kept until the next batch.
        """
        self._pixel_values = pixel_values
        epoch = int(inputs["epoch"][0]) if "epoch" in inputs else None
        positions = [int(position) for position in inputs.get("position", ())]
        self._parts.append(_Part(epoch, positions, {name: value.detach() for name, value in losses.items()}))
        return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)  # times one changes no bit

    def decide(self, number: int, model, optimizer, grad_norm: torch.Tensor | float, scaler=None):
        """Judge a step by the norm of its gradient, and keep the optimiser from following one that is not finite.

        Args:
            number: of the step, for messages.
            model: whose gradients are dropped where the optimiser takes no verdict.
            optimizer: torch's, or Accelerate's wrapper of it.
            grad_norm: of the gradient over all processes.
            scaler: the `GradScaler`, if there is one.

        Raises:
            InputError: too many steps in a row.
        """
        optimizer, self._model = getattr(optimizer, "optimizer", optimizer), model
        parts, self._parts = self._parts, []
        norm = grad_norm.full_tensor() if isinstance(grad_norm, DTensor) else torch.as_tensor(grad_norm)
        norm = norm.detach().float()
        self.skipped = ~norm.isfinite()
        counted = self.skipped
        if scaler is not None:
            counted = self.skipped & (_scale(scaler, norm.device) <= SMALLEST_SCALE)
        elif getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.found_inf = self.skipped.float()
        losses = [value.float() for part in parts for value in part.losses.values()]
        values = torch.stack([counted.float(), norm, *losses])
        self._unread.append(_start_reading(_Step(number, parts, values)))
        self.read(LAG if values.is_cuda else 0)
        takes_verdict = scaler is not None or getattr(optimizer, "_step_supports_amp_scaling", False)
        if not takes_verdict and self.skipped:  # the host waits; there is no other way to tell such an optimiser
            model.zero_grad(set_to_none=True)  # what has no gradient is left alone

    def step_was_skipped(self, accelerator) -> torch.Tensor:
        """Whether the optimiser has left the last step out: bool on the device; known after `optimizer.step()`."""
        if accelerator.scaler is not None:  # which decides itself
            return torch.tensor(accelerator.optimizer_step_was_skipped, device=accelerator.device)
        return self.skipped

    def read(self, leave: int = 0):
        """Read the verdicts of all steps but the last few; names those that were skipped.

        Raises:
            InputError: too many steps in a row.
        """
        while len(self._unread) > leave:
            step = self._unread.popleft()
            if step.event is not None:
                step.event.synchronize()
            skipped, norm, *losses = step.values.tolist()
            self.num_steps += 1
            if not skipped:
                self._in_a_row = 0
                continue
            self.num_skipped += 1
            self._in_a_row += 1
            self._report(step, norm, losses)

    def _report(self, step: _Step, norm: float, losses: list[float]):
        own, values = [], iter(losses)
        for part in step.parts:
            own.append((part.epoch, part.positions, {name: next(values) for name in part.losses}))
        parts = self.gather(own)
        what = _describe(step.number, parts, norm)
        if self._in_a_row >= self.max_steps:
            raise InputError(
                f"{self._in_a_row} steps in a row had a loss or a gradient that is not finite, the last: {what}; none "
                f"of them changed a weight; {self.explain(self._evidence(parts))}"
            )
        if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:  # all know the same
            logger.warning(f"not finite, so the step was skipped: {what}")

    def _evidence(self, parts: list[tuple[int | None, list[int], dict[str, float]]]) -> Evidence:
        names = parts[0][2] if parts else ()
        losses = {name: sum(losses[name] for _, _, losses in parts) / len(parts) for name in names}
        return Evidence(self._model, self._pixel_values, losses, self.all_skipped)


def gradient_norm(optimizer) -> torch.Tensor:
    """The norm of all gradients that an optimiser will use, with no others looked for and nothing multiplied."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])


def shorten(positions: Iterable[int]) -> str:
    """Positions in words, neighbours as a range: `0-15, 32`."""
    ranges: list[list[int]] = []
    for position in sorted(set(positions)):
        if ranges and position == ranges[-1][1] + 1:
            ranges[-1][1] = position
        else:
            ranges.append([position, position])
    words = [str(first) if first == last else f"{first}-{last}" for first, last in ranges]
    return ", ".join(words if len(words) <= 8 else [*words[:7], f"... {words[-1]}"])


def _describe(number: int, parts: list[tuple[int | None, list[int], dict[str, float]]], norm: float) -> str:
    """`step 7, epoch 2, positions 0-31: label_loss nan (positions 8-15), teacher_loss 0.8, gradient norm nan`."""
    words = [f"step {number}"]
    epochs = sorted({epoch for epoch, _, _ in parts if epoch is not None})
    if epochs:
        words.append(f"epoch {shorten(epochs)}")
        words.append("positions " + shorten(place for _, positions, _ in parts for place in positions))
    terms = []
    for name in parts[0][2] if parts else ():
        bad = [positions for _, positions, losses in parts if not _is_finite(losses[name])]
        value = sum(losses[name] for _, _, losses in parts) / len(parts)
        where = f" (positions {shorten(sum(bad, []))})" if any(bad) and len(bad) < len(parts) else ""
        terms.append(f"{name} {value:.4g}{where}")
    return ", ".join(words) + ": " + ", ".join([*terms, f"gradient norm {norm:.4g}"])


def _is_finite(value: float) -> bool:
    return abs(value) < float("inf")  # false for NaN


def _scale(scaler, device) -> torch.Tensor:
    """A scaler's scale, without waiting for it."""
    scale = getattr(scaler, "_scale", None)
    return torch.as_tensor(scaler.get_scale(), device=device) if scale is None else scale


def _start_reading(step: _Step) -> _Step:
    """Send a step's values to the host's memory; the event tells when they are there."""
    if step.values.is_cuda:
        values = torch.empty(step.values.shape, dtype=step.values.dtype, pin_memory=True)
        values.copy_(step.values, non_blocking=True)
        step.values, step.event = values, torch.cuda.Event()
        step.event.record()
    for part in step.parts:
        part.losses = dict.fromkeys(part.losses)  # only the names are needed from here on
    return step

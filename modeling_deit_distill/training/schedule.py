"""The learning rate at each update step: warm-up, then cosine or constant (paper, section 6 and Table 9).

Two rules share one formula. The paper's changes the rate at every step: it rises linearly from zero, and the cosine
falls over what follows the warm-up, to zero. The public code's (timm's `CosineLRScheduler` counted in epochs) changes
it between epochs: it rises from 1e-6, and the cosine, to 1e-5, runs over all epochs, so that it has fallen a little
when the warm-up hands over to it. Neither of these two rates grows with the batch.

The public code's own loop hands timm the number of the epoch that has just ended, so there the rates come one epoch
later and the first two epochs both train at 1e-6. That slip is not repeated here.
"""

import functools
import math
from collections.abc import Callable

import torch
from torch import nn
from transformers import Trainer, get_scheduler
from transformers.trainer_utils import SchedulerType

from ..errors import InputError, one_line
from ..fields import check_finite
from ..report import say_once

UNDECAYED = ("cls_token", "position_embeddings")


def learning_rate_at(step: int, *, peak: float, **rule) -> float:
    """The learning rate of an update step, the first being 0.

    Args:
        step: how many updates came before.
        peak: the rate at the end of the warm-up.
        rule: the other arguments of [`share_of_peak`].
    """
    return peak * share_of_peak(step, peak=peak, **rule)


def share_of_peak(
    step: int,
    *,
    peak: float,
    num_steps: int,
    num_warmup_steps: int = 0,
    warmup_learning_rate: float = 0.0,
    min_learning_rate: float = 0.0,
    is_constant: bool = False,
    steps_per_epoch: int | None = None,
) -> float:
    """The learning rate of an update step as a share of its peak, which is what a `LambdaLR` takes.

    Args:
        step: how many updates came before.
        peak: the rate at the end of the warm-up; one of zero is zero throughout.
        num_steps: updates of the whole run, the warm-up's among them.
        num_warmup_steps: updates of the warm-up.
        warmup_learning_rate: where the warm-up starts.
        min_learning_rate: where the cosine ends.
        is_constant: stay at the peak after the warm-up.
        steps_per_epoch: change the rate between epochs alone, as the public code does, with the cosine over all of
            them; None changes it at every step, with the cosine over what follows the warm-up.
    """
    if peak == 0:
        return 0.0
    start = 0
    if steps_per_epoch is not None:
        step = step // steps_per_epoch * steps_per_epoch  # that of the epoch's first
    else:
        start = num_warmup_steps
    if step < num_warmup_steps:
        lowest = warmup_learning_rate / peak
        return lowest + (1 - lowest) * (step / num_warmup_steps)
    if is_constant:
        return 1.0
    lowest = min_learning_rate / peak
    progress = min((step - start) / max(1, num_steps - start), 1.0)
    return lowest + (1 - lowest) * (0.5 * (1.0 + math.cos(math.pi * progress)))


def schedule(args, num_steps: int, steps_per_epoch: int) -> Callable[[int], float] | None:
    """What [`DistillationTrainingArguments`] ask for: from an update step to its share of the peak.

    Args:
        args: the arguments.
        num_steps: updates of the whole run.
        steps_per_epoch: updates of an epoch.

    Returns:
        [`share_of_peak`] with all but the step; None for a schedule that is transformers' alone.
    """
    kind = args.lr_scheduler_type
    if kind not in (SchedulerType.COSINE, SchedulerType.CONSTANT_WITH_WARMUP) or args.lr_scheduler_kwargs:
        return None
    return functools.partial(
        share_of_peak,
        peak=args.learning_rate,
        num_steps=num_steps,
        num_warmup_steps=args.get_warmup_steps(num_steps),
        warmup_learning_rate=args.warmup_learning_rate,
        min_learning_rate=args.min_learning_rate,
        is_constant=kind == SchedulerType.CONSTANT_WITH_WARMUP,
        steps_per_epoch=steps_per_epoch if args.code_compatible else None,
    )


def check_optimisation(args, student: nn.Module):
    """Refuse an optimiser or a schedule that Trainer could not make, before anything is trained.

    Args:
        args: the [`DistillationTrainingArguments`].
        student: the model to be trained.

    Raises:
        InputError: with what transformers says of it.
    """
    try:
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(args, student)
        check_finite("optim_args", settings)
        if isinstance(kind, type) and not settings.keys() & {"params", "model", "optimizer_dict"}:
            kind([nn.Parameter(torch.zeros(1))], **settings)  # which looks at the values
        elif args.layer_decay is not None:
            raise ValueError("layer_decay does not go with it, since it groups the parameters itself")
    except InputError:
        raise
    except (ImportError, NotImplementedError, TypeError, ValueError) as error:
        betas = f"adam_beta1 {args.adam_beta1}, adam_beta2 {args.adam_beta2}, adam_epsilon {args.adam_epsilon}"
        given = f"optim {args.optim.value!r} with optim_args {args.optim_args!r}, {betas}"
        raise InputError(f"{given}: {one_line(error)}; correct it, or choose another --optim") from error
    try:
        stand_in = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
        get_scheduler(args.lr_scheduler_type, stand_in, 1, 2, scheduler_specific_kwargs=args.lr_scheduler_kwargs)
    except (ImportError, TypeError, ValueError) as error:
        given = (
            f"lr_scheduler_type {args.lr_scheduler_type.value!r} with lr_scheduler_kwargs {args.lr_scheduler_kwargs}"
        )
        raise InputError(f"{given}: {one_line(error)}; correct them, or choose another --lr_scheduler_type") from error


def resolve_warmup(args, num_steps: int, steps_per_epoch: int | None):
    """Give `args` the steps that the epochs of warm-up are; warn where the run is over before its warm-up is.

    Args:
        args: the arguments.
        num_steps: updates of the whole run.
        steps_per_epoch: updates of an epoch; None for a stream, which has no epochs.

    Raises:
        InputError: the rate is to change by epochs, of a stream.
    """
    if args.code_compatible and steps_per_epoch is None:
        raise InputError("code_compatible changes the learning rate by epochs, which a stream has not; drop one")
    if args.warmup_epochs > 0 and steps_per_epoch is not None:
        given, args.warmup_steps = args.warmup_steps, round(args.warmup_epochs * steps_per_epoch)
        args.note_filled_in(warmup_steps=given)
    warning = short_of_the_peak(num_steps, args.get_warmup_steps(num_steps))
    if warning is not None:
        say_once(warning)


def short_of_the_peak(num_steps: int, num_warmup_steps: int) -> str | None:
    """A warning where the run is over before its warm-up is; None where it is not."""
    if num_warmup_steps <= num_steps:
        return None
    return (
        f"the warm-up takes {num_warmup_steps:,} steps but the run has {num_steps:,}: the learning rate never reaches "
        "its peak; train longer, or lower warmup_epochs or warmup_steps"
    )


def schedule_in_words(args) -> str:
    """The schedule with its figures."""
    kind = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    words = [kind]
    if kind == SchedulerType.COSINE and args.min_learning_rate:
        words[0] += f" to {args.min_learning_rate:g}"
    in_epochs = args.warmup_epochs > 0 or not args.warmup_steps
    length, unit = (args.warmup_epochs, "epochs") if in_epochs else (args.warmup_steps, "steps")
    start = f" from {args.warmup_learning_rate:g}" if length and args.warmup_learning_rate else ""
    words.append(f"{length:g} warm-up {unit}{start}")
    if args.code_compatible:
        words.append("changed between epochs")
    return ", ".join(words)


def decayed_names(names: list[str], code_compatible: bool) -> list[str]:
    """Of the parameters that Trainer decays, no biases and no norms, those that are not learned per token or position.

    The public code decays the distillation token, timm does not.
    """
    undecayed = UNDECAYED if code_compatible else (*UNDECAYED, "distillation_token")
    return [name for name in names if not name.rsplit(".", 1)[-1].startswith(undecayed)]

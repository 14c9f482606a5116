"""What a run of a stream may ask for: a stream has no length, no epochs, and no positions of its images."""

import datasets

from .arguments import DataArguments, DistillationTrainingArguments, ModelArguments
from .errors import InputError

STREAM_WORKERS = 4  # by default: each keeps some gigabyte of images that it shuffles
_NOT_OF_A_STREAM = {
    "code_compatible": "changes the learning rate by epochs, a stream has none",
    "view_epochs": "repeats views by position, which a stream has not",
    "balanced_views": "needs to know the class of every image before",
    "keep_decoded_images": "is for images that are read again",
    "unlabeled_dir": "puts its images among the others of an epoch, a stream has none",
    "teacher_store": "keeps answers by position, which a stream has not",
}


def check_streaming(model_args: ModelArguments, data_args: DataArguments, args: DistillationTrainingArguments):
    """Refuse what needs to know the stream's length or its images' positions; give it few workers.

    Raises:
        InputError: with the argument, why it does not go with a stream, and what to do.
    """
    if not data_args.streaming:
        return
    if args.max_steps <= 0:
        raise InputError("streaming: a stream has no length, so epochs mean nothing; give --max_steps")
    if args.warmup_epochs > 0:
        raise InputError("streaming: a stream has no epochs; give --warmup_steps instead of warmup_epochs")
    for name in ("eval_strategy", "save_strategy"):
        if getattr(args, name) == "epoch":
            every = name.replace("strategy", "steps")
            raise InputError(
                f"streaming: a stream has no epochs, so {name} 'epoch' would wait for the last step; give "
                f"--{name} steps --{every} N"
            )
    for name, reason in _NOT_OF_A_STREAM.items():
        if getattr(args, name, None) or getattr(data_args, name, None):
            raise InputError(f"streaming: {name} {reason}; drop one")
    if model_args.train_teacher and args.distillation_type != "none":
        raise InputError("streaming: a teacher is trained on stored images; give --teacher_name_or_path")
    # There shuffling counts too few shards (huggingface/datasets issue 8669); the other workers would get nothing.
    can_share = datasets.__version__ != "5.0.0"
    if args.workers_are_automatic:
        args.dataloader_num_workers = min(args.dataloader_num_workers, STREAM_WORKERS if can_share else 1)
    elif args.dataloader_num_workers > 1 and not can_share:
        raise InputError(
            "streaming: datasets 5.0.0 gives all shards of a stream to one worker; install another (pip install -U "
            "datasets), or give --dataloader_num_workers 1"
        )

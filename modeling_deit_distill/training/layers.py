"""Which layers of the student train, and how fast: a frozen body, and rates that fall towards the input.

A layer has a number, as in BEiT and timm: 0 for patches, tokens and positions, i for the i-th block from 1 on, and
blocks + 1 for the final norm and the heads.
"""

import re

import torch
from torch import nn

from ..errors import InputError
from ..modeling_deit_distill import DeiTDistillConfig, DeiTDistillForImageClassification

ALL = "all"


def layer_of(name: str, num_blocks: int) -> int:
    """The number of the layer that a parameter of [`DeiTDistillForImageClassification`] belongs to, by its name.

    Args:
        name: of the parameter; what wraps the model may have put words before it.
        num_blocks: of the model.
    """
    block = re.search(r"(?:^|\.)deit\.layers\.(\d+)\.", name)
    if block is not None:
        return int(block[1]) + 1
    return 0 if re.search(r"(?:^|\.)deit\.embeddings\.", name) else num_blocks + 1


def layer_scale(layer: int, num_blocks: int, decay: float) -> float:
    """The share of the learning rate that a layer trains at: decay^(blocks + 1 - layer), 1 for norm and heads."""
    return decay ** (num_blocks + 1 - layer)


def scaled_by_layer(optimizer: torch.optim.Optimizer, model: nn.Module, decay: float | None) -> torch.optim.Optimizer:
    """A new optimiser whose groups are split by layer, each with its share of the rate; as it is without a decay.

    The heads' groups come first, since the rate of the first group is the one that is logged.

    Args:
        optimizer: without any state yet.
        model: the student, whose parameters it has.
        decay: see [`layer_scale`].
    """
    if decay is None:
        return optimizer
    num_blocks = model.config.num_hidden_layers
    layers = {id(parameter): layer_of(name, num_blocks) for name, parameter in model.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        for layer in {layers[id(parameter)] for parameter in group["params"]}:
            parameters = [parameter for parameter in group["params"] if layers[id(parameter)] == layer]
            rate = group["lr"] * layer_scale(layer, num_blocks, decay)
            groups.append((layer, {**group, "params": parameters, "lr": rate}))
    optimizer.param_groups[:] = [group for _, group in sorted(groups, key=lambda each: -each[0])]
    return optimizer


def freeze(model: DeiTDistillForImageClassification, blocks: str | None):
    """Freeze patches, tokens and positions and the first blocks, where nothing is dropped any more; in place.

    Args:
        model: the student; its heads always train.
        blocks: how many, or "all", which freezes the final norm too; None for no layer at all.
    """
    if blocks is None:
        return
    body = model.deit
    frozen = [body.embeddings, *body.layers[: num_frozen(blocks, len(body.layers))]]
    for part in [*frozen, body.norm] if blocks == ALL else frozen:
        part.requires_grad_(False)
        for module in part.modules():
            # What is frozen gives the same features in training as in evaluation.
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            for name in ("drop_path_rate", "attention_dropout"):
                if hasattr(module, name):
                    setattr(module, name, 0.0)


def num_frozen(blocks: str, num_blocks: int) -> int:
    """How many blocks `freeze_blocks` freezes, of a student that has `num_blocks`."""
    return num_blocks if blocks == ALL else int(blocks)


def check_layers(args, config: DeiTDistillConfig, is_new: bool):
    """Refuse to freeze what has not been trained, more blocks than there are, or all that `layer_decay` is about.

    Args:
        args: the [`DistillationTrainingArguments`].
        config: the student's.
        is_new: whether it starts from no checkpoint.

    Raises:
        InputError: with the remedy.
    """
    blocks, num_blocks = args.freeze_blocks, config.num_hidden_layers
    if blocks is None:
        return
    if is_new:
        raise InputError(
            f"freeze_blocks is {blocks} but the student is new, so random weights would be kept; start from a "
            "checkpoint (--model_name_or_path facebook/deit-tiny-distilled-patch16-224), or leave freeze_blocks out"
        )
    frozen = num_frozen(blocks, num_blocks)
    if frozen > num_blocks:
        raise InputError(
            f"freeze_blocks is {blocks} but the student has {num_blocks} blocks; give at most that, or all"
        )
    if frozen == num_blocks and args.layer_decay is not None:
        raise InputError(
            f"freeze_blocks {blocks} leaves norm and heads alone to train, at the whole rate, so layer_decay "
            f"{args.layer_decay:g} changes nothing; drop one"
        )


def layers_in_words(args, config: DeiTDistillConfig) -> dict[str, str]:
    """What is frozen, and the lowest and highest rates of the layers, for the summary."""
    said, num_blocks = {}, config.num_hidden_layers
    first = 0
    if args.freeze_blocks is not None:
        first = num_frozen(args.freeze_blocks, num_blocks) + 1
        last = f"all {num_blocks}" if first > num_blocks else f"the first {first - 1} of {num_blocks}"
        norm = ", final norm" if args.freeze_blocks == ALL else ""
        said["frozen"] = f"patches, tokens, positions, {last} blocks{norm}; nothing is dropped in them, the heads train"
    if args.layer_decay is not None:
        lowest = args.learning_rate * layer_scale(first, num_blocks, args.layer_decay)
        where = "patches, tokens and positions" if first == 0 else f"block {first}"
        said["layer decay"] = f"{args.layer_decay:g}: peak {lowest:.3g} in {where}, {args.learning_rate:g} in the heads"
    return said

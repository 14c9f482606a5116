"""A student written as ours, as transformers' own class, or as timm's."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file
from transformers import CLIPImageProcessor
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME, logging

from ..configuration_deit_distill import SIZES, DeiTDistillConfig, as_pair
from ..data.evaluation import DEFAULT_CROP_PCT
from ..errors import InputError, one_line
from ..files import write_json, written_whole
from .checkpoint import PretrainedStudent, build_model
from .configuration import NATIVE_CONFIGS, SHARED_FIELDS, TIMM_ACTIVATIONS, plain
from .weight_names import State, ours_to_native, ours_to_public, why_not_native

logger = logging.get_logger(__name__)
TIMM_EPS = 1e-6  # timm's and the public code's; timm's format has no field for it


def save_checkpoint(checkpoint: PretrainedStudent, directory):
    """Save in our format: weights, configuration, code and processor, for every Auto class."""
    build_model(checkpoint).save_pretrained(directory)
    checkpoint.processor.save_pretrained(directory)


def save_native(checkpoint: PretrainedStudent, directory):
    """Save for transformers' own classes, which need none of our code.

    Two heads whose logits are averaged become `DeiTForImageClassificationWithTeacher`; fusion `"cls"` becomes
    `DeiTForImageClassification`, which leaves the distillation head behind; no token, `ViTForImageClassification`.

    Raises:
        InputError: a fusion that those classes do not compute.
    """
    config = checkpoint.config
    if reason := why_not_native(config):
        raise InputError(f"{reason}; change `fusion` in {CONFIG_NAME} to logit_mean or cls")
    architecture = "DeiTForImageClassificationWithTeacher"
    if not config.use_distillation_token:
        architecture = "ViTForImageClassification"
    elif config.fusion == "cls":
        architecture = "DeiTForImageClassification"
        logger.warning(f"{architecture} has one head: the distillation head stays behind")
    native = NATIVE_CONFIGS["deit" if config.use_distillation_token else "vit"](
        **{name: getattr(config, name) for name in SHARED_FIELDS},
        id2label=config.id2label,
        label2id=config.label2id,
        architectures=[architecture],
        dtype=checkpoint.state_dict["cls_classifier.weight"].dtype,
        drop_path_rate=config.drop_path_rate,  # a field of ours alone, for the way back
    )
    native.save_pretrained(directory)
    _save_weights(ours_to_native(checkpoint.state_dict, architecture), directory)
    # Before version 5 transformers' own processors for DeiT and ViT know no shorter side; this one of theirs always
    # has, and takes the same fields.
    settings = {name: value for name, value in checkpoint.processor.to_dict().items() if not name.endswith("_type")}
    CLIPImageProcessor(**settings).save_pretrained(directory)


def save_timm(checkpoint: PretrainedStudent, directory):
    """Save in timm's format for the Hub: `timm.create_model("local-dir:DIRECTORY", pretrained=True)` reads it.

    Raises:
        InputError: a fusion, an epsilon or an activation that timm's format cannot hold.
    """
    config = checkpoint.config
    if config.use_distillation_token and config.fusion != "logit_mean":
        raise InputError(
            f"fusion {config.fusion!r} has no class in timm, which averages the logits; change `fusion` in "
            f"{CONFIG_NAME} to logit_mean"
        )
    if config.layer_norm_eps != TIMM_EPS:
        raise InputError(
            f"layer_norm_eps is {config.layer_norm_eps:g}, but timm's format has no field for it and means "
            f"{TIMM_EPS:g}; if the weights were trained with that, as DeiT's were, change it in {CONFIG_NAME}"
        )
    if config.hidden_act not in TIMM_ACTIVATIONS:
        raise InputError(f"hidden_act {config.hidden_act!r} has no name in timm; it has: {', '.join(TIMM_ACTIVATIONS)}")
    _save_weights(ours_to_public(checkpoint.state_dict), directory)
    write_json(Path(directory, CONFIG_NAME), _timm_description(checkpoint))


@contextmanager
def new_folder(destination: str | Path) -> Iterator[Path]:
    """A folder to write to. It becomes `destination` when the block ends, and is gone if the block fails.

    Raises:
        InputError: `destination` holds something, or cannot be written.
    """
    destination = Path(destination).resolve()
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise InputError(f"{destination} exists and is not an empty folder; choose another, or empty it")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{destination.name}-", dir=destination.parent) as beside:
            folder = Path(beside, "new")  # one level deeper: the temporary folder is readable to its owner alone
            folder.mkdir()
            yield folder
            if destination.exists():
                destination.rmdir()
            folder.replace(destination)
    except OSError as error:
        raise InputError(f"{destination} cannot be written ({one_line(error)}); choose another") from error


def _save_weights(state: State, directory):
    with written_whole(Path(directory, SAFE_WEIGHTS_NAME)) as partial:
        save_file({name: t.contiguous() for name, t in state.items()}, partial, {"format": "pt"})


def _timm_description(checkpoint: PretrainedStudent) -> dict:
    """timm's `config.json`: the nearest architecture, and what differs from it."""
    config, processor = checkpoint.config, checkpoint.processor
    size = next((size for size, fields in SIZES.items() if fields["hidden_size"] == config.hidden_size), "base")
    token = "distilled_" if config.use_distillation_token else ""
    image_size = 384 if size == "base" and as_pair(config.image_size) == (384, 384) else 224
    # Of the rate of drop path timm's own default is none, but its training names a rate, as ours does.
    standard = _timm_arguments(DeiTDistillConfig.from_size(size, image_size=image_size))
    height, width = as_pair(config.image_size)
    names = [config.id2label[index] for index in range(config.num_labels)]
    is_named = names != [f"LABEL_{index}" for index in range(config.num_labels)]
    description = {
        "architecture": f"deit_{size}_{token}patch16_{image_size}",
        "num_classes": config.num_labels,
        "num_features": config.hidden_size,
        "global_pool": "token",
        "label_names": names if is_named else None,
        "model_args": {name: value for name, value in _timm_arguments(config).items() if value != standard[name]},
        "pretrained_cfg": {
            "input_size": [config.num_channels, height, width],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": _crop_pct(max(height, width), processor.size["shortest_edge"]),
            "crop_mode": "center",
            "mean": list(processor.image_mean),
            "std": list(processor.image_std),
            "num_classes": config.num_labels,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": ["head", "head_dist"] if config.use_distillation_token else "head",
        },
    }
    return {name: value for name, value in description.items() if value}


def _timm_arguments(config: DeiTDistillConfig) -> dict:
    return {
        "img_size": plain(as_pair(config.image_size)),
        "patch_size": plain(as_pair(config.patch_size)),
        "in_chans": config.num_channels,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": _mlp_ratio(config),
        "qkv_bias": config.qkv_bias,
        "act_layer": TIMM_ACTIVATIONS[config.hidden_act],
        "pos_drop_rate": config.hidden_dropout_prob,
        "proj_drop_rate": config.hidden_dropout_prob,
        "attn_drop_rate": config.attention_probs_dropout_prob,
        "drop_path_rate": config.drop_path_rate,
    }


def _mlp_ratio(config: DeiTDistillConfig) -> float:
    """A ratio from which timm, which rounds down, computes exactly our width."""
    ratio = config.intermediate_size / config.hidden_size
    exact = int(config.hidden_size * ratio) == config.intermediate_size
    return ratio if exact else (config.intermediate_size + 0.5) / config.hidden_size


def _crop_pct(crop: int, shorter: int) -> float:
    """The shortest fraction from which timm, which rounds down, computes exactly our shorter side."""
    candidates = [DEFAULT_CROP_PCT, *(round(crop / shorter, digits) for digits in range(1, 9)), crop / (shorter + 0.5)]
    return next(fraction for fraction in candidates if int(crop / fraction) == shorter)

"""The configuration and the image processor that a foreign checkpoint implies."""

import math
import os
import re

from timm.data import ImageNetInfo
from transformers import DeiTConfig, DeiTImageProcessor, ViTConfig
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD
from transformers.utils import CONFIG_NAME

from ..configuration_deit_distill import SIZES, DeiTDistillConfig, as_pair
from ..data.evaluation import DEFAULT_CROP_PCT, check_normalisation, evaluation_processor
from ..errors import InputError, one_line
from .reading import check_timm_name, read_json, some_of
from .weight_names import State

HEAD_DIM = 64  # paper, Table 1
OWN_FIELDS = tuple(DeiTDistillConfig.__annotations__)
# Those that a native configuration has as well.
SHARED_FIELDS = [name for name in OWN_FIELDS if name not in ("drop_path_rate", "use_distillation_token", "fusion")]
NATIVE_CONFIGS = {"deit": DeiTConfig, "vit": ViTConfig}
# timm's arguments that we understand; any other might change the model without changing the names of its weights.
TIMM_ARGUMENTS = {
    *("img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias"),
    *("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "act_layer"),
    *("dynamic_img_size", "dynamic_img_pad", "global_pool"),
}
TIMM_ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "silu": "silu"}  # ours: theirs


def kind_of(described: dict, source: str) -> str | None:
    """Whose configuration this is: ours, transformers', timm's, or none that says so."""
    model_type = described.get("model_type")
    if "architecture" in described:
        check_timm_name(str(described["architecture"]), source)
        return "timm"
    if model_type in NATIVE_CONFIGS:
        return "native"
    if model_type not in (None, DeiTDistillConfig.model_type):
        raise InputError(
            f"{CONFIG_NAME} of {source!r} describes a {model_type!r}, not deit_distill, deit or vit; give "
            f"{_student_beside(source) or 'a DeiT or a ViT'}"
        )
    return model_type


def _student_beside(teacher: str) -> str | None:
    """In words, the student whose run keeps this teacher: the folder above it. None if that holds no student."""
    above = os.path.dirname(os.path.normpath(teacher)) or "."
    described = read_json(above, CONFIG_NAME, above) if os.path.isdir(teacher) else {}
    is_student = described.get("model_type") == DeiTDistillConfig.model_type
    return f"{above!r}, the student of its run" if is_student else None


def config_of(source: str, kind: str | None, described: dict, state: State, fields: dict) -> DeiTDistillConfig:
    """The configuration of `state`, in our names: `fields`, and what is `described` or read off the shapes."""
    try:
        if kind == DeiTDistillConfig.model_type:
            return DeiTDistillConfig.from_dict({**described, **fields})
        known = _known_fields(kind, described, source)
        labels = _label_fields(kind, described, len(state["cls_classifier.weight"]), source)
        return DeiTDistillConfig(**{**_fields_of_shapes(state, known, source), **fields, **known, **labels})
    except InputError:
        raise
    except Exception as error:  # transformers' own checks of fields have several kinds
        raise InputError(f"{CONFIG_NAME} of {source!r} cannot be used: {one_line(error)}") from error


def _known_fields(kind: str | None, described: dict, source: str) -> dict:
    """Fields of ours that the configuration beside the weights fixes."""
    if kind == "native":
        native = NATIVE_CONFIGS[described["model_type"]].from_dict(described)
        known = {name: getattr(native, name) for name in SHARED_FIELDS}
        rate = described.get("drop_path_rate")
        return known if rate is None else {**known, "drop_path_rate": rate}
    if kind == "timm":
        return _known_by_timm(described, source)
    return {name: value for name, value in described.items() if name in OWN_FIELDS}


def _known_by_timm(described: dict, source: str) -> dict:
    arguments = described.get("model_args") or {}
    if strangers := arguments.keys() - TIMM_ARGUMENTS:
        raise InputError(f"{source!r} was built with timm's {some_of(sorted(strangers))}, which our model has not")
    if (pool := arguments.get("global_pool") or described.get("global_pool") or "token") != "token":
        raise InputError(f"{source!r} was built with timm's global_pool {pool!r}; a DeiT reads its tokens")
    sizes = SIZES.get(described["architecture"].split("_")[1], {})
    input_size = _pretrained_cfg(described).get("input_size") or ()
    image_size = arguments.get("img_size") or input_size[1:]
    act = arguments.get("act_layer", "gelu")
    ours = {theirs: name for name, theirs in TIMM_ACTIVATIONS.items()}
    if act not in ours:
        raise InputError(f"{source!r} was built with timm's act_layer {act!r}; understood: {', '.join(ours)}")
    known = {
        "num_attention_heads": arguments.get("num_heads") or sizes.get("num_attention_heads"),
        "image_size": plain(as_pair(image_size)) if image_size else None,
        "hidden_act": ours[act],
        "hidden_dropout_prob": arguments.get("proj_drop_rate"),
        "attention_probs_dropout_prob": arguments.get("attn_drop_rate"),
        "drop_path_rate": arguments.get("drop_path_rate"),
    }
    return {name: value for name, value in known.items() if value is not None}


def _pretrained_cfg(described: dict) -> dict:
    """timm's fields on the weights; older files have them at the top."""
    return described.get("pretrained_cfg") or described


def _fields_of_shapes(state: State, known: dict, source: str) -> dict:
    """What the shapes say; of heads and image size, if they are not `known`, what they would be in a DeiT."""
    hidden, channels, *patch = state["deit.embeddings.patch_embeddings.weight"].shape
    blocks = {int(found.group(1)) for name in state if (found := re.match(r"deit\.layers\.(\d+)\.", name))}
    fields = {
        "hidden_size": hidden,
        "num_hidden_layers": max(blocks) + 1,
        "intermediate_size": len(state["deit.layers.0.mlp.fc1.weight"]),
        "patch_size": plain(patch),
        "num_channels": channels,
        "qkv_bias": "deit.layers.0.attention.qkv.bias" in state,
        "use_distillation_token": "deit.embeddings.distillation_token" in state,
    }
    if "num_attention_heads" not in known:
        if hidden % HEAD_DIM:
            raise InputError(
                f"{source!r} does not say how many heads it has, and its width {hidden} is not divisible by "
                f"{HEAD_DIM}, the width of DeiT's heads; put a {CONFIG_NAME} with num_attention_heads beside it"
            )
        fields["num_attention_heads"] = hidden // HEAD_DIM
    if "image_size" not in known:
        patches = state["deit.embeddings.position_embeddings"].shape[1] - 1 - fields["use_distillation_token"]
        side = math.isqrt(max(patches, 0))
        if side == 0 or side**2 != patches:
            raise InputError(
                f"{source!r} does not say its image size, and its {patches} patches are no square; put a "
                f"{CONFIG_NAME} with image_size beside it"
            )
        fields["image_size"] = plain([side * each for each in as_pair(known.get("patch_size", patch))])
    return fields


def plain(pair):
    """(height, width) as one number if they are equal."""
    height, width = pair
    return height if height == width else [height, width]


def _label_fields(kind: str | None, described: dict, num_labels: int, source: str) -> dict:
    """`id2label` and `label2id`: the source's names; else those of ImageNet if it has a thousand; else none.

    A configuration of transformers' or ours that names no classes means it: they are anybody's.
    """
    fields = {**_pretrained_cfg(described), **described}
    names = fields.get("id2label") or fields.get("label_names") or fields.get("labels") or []
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names, key=int)]
    if all(name == f"LABEL_{index}" for index, name in enumerate(names)):
        if num_labels != 1000 or kind in ("native", "deit_distill"):
            return {"num_labels": num_labels}
        names = ImageNetInfo().label_descriptions()
    if len(names) != num_labels:
        raise InputError(f"{CONFIG_NAME} of {source!r} names {len(names)} classes, its head has {num_labels}")
    descriptions = fields.get("label_descriptions") or {}
    names = [str(descriptions.get(name, name)) for name in names]
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def processor_of(config: DeiTDistillConfig, kind: str | None, described: dict, preprocessing: dict):
    """The evaluation transform at the checkpoint's image size.

    A crop of an image that is not square fits whatever the image's shape, so the shorter side follows its longer side.
    """
    height, width = as_pair(config.image_size)
    side = max(height, width)
    settings = evaluation_processor(side).to_dict()
    if preprocessing:
        shorter, mean, std = _own_preprocessing(preprocessing, side)
    else:
        fields = _pretrained_cfg(described) if kind == "timm" else {}
        shorter = int(side / (fields.get("crop_pct") or DEFAULT_CROP_PCT))
        mean, std = fields.get("mean") or settings["image_mean"], fields.get("std") or settings["image_std"]
    settings |= {"size": {"shortest_edge": shorter}, "crop_size": {"height": height, "width": width}}
    check_normalisation(mean, std, "the checkpoint's image processor")
    return DeiTImageProcessor.from_dict({**settings, "image_mean": mean, "image_std": std})


def _own_preprocessing(preprocessing: dict, side: int) -> tuple[int, list[float], list[float]]:
    """Shorter side, mean and standard deviation of a native processor, whose squash we do not repeat."""
    size, crop = (_side_of(preprocessing.get(name)) for name in ("size", "crop_size"))
    shorter = side
    if size and crop and preprocessing.get("do_center_crop", True):
        shorter = max(side, round(side * size / crop))
    if not preprocessing.get("do_normalize", True):
        return shorter, [0.0] * 3, [1.0] * 3
    mean = preprocessing.get("image_mean") or IMAGENET_STANDARD_MEAN  # the defaults of those processors
    return shorter, mean, preprocessing.get("image_std") or IMAGENET_STANDARD_STD


def _side_of(size) -> int | None:
    """The one number of a size that a processor wrote as a number or as fields."""
    if isinstance(size, dict):
        return size.get("shortest_edge") or max(size.get("height") or 0, size.get("width") or 0) or None
    return size

"""Students from and to other formats, lossless: `python -m modeling_deit_distill.conversion SOURCE DESTINATION`.

SOURCE is a file (the public code's `.pth`, a state dict of timm's or of transformers' native classes, or ours), a
folder or a Hub repository (ours, transformers' native DeiT and ViT, timm's), or a name of timm's, such as
`deit_small_distilled_patch16_224`. DESTINATION is a new folder in our format, transformers' or timm's.
"""

import argparse
import copy
import json
import math
import os
import pickle
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, RemoteEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.data import ImageNetInfo
from transformers import CLIPImageProcessor, DeiTConfig, DeiTImageProcessor, PreTrainedConfig, ViTConfig
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD
from transformers.utils import (
    CONFIG_NAME,
    IMAGE_PROCESSOR_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    logging,
)

from .configuration_deit_distill import SIZES, DeiTDistillConfig, as_pair
from .data import evaluation_processor
from .errors import InputError, one_line, run_command
from .modeling_deit_distill import DeiTDistillForImageClassification
from .weight_names import (
    State,
    native_to_ours,
    ours_to_native,
    ours_to_public,
    public_to_ours,
    why_not_native,
)

logger = logging.get_logger(__name__)

HEAD_DIM = 64  # paper, Table 1
CROP_PCT = 0.875  # paper, Table 9
TIMM_EPS = 1e-6  # timm's and the public code's; timm's format has no field for it
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")

# Fields that a native configuration shares with ours.
SHARED_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "image_size",
    "patch_size",
    "num_channels",
    "qkv_bias",
    "layer_norm_eps",
    "initializer_range",
)
NATIVE_CONFIGS = {"deit": DeiTConfig, "vit": ViTConfig}
# timm's arguments that we understand; any other might change the model without changing the names of its weights.
TIMM_ARGUMENTS = {
    *("img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias"),
    *("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "act_layer"),
    *("dynamic_img_size", "dynamic_img_pad", "global_pool"),
}
TIMM_ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "silu": "silu"}  # ours: theirs


@dataclass(frozen=True)
class Checkpoint:
    """A student's weights from anywhere, in our names.

    Attributes:
        config: at its own image size, with its own `id2label` and `label2id`.
        state_dict: names and shapes of `DeiTDistillForImageClassification(config)`, on the CPU, dtype as stored.
        processor: the evaluation transform: shorter side, centre crop, statistics, bicubic.
        format: where it comes from: `"deit_distill"`, `"public"`, `"timm"` or `"native"`.
    """

    config: DeiTDistillConfig
    state_dict: State
    processor: DeiTImageProcessor
    format: str


def load_checkpoint(source: str) -> Checkpoint:
    """Read a student from a file, a folder, a Hub repository or timm; what lies on the disk goes before names.

    No code that comes with weights is run. What the files beside the weights do not say is read off the shapes; heads
    are then of width 64 (paper, Table 1), LayerNorm's epsilon is 1e-6 (public code), evaluation is that of Table 9.

    transformers' `DeiTForImageClassification` has a distillation token, which takes part in attention, but no head for
    it. It becomes a model of fusion `"cls"`, whose distillation head is zero and unread, and a warning says so.

    Raises:
        InputError: nothing there, a file that holds code, or weights that are not those of a DeiT classifier.
    """
    source = str(source)
    if os.path.isfile(source):
        place = os.path.dirname(os.path.abspath(source))
        described, preprocessing = _read_descriptions(place, source)
        kind = _kind(described, source)
        return _assemble(source, kind, _read_weights(source, source), described, preprocessing)
    place = source if os.path.isdir(source) else _repository(source)
    described, preprocessing = _read_descriptions(place, source)
    if not described:
        raise InputError(f"{source!r} has no {CONFIG_NAME}; give one of its weight files, if it has any")
    kind = _kind(described, source)
    return _assemble(source, kind, _read_all_weights(place, source), described, preprocessing)


def build_model(checkpoint: Checkpoint) -> DeiTDistillForImageClassification:
    """The model of a checkpoint, in eval mode, in the dtype of its weights."""
    with torch.device("meta"):  # nothing is drawn
        model = DeiTDistillForImageClassification(copy.deepcopy(checkpoint.config))  # a model may change its own
    weights = {name: tensor.clone() for name, tensor in checkpoint.state_dict.items()}
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval()


def save_checkpoint(checkpoint: Checkpoint, directory):
    """Save in our format: weights, configuration, code and processor, for every Auto class."""
    build_model(checkpoint).save_pretrained(directory)
    checkpoint.processor.save_pretrained(directory)


def save_native(checkpoint: Checkpoint, directory):
    """Save for transformers' own classes, which need none of our code.

    Two heads whose logits are averaged become `DeiTForImageClassificationWithTeacher`; fusion `"cls"` becomes
    `DeiTForImageClassification`, which leaves the distillation head behind; no token, `ViTForImageClassification`.

    Raises:
        InputError: a fusion that those classes do not compute.
    """
    config = checkpoint.config
    if reason := why_not_native(config):
        raise InputError(f"{reason}; change `fusion` in {CONFIG_NAME} to logit_mean or cls")
    architecture = _native_architecture(config)
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


def save_timm(checkpoint: Checkpoint, directory):
    """Save in timm's format for the Hub: `timm.create_model("local-dir:DIRECTORY", pretrained=True)` reads it.

    Raises:
        InputError: a fusion, an epsilon or an activation that timm's format cannot hold.
    """
    config = checkpoint.config
    _check_timm(config)
    os.makedirs(directory, exist_ok=True)
    _save_weights(ours_to_public(checkpoint.state_dict), directory)
    description = json.dumps(_timm_description(config, checkpoint.processor), indent=2)
    Path(directory, CONFIG_NAME).write_text(description + "\n", encoding="utf-8")


def timm_repository(name: str) -> str | None:
    """Where timm keeps the weights of a name of its own, with a tag or without, on the Hub; None if it keeps none.

    Raises:
        RuntimeError: a tag that timm does not know.
    """
    known = timm.get_pretrained_cfg(name)
    return known.hf_hub_id if known else None


def _to_ours(weights: State, source: str) -> tuple[State, str]:
    """Weights in our names, and whose names they had."""
    if "patch_embed.proj.weight" in weights:
        return public_to_ours(weights), "public"
    if any(name.endswith("embeddings.patch_embeddings.projection.weight") for name in weights):
        return native_to_ours(weights), "native"
    if any(name.endswith("embeddings.patch_embeddings.weight") for name in weights):
        return weights, "deit_distill"
    raise InputError(f"{source!r} holds no DeiT: there is no patch embedding among {_some(weights)}")


# Reading


def _repository(source: str) -> str:
    """The Hub repository that a name means: itself, or where timm keeps the weights of that name."""
    if source.startswith((".", "/", "~")) or source.count("/") > 1 or source.endswith(WEIGHT_SUFFIXES):
        raise InputError(f"{source!r} is no file and no folder here; check the path")
    if "/" in source:
        return source
    architecture = source.split(".")[0]
    if not timm.is_model(architecture):
        raise InputError(f"{source!r} is no file, no folder, no model of timm's and no Hub name like owner/model")
    if not architecture.startswith("deit_"):
        raise InputError(f"{source!r} is no DeiT of the paper; of timm's models those are: {_some_timm_names()}")
    try:
        repository = timm_repository(source)
    except RuntimeError as error:
        raise InputError(f"timm has no weights {source!r} ({one_line(error)}); try {architecture!r}") from error
    if not repository:
        raise InputError(f"timm has no weights {source!r} on the Hub; give a file")
    return repository


def _some_timm_names() -> str:
    return ", ".join(timm.list_models("deit_*"))


def _read_descriptions(place: str, source: str) -> tuple[dict, dict]:
    """What lies beside the weights: configuration and preprocessing, each empty if there is none."""
    return _read_json(place, CONFIG_NAME, source), _read_json(place, IMAGE_PROCESSOR_NAME, source)


def _read_json(place: str, filename: str, source: str) -> dict:
    path = _find(place, filename, source)
    if path is None:
        return {}
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{filename} of {source!r} is no JSON ({one_line(error)}); mend or remove it") from error
    if not isinstance(content, dict):
        raise InputError(f"{filename} of {source!r} holds no fields; mend or remove it")
    return content


def _find(place: str, filename: str, source: str) -> str | None:
    """The path of a file of a folder or of a Hub repository, fetched if need be; None if it has no such file.

    transformers' own search takes a lost connection for a missing file, and preprocessing would become a default.
    """
    if os.path.isdir(place):
        path = os.path.join(place, filename)
        return path if os.path.isfile(path) else None
    try:
        return hf_hub_download(place, filename)
    except RemoteEntryNotFoundError:
        return None
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        if _known_to_be_absent(place, filename, error):
            return None
        raise InputError(
            f"{source!r} cannot be read ({one_line(error)}); check the name, the network and your token"
        ) from error


def _known_to_be_absent(repository: str, filename: str, error: Exception) -> bool:
    """Whether the cache knows, where the Hub cannot be asked, that there is no such file."""
    is_unreachable = isinstance(error, LocalEntryNotFoundError)
    return is_unreachable and try_to_load_from_cache(repository, filename) is _CACHED_NO_EXIST


def _read_all_weights(place: str, source: str) -> State:
    """The weights of a folder or a repository, sharded or not; safetensors are preferred."""
    for name, index_name in ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        if path := _find(place, name, source):
            return _read_weights(path, source)
        if index := _read_json(place, index_name, source):
            return _read_shards(place, index, index_name, source)
    raise InputError(f"{source!r} has no weights ({SAFE_WEIGHTS_NAME} or {WEIGHTS_NAME})")


def _read_shards(place: str, index: dict, index_name: str, source: str) -> State:
    if not isinstance(index.get("weight_map"), dict):
        raise InputError(f"{index_name} of {source!r} does not say where the weights are")
    weights = {}
    for name in sorted(set(index["weight_map"].values())):
        path = _find(place, name, source)
        if path is None:
            raise InputError(f"{source!r} lacks {name}, which its {index_name} names; fetch it again")
        weights |= _read_weights(path, source)
    return weights


def _read_weights(path: str, source: str) -> State:
    """The state dict of one file, freed from what checkpoints wrap around it."""
    if path.endswith(".safetensors"):
        try:
            return _unwrap(load_file(path), source)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{source!r} cannot be read ({one_line(error)})") from error
    if not path.endswith(WEIGHT_SUFFIXES):
        raise InputError(f"{source!r} is no file of weights; those end in {', '.join(WEIGHT_SUFFIXES)}")
    return _unwrap(_unpickle(path, source), source)


def _unpickle(path: str, source: str) -> object:
    """What a pickle holds, if it is tensors, plain values and the command line of the public code's training."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message advises to run the code.
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if asked is None:
            raise InputError(f"{source!r} is damaged, or no file that torch.save wrote") from error
        what = f"{asked.group(1)}, which is code"
        raise InputError(f"{source!r} is not opened: it asks for {what}; save its state dict alone") from error
    except Exception as error:  # truncated, empty or foreign files fail in many ways
        raise InputError(f"{source!r} is no file that torch.save wrote ({one_line(error)})") from error


def _unwrap(content: object, source: str) -> State:
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            if "model_ema" in content:
                logger.warning(f"{source}: the weights of `{key}` are taken, not those of `model_ema`")
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise InputError(f"{source!r} holds no state dict")
    if strangers := [name for name, value in content.items() if not isinstance(value, torch.Tensor)]:
        raise InputError(f"{source!r} holds no state dict: {_some(strangers)} is no tensor")
    if all(str(name).startswith("module.") for name in content):  # DDP
        content = {name.removeprefix("module."): value for name, value in content.items()}
    return {str(name): tensor.detach().contiguous() for name, tensor in content.items()}


# Understanding


def _assemble(source: str, kind: str | None, weights: State, described: dict, preprocessing: dict) -> Checkpoint:
    state, layout = _to_ours(weights, source)
    _check_essential(state, source)
    fields = {}
    # Only transformers' DeiTForImageClassification has the token and this name for its head.
    if layout == "native" and "deit.embeddings.distillation_token" in state and "classifier.weight" in weights:
        logger.warning(
            f"{source} has a distillation token but no head for it: the distillation head is zero, and `fusion` is cls"
        )
        state |= _zero_distillation_head(state)
        fields["fusion"] = "cls"
    config = _config(source, kind, described, state, fields)
    _check_tensors(state, config, source)
    origin = "timm" if kind == "timm" and layout == "public" else layout
    return Checkpoint(config, state, _processor(config, kind, described, preprocessing), origin)


def _zero_distillation_head(state: State) -> State:
    heads = {name: tensor for name, tensor in state.items() if name.startswith("cls_classifier.")}
    return {name.replace("cls", "distillation", 1): torch.zeros_like(tensor) for name, tensor in heads.items()}


def _kind(described: dict, source: str) -> str | None:
    """Whose configuration this is: ours, transformers', timm's, or none that says so."""
    model_type = described.get("model_type")
    if "architecture" in described:
        if not str(described["architecture"]).startswith("deit_"):
            raise InputError(
                f"{source!r} is timm's {described['architecture']}, no DeiT of the paper, which are: "
                f"{_some_timm_names()}"
            )
        return "timm"
    if model_type in NATIVE_CONFIGS:
        return "native"
    if model_type not in (None, DeiTDistillConfig.model_type):
        raise InputError(f"{CONFIG_NAME} of {source!r} describes a {model_type!r}, not deit_distill, deit or vit")
    return model_type


def _config(source: str, kind: str | None, described: dict, state: State, fields: dict) -> DeiTDistillConfig:
    try:
        if kind == DeiTDistillConfig.model_type:
            return DeiTDistillConfig.from_dict({**described, **fields})
        known = _known_fields(kind, described, source)
        fields |= known | _label_fields(kind, described, len(state["cls_classifier.weight"]), source)
        return DeiTDistillConfig(**_fields_of_shapes(state, known, source), **fields)
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
    own = DeiTDistillConfig.__dataclass_fields__.keys() - PreTrainedConfig.__dataclass_fields__.keys()
    return {name: value for name, value in described.items() if name in own}


def _known_by_timm(described: dict, source: str) -> dict:
    arguments = described.get("model_args") or {}
    if strangers := arguments.keys() - TIMM_ARGUMENTS:
        raise InputError(f"{source!r} was built with timm's {_some(sorted(strangers))}, which our model has not")
    if (pool := arguments.get("global_pool") or described.get("global_pool") or "token") != "token":
        raise InputError(f"{source!r} was built with timm's global_pool {pool!r}; a DeiT reads its tokens")
    sizes = SIZES.get(described["architecture"].split("_")[1], {})
    image_size = arguments.get("img_size") or (_pretrained_cfg(described).get("input_size") or (None,) * 3)[1:]
    act = arguments.get("act_layer", "gelu")
    ours = {theirs: name for name, theirs in TIMM_ACTIVATIONS.items()}
    if act not in ours:
        raise InputError(f"{source!r} was built with timm's act_layer {act!r}; understood: {', '.join(ours)}")
    known = {
        "num_attention_heads": arguments.get("num_heads") or sizes.get("num_attention_heads"),
        "image_size": None if None in as_pair(image_size) else _plain(as_pair(image_size)),
        "hidden_act": ours[act],
        "hidden_dropout_prob": arguments.get("proj_drop_rate"),
        "attention_probs_dropout_prob": arguments.get("attn_drop_rate"),
        "drop_path_rate": arguments.get("drop_path_rate"),
    }
    return {name: value for name, value in known.items() if value is not None}


def _pretrained_cfg(described: dict) -> dict:
    """timm's facts on the weights; older files have them at the top."""
    return described.get("pretrained_cfg") or described


def _fields_of_shapes(state: State, known: dict, source: str) -> dict:
    """What the shapes say of fields that are not `known`."""
    hidden, channels, *patch = state["deit.embeddings.patch_embeddings.weight"].shape
    blocks = {int(found.group(1)) for name in state if (found := re.match(r"deit\.layers\.(\d+)\.", name))}
    fields = {
        "hidden_size": hidden,
        "num_hidden_layers": max(blocks) + 1,
        "intermediate_size": len(state["deit.layers.0.mlp.fc1.weight"]),
        "patch_size": _plain(patch),
        "num_channels": channels,
        "qkv_bias": "deit.layers.0.attention.qkv.bias" in state,
        "use_distillation_token": "deit.embeddings.distillation_token" in state,
    }
    if "num_attention_heads" not in known:
        fields["num_attention_heads"] = _heads(hidden, source)
    if "image_size" not in known:
        prefix = 1 + fields["use_distillation_token"]
        patches = state["deit.embeddings.position_embeddings"].shape[1] - prefix
        fields["image_size"] = _image_size(patches, known.get("patch_size", patch), source)
    return {name: value for name, value in fields.items() if name not in known}


def _heads(hidden: int, source: str) -> int:
    if hidden % HEAD_DIM:
        raise InputError(
            f"{source!r} does not say how many heads it has, and its width {hidden} is not divisible by {HEAD_DIM}, "
            f"the width of DeiT's heads; put a {CONFIG_NAME} with num_attention_heads beside it"
        )
    return hidden // HEAD_DIM


def _image_size(patches: int, patch_size, source: str):
    side = math.isqrt(max(patches, 0))
    if side == 0 or side**2 != patches:
        raise InputError(
            f"{source!r} does not say its image size, and its {patches} patches are no square; put a {CONFIG_NAME} "
            "with image_size beside it"
        )
    return _plain([side * each for each in as_pair(patch_size)])


def _plain(pair):
    """(height, width) as one number if they are equal."""
    height, width = pair
    return height if height == width else [height, width]


def _label_fields(kind: str | None, described: dict, num_labels: int, source: str) -> dict:
    """`id2label` and `label2id`: the source's names; else those of ImageNet if it has a thousand; else none.

    A configuration of transformers' or ours that names no classes means it: they are anybody's.
    """
    names = _label_names(described)
    if names is None and num_labels == 1000 and kind not in ("native", "deit_distill"):
        names = ImageNetInfo().label_descriptions()
    if names is None:
        return {"num_labels": num_labels}
    if len(names) != num_labels:
        raise InputError(f"{CONFIG_NAME} of {source!r} names {len(names)} classes, its head has {num_labels}")
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def _label_names(described: dict) -> list[str] | None:
    facts = {**_pretrained_cfg(described), **described}
    names = facts.get("id2label") or facts.get("label_names") or facts.get("labels")
    if not names:
        return None
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names, key=int)]
    if all(name == f"LABEL_{index}" for index, name in enumerate(names)):
        return None
    descriptions = facts.get("label_descriptions") or {}
    return [str(descriptions.get(name, name)) for name in names]


def _check_essential(state: State, source: str):
    """Refuse what has no head, and what has not the shapes that a configuration is read off."""
    if "cls_classifier.weight" not in state:
        raise InputError(f"{source!r} has no classification head, only a body; fine-tuned checkpoints have one")
    dimensions = {
        "deit.embeddings.patch_embeddings.weight": 4,
        "deit.embeddings.position_embeddings": 3,
        "deit.layers.0.mlp.fc1.weight": 2,
        "cls_classifier.weight": 2,
    }
    for name, expected in dimensions.items():
        if name not in state:
            raise InputError(f"{source!r} does not hold the weights of a DeiT: {name} is missing")
        if state[name].dim() != expected:
            raise InputError(f"{source!r}: {name} has {state[name].dim()} dimensions, not {expected}")


def _check_tensors(state: State, config: DeiTDistillConfig, source: str):
    with torch.device("meta"):
        expected = DeiTDistillForImageClassification(config).state_dict()
    for word, names in (("unexpected", state.keys() - expected), ("missing", expected.keys() - state.keys())):
        if names:
            raise InputError(f"{source!r} does not hold the weights of a DeiT: {_some(sorted(names))} {word}")
    shapes = {name: (tuple(state[name].shape), tuple(expected[name].shape)) for name in expected}
    if wrong := [f"{name} is {found}, not {wanted}" for name, (found, wanted) in shapes.items() if found != wanted]:
        raise InputError(f"{source!r} does not fit together: {_some(wrong)}; is the {CONFIG_NAME} beside it its own?")


def _some(names) -> str:
    """The first few of many names."""
    names = [str(name) for name in names]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# Preprocessing


def _processor(config: DeiTDistillConfig, kind: str | None, described: dict, preprocessing: dict):
    """The evaluation transform at the checkpoint's image size.

    A crop of an image that is not square fits whatever the image's shape, so the shorter side follows its longer side.
    """
    height, width = as_pair(config.image_size)
    side = max(height, width)
    if preprocessing:
        shorter, mean, std = _own_preprocessing(preprocessing, side)
    elif kind == "timm":
        facts = _pretrained_cfg(described)
        shorter, mean, std = int(side / (facts.get("crop_pct") or CROP_PCT)), facts.get("mean"), facts.get("std")
    else:
        shorter, mean, std = int(side / CROP_PCT), None, None
    given = {name: value for name, value in (("mean", mean), ("std", std)) if value}
    settings = evaluation_processor(side, **given).to_dict()
    settings |= {"size": {"shortest_edge": shorter}, "crop_size": {"height": height, "width": width}}
    return DeiTImageProcessor.from_dict(settings)


def _own_preprocessing(preprocessing: dict, side: int) -> tuple[int, list[float], list[float]]:
    """Shorter side, mean and standard deviation of a native processor, whose squash we do not repeat."""
    size, crop = (_side(preprocessing.get(name)) for name in ("size", "crop_size"))
    shorter = side
    if size and crop and preprocessing.get("do_center_crop", True):
        shorter = max(side, round(side * size / crop))
    if not preprocessing.get("do_normalize", True):
        return shorter, [0.0] * 3, [1.0] * 3
    mean = preprocessing.get("image_mean") or IMAGENET_STANDARD_MEAN  # the defaults of those processors
    return shorter, mean, preprocessing.get("image_std") or IMAGENET_STANDARD_STD


def _side(size) -> int | None:
    """The one number of a size that a processor wrote as a number or as fields."""
    if isinstance(size, dict):
        return size.get("shortest_edge") or max(size.get("height") or 0, size.get("width") or 0) or None
    return size


# Writing


def _native_architecture(config: DeiTDistillConfig) -> str:
    if not config.use_distillation_token:
        return "ViTForImageClassification"
    if config.fusion == "cls":
        logger.warning("DeiTForImageClassification has one head: the distillation head stays behind")
        return "DeiTForImageClassification"
    return "DeiTForImageClassificationWithTeacher"


def _save_weights(state: State, directory):
    save_file({name: t.contiguous() for name, t in state.items()}, Path(directory, SAFE_WEIGHTS_NAME), {"format": "pt"})


def _check_timm(config: DeiTDistillConfig):
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


def _timm_description(config: DeiTDistillConfig, processor: DeiTImageProcessor) -> dict:
    """timm's `config.json`: the nearest architecture, and what differs from it."""
    architecture, arguments = _timm_architecture(config)
    height, width = as_pair(config.image_size)
    names = [config.id2label[index] for index in range(config.num_labels)]
    description = {
        "architecture": architecture,
        "num_classes": config.num_labels,
        "num_features": config.hidden_size,
        "global_pool": "token",
        "label_names": names,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [config.num_channels, height, width],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": _crop_pct(max(height, width), _side(dict(processor.size))),
            "crop_mode": "center",
            "mean": list(processor.image_mean),
            "std": list(processor.image_std),
            "num_classes": config.num_labels,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": ["head", "head_dist"] if config.use_distillation_token else "head",
        },
    }
    if _label_names(description) is None:
        del description["label_names"]
    if not arguments:
        del description["model_args"]
    return description


def _timm_architecture(config: DeiTDistillConfig) -> tuple[str, dict]:
    """An architecture of timm's and the arguments that make it ours."""
    size = next((size for size, fields in SIZES.items() if fields["hidden_size"] == config.hidden_size), "base")
    token = "distilled_" if config.use_distillation_token else ""
    image_size, patch_size = (_plain(as_pair(each)) for each in (config.image_size, config.patch_size))
    standard_size = 384 if size == "base" and image_size == 384 else 224
    ours = {
        "img_size": image_size,
        "patch_size": patch_size,
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
    standard = {
        **{"img_size": standard_size, "patch_size": 16, "in_chans": 3, "depth": 12, "mlp_ratio": 4.0, "qkv_bias": True},
        **{"embed_dim": SIZES[size]["hidden_size"], "num_heads": SIZES[size]["num_attention_heads"]},
        **{"act_layer": "gelu", "pos_drop_rate": 0.0, "proj_drop_rate": 0.0, "attn_drop_rate": 0.0},
        # timm's own default is none, and its training names a rate, as ours does.
        **{"drop_path_rate": DeiTDistillConfig.drop_path_rate},
    }
    arguments = {name: value for name, value in ours.items() if value != standard[name]}
    return f"deit_{size}_{token}patch16_{standard_size}", arguments


def _mlp_ratio(config: DeiTDistillConfig) -> float:
    """A ratio from which timm, which rounds down, computes exactly our width."""
    ratio = config.intermediate_size / config.hidden_size
    exact = int(config.hidden_size * ratio) == config.intermediate_size
    return ratio if exact else (config.intermediate_size + 0.5) / config.hidden_size


def _crop_pct(crop: int, shorter: int) -> float:
    """The shortest fraction from which timm, which rounds down, computes exactly our shorter side."""
    candidates = [CROP_PCT, *(round(crop / shorter, digits) for digits in range(1, 9)), crop / (shorter + 0.5)]
    return next(fraction for fraction in candidates if int(crop / fraction) == shorter)


# Command line


def main(arguments: list[str]):
    """Convert SOURCE to the new folder DESTINATION, which appears when it is complete.

    Raises:
        InputError: a source that cannot be read, a destination that is there, or a format that cannot hold the model.
    """
    options = _parse_options(arguments)
    destination = Path(os.path.abspath(options.destination))
    if destination.is_file() or (destination.is_dir() and any(destination.iterdir())):
        raise InputError(f"{destination} exists and is not empty; choose a new folder")
    checkpoint = load_checkpoint(options.source)
    save = {"deit_distill": save_checkpoint, "native": save_native, "timm": save_timm}[options.to]
    _save_beside_and_rename(save, checkpoint, destination)
    print(f"{options.source} ({describe(checkpoint)}) -> {options.destination} ({options.to})")


def describe(checkpoint: Checkpoint) -> str:
    """Origin and size of a checkpoint in words."""
    config = checkpoint.config
    height, width = as_pair(config.image_size)
    parameters = sum(tensor.numel() for tensor in checkpoint.state_dict.values())
    token = "with" if config.use_distillation_token else "without"
    return (
        f"{checkpoint.format}, {parameters:,} parameters, {token} distillation token, {config.num_labels} classes, "
        f"{height}x{width} pixels"
    )


def _parse_options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m modeling_deit_distill.conversion", description=__doc__.split(":")[0]
    )
    parser.add_argument("source", help="a weight file, a folder, a Hub repository, or a name of timm's")
    parser.add_argument("destination", help="a new folder")
    parser.add_argument(
        "--to", choices=("deit_distill", "native", "timm"), default="deit_distill", help="format (deit_distill)"
    )
    return parser.parse_args(arguments)


def _save_beside_and_rename(save: Callable[[Checkpoint, Path], None], checkpoint: Checkpoint, destination: Path):
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".conversion-", dir=destination.parent) as beside:
            finished = Path(beside, destination.name)
            save(checkpoint, finished)
            if destination.is_dir():
                destination.rmdir()
            os.replace(finished, destination)
    except OSError as error:
        raise InputError(f"{destination} cannot be written ({one_line(error)})") from error


if __name__ == "__main__":
    sys.exit(run_command(main))

"""A student's weights from anywhere, in our names."""

import copy
import os
from dataclasses import dataclass

import torch
from transformers import DeiTImageProcessor
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, logging

from ..configuration_deit_distill import DeiTDistillConfig
from ..errors import InputError
from ..hub import holds_no_model
from ..modeling_deit_distill import DeiTDistillForImageClassification
from ..weights import first_not_finite
from .configuration import NATIVE_CONFIGS, config_of, kind_of, processor_of
from .reading import WEIGHT_SUFFIXES, NotFetched, read_all_weights, read_json, read_weights, repository_of, some_of
from .weight_names import State, native_to_ours, public_to_ours

logger = logging.get_logger(__name__)
# Tensors that a configuration is read off, and their dimensions.
ESSENTIAL = {
    "deit.embeddings.patch_embeddings.weight": 4,
    "deit.embeddings.position_embeddings": 3,
    "deit.layers.0.mlp.fc1.weight": 2,
    "cls_classifier.weight": 2,
}


@dataclass(frozen=True)
class PretrainedStudent:
    """A student's weights from anywhere, in our names."""

    config: DeiTDistillConfig  # at its own image size, with its own `id2label` and `label2id`
    state_dict: State  # names and shapes of `DeiTDistillForImageClassification(config)`, on the CPU, dtype as stored
    processor: DeiTImageProcessor  # the evaluation transform: shorter side, centre crop, statistics, bicubic
    format: str  # where it comes from: "deit_distill", "public", "timm" or "native"


def holds_deit(source: str) -> bool:
    """Whether [`load_checkpoint`] is to read a source: a file, a DeiT or ViT by its configuration, or one without.

    Raises:
        InputError: as [`load_checkpoint`], for a source that cannot be found.
    """
    source = str(source)
    if os.path.isfile(source):
        return True
    described = read_json(source if os.path.isdir(source) else repository_of(source), CONFIG_NAME, source)
    if "architecture" in described:  # timm's
        return str(described["architecture"]).startswith("deit_")
    return described.get("model_type") in (None, DeiTDistillConfig.model_type, *NATIVE_CONFIGS)


def load_checkpoint(source: str) -> PretrainedStudent:
    """Read a student from a file, a folder, a Hub repository or timm; what lies on the disk goes before names.

    No code that comes with weights is run. What the files beside the weights do not say is read off the shapes; heads
    are then of width 64 (paper, Table 1), LayerNorm's epsilon is 1e-6 (public code), evaluation is that of Table 9.

    transformers' `DeiTForImageClassification` has a distillation token, which takes part in attention, but no head for
    it. It becomes a model of fusion `"cls"`, whose distillation head is zero and unread, and a warning says so.

    Raises:
        InputError: nothing there, a file that holds code, or weights that are not those of a DeiT classifier.
    """
    source = str(source)
    is_file = os.path.isfile(source)
    place = os.path.dirname(os.path.abspath(source)) if is_file else source
    if not os.path.isdir(place):
        place = repository_of(source)
    described = read_json(place, CONFIG_NAME, source)
    if not described and not is_file:
        if os.path.isdir(place) and not any(name.endswith(WEIGHT_SUFFIXES) for name in os.listdir(place)):
            raise InputError(holds_no_model(source))
        raise InputError(f"{source!r} has no {CONFIG_NAME}; give one of its weight files, if it has any")
    kind = kind_of(described, source)
    try:
        preprocessing = read_json(place, IMAGE_PROCESSOR_NAME, source)
    except NotFetched:
        if kind != "timm":
            raise
        preprocessing = {}  # timm's repositories have none, which a cache does not tell; its configuration says all
    weights = read_weights(source, source) if is_file else read_all_weights(place, source)
    state, layout = _to_ours(weights, source)
    fields = {}
    # Only transformers' DeiTForImageClassification has the token and this name for its head.
    if layout == "native" and "deit.embeddings.distillation_token" in state and "classifier.weight" in weights:
        logger.warning(
            f"{source} has a distillation token but no head for it: the distillation head is zero, and `fusion` is cls"
        )
        heads = {name: tensor for name, tensor in state.items() if name.startswith("cls_classifier.")}
        state |= {name.replace("cls", "distillation", 1): torch.zeros_like(each) for name, each in heads.items()}
        fields["fusion"] = "cls"
    config = config_of(source, kind, described, state, fields)
    _check_tensors(state, config, source)
    origin = "timm" if kind == "timm" and layout == "public" else layout
    return PretrainedStudent(config, state, processor_of(config, kind, described, preprocessing), origin)


def build_model(checkpoint: PretrainedStudent) -> DeiTDistillForImageClassification:
    """The model of a checkpoint, in eval mode, in the dtype of its weights."""
    with torch.device("meta"):  # nothing is drawn
        model = DeiTDistillForImageClassification(copy.deepcopy(checkpoint.config))  # a model may change its own
    weights = {name: tensor.clone() for name, tensor in checkpoint.state_dict.items()}
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval()


def _to_ours(weights: State, source: str) -> tuple[State, str]:
    """Weights in our names, and whose names they had."""
    if "patch_embed.proj.weight" in weights:
        state, layout = public_to_ours(weights), "public"
    elif any(name.endswith("embeddings.patch_embeddings.projection.weight") for name in weights):
        state, layout = native_to_ours(weights), "native"
    elif any(name.endswith("embeddings.patch_embeddings.weight") for name in weights):
        state, layout = weights, "deit_distill"
    else:
        raise InputError(f"{source!r} holds no DeiT: there is no patch embedding among {some_of(weights)}")
    if "cls_classifier.weight" not in state:
        raise InputError(f"{source!r} has no classification head, only a body; fine-tuned checkpoints have one")
    for name, expected in ESSENTIAL.items():
        if name not in state:
            raise InputError(f"{source!r} does not hold the weights of a DeiT: {name} is missing")
        if state[name].dim() != expected:
            raise InputError(f"{source!r}: {name} has {state[name].dim()} dimensions, not {expected}")
    return state, layout


def _check_tensors(state: State, config: DeiTDistillConfig, source: str):
    layers = {name.split(".")[2] for name in state if name.startswith("deit.layers.")}
    if len(layers) != config.num_hidden_layers:  # first: a model of a billion layers does not fit into memory
        raise InputError(
            f"{source!r} holds {len(layers)} layers, its {CONFIG_NAME} says {config.num_hidden_layers}; is the "
            f"{CONFIG_NAME} beside it its own?"
        )
    with torch.device("meta"):
        expected = DeiTDistillForImageClassification(config).state_dict()
    for word, names in (("unexpected", state.keys() - expected), ("missing", expected.keys() - state.keys())):
        if names:
            raise InputError(f"{source!r} does not hold the weights of a DeiT: {some_of(sorted(names))} {word}")
    shapes = {name: (tuple(state[name].shape), tuple(expected[name].shape)) for name in expected}
    if wrong := [f"{name} is {found}, not {wanted}" for name, (found, wanted) in shapes.items() if found != wanted]:
        raise InputError(f"{source!r} does not fit together: {some_of(wrong)}; is the {CONFIG_NAME} beside it its own?")
    if (bad := first_not_finite(state.items())) is not None:
        raise InputError(f"{source!r} holds weights that are not finite, first {bad}; give another checkpoint")

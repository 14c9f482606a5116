"""The names of a DeiT's weights: ours, those of the public code, those of transformers.

"Public" are those of the paper's code, which timm kept; "native" those of transformers, written since 2021 and read by
every version, and those that its classes have today, of which files exist as well.
"""

import re

import torch

State = dict[str, torch.Tensor]

# Modules by name, theirs: ours; "#" is the number of a block. Weight and bias follow their module. What both name alike
# is not listed.
PUBLIC_MODULES = {
    "cls_token": "deit.embeddings.cls_token",
    "dist_token": "deit.embeddings.distillation_token",
    "pos_embed": "deit.embeddings.position_embeddings",
    "patch_embed.proj": "deit.embeddings.patch_embeddings",
    "blocks.#.norm1": "deit.layers.#.norm1",
    "blocks.#.attn.qkv": "deit.layers.#.attention.qkv",
    "blocks.#.attn.proj": "deit.layers.#.attention.proj",
    "blocks.#.norm2": "deit.layers.#.norm2",
    "blocks.#.mlp.fc1": "deit.layers.#.mlp.fc1",
    "blocks.#.mlp.fc2": "deit.layers.#.mlp.fc2",
    "norm": "deit.norm",
    "head": "cls_classifier",
    "head_dist": "distillation_classifier",
}
# The native names that every version of transformers reads. Query, key and value become one `qkv` afterwards.
NATIVE_MODULES = {
    "deit.embeddings.patch_embeddings.projection": "deit.embeddings.patch_embeddings",
    "deit.encoder.layer.#.layernorm_before": "deit.layers.#.norm1",
    "deit.encoder.layer.#.attention.attention.query": "deit.layers.#.attention.query",
    "deit.encoder.layer.#.attention.attention.key": "deit.layers.#.attention.key",
    "deit.encoder.layer.#.attention.attention.value": "deit.layers.#.attention.value",
    "deit.encoder.layer.#.attention.output.dense": "deit.layers.#.attention.proj",
    "deit.encoder.layer.#.layernorm_after": "deit.layers.#.norm2",
    "deit.encoder.layer.#.intermediate.dense": "deit.layers.#.mlp.fc1",
    "deit.encoder.layer.#.output.dense": "deit.layers.#.mlp.fc2",
    "deit.layernorm": "deit.norm",
}
# What the classes of transformers 5 call them.
NEWER_NATIVE_MODULES = {
    "deit.layers.#.layernorm_before": "deit.layers.#.norm1",
    "deit.layers.#.attention.q_proj": "deit.layers.#.attention.query",
    "deit.layers.#.attention.k_proj": "deit.layers.#.attention.key",
    "deit.layers.#.attention.v_proj": "deit.layers.#.attention.value",
    "deit.layers.#.attention.o_proj": "deit.layers.#.attention.proj",
    "deit.layers.#.layernorm_after": "deit.layers.#.norm2",
    "classifier": "cls_classifier",
}


def public_to_ours(state_dict: State) -> State:
    """From the names of the public code and timm; those that a DeiT does not have stay as they are."""
    return {_translate(name, PUBLIC_MODULES): tensor for name, tensor in state_dict.items()}


def ours_to_public(state_dict: State) -> State:
    """To the names of the public code and timm."""
    names = {ours: theirs for theirs, ours in PUBLIC_MODULES.items()}
    return {_translate(name, names): tensor for name, tensor in state_dict.items()}


def native_to_ours(state_dict: State) -> State:
    """From transformers' names, old and new; the pooler, which classification does not read, is left out."""
    modules = NATIVE_MODULES | NEWER_NATIVE_MODULES
    names = {re.sub(r"^vit\.", "deit.", name): tensor for name, tensor in state_dict.items()}
    names = {name: tensor for name, tensor in names.items() if not name.startswith("deit.pooler.")}
    return _join_qkv({_translate(name, modules): tensor for name, tensor in names.items()})


def ours_to_native(state_dict: State, architecture: str) -> State:
    """To the names of transformers' class `architecture`, as every version of transformers reads them."""
    modules = {ours: theirs for theirs, ours in NATIVE_MODULES.items()}
    named = {_translate(name, modules): tensor for name, tensor in _split_qkv(state_dict).items()}
    if architecture.endswith("WithTeacher"):
        return named
    base = "vit." if architecture.startswith("ViT") else "deit."
    named = {name: tensor for name, tensor in named.items() if not name.startswith("distillation_classifier.")}
    return {re.sub("^cls_classifier", "classifier", re.sub(r"^deit\.", base, name)): t for name, t in named.items()}


def why_not_native(config) -> str | None:
    """Why transformers has no class for the fusion of a [`DeiTDistillConfig`], in one clause; None if it has."""
    if not config.use_distillation_token or config.fusion in ("logit_mean", "cls"):
        return None
    return (
        f"fusion {config.fusion!r} has no class in transformers, whose classes average the logits or read the class "
        "head alone"
    )


def _translate(name: str, modules: dict[str, str]) -> str:
    """A tensor's name with its module renamed; a name that is not in the table stays."""
    # A token and the positions are parameters themselves.
    module, parameter = re.fullmatch(r"(.*?)(\.weight|\.bias)?", name, re.DOTALL).groups("")
    block = re.search(r"\.\d+\.", module)
    number = block.group() if block else ".#."
    generic = module.replace(number, ".#.", 1)
    return modules[generic].replace(".#.", number) + parameter if generic in modules else name


def _join_qkv(state_dict: State) -> State:
    joined = dict(state_dict)
    for name in state_dict:
        parts = [name.replace(".attention.query.", f".attention.{part}.") for part in ("query", "key", "value")]
        if ".attention.query." in name and all(part in joined for part in parts):
            joined[name.replace(".query.", ".qkv.")] = torch.cat([joined.pop(part) for part in parts])
    return joined


def _split_qkv(state_dict: State) -> State:
    split = {}
    for name, tensor in state_dict.items():
        if ".attention.qkv." not in name:
            split[name] = tensor
            continue
        for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
            split[name.replace(".qkv.", f".{part}.")] = piece.clone()  # safetensors refuses shared memory
    return split

"""A checkpoint's files, wherever they lie: a folder, a file, the Hub, or a name of timm's."""

import argparse
import json
import os
import pickle
import re
from pathlib import Path

import timm
import torch
from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, RemoteEntryNotFoundError
from safetensors.torch import load_file
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME, logging

from ..errors import InputError, one_line
from ..hub import unread
from ..weights import unwrapped_names
from .weight_names import State

logger = logging.get_logger(__name__)
# Where training codes keep a model's weights: the public code, Lightning and most others; timm and the rest.
TRAINED = ("model", "state_dict", "model_state_dict")
AVERAGED = ("model_ema", "state_dict_ema", "ema_state_dict")
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
IN_ORDER = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)


class NotFetched(InputError):
    """The Hub cannot be asked for a file, and the cache does not have it."""


def timm_repository(name: str) -> str | None:
    """Where timm keeps the weights of a name of its own, with a tag or without, on the Hub; None if it keeps none.

    Raises:
        RuntimeError: a tag that timm does not know.
    """
    known = timm.get_pretrained_cfg(name)
    return known.hf_hub_id if known else None


def repository_of(source: str) -> str:
    """The Hub repository that a name means: itself, or where timm keeps the weights of that name."""
    if source.startswith((".", "/", "~")) or source.count("/") > 1 or source.endswith(WEIGHT_SUFFIXES):
        raise InputError(f"{source!r} is no file and no folder here; check the path")
    if "/" in source:
        return source
    architecture = source.split(".")[0]
    if not timm.is_model(architecture):
        raise InputError(f"{source!r} is no file, no folder, no model of timm's and no Hub name like owner/model")
    check_timm_name(architecture, source)
    try:
        repository = timm_repository(source)
    except RuntimeError as error:
        raise InputError(f"timm has no weights {source!r} ({one_line(error)}); try {architecture!r}") from error
    if not repository:
        raise InputError(f"timm has no weights {source!r} on the Hub; give a file")
    return repository


def check_timm_name(architecture: str, source: str):
    """Refuse what is no DeiT of the paper, by its name in timm."""
    if not architecture.startswith("deit_"):
        names = ", ".join(timm.list_models("deit_*"))
        raise InputError(f"{source!r} is timm's {architecture}, no DeiT of the paper; those are: {names}")


def read_json(place: str, filename: str, source: str) -> dict:
    """The fields of a file beside the weights; {} if there is no such file."""
    path = _find(place, filename, source)
    return {} if path is None else _fields_in(path, filename, source)


def _fields_in(path: str, filename: str, source: str) -> dict:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{filename} of {source!r} is no JSON ({one_line(error)}); correct or remove it") from error
    if not isinstance(content, dict):
        raise InputError(f"{filename} of {source!r} holds no fields; correct or remove it")
    return content


def _find(place: str, filename: str, source: str, may_fetch: bool = True) -> str | None:
    """The path of a file of a folder or of a Hub repository, fetched if it may be; None if it has no such file.

    transformers' own search takes a lost connection for a missing file, and preprocessing would become a default.
    """
    if os.path.isdir(place):
        path = os.path.join(place, filename)
        return path if os.path.isfile(path) else None
    try:
        return hf_hub_download(place, filename, local_files_only=not may_fetch)
    except RemoteEntryNotFoundError:
        return None
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        # Where the Hub cannot be asked, the cache may know that there is no such file.
        is_unreachable = isinstance(error, LocalEntryNotFoundError)
        if is_unreachable and try_to_load_from_cache(place, filename) is _CACHED_NO_EXIST:
            return None
        raise (NotFetched if is_unreachable else InputError)(unread(source, error)) from error


def read_all_weights(place: str, source: str) -> State:
    """The weights of a folder or a repository, sharded or not; safetensors are preferred.

    A cache does not tell which of these a repository lacks, so where the Hub cannot be asked, any of them will do.
    """
    not_fetched = None
    for name in IN_ORDER:
        try:
            path = _find(place, name, source, may_fetch=not_fetched is None)  # to ask once is to wait once
        except NotFetched as error:
            not_fetched = not_fetched or error
            continue
        if path is not None:
            return read_weights(path, source) if name.endswith(WEIGHT_SUFFIXES) else _shards(place, path, name, source)
    raise not_fetched or InputError(f"{source!r} has no weights ({SAFE_WEIGHTS_NAME} or {WEIGHTS_NAME})")


def _shards(place: str, path: str, index_name: str, source: str) -> State:
    index, weights = _fields_in(path, index_name, source), {}
    if not isinstance(index.get("weight_map"), dict):
        raise InputError(f"{index_name} of {source!r} does not say where the weights are")
    for shard in sorted(set(index["weight_map"].values())):
        path = _find(place, shard, source)
        if path is None:
            raise InputError(f"{source!r} lacks {shard}, which its {index_name} names; fetch it again")
        weights |= read_weights(path, source)
    return weights


def read_weights(path: str, source: str) -> State:
    """The state dict of one file, freed from what checkpoints wrap around it.

    A pickle may hold tensors, plain values and the command line of the public code's training.
    """
    if not path.endswith(WEIGHT_SUFFIXES):
        raise InputError(f"{source!r} is no file of weights; those end in {', '.join(WEIGHT_SUFFIXES)}")
    is_pickle = not path.endswith(".safetensors")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True) if is_pickle else load_file(path)
    except pickle.UnpicklingError as error:
        # torch's own message advises to run the code.
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if asked is None:
            raise InputError(f"{source!r} is damaged, or no file that torch.save wrote") from error
        what = f"{asked.group(1)}, which is code"
        raise InputError(f"{source!r} is not opened: it asks for {what}; save its state dict alone") from error
    except Exception as error:  # truncated, empty or foreign files fail in many ways
        writer = "torch.save" if is_pickle else "safetensors"
        raise InputError(f"{source!r} cannot be read, or is no file that {writer} wrote ({one_line(error)})") from error
    return _unwrap(content, source)


def _unwrap(content: object, source: str) -> State:
    while key := _container(content, source):
        content = content[key]
    if not isinstance(content, dict) or not content:
        raise InputError(f"{source!r} holds no state dict")
    if strangers := [name for name, value in content.items() if not isinstance(value, torch.Tensor)]:
        raise InputError(f"{source!r} holds no state dict: {some_of(strangers)} is no tensor")
    names = unwrapped_names(str(name) for name in content if name != "n_averaged")  # a count of torch's AveragedModel
    return {new: content[name].detach().contiguous() for name, new in names.items()}


def _container(content: object, source: str) -> str | None:
    """The key of the weights in a training checkpoint, trained ones before averaged ones; None in a state dict.

    Raises:
        InputError: it is not clear which is meant.
    """
    trained, averaged = ([key for key in keys if _holds_weights(content, key)] for keys in (TRAINED, AVERAGED))
    chosen = trained or averaged
    if len(chosen) > 1:
        raise InputError(f"{source!r} has several sets of weights: {', '.join(chosen)}; save one of them alone")
    if not chosen:
        return None
    if trained and averaged:
        others = " and ".join(f"`{key}`" for key in averaged)
        logger.warning(f"{source}: the weights of `{trained[0]}` are taken, not those of {others}")
    elif averaged:
        logger.warning(f"{source}: the averaged weights of `{averaged[0]}` are taken; there are no others")
    return chosen[0]


def _holds_weights(content: object, key: str) -> bool:
    inner = content.get(key) if isinstance(content, dict) else None
    if not isinstance(inner, dict):
        return False
    is_tensor = any(isinstance(value, torch.Tensor) for value in inner.values())
    return is_tensor or any(_holds_weights(inner, each) for each in (*TRAINED, *AVERAGED))


def some_of(names) -> str:
    """The first few of many names."""
    names = [str(name) for name in names]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

"""Stores of made-up answers."""

import dataclasses
import json
import multiprocessing
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from modeling_deit_distill.data.views import AugmentationSettings
from modeling_deit_distill.teachers.store import TeacherStore, create_store, described, entry_dtype

FORK = multiprocessing.get_context("fork")  # children only write; a spawned one would import torch for seconds
DEADLINE = 30  # seconds, for what takes some hundredths
SOFT = {"distillation_type": "soft", "k": 10}
HALF_ULP = 2.0**-11  # of half precision, relative
few_examples = settings(max_examples=50, deadline=None)
LAYOUTS = pytest.mark.parametrize("layout", [{}, SOFT], ids=["hard", "soft"])


def fingerprint(**changes) -> dict:
    fields = {"augmentation_version": 1, "dataset": "d161", "num_images": 100, "num_classes": 10, "num_views": 100}
    fields |= {"data_seed": 0, "repeated_augmentation": 3, "distillation_type": "hard", "temperature": 3.0}
    fields |= dataclasses.asdict(AugmentationSettings(16)) | changes
    if fields["distillation_type"] == "hard":
        fields = {name: value for name, value in fields.items() if name not in ("k", "temperature")}
    elif fields.pop("k", None) is not None:
        fields["k"] = min(changes["k"], fields["num_classes"])
    return fields


def make(folder, **changes) -> TeacherStore:
    return create_store(folder, fingerprint(**changes), {"teacher": "mine"})


def answers(store: TeacherStore, distinct: int | None = None) -> np.ndarray:
    """One for each position; after `distinct` of them they repeat, which saves the time to encode more."""
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(distinct or store.num_views, store.fingerprint["num_classes"], generator=generator)
    return np.resize(store.encode(logits), store.num_views)


def everywhere(store: TeacherStore) -> np.ndarray:
    return np.arange(store.num_views)


def whole(store: TeacherStore, entries: np.ndarray, epoch: int = 0) -> bytes:
    """The content of an epoch's file that holds the entries (num_views,), put together as the format says."""
    views = max(1, min(1024, 16_384 // store.dtype.itemsize))
    header = struct.pack("<8sIQ8s", b"DeiTansw", 2, epoch, bytes.fromhex(store.identity))
    parts = [header + struct.pack("<I", zlib.crc32(header))]
    for block in range(-(-store.num_views // views)):
        content = entries[block * views : (block + 1) * views].tobytes()
        checksum = zlib.crc32(header + struct.pack("<Q", block) + content) if any(content) else 0
        parts.append(content + struct.pack("<I", checksum))
    return b"".join(parts)


def change(path: Path, **changes: dict):
    """Change fields of a `store.json`, as somebody would who computes its checksum anew."""
    kept = json.loads(path.read_text())
    parts = [{**kept[name], **changes.get(name, {})} for name in ("fingerprint", "about")]
    path.write_text(json.dumps(described(*parts, kept["identity"])))


def dtype_of(num_classes: int, k: int | None = None) -> np.dtype:
    return entry_dtype({"num_classes": num_classes, "distillation_type": "soft" if k else "hard", "k": k})


def wait_until(condition):
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "nothing came of it in time"


def run_beside_each_other(function, *arguments_of_each):
    processes = [FORK.Process(target=function, args=arguments) for arguments in arguments_of_each]
    for process in processes:
        process.start()
    for process in processes:
        process.join(DEADLINE)
    assert [process.exitcode for process in processes] == [0] * len(processes)

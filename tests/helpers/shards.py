"""Shards of a webdataset: tar files in which the files of one image share a name."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

from helpers.images import encode, grey


def write_shard(path: Path, levels: range, label_files: Callable[[int], dict[str, bytes]], image: str = "png") -> Path:
    """One tar file: for each of `levels` a grey image of that level, and beside it `label_files(level)`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    formats = {"jpg": "JPEG", "jpeg": "JPEG", "JPEG": "JPEG", "png": "PNG", "webp": "WEBP"}
    with tarfile.open(path, "w") as shard:
        for level in levels:
            for suffix, content in {image: encode(grey(level), formats[image])["bytes"], **label_files(level)}.items():
                member = tarfile.TarInfo(f"{level:04}.{suffix}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
    return path

"""Students from and to other formats, lossless: `python -m modeling_deit_distill.conversion SOURCE DESTINATION`.

SOURCE is a file (the public code's `.pth`, a state dict of timm's or of transformers' native classes, or ours), a
folder or a Hub repository (ours, transformers' native DeiT and ViT, timm's), or a name of timm's, such as
`deit_small_distilled_patch16_224`. DESTINATION is a new folder in our format, transformers' or timm's.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from ..configuration_deit_distill import as_pair
from ..errors import InputError, one_line
from ..script import run_script
from .checkpoint import PretrainedStudent, load_checkpoint
from .saving import save_checkpoint, save_native, save_timm


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


def describe(checkpoint: PretrainedStudent) -> str:
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


def _save_beside_and_rename(
    save: Callable[[PretrainedStudent, Path], None], checkpoint: PretrainedStudent, destination: Path
):
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
    run_script(main)

"""Students from and to other formats, lossless: `python -m modeling_deit_distill.conversion SOURCE DESTINATION`.

SOURCE is a file (the public code's `.pth`, a state dict of timm's or of transformers' native classes, or ours), a
folder or a Hub repository (ours, transformers' native DeiT and ViT, timm's), or a name of timm's, such as
`deit_small_distilled_patch16_224`. DESTINATION is a new folder in our format, transformers' or timm's.
"""

import argparse

from ..configuration_deit_distill import as_pair
from ..hub import tell_retries_once
from ..script import run_script
from .checkpoint import load_checkpoint
from .saving import new_folder, save_checkpoint, save_native, save_timm

SAVE = {"deit_distill": save_checkpoint, "native": save_native, "timm": save_timm}


def main(arguments: list[str]):
    """Convert SOURCE to the new folder DESTINATION, which appears when it is complete.

    Raises:
        InputError: a source that cannot be read, a destination that is there, or a format that cannot hold the model.
    """
    parser = argparse.ArgumentParser(
        prog="python -m modeling_deit_distill.conversion", description=__doc__.split(":")[0]
    )
    parser.add_argument("source", help="a weight file, a folder, a Hub repository, or a name of timm's")
    parser.add_argument("destination", help="a new folder")
    parser.add_argument("--to", choices=SAVE, default="deit_distill", help="format (deit_distill)")
    options = parser.parse_args(arguments)
    tell_retries_once()
    with new_folder(options.destination) as folder:
        checkpoint = load_checkpoint(options.source)
        SAVE[options.to](checkpoint, folder)
    config = checkpoint.config
    height, width = as_pair(config.image_size)
    parameters = sum(tensor.numel() for tensor in checkpoint.state_dict.values())
    token = "with" if config.use_distillation_token else "without"
    print(
        f"{options.source} ({checkpoint.format}, {parameters:,} parameters, {token} distillation token, "
        f"{config.num_labels} classes, {height}x{width} pixels) -> {options.destination} ({options.to})"
    )


if __name__ == "__main__":
    run_script(main)

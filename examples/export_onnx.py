"""Export a checkpoint to ONNX: one file with its weights, and beside it what a deployer needs.

    python examples/export_onnx.py SOURCE DESTINATION [--image_size 384] [--precision int8] [--batch_size 16]

`--help` tells what is written, and how to use it. The code is in `modeling_deit_distill/export/onnx.py`.
"""

import sys

from modeling_deit_distill.errors import run_command
from modeling_deit_distill.export.onnx import main

if __name__ == "__main__":
    sys.exit(run_command(main))

"""Export a checkpoint to ONNX: one file with its weights, and beside it what a deployer needs.

    python examples/export_onnx.py SOURCE DESTINATION [--image_size 384] [--precision int8] [--batch_size 16]

`--help` tells what is written, and how to use it. The code is in `modeling_deit_distill/export/onnx.py`.
"""

from modeling_deit_distill.export.onnx import main
from modeling_deit_distill.script import run_script

if __name__ == "__main__":
    run_script(main)

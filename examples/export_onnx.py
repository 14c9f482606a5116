"""Export a checkpoint to ONNX: `python -m modeling_deit_distill.export SOURCE DESTINATION --formats onnx`.

python examples/export_onnx.py SOURCE DESTINATION [--image_size 384] [--precisions fp32 int8] [--batch_size 16]
"""

from modeling_deit_distill.export.__main__ import main
from modeling_deit_distill.script import run_script

if __name__ == "__main__":
    run_script(lambda arguments: main([*arguments, "--formats", "onnx"]))

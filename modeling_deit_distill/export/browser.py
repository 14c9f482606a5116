"""The Hub's layout for transformers.js: a folder that `pipeline("image-classification")` reads as it is.

Its files take the photograph as it is, so its image processor does nothing. Such a folder therefore never shares a
branch with PyTorch's weights, whose image processor it would replace.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME

from ..configuration_deit_distill import DeiTDistillConfig
from ..errors import InputError
from ..files import read_json, write_json
from .onnx import OPSET, output_names
from .photograph import check_preprocessing
from .precisions import FILES, Exported, Source, placed, write_precisions

RECORD = "export.json"
# What the layout consists of beside its card; the page is not for transformers.js.
LAYOUT = (CONFIG_NAME, IMAGE_PROCESSOR_NAME, RECORD, "onnx/*")
TEMPLATE = Path(__file__).with_name("browser_card.md")
# transformers.js and other readers of such folders: a type that they know, and what it does to an image: nothing.
MODEL_TYPE, ARCHITECTURE = "deit", "DeiTForImageClassification"
OUTPUTS = {
    "cls_logits": "the class head's",
    "distillation_logits": "the distillation head's",
    "attentions": "where class and distillation token look in the last block, (batch, tokens, grid height, grid width)",
}
NOTHING_TO_DO = {
    "image_processor_type": "DeiTImageProcessor",
    "do_convert_rgb": True,
    "do_resize": False,
    "do_center_crop": False,
    "do_rescale": False,
    "do_normalize": False,
}


def write_browser(
    source: Source,
    folder: Path,
    name: str,
    precisions: Sequence[str] = tuple(FILES),
    leave_out: Callable[[InputError], None] | None = None,
) -> list[Exported]:
    """Write the layout: `onnx/`, `config.json`, `preprocessor_config.json`, `README.md` and `export.json`.

    Args:
        source: what to export.
        folder: an empty one.
        name: of the model, on the Hub or not.
        precisions: of `FILES`.
        leave_out: see [`write_precisions`].

    Raises:
        InputError: see [`write_precisions`] and [`check_preprocessing`].
    """
    check_preprocessing(source.processor, OPSET)
    (folder / "onnx").mkdir()
    exported = write_precisions(source, folder / "onnx", precisions, True, leave_out)
    exported = placed(exported, "onnx")
    config = source.model.config
    write_json(folder / CONFIG_NAME, described(config))
    write_json(folder / IMAGE_PROCESSOR_NAME, NOTHING_TO_DO)
    outputs = {"logits": "the answer", **{name: OUTPUTS[name] for name in output_names(source.model)[1:]}}
    write_json(folder / RECORD, {"name": name, "outputs": outputs, "files": [asdict(each) for each in exported]})
    write_browser_card(folder, name)
    return exported


def described(config: DeiTDistillConfig) -> dict:
    """`config.json`: a known type, the classes, and what else readers may ask for; no pointer to code of ours."""
    fields = json.loads(config.to_json_string())
    names = ("id2label", "label2id", "image_size", "patch_size", "num_channels", "hidden_size", "num_hidden_layers")
    known = {name: fields[name] for name in (*names, "num_attention_heads", "intermediate_size", "hidden_act")}
    return {"model_type": MODEL_TYPE, "architectures": [ARCHITECTURE], **known, "fusion": config.fusion}


def write_browser_card(folder: Path, name: str, revision: str | None = None):
    """Write `README.md` from `export.json`.

    Args:
        folder: of the layout.
        name: the repository that it is pushed to, or its own.
        revision: the branch that it is pushed to, if not the main one.
    """
    record = read_json(folder / RECORD)
    data = ModelCardData(
        library_name="transformers.js",
        pipeline_tag="image-classification",
        tags=["onnx", "vision", "vit", "deit"],
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=name,
        js_name=json.dumps(name, ensure_ascii=False),
        js_options=js_options(revision, {each["precision"] for each in record["files"]}),
        files=record["files"],
        outputs=record["outputs"],
        python=PYTHON.replace("FILE", record["files"][0]["file"]),
    )
    card.save(folder / "README.md")


def js_options(revision: str | None, precisions: set[str]) -> str | None:
    """The third argument of `pipeline`: the branch, and the precision where the default one, int8, is not there."""
    options = [f"revision: {json.dumps(revision, ensure_ascii=False)}"] if revision else []
    if "int8" not in precisions:
        options.append(f'dtype: "{"fp16" if "fp32" not in precisions else "fp32"}"')
    return f"{{ {', '.join(options)} }}" if options else None


# FILE is the first of the files: fp32, unless only others were asked for.
PYTHON = """\
import json

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession("FILE")
image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
pixel_values = np.asarray(image, np.float32).transpose(2, 0, 1)[None]  # any size, levels from 0 to 255
[logits] = session.run(["logits"], {"pixel_values": pixel_values})
probabilities = np.exp(logits[0] - logits[0].max())
probabilities /= probabilities.sum()
id2label = json.load(open("config.json"))["id2label"]
for index in np.argsort(-probabilities)[:5]:
    print(f"{id2label[str(index)]} {probabilities[index]:.3f}")
"""

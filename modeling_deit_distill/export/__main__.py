"""Take a student to other runtimes: `python -m modeling_deit_distill.export CHECKPOINT DESTINATION`.

CHECKPOINT is whatever `conversion` reads: a run's output folder, a name on the Hub, transformers' DeiT and ViT, timm's,
a file of weights. DESTINATION becomes a folder; of several formats each has a folder of its own in it. Nothing is
written unless the files answer as PyTorch does.

  browser     onnx/ with a file for each precision, in the layout that transformers.js reads, and a page to try it
              (index.html). The files take photographs as they are: resize, crop and normalisation are part of them.
  onnx        model.onnx, which takes what the image processor makes, config.json and preprocessor_config.json
  executorch  model.pte and model_quantized.pte (int8) for phones, which take what the image processor makes, and the
              same two

With --images the decisions of each file are compared with PyTorch's on up to 200 of them, and the page shows a few. A
file that decides otherwise too often is refused.
"""

import argparse
import json
import shlex
from collections.abc import Callable
from pathlib import Path

from ..conversion.saving import new_folder
from ..errors import InputError, printable_lines
from ..files import write_json
from ..hub import tell_retries_once
from ..script import run_script
from .agreement import DIGITS, MIN_AGREEMENT, chosen_images
from .browser import write_browser
from .checkpoint import check_image_size, input_shape, load_model
from .executorch import FILES as PROGRAMS
from .executorch import write_executorch
from .onnx import OPSET, answer_by_core, check_packages
from .page import place_runtime, write_demo
from .precisions import FILES, Exported, Source, write_precisions
from .speed import compare_speed


def main(arguments: list[str]):
    """Export CHECKPOINT to the new folder DESTINATION, which appears when it is complete.

    Raises:
        InputError: a checkpoint that cannot be read, files that do not answer as PyTorch does, or a destination that is
            there.
    """
    tell_retries_once()
    options = parse_options(arguments)
    for name in EXTRAS.keys() & options.formats:
        check_packages(EXTRAS[name])
    with new_folder(options.destination) as folder:
        images, rows = chosen_images(options.images) if options.images else ((), ())
        source = Source(*load_model(options.checkpoint, options.image_size), images, rows, options.min_agreement)
        said = []
        for name in options.formats:
            into = folder if len(options.formats) == 1 else folder / name
            into.mkdir(exist_ok=True)
            said.append(FORMATS[name](source, into, options))
    print("\n\n".join(said))
    if options.images and images.skipped.counts:
        print(printable_lines(f"\nnot compared: {images.skipped}"))
    if not options.images:
        print("decisions on real images were not compared; give --images FOLDER to do so")


def parse_options(arguments: list[str]) -> argparse.Namespace:
    """The command line; the module's text is its help.

    Raises:
        InputError: a value outside its range, or a precision that a format does not have.
    """
    first, _, rest = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m modeling_deit_distill.export",
        description=first.split(":")[0],
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("destination", metavar="DESTINATION")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=["browser"], help="default: browser")
    parser.add_argument(
        "--precisions", nargs="+", choices=FILES, help="browser: all three; onnx: fp32; executorch: fp32 and int8"
    )
    parser.add_argument("--image_size", help="pixels, 384 or HEIGHTxWIDTH; default: the checkpoint's own")
    parser.add_argument(
        "--images", nargs="+", metavar="FOLDER_OR_FILES", help=f"to compare decisions on, or the word {DIGITS}"
    )
    parser.add_argument(
        "--min_agreement", type=float, default=MIN_AGREEMENT, help=f"least share of equal decisions ({MIN_AGREEMENT})"
    )
    parser.add_argument(
        "--runtime",
        default="cdn",
        metavar="cdn|npm|FOLDER",
        help="where the page loads onnxruntime-web from: cdn (default) loads it when the page opens; npm downloads a "
        "copy now; FOLDER copies an unpacked npm package",
    )
    parser.add_argument(
        "--batch_size", type=int, default=16, help="images in a batch when the first file of onnx is timed (16)"
    )
    options = parser.parse_args(arguments)
    if options.batch_size < 1:
        raise InputError(f"--batch_size is {options.batch_size}; it must be at least 1")
    if not 0 <= options.min_agreement <= 1:
        raise InputError(f"--min_agreement is {options.min_agreement}; it must be from 0 to 1")
    check_image_size(options.image_size)
    options.formats = list(dict.fromkeys(options.formats))
    if "executorch" in options.formats and not PROGRAMS.keys() >= set(options.precisions or ()):
        raise InputError("--formats executorch has no fp16: leave it out of --precisions, or export the format alone")
    return options


def export_browser(source: Source, folder: Path, options: argparse.Namespace) -> str:
    """The layout and its page; what came of it in words.

    Raises:
        InputError: outputs that are not PyTorch's, too many other decisions on real images, or a runtime or an image
            processor that cannot be used.
    """
    name = Path(options.destination).resolve().name
    runtime = place_runtime(options.runtime, folder)  # first: it may fail, and the rest takes longer
    exported = write_browser(source, folder, name, tuple(options.precisions or FILES))
    examples = write_demo(source, folder, name, exported, runtime)
    shown = f"with {examples} of the images as examples" if examples else "without examples"
    shown += f"; onnxruntime-web {runtime.version} from {runtime.folder}"
    place = Path(options.destination, "" if len(options.formats) == 1 else "browser")
    serve = f"python -m http.server 8000 --directory {shlex.quote(str(place))}"
    opened = f"  to open it: {serve}, then http://localhost:8000"
    return "\n".join(["browser", *map(in_words, exported), f"  index.html: the page, {shown}", opened])


def export_onnx(source: Source, folder: Path, options: argparse.Namespace) -> str:
    """Plain files and what describes them; what came of it in words.

    Raises:
        InputError: outputs that are not PyTorch's, or too many other decisions on real images.
    """
    exported = write_precisions(source, folder, tuple(options.precisions or ["fp32"]), takes_photographs=False)
    write_descriptions(source, folder)
    shape = input_shape(source.model.config)
    lines = [f"onnx, opset {OPSET}, {shape} for each image", *map(in_words, exported)]
    answer = answer_by_core(folder / exported[0].file)
    return "\n".join([*lines, compare_speed(source.model, source.processor, answer, options.batch_size)])


def export_executorch(source: Source, folder: Path, options: argparse.Namespace) -> str:
    """Programs and what describes them; what came of it in words.

    Raises:
        InputError: outputs that are not PyTorch's, or too many other decisions on real images.
    """
    exported = write_executorch(source, folder, tuple(options.precisions or PROGRAMS))
    write_descriptions(source, folder)
    title = f"executorch, XNNPACK, {(1, *input_shape(source.model.config))} for one image at a time"
    return "\n".join([title, *map(in_words, exported)])


def write_descriptions(source: Source, folder: Path):
    """`config.json` and `preprocessor_config.json`."""
    fields = json.loads(source.model.config.to_json_string())
    fields.pop("auto_map", None)  # the pointer to its code, which does not lie here
    write_json(folder / "config.json", fields)
    source.processor.save_pretrained(folder)


def in_words(exported: Exported) -> str:
    """A file in a line or two."""
    found = ", ".join(f"{name} {difference:.1e}" for name, difference in exported.differences.items())
    lines = [
        f"  {exported.file}: {exported.megabytes:.1f} MB, {exported.precision}, {exported.milliseconds} ms an image",
        f"    largest difference from PyTorch on noise: {found}",
    ]
    if exported.agreement is not None:
        lines.append(f"    {exported.agreement}")
    if exported.kept:
        lines.append(f"    left in fp32, since rounding changed the answers too much: {', '.join(exported.kept)}")
    return "\n".join(lines)


FORMATS: dict[str, Callable[[Source, Path, argparse.Namespace], str]] = {
    "browser": export_browser,
    "onnx": export_onnx,
    "executorch": export_executorch,
}
# Of setup.py, with the packages that a format needs
EXTRAS = {"browser": "onnx", "onnx": "onnx", "executorch": "executorch"}

if __name__ == "__main__":
    run_script(main)

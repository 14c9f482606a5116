"""The demo page: an export's folder that a browser opens, without a server that computes.

The page's own files lie in `page/` beside this one and are copied as they are; `demo.json` tells them what is shown. The
runtime is onnxruntime-web's WebAssembly build, from a CDN or copied into the folder.
"""

import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL.Image

from ..errors import InputError, one_line
from ..files import read_json, write_json
from .photograph import Preprocessing
from .precisions import Exported

PAGE = Path(__file__).with_name("page")
PAGE_FILES = ("index.html", "demo.js", "photograph.js", "pictures.js", "demo.css")
PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
CDN_HOST = "https://cdn.jsdelivr.net"
CDN = f"{CDN_HOST}/npm/{PACKAGE}@{VERSION}/dist/"
# The smallest build that runs our graphs: JavaScript in one file, and its WebAssembly.
RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
MOST_EXAMPLES, EXAMPLE_SIDE = 8, 640
NPM_SECONDS = 600


@dataclass(frozen=True)
class Description:
    """What the page is told.

    Attributes:
        title: of the page: the model's name.
        classes: names, by index.
        models: files that the page can answer with; the first is taken unless the visitor chooses another.
        preprocessing: what the files do to a photograph; the page draws the crop from it.
    """

    title: str
    classes: Sequence[str]
    models: Sequence[Exported]
    preprocessing: Preprocessing


def write_page(
    folder: Path,
    description: Description,
    examples: Sequence[tuple[PIL.Image.Image, str | None]] = (),
    runtime: str = "cdn",
):
    """Write `index.html`, its scripts and style, `demo.json`, `examples/` and, unless from the CDN, `onnxruntime/`.

    Args:
        folder: an export's, with the files that `description.models` names.
        description: what the page shows.
        examples: RGB images that the visitor can choose, with the true class or None; the first 8 are taken, at most
            640 pixels wide or high.
        runtime: where onnxruntime-web comes from: `"cdn"` (jsDelivr, when the page is opened), `"npm"` (copied into
            the folder by npm, now) or a folder that holds the npm package (copied from there).

    Raises:
        InputError: no npm, one that fails, or a folder without the package.
    """
    placed = {"version": VERSION, "folder": CDN}
    if runtime != "cdn":
        placed = {"version": _vendor(runtime, folder / "onnxruntime"), "folder": "onnxruntime/"}
    for name in PAGE_FILES:
        shutil.copyfile(PAGE / name, folder / name)
    if runtime != "cdn":  # the page's own rule of what it may load, then without the CDN
        page = folder / "index.html"
        page.write_text(page.read_text(encoding="utf-8").replace(f" {CDN_HOST}", ""), encoding="utf-8")
    steps = description.preprocessing
    content = {
        "title": description.title,
        "classes": list(description.classes),
        "models": [_model(folder, each) for each in description.models],
        "resize": steps.size,
        "crop": steps.crop,
        "examples": _write_examples(folder / "examples", examples[:MOST_EXAMPLES]),
        "runtime": placed,
    }
    write_json(folder / "demo.json", content)


def _model(folder: Path, exported: Exported) -> dict:
    agreement = exported.agreement
    return {
        "precision": exported.precision,
        "file": exported.file,
        "bytes": (folder / exported.file).stat().st_size,
        "equal_decisions": None if agreement is None else agreement.share,
        "images_compared": 0 if agreement is None else agreement.images,
    }


def _write_examples(folder: Path, examples: Sequence[tuple[PIL.Image.Image, str | None]]) -> list[dict]:
    """Each as a JPEG."""
    written = []
    for number, (image, label) in enumerate(examples, start=1):
        folder.mkdir(exist_ok=True)
        small = image.convert("RGB")
        small.thumbnail((EXAMPLE_SIDE, EXAMPLE_SIDE), PIL.Image.Resampling.BICUBIC)
        small.save(folder / f"{number}.jpg", quality=92)
        written.append({"file": f"{folder.name}/{number}.jpg", "label": label})
    return written


def _vendor(runtime: str, folder: Path) -> str:
    """Copy the runtime's files; returns its version."""
    if runtime != "npm":
        return _copy_package(Path(runtime), folder)
    with tempfile.TemporaryDirectory() as temporary:
        return _copy_package(_download(Path(temporary)), folder)


def _copy_package(package: Path, folder: Path) -> str:
    missing = [name for name in RUNTIME_FILES if not (package / "dist" / name).is_file()]
    if missing:
        raise InputError(
            f"--runtime {package}: no {missing[0]} in its folder dist; name the folder of the npm package {PACKAGE} "
            f"(node_modules/{PACKAGE} after `npm install {PACKAGE}@{VERSION}`), or the words cdn or npm"
        )
    try:
        version = read_json(package / "package.json")["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--runtime {package}: its package.json tells no version ({one_line(error)}); install {PACKAGE} again, or "
            "give --runtime cdn or npm"
        ) from error
    folder.mkdir()
    for name in RUNTIME_FILES:
        shutil.copyfile(package / "dist" / name, folder / name)
    return version


def _download(folder: Path) -> Path:
    """The unpacked package, by npm."""
    ways = f"give --runtime cdn, or the folder of an unpacked {PACKAGE}"
    command = ["npm", "pack", f"{PACKAGE}@{VERSION}", "--silent", "--pack-destination", str(folder)]
    try:
        found = shutil.which("npm") or "npm"
        done = subprocess.run([found, *command[1:]], cwd=folder, capture_output=True, text=True, timeout=NPM_SECONDS)
    except FileNotFoundError as error:
        raise InputError(f"--runtime npm: npm is not installed; install Node.js, or {ways}") from error
    except subprocess.TimeoutExpired as error:
        raise InputError(f"--runtime npm: `{' '.join(command[:3])}` took over {NPM_SECONDS} s; {ways}") from error
    packed = list(folder.glob("*.tgz"))
    if done.returncode != 0 or not packed:
        said = one_line(done.stderr or done.stdout) or f"exit code {done.returncode}"
        raise InputError(f"--runtime npm: `{' '.join(command[:3])}` failed ({said}); {ways}")
    return _unpack(packed[0], folder / "package")


def _unpack(packed: Path, folder: Path) -> Path:
    """The files that are needed, and no others, of the archive."""
    with tarfile.open(packed) as archive:
        for name in ("package.json", *(f"dist/{name}" for name in RUNTIME_FILES)):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                source = archive.extractfile(f"package/{name}")
            except KeyError:
                continue  # named by the check that follows
            if source is not None:
                target.write_bytes(source.read())
    return folder

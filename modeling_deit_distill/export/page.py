"""The demo page: an export's folder that a browser opens, without a server that computes.

The page's own files lie in `page/` beside this one; `demo.json` says what is shown. The runtime is the
WebAssembly build of onnxruntime-web, from a CDN or copied into the folder.
"""

import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import PIL.Image

from ..data.unlabelled import NO_FOLDER, FoundImages, RowImages
from ..errors import InputError, one_line
from ..files import read_json, write_json
from .agreement import decoded
from .photograph import Preprocessing, preprocessing_of
from .precisions import Exported, Source

PAGE = Path(__file__).with_name("page")
PAGE_FILES = ("index.html", "demo.js", "photograph.js", "pictures.js", "demo.css")
PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
CDN_HOST = "https://cdn.jsdelivr.net"
VENDORED = "onnxruntime"
# The smallest build that runs our graphs: JavaScript in one file, and its WebAssembly.
RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
EXAMPLES, MOST_EXAMPLES, EXAMPLE_SIDE = "examples", 8, 640
NPM_SECONDS = 600


@dataclass(frozen=True)
class Description:
    """What the page is given.

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


@dataclass(frozen=True)
class Runtime:
    """Where the page loads onnxruntime-web from.

    Attributes:
        version: of the package.
        folder: an address, or a folder in the page's own.
    """

    version: str
    folder: str


FROM_CDN = Runtime(VERSION, f"{CDN_HOST}/npm/{PACKAGE}@{VERSION}/dist/")


def place_runtime(source: str, folder: Path) -> Runtime:
    """Copy onnxruntime-web into `folder/onnxruntime`, unless the page is to load it from the CDN.

    Args:
        source: `"cdn"` (jsDelivr, when the page is opened), `"npm"` (copied by npm, now) or a folder that holds the npm
            package (copied from there).
        folder: of the page.

    Raises:
        InputError: no npm, one that fails, or a folder without the package.
    """
    if source == "cdn":
        return FROM_CDN
    if source != "npm":
        return _copy_package(Path(source), folder / VENDORED)
    with tempfile.TemporaryDirectory() as temporary:
        return _copy_package(_download(Path(temporary)), folder / VENDORED)


def write_page(
    folder: Path,
    description: Description,
    examples: Sequence[tuple[PIL.Image.Image, str | None]] = (),
    runtime: Runtime = FROM_CDN,
):
    """Write `index.html`, its scripts and style, `demo.json` and `examples/`.

    Args:
        folder: an export's, with the files that `description.models` names.
        description: what the page shows.
        examples: images that the visitor can choose, with the true class or None; each is made at most 640 pixels wide
            and high.
        runtime: see [`place_runtime`].
    """
    for name in PAGE_FILES:
        shutil.copyfile(PAGE / name, folder / name)
    if runtime.folder == f"{VENDORED}/":  # then the page need not be allowed to load from the CDN
        page = folder / "index.html"
        page.write_text(page.read_text(encoding="utf-8").replace(f" {CDN_HOST}", ""), encoding="utf-8")
    content = {
        "title": description.title,
        "classes": list(description.classes),
        "models": [_model(folder, each) for each in description.models],
        "resize": description.preprocessing.size,
        "crop": description.preprocessing.crop,
        "examples": _write_examples(folder / EXAMPLES, examples),
        "runtime": asdict(runtime),
    }
    write_json(folder / "demo.json", content)


def write_demo(
    source: Source, folder: Path, title: str, exported: Sequence[Exported], runtime: Runtime = FROM_CDN
) -> int:
    """Write the page beside an export, with a few of the images that its decisions were compared on.

    Args:
        source: what was exported.
        folder: the export's.
        title: of the page.
        exported: its files.
        runtime: see [`place_runtime`].

    Returns:
        How many images are shown.
    """
    classes = [label for _, label in sorted(source.model.config.id2label.items())]
    examples = choose_examples(source.images, source.rows, classes) if source.rows else ()
    write_page(folder, Description(title, classes, exported, preprocessing_of(source.processor)), examples, runtime)
    return len(examples)


def choose_examples(
    images: FoundImages | RowImages, rows: Sequence[int], classes: Sequence[str]
) -> list[tuple[PIL.Image.Image, str | None]]:
    """At most 8 of the images, evenly spaced, each with its class if the folder that it lies in has the name of one.

    Args:
        images, rows: see [`chosen_images`].
        classes: names.
    """
    number = min(len(rows), MOST_EXAMPLES)
    chosen = []
    for row, image in decoded(images, [rows[place * len(rows) // number] for place in range(number)]):
        name = images.folder_names[images.folders[row]] if images.folders[row] != NO_FOLDER else None
        chosen.append((image, name if name in classes else None))
    return chosen


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


def _copy_package(package: Path, folder: Path) -> Runtime:
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
            f"--runtime {package}: its package.json has no version ({one_line(error)}); install {PACKAGE} again, or "
            "give --runtime cdn or npm"
        ) from error
    folder.mkdir()
    for name in RUNTIME_FILES:
        shutil.copyfile(package / "dist" / name, folder / name)
    return Runtime(version, f"{folder.name}/")


def _download(folder: Path) -> Path:
    """The unpacked package, by npm."""
    command, other = f"npm pack {PACKAGE}@{VERSION}", f"give --runtime cdn, or the folder of an unpacked {PACKAGE}"
    npm = shutil.which("npm")
    if npm is None:
        raise InputError(f"--runtime npm: npm is not installed; install Node.js, or {other}")
    words = [npm, *command.split()[1:], "--silent", "--pack-destination", str(folder)]
    try:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=NPM_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise InputError(f"--runtime npm: `{command}` took more than {NPM_SECONDS} s; {other}") from error
    packed = list(folder.glob("*.tgz"))
    if done.returncode != 0 or not packed:
        said = done.stderr.strip() or f"exit code {done.returncode}, {len(packed)} archives"
        raise InputError(f"--runtime npm: `{command}` failed ({one_line(ValueError(said))}); {other}")
    try:
        return _unpack(packed[0], folder / "package")
    except (tarfile.TarError, KeyError, EOFError) as error:
        raise InputError(f"--runtime npm: `{command}` brought a broken archive ({one_line(error)}); {other}") from error


def _unpack(packed: Path, folder: Path) -> Path:
    """The files that are needed, and no others, of the archive."""
    with tarfile.open(packed) as archive:
        for name in ("package.json", *(f"dist/{name}" for name in RUNTIME_FILES)):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.extractfile(f"package/{name}").read())
    return folder

"""What an output folder holds: the files of a run by name, and its checkpoints, whole or not.

`all_results.json` is written last: a folder with it holds a finished run. `complete.json` is written last into a
checkpoint: it lists the other files with their checksums, so one that a kill cut off is recognised.
"""

import contextlib
import json
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from safetensors import SafetensorError

from .errors import InputError, LocalInputError, one_line
from .files import crc32, flush, write_json

RESULTS = "all_results.json"
STATE = "trainer_state.json"
RUN_RECORD = "run.json"  # what the card tells of how the model was made
DECISIONS = "predictions.json"  # on the held-out images, by head
IMAGES = "images.json"  # by name, see `data.listing`
ASKED = "asked.json"  # how many answers the teacher's store had before the run
TOKENS = "tokens.json"  # as of `analysis.describe_tokens`
CARD = "README.md"
CURVES = "training_curves.png"
PREDICTIONS = "predictions.png"
MISTAKES = "mistakes.png"
CONFUSION = "confusion.png"
PICTURES = (CURVES, PREDICTIONS, MISTAKES, CONFUSION)  # of the card
ANSWERS = "predictions.csv"  # on the held-out images, with their paths: never pushed
INTERRUPTED = "interrupted.json"
LOG = "train_log.jsonl"  # what Trainer logs, of the teacher's training too
BROWSER = "browser"  # the folder of an export for browsers
OWN_STORE = "answers"  # a teacher's answers about repeated views, where no teacher_store is given
TEACHER = "teacher"  # the folder of a teacher that the run trained itself
PARTIAL_TEACHER = "teacher.partial"  # while it is trained
# What a repository is made of, by name, since whatever else lies in a run's folder may be anything; `training_args.bin`
# above all, which is a pickle. Of an earlier commit none of these stays that a later one does not bring along.
PUBLISHED = (
    "config.json",
    "configuration_deit_distill.py",
    "modeling_deit_distill.py",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "preprocessor_config.json",
    CARD,
    *PICTURES,
    RUN_RECORD,
    STATE,
    RESULTS,
    DECISIONS,
    TOKENS,
)

MANIFEST = "complete.json"
CHECKPOINT_PREFIX = "checkpoint-"
REMOVING, REPLACED = "_removing-", "_replaced-"
EARLIER_SAVING = "_saving-"  # where earlier versions wrote a checkpoint before they renamed it
MODEL_ALONE = "it holds the model alone (save_only_model), so that no training can go on from it"
# Not needed to resume, never read, and never pushed.
NOT_LISTED = (MANIFEST, "training_args.bin")


def read_run_file(path: Path) -> dict:
    """The JSON that a run wrote, or {} if there is none; what anybody wrote is read by `files.read_json`.

    Raises:
        InputError: no JSON, or no names with values.
    """
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read ({one_line(error)}); remove it") from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{str(path)!r} is no JSON ({one_line(error)}); remove it or run the training again"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{str(path)!r} holds a {type(content).__name__}, not names with values; remove it")
    return content


def check_contents(output_dir: str | Path, is_cleared: bool):
    """Refuse files of other programs under the names of a run's files, before they stop the run at its end.

    Args:
        output_dir: of the run.
        is_cleared: whether what an earlier run published is removed before training; its content does not matter.

    Raises:
        InputError: a folder where a file belongs, or a file that a run has not written.
    """
    others = (IMAGES, ASKED, INTERRUPTED)
    for path in sorted(path for pattern in (*PUBLISHED, *others) for path in Path(output_dir).glob(pattern)):
        if path.is_dir():
            raise InputError(
                f"{str(path)!r} is a folder, and a run writes a file of that name; move it away, or choose another "
                "--output_dir"
            )
        if path.suffix == ".json" and (path.name in others or not is_cleared):
            read_run_file(path)


def results_of(output_dir: str | Path) -> dict | None:
    """The results of a finished run; None if the folder holds none."""
    path = Path(output_dir, RESULTS)
    return read_run_file(path) if path.exists() else None


def checkpoint_folder(output_dir: str | Path, step: int) -> Path:
    """The folder of the checkpoint of a step."""
    return Path(output_dir, f"{CHECKPOINT_PREFIX}{step}")


def is_checkpoint(folder: str | Path, output_dir: str | Path) -> bool:
    """Whether a folder is named as a checkpoint of a run is."""
    folder = Path(folder)
    number = folder.name.removeprefix(CHECKPOINT_PREFIX)
    return folder.parent.absolute() == Path(output_dir).absolute() and number != folder.name and number.isdigit()


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoints of a run, whole or not, in the order of their steps."""
    found = Path(output_dir).glob(f"{CHECKPOINT_PREFIX}*")
    return sorted((path for path in found if path.name.removeprefix(CHECKPOINT_PREFIX).isdigit()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint: by its name, or by its state where the name has none (the Hub's `last-checkpoint`)."""
    number = checkpoint.name.removeprefix(CHECKPOINT_PREFIX)
    return int(number) if number.isdigit() else json.loads((checkpoint / STATE).read_text())["global_step"]


def begin_checkpoint(checkpoint: Path):
    """Make the folder of a checkpoint that is about to be written.

    The empty `complete.json` marks it as unfinished until [`commit_checkpoint`]. One of the same step is kept aside
    until then: after a kill [`remove_unfinished_checkpoints`] puts it back.
    """
    if checkpoint.exists():
        replaced = checkpoint.with_name(f"{REPLACED}{checkpoint.name}")
        shutil.rmtree(replaced, ignore_errors=True)
        checkpoint.rename(replaced)
    write_json(checkpoint / MANIFEST, {})


def commit_checkpoint(
    checkpoint: Path, agreed: dict[str, object], best: Path | None = None, hardware: dict[str, str] | None = None
):
    """Make a folder a checkpoint: flush every file, then list them with sizes and checksums in `complete.json`.

    CRC-32 is no protection from somebody who changes files on purpose; loading without code is (`weights_only`).

    Args:
        checkpoint: its folder, in which all other files are written.
        agreed: what a run that goes on from it must have in common with this one.
        best: the best checkpoint of the run so far, if there is one.
        hardware: what each part of the run was computed on, see `hardware.hardware_by_step`.
    """
    paths = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    files = {
        path.relative_to(checkpoint).as_posix(): {"bytes": path.stat().st_size, "crc32": crc32(path)}
        for path in paths
        if path.name not in NOT_LISTED
    }
    for path in (*paths, *(path for path in checkpoint.rglob("*") if path.is_dir())):
        flush(path)
    manifest = {"format": 1, "facts": agreed, "best": None if best is None else best.name, "files": files}
    write_json(checkpoint / MANIFEST, {**manifest, "hardware": hardware or {}})
    for path in (checkpoint / MANIFEST, checkpoint, checkpoint.parent):
        flush(path)
    shutil.rmtree(checkpoint.with_name(f"{REPLACED}{checkpoint.name}"), ignore_errors=True)


def agreed_in(checkpoint: Path) -> dict[str, object]:
    """What a whole checkpoint says that a run must have in common with it; {} for one of an earlier version."""
    return read_run_file(checkpoint / MANIFEST).get("facts", {})


def hardware_in(checkpoint: Path | str | None) -> dict[str, str]:
    """What each part of a run up to a whole checkpoint was computed on; {} of an earlier version, or without one."""
    return {} if checkpoint is None else read_run_file(Path(checkpoint, MANIFEST)).get("hardware", {})


def best_in(checkpoint: Path) -> str | None:
    """The name of the best checkpoint of a run when a whole one was saved; None without one, or if nobody knows."""
    return read_run_file(checkpoint / MANIFEST).get("best")


def damage(checkpoint: Path, contents: bool = True) -> str | None:
    """What is wrong with a checkpoint, in words; None if one can resume from it.

    One without `complete.json` (of an earlier version, or of another trainer) is taken if what is needed is there.

    Args:
        checkpoint: its folder.
        contents: compare checksums too, which reads every file.
    """
    if not checkpoint.is_dir():
        return "there is no such folder"
    if _is_unfinished(checkpoint):
        return "its saving was interrupted"
    try:
        json.loads((checkpoint / STATE).read_text())["global_step"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{STATE} is missing or cut off"
    is_model_alone = not any(checkpoint.glob("optimizer*"))
    if is_model_alone and "optimizer" in _listed(checkpoint):
        return "it has no optimiser's state"
    if not (checkpoint / MANIFEST).exists():
        missing = (name for name in ("model.safetensors", "config.json") if not (checkpoint / name).exists())
        return next((f"{name} is missing" for name in missing), None)
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        files, _ = manifest["files"], dict(manifest["facts"])
        found = (_file_damage(checkpoint / name, kept, contents) for name, kept in files.items())
        return next((words for words in found if words), MODEL_ALONE if is_model_alone else None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"


def _listed(checkpoint: Path) -> str:
    """The names of the files that a checkpoint should have; an optimiser's, if nobody knows."""
    try:
        return " ".join(json.loads((checkpoint / MANIFEST).read_text())["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return "optimizer"


def last_complete(output_dir: str | Path, contents: bool = True) -> tuple[Path | None, dict[Path, str]]:
    """The last checkpoint that is whole, and what is wrong with those after it; see [`damage`]."""
    passed_over = {}
    for checkpoint in reversed(list_checkpoints(output_dir)):
        words = damage(checkpoint, contents)
        if words is None:
            return checkpoint, passed_over
        passed_over[checkpoint] = words
    return None, passed_over


def remove_old_checkpoints(output_dir: str | Path, limit: int | None, keep: set[Path], first: Collection[Path] = ()):
    """Remove checkpoints beyond `limit`: damaged ones, then those of `first`, then the oldest; never those to keep.

    Trainer's own rotation sorts by the time of modification, for which a damaged one may be the newest.
    """
    if limit is None or limit <= 0:
        return

    def order(path: Path) -> tuple[bool, bool, int]:
        """What goes first sorts lowest."""
        is_whole = damage(path, contents=False) in (None, MODEL_ALONE)
        return is_whole, path not in first, step_of(path)

    removable = sorted((path for path in list_checkpoints(output_dir) if path not in keep), key=order)
    for checkpoint in removable[: max(len(removable) + len(keep) - limit, 0)]:
        remove_checkpoint(checkpoint)


def remove_checkpoint(checkpoint: Path):
    """Remove a checkpoint; renamed first, since half of one is never to be found."""
    removing = checkpoint.with_name(f"{REMOVING}{checkpoint.name}")
    shutil.rmtree(removing, ignore_errors=True)
    checkpoint.rename(removing)
    shutil.rmtree(removing, ignore_errors=True)


def unfinished_checkpoints(output_dir: str | Path) -> list[Path]:
    """Checkpoints whose writing has begun and not ended."""
    return [path for path in list_checkpoints(output_dir) if _is_unfinished(path)]


def remove_unfinished_checkpoints(output_dir: str | Path, goes_on: bool = True):
    """Remove what a kill left of checkpoints that were being written or removed.

    Args:
        output_dir: of the run.
        goes_on: put back what was to be replaced by one of the same step; not for a run that starts again.
    """
    leftovers = [path for prefix in (EARLIER_SAVING, REMOVING) for path in Path(output_dir).glob(f"{prefix}*")]
    for checkpoint in unfinished_checkpoints(output_dir):
        remove_checkpoint(checkpoint)
    for path in leftovers:
        shutil.rmtree(path, ignore_errors=True)
    for replaced in Path(output_dir).glob(f"{REPLACED}*"):
        checkpoint = replaced.with_name(replaced.name.removeprefix(REPLACED))
        if goes_on and not checkpoint.exists():
            replaced.rename(checkpoint)
        shutil.rmtree(replaced, ignore_errors=True)


@contextlib.contextmanager
def disk_errors_explained(output_dir: str | Path, what: str) -> Iterator[None]:
    """A full disk, and whatever else the disk refuses, as one line that names what is safe.

    Raises:
        LocalInputError: instead of what the libraries raise, each in its own words.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        # torch.save's own words for what the disk refuses.
        is_torchs = "PytorchStreamWriter" in str(error) or "inline_container" in str(error)
        if isinstance(error, RuntimeError) and not is_torchs:
            raise
        kept = last_complete(output_dir, contents=False)[0]
        remedy = "there is no earlier checkpoint; make room, or choose another --output_dir"
        if kept is not None:
            remedy = f"{kept.name} is intact: make room, then go on with --resume_from_checkpoint true"
        words = f"{what} cannot be written to {output_dir}, whose disk may be full ({one_line(error)})"
        raise LocalInputError(f"{words}; {remedy}") from error


def _is_unfinished(checkpoint: Path) -> bool:
    try:
        return json.loads((checkpoint / MANIFEST).read_text()) == {}
    except (OSError, ValueError):
        return False


def _file_damage(path: Path, kept: dict, contents: bool) -> str | None:
    if not path.exists():
        return f"{path.name} is missing"
    size = path.stat().st_size
    if size != kept["bytes"]:
        return f"{path.name} has {size:,} bytes instead of {kept['bytes']:,}"
    if contents and (found := crc32(path)) != kept["crc32"]:
        return f"{path.name} has changed since it was written (checksum {found}, not {kept['crc32']})"
    return None

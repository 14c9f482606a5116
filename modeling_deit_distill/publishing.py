"""A run on the Hub: each commit is one whole checkpoint with its code and card, and a failed push can be repeated."""

import json
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi

from .card_pictures import CURVES, plot_training_curves
from .conversion import load_checkpoint, save_native
from .hub import with_retries
from .model_card import write_model_card

# What a repository is made of. A list of what may go, since whatever else lies in a run's folder may be anything;
# `training_args.bin` above all, which is a pickle.
PUBLISHED = (
    "config.json",
    "*.py",
    "model*.safetensors",
    "model.safetensors.index.json",
    "preprocessor_config.json",
    "processor_config.json",
    "README.md",
    "*.png",
    "run.json",
    "trainer_state.json",
    "all_results.json",
    "predictions.json",
)
NEVER_PUBLISHED = ("training_args.bin",)
NATIVE_REVISION = "native"
STAGE_PREFIX = "_push-"


@dataclass(frozen=True)
class Destination:
    """Where to push: a repository, a token (None: the one logged in with), a branch (None: main)."""

    repo_id: str
    token: str | None = field(default=None, repr=False)
    revision: str | None = None


def open_repository(
    name: str, token: str | None = None, private: bool | None = None, revision: str | None = None
) -> Destination:
    """Make a repository and a branch, or find them.

    Args:
        name: `owner/name`, or a name of one's own.
        private: of a new repository; None for the owner's default.

    Raises:
        InputError: the Hub refuses, or five tries failed.
    """
    api = HfApi(token=token)
    url = with_retries(lambda: api.create_repo(name, private=private, exist_ok=True), f"creation of {name!r}")
    if revision is not None:
        _make_branch(api, url.repo_id, revision)
    return Destination(url.repo_id, token, revision)


def push_run(output_dir: str | Path, destination: Destination, message: str, native: bool = False) -> CommitInfo:
    """Push what a run left, its native export first: the card then never promises what is not there.

    Raises:
        InputError: the Hub refuses, five tries failed, or the fusion permits no native export.
    """
    if native:
        push_native(output_dir, destination)
    return push(stage_run(output_dir), destination, message)


def stage_run(output_dir: str | Path) -> Path:
    """A copy of what is published of a run's folder, in a folder within it that `push` removes."""
    output_dir = Path(output_dir)
    stage = Path(tempfile.mkdtemp(prefix=STAGE_PREFIX, dir=output_dir))
    _copy_published(output_dir, stage)
    return stage


def stage_checkpoint(checkpoint: str | Path, output_dir: str | Path, path_in_repo: str | None = None) -> Path:
    """A copy of a checkpoint as it is published, since training goes on and may remove it; `push` removes the copy.

    Args:
        checkpoint: the folder of a checkpoint, complete.
        output_dir: that of its run.
        path_in_repo: where the whole of it goes besides, to be resumed from; None for nowhere.
    """
    checkpoint, output_dir = Path(checkpoint), Path(output_dir)
    stage = Path(tempfile.mkdtemp(prefix=STAGE_PREFIX, dir=output_dir))
    _copy_published(checkpoint, stage)
    if (output_dir / "run.json").exists():
        shutil.copy(output_dir / "run.json", stage)
    if path_in_repo is not None:
        shutil.copytree(checkpoint, stage / path_in_repo, ignore=shutil.ignore_patterns(*NEVER_PUBLISHED))
    return stage


def push_stage_of_checkpoint(stage: Path, destination: Destination, message: str, path_in_repo: str | None = None):
    """Add curves and card to a staged checkpoint and push it: one commit, so never a mixture of two checkpoints."""
    state = json.loads((stage / "trainer_state.json").read_text())
    plot_training_curves(state["log_history"], stage / CURVES)
    write_model_card(stage)
    # Of an earlier checkpoint under the same name nothing is to remain.
    return push(stage, destination, message, replaced=None if path_in_repo is None else f"{path_in_repo}/*")


def push(stage: Path, destination: Destination, message: str, replaced: str | None = None) -> CommitInfo:
    """Upload a staged folder as one commit, and remove the folder.

    Args:
        replaced: pattern of the repository's files that go unless the folder holds them.

    Raises:
        InputError: the Hub refuses, or five tries failed.
    """
    api = HfApi(token=destination.token)
    try:
        return with_retries(
            lambda: api.upload_folder(
                repo_id=destination.repo_id,
                folder_path=stage,
                commit_message=message,
                revision=destination.revision,
                delete_patterns=replaced,
            ),
            f"push to {destination.repo_id!r}",
        )
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def push_native(output_dir: str | Path, destination: Destination) -> CommitInfo:
    """Push the model as transformers' own class to the branch `native`, which holds nothing else but the card.

    Raises:
        InputError: as `push`, or a fusion that transformers' classes cannot compute.
    """
    output_dir = Path(output_dir)
    stage = Path(tempfile.mkdtemp(prefix=STAGE_PREFIX, dir=output_dir))
    save_native(load_checkpoint(str(output_dir)), stage)
    for path in (output_dir / "README.md", *output_dir.glob("*.png")):
        if path.exists():
            shutil.copy(path, stage)
    _make_branch(HfApi(token=destination.token), destination.repo_id, NATIVE_REVISION)
    branch = Destination(destination.repo_id, destination.token, NATIVE_REVISION)
    return push(stage, branch, "Export to transformers' own class", replaced="*")


def clear_stages(output_dir: str | Path):
    """Remove what a killed run had staged."""
    for stage in Path(output_dir).glob(f"{STAGE_PREFIX}*"):
        shutil.rmtree(stage, ignore_errors=True)


def _make_branch(api: HfApi, repo_id: str, branch: str):
    action = f"creation of the branch {branch!r} of {repo_id!r}"
    with_retries(lambda: api.create_branch(repo_id, branch=branch, exist_ok=True), action)


def _copy_published(source: Path, stage: Path):
    for pattern in PUBLISHED:
        for path in source.glob(pattern):
            shutil.copy(path, stage)
    state = stage / "trainer_state.json"
    if state.exists():  # it names a folder of this machine
        content = {**json.loads(state.read_text()), "best_model_checkpoint": None}
        state.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")

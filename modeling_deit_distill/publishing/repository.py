"""A run on the Hub: each commit is one whole checkpoint with its code and card, and a failed push can be repeated."""

import functools
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitInfo

from ..arguments import BROWSER_REVISION, NATIVE_REVISION, DistillationTrainingArguments
from ..conversion.checkpoint import load_checkpoint
from ..conversion.saving import save_native
from ..export.browser import LAYOUT, write_browser_card
from ..files import write_json
from ..hub import HubUnavailable, hub_client, with_retries
from ..output_folder import CARD, MANIFEST, PICTURES, PUBLISHED, RUN_RECORD, STATE, read_run_file
from .browser import browser_export_of, name_of, write_space_card
from .card import write_card_and_curves
from .places import demo_of

logger = logging.getLogger(__name__)

STAGE_PREFIX = "_push-"
# Seconds that a run waits for its repository before it trains, and that its end waits for it.
OPENING = 60.0


@dataclass(frozen=True)
class Destination:
    """Where to push: a repository, a token (None: the one logged in with), a branch (None: main)."""

    repo_id: str
    token: str | None = field(default=None, repr=False)
    revision: str | None = None


@dataclass(frozen=True)
class Commit:
    """A staged folder, and which files of the branch go unless it holds them."""

    stage: Path
    message: str
    replaced: tuple[str, ...] = PUBLISHED
    revision: str | None = None  # a branch instead of the destination's
    is_demo: bool = False  # goes to the Space beside the destination


def open_repository(
    name: str,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    max_wait: float = OPENING,
) -> Destination:
    """Make a repository and a branch, or find them; `private` is for a new one, None leaves it to the owner's default.

    Args:
        max_wait: seconds in which the Hub must have answered; a minute at most.

    Raises:
        HubUnavailable: no answer by then, or five tries failed.
        InputError: the Hub refuses.
    """
    api, until = hub_client(token), time.monotonic() + min(max_wait, OPENING)
    create = functools.partial(api.create_repo, name, private=private, exist_ok=True)
    url = with_retries(create, f"creation of {name!r}", until)
    if revision is not None:
        _make_branch(api, url.repo_id, revision, until)
    return Destination(url.repo_id, token, revision)


def open_repository_of(args: DistillationTrainingArguments) -> Destination | None:
    """The repository that a run is to be pushed to; on the main process, if any push is asked for.

    Raises:
        HubUnavailable: no answer, or five tries failed.
        InputError: the Hub refuses.
    """
    if not args.push_to_hub or args.process_index != 0:
        return None
    name = args.hub_model_id or Path(args.output_dir).absolute().name
    return open_repository(name, args.hub_token, args.hub_private_repo, args.hub_revision, args.hub_max_wait)


def try_repository_of(args: DistillationTrainingArguments):
    """Open the repository before any training, where a wrong name or token is to show; said where there is no answer.

    Raises:
        InputError: the Hub refuses.
    """
    with going_on_without_the_hub():
        open_repository_of(args)


@contextmanager
def going_on_without_the_hub() -> Iterator[None]:
    """Around what is not needed before the end of a run: without an answer, that is said and it goes on."""
    try:
        yield
    except HubUnavailable as error:
        logger.warning("%s. Training goes on, and the push is tried again later", error)


def stage_run(output_dir: str | Path, message: str, copies: Collection[str] = ()) -> list[Commit]:
    """Copies of what is published of a run's folder, to be pushed in this order by `push_all`.

    The `copies`, of `STAGE_COPY`, come first, so that the card never promises what is not there.

    Raises:
        InputError: a fusion that transformers' classes cannot compute.
    """
    output_dir = Path(output_dir)
    commits = []
    try:
        commits += (STAGE_COPY[copy](output_dir) for copy in copies)
        with _new_stage(output_dir) as stage:
            _stage_published(output_dir, stage)
            return [*commits, Commit(stage, message)]
    except BaseException:
        for commit in commits:
            shutil.rmtree(commit.stage, ignore_errors=True)
        raise


def stage_checkpoint(checkpoint: Path, output_dir: Path, message: str, path_in_repo: str | None = None) -> Commit:
    """A copy of a checkpoint as it is published, since training goes on and may remove it; files are linked.

    The whole of it goes to `path_in_repo` besides, if given, to be resumed from.
    """
    with _new_stage(output_dir) as stage:
        _stage_published(checkpoint, stage, copy=_link)
        if (output_dir / RUN_RECORD).exists():
            shutil.copy(output_dir / RUN_RECORD, stage)
        if path_in_repo is None:
            return Commit(stage, message)
        ignored = shutil.ignore_patterns("training_args.bin")  # a pickle, which may hold anything
        shutil.copytree(checkpoint, stage / path_in_repo, ignore=ignored, copy_function=_link)
        if _hide_folder(stage / path_in_repo / STATE):  # of an earlier version
            (stage / path_in_repo / MANIFEST).unlink(missing_ok=True)  # it would tell of a changed file
        return Commit(stage, message, (*PUBLISHED, f"{path_in_repo}/*"))


def push_checkpoint(commit: Commit, destination: Destination, until: float | None = None) -> CommitInfo:
    """Add curves and card to a staged checkpoint and push it: one commit, so never a mixture of two checkpoints."""
    try:
        write_card_and_curves(commit.stage)
        return push_all([commit], destination, until)
    finally:
        shutil.rmtree(commit.stage, ignore_errors=True)


def push_all(commits: list[Commit], destination: Destination, until: float | None = None) -> CommitInfo:
    """Upload staged folders, each as one commit, one after the other, and remove them; the last commit.

    Args:
        until: no try begins after it, by `time.monotonic`.

    Raises:
        HubUnavailable: five tries failed, or the last before `until`. The push can be repeated.
        InputError: the Hub refuses. The run's folder is whole.
    """
    api = hub_client(destination.token)
    try:
        for commit in commits:
            pushed = _push(api, commit, destination, until)
        return pushed
    finally:
        for commit in commits:
            shutil.rmtree(commit.stage, ignore_errors=True)


def _push(api, commit: Commit, destination: Destination, until: float | None) -> CommitInfo:
    """Upload one staged folder as one commit, to the destination or to the Space beside it."""
    where = {"repo_id": destination.repo_id, "revision": commit.revision or destination.revision}
    if commit.is_demo:
        where = {"repo_id": demo_of(destination.repo_id), "repo_type": "space"}
        look = functools.partial(api.model_info, destination.repo_id)
        private = with_retries(look, f"a look at {destination.repo_id!r}", until).private  # as the model is
        create = functools.partial(api.create_repo, **where, space_sdk="static", private=private, exist_ok=True)
        with_retries(create, f"creation of the Space {where['repo_id']!r}", until)
        look = functools.partial(api.space_info, where["repo_id"])
        if private and not with_retries(look, f"a look at {where['repo_id']!r}", until).private:  # it was there already
            logger.warning(
                "the Space %s is public and its model is private: anybody can see the page, the model in it and its "
                "held-out images. Make it private in its settings, or leave out --push_demo",
                where["repo_id"],
            )
    elif commit.revision is not None:
        _make_branch(api, destination.repo_id, commit.revision, until)
    upload = functools.partial(
        api.upload_folder,
        **where,
        folder_path=commit.stage,
        commit_message=commit.message,
        delete_patterns=list(commit.replaced),
    )
    return with_retries(upload, f"push to {where['repo_id']!r}", until)


def clear_stages(output_dir: str | Path):
    """Remove what a killed run had staged."""
    for stage in Path(output_dir).glob(f"{STAGE_PREFIX}*"):
        shutil.rmtree(stage, ignore_errors=True)


def _make_branch(api, repo_id: str, branch: str, until: float | None):
    action = f"creation of the branch {branch!r} of {repo_id!r}"
    with_retries(lambda: api.create_branch(repo_id, branch=branch, exist_ok=True), action, until)


@contextmanager
def _new_stage(output_dir: Path) -> Iterator[Path]:
    """A new folder, which does not outlive a failure to fill it."""
    stage = Path(tempfile.mkdtemp(prefix=STAGE_PREFIX, dir=output_dir))
    try:
        yield stage
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise


def _stage_native(output_dir: Path) -> Commit:
    """The model as transformers' own class, for the branch `native`, which holds nothing else but the card."""
    with _new_stage(output_dir) as stage:
        save_native(load_checkpoint(str(output_dir)), stage)
        for name in (CARD, *PICTURES):
            if (output_dir / name).exists():
                shutil.copy(output_dir / name, stage)
        return Commit(stage, "Export to transformers' own class", ("*",), NATIVE_REVISION)


def _stage_browser(output_dir: Path) -> Commit:
    """The export for browsers, for the branch `browser`: its image processor does nothing, so it stands alone."""
    folder = browser_export_of(output_dir)
    with _new_stage(output_dir) as stage:
        for pattern in LAYOUT:
            for path in folder.glob(pattern):
                (stage / path.relative_to(folder)).parent.mkdir(exist_ok=True)
                _link(path, stage / path.relative_to(folder))
        write_browser_card(stage, name_of(output_dir), BROWSER_REVISION)
        return Commit(stage, "Export for browsers", ("*",), BROWSER_REVISION)


def _stage_demo(output_dir: Path) -> Commit:
    """The page that classifies photographs, with its model: a Space of its own."""
    folder = browser_export_of(output_dir)
    with _new_stage(output_dir) as stage:
        # Its card becomes another, and a file that is linked would be another too.
        ignored = shutil.ignore_patterns(CARD)
        shutil.copytree(folder, stage, ignore=ignored, copy_function=_link, dirs_exist_ok=True)
        write_space_card(stage, name_of(output_dir))
        return Commit(stage, "Demo", ("*",), is_demo=True)


# What a run can push besides its model, and how each is staged.
STAGE_COPY = {"native": _stage_native, "browser": _stage_browser, "demo": _stage_demo}


def _stage_published(source: Path, stage: Path, copy=shutil.copy):
    for pattern in PUBLISHED:
        for path in source.glob(pattern):
            copy(path, stage / path.name)
    _hide_folder(stage / STATE)


def _link(source, target):
    # A checkpoint's files are never written again, and a queue of copies could fill the disk.
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)


def _hide_folder(state: Path) -> bool:
    """Whether a `trainer_state.json` named a folder of this machine; now it does not."""
    content = read_run_file(state)
    if content.get("best_model_checkpoint") is None:
        return False
    write_json(state, {**content, "best_model_checkpoint": None})  # a new file: it may be a link to the checkpoint's
    return True

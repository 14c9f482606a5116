"""Look into a teacher store, check it against the live teacher, share it: `python -m modeling_deit_distill.store_cli`.

info STORE                what the answers are about, how many there are
verify STORE              ask the live teacher again about a sample
combine STORE STORE ...   what several teachers say together, from their stores
upgrade STORE             give a store of an earlier version its checksums
push STORE REPOSITORY     to a dataset repository on the Hub, with checksums and a card
pull REPOSITORY STORE     from there
"""

import argparse
import functools
import inspect
import json
import re
import sys
from pathlib import Path

import torch
from huggingface_hub import CommitOperationAdd, HfApi

from ..arguments import ModelArguments
from ..data.datasets import ViewDataset
from ..data.sources import ImageData, load_image_data
from ..data.views import AugmentationSettings
from ..errors import InputError, one_line, printable
from ..files import read_json, sha256, without_folders
from ..hub import hub_client, tell_retries_once, with_retries
from ..report import counted, summary_table
from .agreement import of_teacher
from .combining import HARD, combine, know_data_alike
from .ensemble import load_teachers
from .labelling import verify, whole_sampler
from .store import DESCRIPTION, VALIDATION, TeacherStore, described, in_words
from .upgrade import upgrade

CHECKSUMS = "checksums.json"
# What a store consists of; nothing else that a repository names is written or removed.
STORE_FILE = re.compile(rf"{re.escape(DESCRIPTION)}|{re.escape(VALIDATION)}|epoch-\d{{5,}}\.bin")
DATA_SOURCES = ("dataset_name", "train_dir", "validation_dir", "train_csv", "validation_csv")
# Another device or another precision of the same teacher decides a view in a hundred otherwise.
MIN_ALIKE = 0.98


def main(arguments: list[str]) -> int:
    """Run one of the commands; its exit code."""
    tell_retries_once()
    options = parse_options(arguments)
    return options.command(options) or 0


def parse_options(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m modeling_deit_distill.store_cli", description=__doc__.split(":")[0]
    )
    commands = parser.add_subparsers(required=True, metavar="info | verify | combine | upgrade | push | pull")
    info = commands.add_parser("info", help="what the answers are about, how many there are")
    check = commands.add_parser("verify", help="ask the live teacher again about a sample")
    join = commands.add_parser("combine", help="what several teachers say together, from their stores")
    join.add_argument("stores", nargs="+", metavar="store", help="folders of two or more stores about the same views")
    join.add_argument("--output", required=True, help="folder of the new store")
    join.set_defaults(command=combine_stores)
    renew = commands.add_parser("upgrade", help="give a store of an earlier version its checksums")
    push = commands.add_parser("push", help="upload to a dataset repository on the Hub")
    pull = commands.add_parser("pull", help="fetch from a dataset repository on the Hub")
    pull.add_argument("repository", help="name of the dataset repository, e.g. me/regnet-answers")
    each_command = {info: show, check: check_answers, renew: upgrade_store, push: push_store, pull: pull_store}
    for each, command in each_command.items():
        each.set_defaults(command=command)
        each.add_argument("store", help="folder of the store")
    push.add_argument("repository", help="name of the dataset repository, e.g. me/regnet-answers")
    push.add_argument("--private", action="store_true", help="make a new repository private")
    pull.add_argument("--revision", help="branch, tag or commit")
    check.add_argument("--num_samples", type=int, default=256, help="views to ask about again")
    words = "the label map the store was made with, if any; of several teachers one each, `none` for no map"
    check.add_argument("--teacher_label_map", nargs="+", help=words)
    moved = "if moved since the store was made"
    check.add_argument("--teacher_name_or_path", nargs="+", help=f"the teacher, or all of several, {moved}")
    for name in (*DATA_SOURCES, "unlabeled_dir"):
        check.add_argument(f"--{name}", help=f"the images, {moved}")
        join.add_argument(f"--{name}", help=f"the images, {moved}; read if one of the stores is of an earlier version")
    check.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to ask")
    check.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the teacher")
    return parser.parse_args(arguments)


def show(options: argparse.Namespace) -> int:
    """Print fingerprint, coverage and size; 1 if something is damaged."""
    store = TeacherStore(options.store)
    print(summary_table(describe(store, store.about)))
    return report_damage(store)


def report_damage(store: TeacherStore) -> int:
    """Say what was found damaged; 1 if anything was."""
    if store.damaged:
        print(f"error: {printable(store.damage())}; a run that names the teacher asks again", file=sys.stderr)
    return int(bool(store.damaged))


def describe(store: TeacherStore, about: dict[str, object]) -> dict[str, object]:
    """What a store holds, in words; `about` is the store's, or what of it is for the public."""
    counts = [store.count(epoch) for epoch in store.epochs()]
    size = sum(path.stat().st_size for path in store.directory.iterdir() if path.is_file())
    known = f"{sum(counts):,} of at most {store.num_views * len(counts):,}" if counts else "none"
    validation = store.validation()
    accuracy = "not asked" if validation is None else f"{validation['accuracy']:.2%}"
    fields = {name: value for name, value in store.fingerprint.items() if name not in ("label_map", "teacher_training")}
    return {
        "teacher": in_words(about.get("teacher")),
        "made": about.get("created"),
        "views known": f"{known}, {len(counts)} epoch(s)",
        "size": f"{size:,} bytes, {store.dtype.itemsize} a view",
        "teacher on validation": accuracy,
        **({"damaged": store.damage()} if store.damaged else {}),
        **fields,
    }


def check_answers(options: argparse.Namespace) -> int:
    """Ask the live teacher again; 1 if it disagrees with the store."""
    store = TeacherStore(options.store)
    if not store.epochs():
        raise InputError(f"{options.store} holds no answers yet; there is nothing to verify")
    if store.fingerprint.get("combined"):
        raise InputError(f"{options.store} was combined from other stores, no teacher gives its answers; verify those")
    if options.num_samples < 1:
        raise InputError(f"num_samples is {options.num_samples}; it must be at least 1")
    views, class_names = stored_views(store, options)
    name_or_path = options.teacher_name_or_path or store.about.get("teacher")
    if name_or_path is None:
        raise InputError(f"{options.store} does not say what its teacher is called; give --teacher_name_or_path")
    weights = store.fingerprint["teacher_weights"]
    number, named = (len(each) if isinstance(each, list) else 1 for each in (weights, name_or_path))
    if number != named:
        raise InputError(
            f"{options.store} holds the answers of {counted(number, 'teacher')}, {named} named here; name what it was "
            f"made with ({in_words(store.about.get('teacher'))}), in this order"
        )
    model_args = ModelArguments(
        teacher_name_or_path=name_or_path,
        teacher_label_map=options.teacher_label_map,
        teacher_image_size=store.fingerprint["teacher_image_size"],
        teacher_precision=store.fingerprint["teacher_precision"],
        trust_remote_code=options.trust_remote_code,
    )
    teacher = load_teachers(model_args, class_names, views.settings.image_size)
    store.check(of_teacher(teacher))
    try:
        teacher.to(options.device)
    except (AssertionError, RuntimeError) as error:
        raise InputError(f"device {options.device!r} cannot be used: {one_line(error)}") from error
    sampler = whole_sampler(store, views)
    alike, compared = verify(store, teacher, views, sampler, options.num_samples)
    if compared == 0:
        raise InputError(f"{options.store} holds no pair of answers yet; there is nothing to verify")
    print(f"the live teacher answers {alike} of {compared} views as stored")
    if alike >= MIN_ALIKE * compared:
        return report_damage(store)
    print("error: that is too few; the store does not hold this teacher's answers", file=sys.stderr)
    return 1


def stored_views(store: TeacherStore, options: argparse.Namespace) -> tuple[ViewDataset, list[str]]:
    """The views that a store is about, and the names of their classes.

    Raises:
        InputError: the data are not those that the store was made with.
    """
    data = stored_data(store, options)
    rows, unlabelled = data.shown, data.unlabelled_fingerprint()
    dataset = data.fingerprint(store.fingerprint.get("dataset"))
    store.check({"dataset": dataset, "unlabelled_images": unlabelled, "num_images": len(rows)})
    kept = argparse.Namespace(**store.fingerprint)
    settings = AugmentationSettings.from_arguments(kept, kept.image_size)
    return ViewDataset(rows, settings, kept.data_seed), data.class_names


def stored_data(store: TeacherStore, options: argparse.Namespace) -> ImageData:
    """The images where a store has them from, or where the options say that they are now.

    Raises:
        InputError: nobody says where they are, or they cannot be read.
    """
    kept, path = store.about.get("data") or {}, store.directory / DESCRIPTION
    known = inspect.signature(load_image_data).parameters.keys() | {"crop_pct"}
    if not isinstance(kept, dict) or not kept.keys() <= known:
        raise InputError(f"{path} does not say where its images are; fetch it anew")
    sources = {name: value for name, value in kept.items() if name != "crop_pct"}
    moved = {name: getattr(options, name) for name in DATA_SOURCES}
    if any(moved.values()):
        sources |= moved
    if options.unlabeled_dir:
        sources["unlabeled_dir"] = options.unlabeled_dir
    if not any(map(sources.get, DATA_SOURCES)):
        raise InputError(f"{path} does not say where its images are; give --train_dir, --train_csv or --dataset_name")
    return load_image_data(**sources)


def combine_stores(options: argparse.Namespace) -> int:
    """Make a store of what the teachers of several say together; 1 if something of theirs is damaged."""
    stores = [TeacherStore(folder) for folder in options.stores]
    know_data_alike(stores, lambda store: stored_data(store, options))
    counts = dict(combine(stores, options.output))
    combined, number = TeacherStore(options.output), len(stores)
    by = combined.fingerprint["combined"]
    print(f"{options.output}: {sum(counts.values()):,} views, {len(counts)} epoch(s), the {by} of {number} stores")
    if by == HARD and number == 2:
        print(f"of two stores of labels, {options.stores[0]} decides wherever they differ: combine three or more")
    return max(map(report_damage, stores))


def upgrade_store(options: argparse.Namespace):
    """Give a store of an earlier version its checksums."""
    for name, number in upgrade(options.store):
        print(f"{name}: {number:,} answers")
    print(f"{options.store} has checksums now")


def push_store(options: argparse.Namespace):
    """Upload in one commit: all of it, or nothing."""
    store = TeacherStore(options.store)
    if not store.epochs():
        raise InputError(f"{options.store} holds no answers yet; there is nothing to push")
    if not store.has_checksums:
        raise InputError(f"{options.store} has no checksums yet; run `store_cli upgrade {options.store}` first")
    contents = public_files(store, options.repository)
    if store.damaged:  # the card has counted the answers
        raise InputError(f"{store.damage()}; run what fills {options.store} again, with the teacher, before the push")
    api, target = hub_client(), {"repo_id": options.repository, "repo_type": "dataset"}

    def upload():
        """Onto the newest commit: one whose answer was lost is found there, and not made again."""
        head = check_repository(api, store, options.repository, contents)
        operations = [CommitOperationAdd(name, str(c) if isinstance(c, Path) else c) for name, c in contents.items()]
        words = {"commit_message": "Answers of a teacher", "parent_commit": head}
        return api.create_commit(operations=operations, **target, **words)

    create = functools.partial(api.create_repo, private=options.private, exist_ok=True, **target)
    with_retries(create, f"creation of {options.repository!r}")
    print(with_retries(upload, f"push to {options.repository!r}").commit_url)


def public_files(store: TeacherStore, repository: str) -> dict[str, Path | bytes]:
    """What is pushed, by its name."""
    paths = [*map(store.path, store.epochs()), store.directory / VALIDATION]
    contents = {path.name: path for path in paths if path.exists()}
    description = public_description(store)
    contents[DESCRIPTION] = json.dumps(description, indent=2).encode()
    checksums = {name: sha256(content) for name, content in contents.items()}
    contents[CHECKSUMS] = json.dumps(checksums, indent=2).encode()
    contents["README.md"] = card(store, description["about"], repository).encode()
    return contents


def check_repository(api: HfApi, store: TeacherStore, repository: str, contents: dict) -> str:
    """Refuse to push over other answers, or over more of them; returns the newest commit."""
    source = {"repo_id": repository, "repo_type": "dataset"}
    head = api.repo_info(**source)
    if any(file.rfilename == CHECKSUMS for file in head.siblings):
        wanted = [CHECKSUMS, DESCRIPTION]
        fetched = Path(api.snapshot_download(**source, revision=head.sha, allow_patterns=wanted))
        if fields := differing_fields(store, TeacherStore(fetched), but="format"):  # an upgraded one replaces it
            raise InputError(f"{repository!r} holds another store, which differs in {fields}; choose a new repository")
        if missing := sorted(read_checksums(fetched, repository).keys() - contents.keys()):
            raise InputError(
                f"{repository!r} has {missing[0]}, which {store.directory} has not; pull it into that folder first"
            )
    return head.sha


def pull_store(options: argparse.Namespace):
    """Fetch a store and compare every file with its checksum."""
    target, source = Path(options.store), {"repo_id": options.repository, "repo_type": "dataset"}
    fetch, action = functools.partial(hub_client().snapshot_download, **source), f"pull of {options.repository!r}"
    wanted = [CHECKSUMS, DESCRIPTION]
    fetched = Path(with_retries(lambda: fetch(revision=options.revision, allow_patterns=wanted), action))
    checksums = read_checksums(fetched, options.repository)
    if wanted := files_to_fetch(target, fetched, checksums, options.repository):
        revision = fetched.name  # the commit that the checksums belong to
        with_retries(lambda: fetch(revision=revision, allow_patterns=wanted, local_dir=target), action)
    paths = [target / name for name in wanted]
    damaged = [path for path in paths if not path.exists() or sha256(path) != checksums[path.name]]
    for path in damaged:
        path.unlink(missing_ok=True)
    if damaged:
        names = ", ".join(path.name for path in damaged)
        raise InputError(
            f"not as their checksums say, and removed from {target}: {names}; pull again, and if that does not help, "
            "push the store anew"
        )
    show(options)


def files_to_fetch(target: Path, fetched: Path, checksums: dict[str, str], repository: str) -> list[str]:
    """What the folder `target` lacks of a repository's store, whose `store.json` was fetched already.

    Raises:
        InputError: the folder holds something else, or other answers.
    """
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is no folder; pull into a new one")
    kept = {path.name for path in target.iterdir()} if target.is_dir() else set()
    if DESCRIPTION in kept:
        if fields := differing_fields(TeacherStore(target), TeacherStore(fetched)):
            raise InputError(f"{target} holds another store, which differs in {fields}; pull into a new folder")
    elif strangers := sorted(kept - checksums.keys() - {".cache"}):  # the client's own
        raise InputError(f"{target} exists and is no store (it has {strangers[0]}); pull into a new folder")
    for name in sorted(kept & checksums.keys() - {DESCRIPTION, VALIDATION}):
        if sha256(target / name) != checksums[name]:
            raise InputError(f"{target / name} differs from that of {repository!r}; pull into a new folder")
    return sorted(checksums.keys() - kept)


def read_checksums(fetched: Path, repository: str) -> dict[str, str]:
    """The SHA-256 of each file of a repository's store, by name."""
    try:
        checksums = read_json(fetched / CHECKSUMS)
    except FileNotFoundError:
        raise InputError(f"{repository!r} holds no store: it has no {CHECKSUMS}") from None
    except ValueError as error:
        raise InputError(f"{CHECKSUMS} of {repository!r} cannot be read ({error}); push the store anew") from error
    if not isinstance(checksums, dict) or DESCRIPTION not in checksums or not all(map(STORE_FILE.fullmatch, checksums)):
        raise InputError(f"{CHECKSUMS} of {repository!r} does not list the files of a store; push the store anew")
    return checksums


def card(store: TeacherStore, about: dict[str, object], repository: str) -> str:
    """The dataset card of a pushed store."""
    facts = "\n".join(f"| {name} | {value} |" for name, value in describe(store, about).items())
    return f"""---
tags:
- knowledge-distillation
- deit
---

# {repository.rsplit("/", 1)[-1]}

What a teacher said about every augmented view of an image dataset: with it, a student is distilled without the teacher.

```bash
python -m modeling_deit_distill.store_cli pull {repository} answers
accelerate launch --quiet train_deit.py RECIPE.yaml --teacher_store answers
```

A run whose data, seed or augmentations differ from the following is refused, with the field that differs.

| field | value |
|---|---|
{facts}

`{CHECKSUMS}` holds the SHA-256 of each file. `epoch-*.bin` hold {store.dtype.itemsize} bytes a view, by position, and a
checksum for each block.
"""


def public_description(store: TeacherStore) -> dict[str, dict]:
    """`store.json` without the folders of whoever made it."""
    return described(without_folders(store.fingerprint), without_folders(store.about), store.identity)


def differing_fields(store: TeacherStore, other: TeacherStore, but: str | None = None) -> str:
    """The names of what two stores' answers are about and do not agree in, leaving out the field `but`."""
    ours, theirs = (public_description(each)["fingerprint"] for each in (store, other))
    return ", ".join(name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name) and name != but)

"""Stores pulled from a local Hub."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.labelling import forget
from helpers.store_commands import (
    NUM_VIEWS,
    REPOSITORY,
    VIEW,
    cli,
    contents,
    facts,
    push,
    refused,
    replace_file,
)
from huggingface_hub import HfApi

from modeling_deit_distill.teachers.store import TeacherStore

pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # the client's own call
    pytest.mark.usefixtures("waits"),
]

# pull


def test_a_pulled_store_reads_as_the_original(place, server, tmp_path, capsys):
    push(place)
    capsys.readouterr()
    assert cli("pull", REPOSITORY, tmp_path / "pulled") == 0
    assert facts(capsys.readouterr().out)["views known"].startswith("36 of")
    original, pulled = TeacherStore(place.answers), TeacherStore(tmp_path / "pulled")
    assert pulled.fingerprint == original.fingerprint
    assert pulled.epochs() == original.epochs() == [0, 1]
    positions = np.arange(NUM_VIEWS)
    for epoch in (0, 1):
        for ours, theirs in zip(pulled.read(epoch, positions), original.read(epoch, positions), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert pulled.read_validation(VIEW) == original.read_validation(VIEW) is not None
    names = {path.name for path in (tmp_path / "pulled").iterdir()}
    assert names - {".cache"} == contents(place.answers).keys()


def test_a_pulled_store_is_verified_where_the_teacher_is(place, server, tmp_path, capsys):
    push(place)
    cli("pull", REPOSITORY, tmp_path / "pulled")
    where = ["--train_dir", place.photos, "--teacher_name_or_path", place.teacher]
    assert cli("verify", tmp_path / "pulled", *where) == 0


def test_pulling_again_fetches_only_what_is_new(place, server, tmp_path):
    push(place)
    for folder in (place.answers, tmp_path / "pulled"):  # where it comes from, and elsewhere
        cli("pull", REPOSITORY, folder)
    place.fill("2")
    push(place)
    asked = len(server.requests)
    cli("pull", REPOSITORY, tmp_path / "pulled")
    assert TeacherStore(tmp_path / "pulled").epochs() == [0, 1, 2]
    fetched = {path.rsplit("/", 1)[-1] for method, path in server.requests[asked:] if "/resolve/" in path}
    assert fetched & contents(place.answers).keys() <= {"epoch-00002.bin", "store.json"}


def test_a_folder_with_other_answers_is_left_alone(place, server, tmp_path):
    push(place)
    place.fill("0", tmp_path / "other", data_seed=7)
    changed = Path(shutil.copytree(place.answers, tmp_path / "changed"))
    forget(TeacherStore(changed), [0], epoch=1)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    reasons = {
        "other": "holds another store, which differs in data_seed; pull into a new folder",
        "changed": "epoch-00001.bin differs from that of 'me/answers'; pull into a new folder",
        "notes": "exists and is no store (it has notes.txt); pull into a new folder",
    }
    for name, reason in reasons.items():
        before = contents(tmp_path / name)
        assert reason in refused("pull", REPOSITORY, tmp_path / name)
        assert contents(tmp_path / name) == before
        assert not any(path.is_dir() for path in (tmp_path / name).iterdir())
    assert "is no folder" in refused("pull", REPOSITORY, tmp_path / "notes" / "notes.txt")


def test_damaged_files_are_named_and_removed(place, server, tmp_path):
    push(place)
    good = server.files("datasets", REPOSITORY)
    for name in ("epoch-00001.bin", "validation.json"):
        replace_file(server, name, good[name][::-1])
    message = refused("pull", REPOSITORY, tmp_path / "pulled")
    assert "epoch-00001.bin, validation.json; pull again" in message
    assert contents(tmp_path / "pulled").keys() == {"store.json", "epoch-00000.bin"}
    for name in ("epoch-00001.bin", "validation.json"):
        replace_file(server, name, good[name])
    cli("pull", REPOSITORY, tmp_path / "pulled")
    assert contents(tmp_path / "pulled") == {name: good[name] for name in contents(place.answers)}


def test_checksums_reach_nothing_but_a_stores_files(place, server, tmp_path):
    push(place)
    checksums = json.loads(server.files("datasets", REPOSITORY)["checksums.json"])
    (tmp_path / "mine.txt").write_text("mine")
    for name in ("../mine.txt", "README.md", "*"):
        replace_file(server, "checksums.json", json.dumps({**checksums, name: "0" * 64}).encode())
        assert "does not list the files of a store" in refused("pull", REPOSITORY, tmp_path / "pulled")
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert not (tmp_path / "pulled").exists()


def test_what_is_no_store_is_not_pulled(place, server, tmp_path):
    assert "404" in refused("pull", "me/unknown", tmp_path / "pulled")
    HfApi(endpoint=server.endpoint, token=server.token).create_repo(REPOSITORY, repo_type="dataset")
    assert f"'{REPOSITORY}' holds no store" in refused("pull", REPOSITORY, tmp_path / "pulled")
    replace_file(server, "checksums.json", b"{")
    assert "checksums.json of 'me/answers' cannot be read" in refused("pull", REPOSITORY, tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


def test_an_older_revision_can_be_pulled(place, server, tmp_path):
    push(place)
    older = server.commits("datasets", REPOSITORY)[-1].sha
    place.fill("2")
    push(place)
    cli("pull", REPOSITORY, tmp_path / "older", "--revision", older)
    cli("pull", REPOSITORY, tmp_path / "newer")
    assert TeacherStore(tmp_path / "older").epochs() == [0, 1]
    assert TeacherStore(tmp_path / "newer").epochs() == [0, 1, 2]
    assert "Revision Not Found" in refused("pull", REPOSITORY, tmp_path / "none", "--revision", "v9")


def test_a_private_repository_needs_the_token(place, server, tmp_path, monkeypatch):
    push(place, "--private")
    assert server.repositories["datasets", REPOSITORY].private
    cli("pull", REPOSITORY, tmp_path / "pulled")
    assert contents(tmp_path / "pulled").keys() == contents(place.answers).keys()
    monkeypatch.delenv("HF_TOKEN")
    assert "401" in refused("pull", REPOSITORY, tmp_path / "anonymous")

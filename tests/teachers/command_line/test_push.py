"""Stores pushed to a local Hub."""

import json
import math

import pytest
from helpers.hub_repositories import lfs_oid
from helpers.hub_server import HANG, HubServer, use_hub
from helpers.store_commands import (
    REPOSITORY,
    Place,
    cli,
    contents,
    push,
    refused,
)
from helpers.stores import change

from modeling_deit_distill import hub
from modeling_deit_distill.teachers.store import TeacherStore

pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # the client's own call
    pytest.mark.usefixtures("waits"),
]

# push


def test_push_brings_every_file_in_one_commit(place, server, capsys):
    assert push(place) == 0
    kept, pushed = contents(place.answers), server.files("datasets", REPOSITORY)
    assert pushed.keys() == kept.keys() | {"checksums.json", "README.md", ".gitattributes"}
    assert all(pushed[name] == kept[name] for name in kept.keys() - {"store.json"})
    checksums = json.loads(pushed["checksums.json"])
    assert checksums == {name: lfs_oid(pushed[name]) for name in kept}
    commits = server.commits("datasets", REPOSITORY)
    assert len(commits) == 2  # the Hub's own, and ours
    assert commits[-1].sha in capsys.readouterr().out


def test_the_card_has_the_facts_and_no_folder(place, server):
    push(place)
    pushed, fingerprint = server.files("datasets", REPOSITORY), TeacherStore(place.answers).fingerprint
    card, description = pushed["README.md"].decode(), json.loads(pushed["store.json"])
    assert card.startswith("---\ntags:\n- knowledge-distillation\n")
    assert f"store_cli pull {REPOSITORY} " in card
    for name, value in {"teacher": "teacher", "teacher on validation": "75.00%", **fingerprint}.items():
        assert f"| {name} | {value} |" in card or name in ("label_map", "teacher_training")
    assert description["fingerprint"] == fingerprint
    assert description["about"]["data"]["train_dir"] == "photos"
    assert description["about"]["teacher"] == "teacher"
    for text in (card, pushed["store.json"].decode()):
        assert str(place.photos.parent) not in text and "/tmp" not in text


def test_only_the_last_part_of_a_folder_that_is_gone_is_pushed(place, server):
    kept = TeacherStore(place.answers).about["data"]
    for where in ("/home/someone/old", "~/old", "./old"):
        training = {"teacher": where, "config": {"hidden_act": "relu"}}
        about = {"teacher": where, "data": {**kept, "train_dir": where}}
        change(place.answers / "store.json", fingerprint={"teacher_training": training}, about=about)
        push(place)
        pushed = json.loads(server.files("datasets", REPOSITORY)["store.json"])
        assert pushed["fingerprint"]["teacher_training"] == {"teacher": "old", "config": {"hidden_act": "relu"}}
        assert (pushed["about"]["teacher"], pushed["about"]["data"]["train_dir"]) == ("old", "old")


def test_names_on_the_hub_are_kept(place, server):
    path = place.answers / "store.json"
    change(path, about={"teacher": "org/teacher", "data": {"dataset_name": "org/photos", "train_dir": None}})
    push(place)
    assert json.loads(server.files("datasets", REPOSITORY)["store.json"]) == json.loads(path.read_text())


def test_a_second_push_uploads_nothing(place, server):
    push(place)
    head, uploads = server.commits("datasets", REPOSITORY)[-1], server.count("PUT", "/lfs/")
    assert uploads > 0
    push(place)
    assert server.count("PUT", "/lfs/") == uploads
    assert server.commits("datasets", REPOSITORY)[-1] == head


def test_a_later_push_adds_the_epochs_filled_since(place, server, tmp_path, capsys):
    push(place)
    uploads = server.count("PUT", "/lfs/")
    place.fill("2")
    push(place)
    assert server.count("PUT", "/lfs/") == uploads + 1
    pushed = server.files("datasets", REPOSITORY)
    assert pushed["epoch-00002.bin"] == contents(place.answers)["epoch-00002.bin"]
    assert json.loads(pushed["checksums.json"]).keys() == contents(place.answers).keys()
    assert "3 epoch(s)" in pushed["README.md"].decode()


def test_a_store_is_not_pushed_over_another(place, server, tmp_path):
    push(place)
    head = server.commits("datasets", REPOSITORY)[-1]
    place.fill("0", tmp_path / "other", data_seed=7, horizontal_flip_prob=0.1)
    message = refused("push", tmp_path / "other", REPOSITORY)
    assert "holds another store, which differs in data_seed, horizontal_flip_prob; choose a new repository" in message
    assert server.commits("datasets", REPOSITORY)[-1] == head


def test_epochs_filled_in_two_places_meet_in_the_repository(place, server, tmp_path):
    push(place)
    elsewhere = Place(tmp_path / "elsewhere")
    elsewhere.teacher, elsewhere.photos = place.teacher, place.photos
    elsewhere.fill("2-3")
    assert "has epoch-00000.bin" in refused("push", elsewhere.answers, REPOSITORY)
    before = contents(elsewhere.answers)
    cli("pull", REPOSITORY, elsewhere.answers)
    push(elsewhere)
    fetched = {name: content for name, content in contents(place.answers).items() if name.startswith("epoch")}
    assert contents(elsewhere.answers) == before | fetched
    checksums = json.loads(server.files("datasets", REPOSITORY)["checksums.json"])
    assert [name for name in sorted(checksums) if "epoch" in name] == [f"epoch-0000{epoch}.bin" for epoch in range(4)]


def test_a_failed_commit_is_one_line_and_can_be_repeated(place, server):
    server.fail("POST", "/commit/", 503, times=5)
    message = refused("push", place.answers, REPOSITORY)
    assert message.startswith(f"push to '{REPOSITORY}' failed (") and message.endswith("; run it again")
    assert "503" in message
    assert len(server.commits("datasets", REPOSITORY)) == 1
    uploads = server.count("PUT", "/lfs/")
    push(place)
    assert len(server.commits("datasets", REPOSITORY)) == 2
    assert server.count("PUT", "/lfs/") == uploads  # what had come was kept


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"status": 429, "Retry_After": "3600"}, "the Hub asks to wait 3600 s: run it again then"),
        ({"status": HANG}, ""),
    ],
)
def test_a_hub_that_holds_back_is_not_waited_for(place, server, waits, monkeypatch, tmp_path, fault, words):
    """Neither for an hour, where it asks for that, nor for ever, where it does not answer."""
    push(place)
    monkeypatch.setattr(hub, "SILENCE", 0.2)
    for method, path, command in (
        ("POST", "/create", ["push", place.answers, REPOSITORY]),
        ("POST", "/preupload", ["push", place.answers, REPOSITORY]),
        ("*", "/api/datasets", ["pull", REPOSITORY, tmp_path / "pulled"]),
        ("*", "/resolve/", ["pull", REPOSITORY, tmp_path / "pulled"]),
    ):
        server.fail(method, path, times=math.inf, **fault)
        assert refused(*command).endswith(words)
        server.mend()
    assert sum(waits) < 60
    assert cli("pull", REPOSITORY, tmp_path / "pulled") == 0


def test_a_lost_answer_is_no_second_commit(place, server):
    server.fail("POST", "/commit/", 503, applied=True)
    push(place)
    assert len(server.commits("datasets", REPOSITORY)) == 2


def test_a_wrong_token_is_one_line(place, server, monkeypatch, tmp_path):
    push(place)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    for words in (["push", place.answers, REPOSITORY], ["pull", REPOSITORY, tmp_path / "pulled"]):
        message = refused(*words)
        assert "401" in message and message.endswith("check the names and your token (hf auth login)")
    assert not (tmp_path / "pulled").exists()


def test_a_name_that_cannot_be_is_one_line(place, server):
    assert refused("push", place.answers, "a/b/c").endswith("; give a name like me/regnet-answers")
    assert "403" in refused("push", place.answers, "someone/answers")


def test_a_hub_that_cannot_be_reached_is_one_line(place, monkeypatch, tmp_path):
    with HubServer() as server:
        use_hub(monkeypatch, server, tmp_path / "home")
    for words in (["push", place.answers, REPOSITORY], ["pull", REPOSITORY, tmp_path / "pulled"]):
        assert refused(*words).endswith("; run it again")

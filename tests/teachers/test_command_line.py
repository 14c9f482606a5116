"""Stores looked into, checked against their teacher, pushed and pulled: the command line against a local Hub."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from helpers.examples import load_example
from helpers.hub_repositories import lfs_oid
from helpers.hub_server import HANG, HubServer, use_hub
from helpers.labelling import content, forget
from helpers.stores import change
from helpers.teachers import save_resnet
from huggingface_hub import CommitOperationAdd, HfApi

from modeling_deit_distill import InputError, hub
from modeling_deit_distill.data.evaluation import evaluation_processor, evaluation_view
from modeling_deit_distill.teachers.command_line import main
from modeling_deit_distill.teachers.store import TeacherStore, create_store

pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # the client's own call
    pytest.mark.usefixtures("waits"),
]

NAMES = ["day", "night"]
REPOSITORY = "me/answers"
VIEW = evaluation_view(evaluation_processor(16))
NUM_VIEWS = 18  # of 20 images, two are held out


class Place:
    """A folder with a teacher, photos, and a store of hard answers about two epochs of them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.teacher, self.photos, self.answers = folder / "teacher", folder / "photos", folder / "answers"

    def fill(self, epochs: str, answers: Path | None = None, **changes):
        words = {
            "train_dir": self.photos,
            "teacher_name_or_path": self.teacher,
            "teacher_store": answers or self.answers,
            "epochs": epochs,
            "output_dir": self.folder / "out",
            "distillation_type": "hard",
            "image_size": 16,
            "per_device_train_batch_size": 4,
            "bf16": "false",
            "report_to": "none",
            **changes,
        }
        label = load_example("label_with_teacher").main
        several = {key: value if isinstance(value, list) else [value] for key, value in words.items()}
        label([word for key, values in several.items() for word in (f"--{key}", *map(str, values))])


def save_undecided_resnet(folder: Path, bias: float = 0.0):
    """A teacher that says now the one, now the other."""
    model = save_resnet(folder, NAMES)
    with torch.no_grad():
        model.classifier[-1].bias -= model(torch.randn(64, 3, 16, 16)).logits.mean(0)
        model.classifier[-1].bias += bias
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    place, draws = Place(tmp_path_factory.mktemp("filled")), np.random.default_rng(0)
    for name in NAMES:
        (place.photos / name).mkdir(parents=True)
        for index in range(10):
            pixels = draws.integers(0, 256, (20, 24, 3), dtype=np.uint8) // (1 + index % 3)
            PIL.Image.fromarray(pixels).save(place.photos / name / f"{index}.png")
    save_undecided_resnet(place.teacher)
    place.fill("0-1")
    assert len(set(content(TeacherStore(place.answers))[:16])) == 2
    TeacherStore(place.answers).write_validation(VIEW, 0.75, np.array([0, 1]), np.array([0, 1]))
    return place


@pytest.fixture
def place(filled, tmp_path):
    """A copy of the store, to be changed; teacher and photos stay where they are."""
    shutil.copytree(filled.answers, tmp_path / "answers")
    copy = Place(tmp_path)
    copy.teacher, copy.photos = filled.teacher, filled.photos
    return copy


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, but for what the client keeps beside them."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def cli(*words) -> int:
    return main([str(word) for word in words])


def push(place, *words) -> int:
    return cli("push", place.answers, REPOSITORY, *words)


def facts(printed: str) -> dict[str, str]:
    return dict(re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in printed.splitlines())


def refused(*words) -> str:
    """The message, in one line, of a command that is refused."""
    with pytest.raises(InputError) as caught:
        cli(*words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def replace_file(server, name: str, content: bytes):
    """Put a file into the repository by a commit of its own, leaving the checksums."""
    api = HfApi(endpoint=server.endpoint, token=server.token)
    api.create_commit(REPOSITORY, [CommitOperationAdd(name, content)], commit_message="by hand", repo_type="dataset")


# info


def test_info_names_teacher_coverage_and_size(filled, capsys):
    assert cli("info", filled.answers) == 0
    printed = facts(capsys.readouterr().out)
    size = sum(len(content) for content in contents(filled.answers).values())
    assert printed["teacher"] == str(filled.teacher)
    assert printed["views known"] == f"36 of at most {2 * NUM_VIEWS}, 2 epoch(s)"
    assert printed["size"] == f"{size:,} bytes, 2 a view"
    assert printed["teacher on validation"] == "75.00%"
    assert printed["image_size"] == "16"
    assert printed["teacher_weights"] == TeacherStore(filled.answers).fingerprint["teacher_weights"]
    assert printed["distillation_type"] == "hard"


def test_info_of_an_incomplete_store_counts_what_is_known(place, capsys):
    forget(TeacherStore(place.answers), range(5, NUM_VIEWS), epoch=1)
    cli("info", place.answers)
    assert facts(capsys.readouterr().out)["views known"] == f"{18 + 5} of at most {2 * NUM_VIEWS}, 2 epoch(s)"


@pytest.fixture
def empty(filled, tmp_path):
    store = TeacherStore(filled.answers)
    create_store(tmp_path / "empty", store.fingerprint, store.about)
    return tmp_path / "empty"


def test_an_empty_store_is_reported_and_neither_verified_nor_pushed(empty, capsys):
    cli("info", empty)
    assert facts(capsys.readouterr().out)["views known"] == "none, 0 epoch(s)"
    assert "holds no answers yet; there is nothing to verify" in refused("verify", empty)
    assert "holds no answers yet; there is nothing to push" in refused("push", empty, REPOSITORY)


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    assert refused("info", tmp_path) == f"teacher_store {str(tmp_path)!r} is no store: it has no store.json"


# verify


def test_the_right_teacher_answers_as_stored(filled, capsys):
    assert cli("verify", filled.answers) == 0
    assert "answers 36 of 36 views as stored" in capsys.readouterr().out
    assert cli("verify", filled.answers, "--num_samples", 8) == 0
    assert "answers 8 of 8 views as stored" in capsys.readouterr().out


def test_soft_answers_are_verified_by_their_most_likely_class(place, tmp_path, capsys):
    place.fill("0", tmp_path / "soft", distillation_type="soft")
    assert cli("verify", tmp_path / "soft") == 0
    assert "answers 18 of 18 views as stored" in capsys.readouterr().out


def test_the_answers_of_several_teachers_are_labelled_and_verified(place, tmp_path, capsys):
    save_undecided_resnet(tmp_path / "second", bias=0.01)
    teachers = [place.teacher, tmp_path / "second"]
    place.fill("0", tmp_path / "both", teacher_name_or_path=teachers, teacher_image_size=[16, 20])
    store = TeacherStore(tmp_path / "both")
    assert store.about["teacher"] == list(map(str, teachers)) and len(store.validation()["members"]) == 2
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "both")]) == 0
    assert "answers 18 of 18 views as stored" in capsys.readouterr().out
    (tmp_path / "second").rename(tmp_path / "moved")
    moved = ["--teacher_name_or_path", str(place.teacher), str(tmp_path / "moved")]
    assert main(["verify", str(tmp_path / "both"), *moved]) == 0
    with pytest.raises(InputError, match="holds the answers of 2 teachers, 1 named here; name what it was made with"):
        main(["verify", str(tmp_path / "both"), *moved[:2]])
    with pytest.raises(InputError, match="weights of teacher 1 .*; name the teacher that the store was made with"):
        main(["verify", str(tmp_path / "both"), moved[0], moved[2], moved[1]])


def test_tampered_answers_are_found(place, capsys):
    store = TeacherStore(place.answers)
    store.write(0, np.arange(16), 3 - content(store)[:16])  # the other one of two classes
    assert cli("verify", place.answers) == 1
    printed = capsys.readouterr()
    assert "answers 20 of 36 views as stored" in printed.out
    assert printed.err.splitlines()[-1] == "error: that is too few; the store does not hold this teacher's answers"


def test_another_teacher_is_refused_by_its_weights(place, tmp_path):
    save_undecided_resnet(tmp_path / "other", bias=1.0)
    message = refused("verify", place.answers, "--teacher_name_or_path", tmp_path / "other")
    assert "answers for teacher_weights" in message


def test_data_and_teacher_may_have_moved(place, tmp_path, capsys):
    shutil.copytree(place.photos, tmp_path / "elsewhere")
    shutil.copytree(place.teacher, tmp_path / "teacher elsewhere")
    data = {**TeacherStore(place.answers).about["data"], "train_dir": "gone"}
    change(place.answers / "store.json", about={"teacher": "gone", "data": data})
    assert "gone" in refused("verify", place.answers)
    for option in ("--train_dir", "--dataset_name"):
        data = [option, tmp_path / "elsewhere"]
        assert "teacher_name_or_path 'gone'" in refused("verify", place.answers, *data)
        assert cli("verify", place.answers, *data, "--teacher_name_or_path", tmp_path / "teacher elsewhere") == 0
        assert "answers 36 of 36" in capsys.readouterr().out


def test_other_data_are_refused(place, tmp_path):
    shutil.copytree(place.photos, tmp_path / "fewer")
    (tmp_path / "fewer" / "day" / "3.png").unlink()
    assert "answers for dataset" in refused("verify", place.answers, "--train_dir", tmp_path / "fewer")


def test_nothing_compared_is_no_success(place):
    assert "num_samples is 0" in refused("verify", place.answers, "--num_samples", 0)
    for epoch in (0, 1):
        forget(TeacherStore(place.answers), range(1, NUM_VIEWS), epoch)  # one view, without its partner
    assert "no pair of answers" in refused("verify", place.answers)


def test_a_device_that_is_not_there_is_named(filled):
    assert "device 'abacus' cannot be used" in refused("verify", filled.answers, "--device", "abacus")


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

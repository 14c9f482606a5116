"""Files written whole or not at all, their checksums, and values without this machine's folders."""

import hashlib
import json
import os
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_deit_distill.files import BLOCK, crc32, flush, sha256, without_folders, write_json, written_whole

# Writing


def test_a_file_is_there_when_the_block_ends_and_not_before(tmp_path):
    path = tmp_path / "new" / "x.txt"
    with written_whole(path) as partial:
        partial.write_text("half")
        assert not path.exists() and partial.parent == path.parent
        partial.write_text("whole")
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [None, "before"])
@pytest.mark.parametrize("replace", [True, False])
def test_a_writer_that_raises_changes_nothing(tmp_path, error, before, replace):
    path = tmp_path / "x.txt"
    if before is not None:
        path.write_text(before)
    with pytest.raises(error), written_whole(path, replace=replace) as partial:
        partial.write_text("half")
        raise error
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == (
        {} if before is None else {path.name: before}
    )


def test_the_last_writer_wins_unless_the_first_one_shall(tmp_path):
    for replace, winner in ((True, "second"), (False, "first")):
        path = tmp_path / f"{replace}.txt"
        # The first one finishes within the second one's block.
        with written_whole(path, replace) as later:
            later.write_text("second")
            with written_whole(path, replace) as earlier:
                assert earlier != later
                earlier.write_text("first")
        assert path.read_text() == winner
    assert {each.name for each in tmp_path.iterdir()} == {"True.txt", "False.txt"}


def test_the_first_writer_wins_without_links_too(tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError("this file system has no links")

    monkeypatch.setattr(os, "link", refuse)
    for content in ("first", "second"):
        with written_whole(tmp_path / "x.txt", replace=False) as partial:
            partial.write_text(content)
    assert [each.read_text() for each in tmp_path.iterdir()] == ["first"]


def test_json_ends_with_a_line_break_and_is_whole_or_absent(tmp_path):
    path = write_json(tmp_path / "new" / "x.json", {"a": [1, "ü"]})
    assert path.read_bytes() == b'{\n  "a": [\n    1,\n    "\\u00fc"\n  ]\n}\n'
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": [1, "ü"]}
    write_json(path, {"a": 2}, replace=False)
    assert json.loads(path.read_text()) == {"a": [1, "ü"]}
    assert write_json(path, {"a": 2}, indent=None).read_text() == '{"a": 2}\n'
    assert list(path.parent.iterdir()) == [path]


def test_files_and_folders_are_flushed(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.fstat(descriptor).st_ino))
    path = write_json(tmp_path / "x.json", {})
    flush(path)
    flush(tmp_path)
    assert flushed == [path.stat().st_ino, tmp_path.stat().st_ino]


# Checksums


def test_checksums_of_known_values(tmp_path):
    for name, content in {"digits": b"123456789", "abc": b"abc", "empty": b""}.items():
        (tmp_path / name).write_bytes(content)
    # The check value of every catalogue of CRCs, and the first example of FIPS 180-4.
    assert crc32(tmp_path / "digits") == "cbf43926"
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert crc32(tmp_path / "empty") == "00000000"
    assert sha256() == sha256(tmp_path / "empty") == sha256(b"")


def test_a_file_longer_than_a_block_is_read_to_its_end(tmp_path):
    content = bytes(range(251)) * (BLOCK // 100)
    path = tmp_path / "long"
    path.write_bytes(content)
    assert len(content) > 2 * BLOCK and len(content) % BLOCK
    assert crc32(path) == f"{zlib.crc32(content):08x}"
    assert sha256(path) == hashlib.sha256(content).hexdigest()


@given(st.lists(st.binary(max_size=8), max_size=4), st.integers(0, 32))
def test_sha256_is_that_of_all_contents_together(tmp_path_factory, contents, place):
    together = b"".join(contents)
    assert sha256(*contents) == sha256(together) == sha256(together[:place], together[place:])
    path = tmp_path_factory.getbasetemp() / "contents"
    path.write_bytes(together)
    assert sha256(b"before", path) == sha256(b"before" + together)


# Folders


def test_only_the_last_part_of_a_path_is_shown(tmp_path):
    shown = without_folders({"path": str(tmp_path / "cats"), "list": ["~/dogs", "me/model", 3], "text": "two words"})
    assert shown == {"path": "cats", "list": ["dogs", "me/model", 3], "text": "two words"}


NAMES = st.text("abcdefgh", min_size=1, max_size=5).map("no-such-{}".format)
PATHS = st.builds(
    lambda root, folders, name, end: f"{root}{'/'.join([*folders, name])}{end}",
    st.sampled_from(["/", "~/", "./", "../"]),
    st.lists(NAMES, max_size=3),
    NAMES,
    st.sampled_from(["", "/"]),
)
ELSEWHERE = st.builds("{}/{}".format, NAMES, NAMES)  # a name on the Hub
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), NAMES, ELSEWHERE)
VALUES = st.recursive(
    st.one_of(PLAIN, PATHS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=10,
)


def leaves(value, place=()) -> dict:
    """Place to value of all that a value from JSON consists of."""
    if not isinstance(value, (dict, list)):
        return {place: value}
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    return {where: leaf for key, each in inside for where, leaf in leaves(each, (*place, key)).items()}


@given(VALUES)
def test_paths_lose_their_folders_and_nothing_else_changes(value):
    shown = without_folders(value)
    expected = leaves(value)
    for place, leaf in expected.items():
        if isinstance(leaf, str) and leaf.startswith(("/", "~", ".")):
            expected[place] = leaf.rstrip("/").rsplit("/", 1)[-1]
    assert leaves(shown) == expected
    assert without_folders(shown) == shown

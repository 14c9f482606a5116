"""The user's map of classes, as a file."""

import json

import pytest

from modeling_deit_distill.errors import InputError
from modeling_deit_distill.teachers.classes import read_label_map

REMEDY = ("--teacher_label_map FILE", "JSON or YAML object: dataset class → teacher class name or index")


def test_a_map_is_read(tmp_path):
    wanted = {"kitten": "cat", "Größe": 7, "0": 3}
    path = tmp_path / "map.json"
    path.write_text(json.dumps(wanted))
    assert read_label_map(path) == read_label_map(str(path)) == wanted
    path = tmp_path / "map.yaml"
    path.write_text('# mine\nkitten: cat\nGröße: 7\n0: 3\n"8": "9"\n', encoding="utf-8")
    assert read_label_map(path) == {**wanted, "8": "9"}
    path.write_text("{}")
    assert read_label_map(path) == {}
    path.write_text("yes: no\n007: 010\n2024-01-01: 1e5\n1:30: true\n", encoding="utf-8")
    assert read_label_map(path) == {"yes": "no", "007": "010", "2024-01-01": "1e5", "1:30": "true"}


def test_errors_of_the_file(tmp_path):
    for name, text, words in [
        ("map.json", "[1, 2]", ("is not an object but list",)),
        ("map.yaml", "- a\n- b\n", ("is not an object but list",)),
        ("map.yaml", "", ("is not an object but NoneType",)),
        ("map.json", '{"a": ', ("is not valid JSON or YAML",)),
        ("map.yaml", "a: [b\nc: d", ("is not valid JSON or YAML",)),
        ("map.json", "a: b", ("is not valid JSON or YAML",)),
        ("map.json", '{"a": 1.5}', ("'a': 1.5", "quotes")),
        ("map.json", '{"a": null}', ("'a': None", "quotes")),
        ("map.json", '{"a": ["b"]}', ("'a': ['b']",)),
        ("map.json", '{"a": true}', ("'a': True",)),
        ("map.yaml", "a: null\n", ("'a': None", "quotes")),
        ("map.yaml", "a: [b]\n", ("'a': ['b']",)),
        ("map.yaml", "a: b\na: c\n", ("the key 'a' is there twice",)),
    ]:
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(InputError) as caught:
            read_label_map(path)
        message = str(caught.value)
        expected = (*words, REMEDY[1], "teacher_label_map", repr(str(path)))
        assert [word for word in expected if word not in message] == [], text
        assert "\n" not in message


def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xfa")
    for name, words in [("none.json", "No such file"), (".", "directory"), ("bytes.yaml", "not valid")]:
        with pytest.raises(InputError, match=words) as caught:
            read_label_map(tmp_path / name)
        assert REMEDY[1] in str(caught.value)

"""A CSV file of paths and labels: text stays text, and whatever does not fit is refused or named by its row."""

import os
import unicodedata
from pathlib import Path

import pytest
from helpers.odd_folders import save
from helpers.refusals import refusal

from modeling_deit_distill import InputError
from modeling_deit_distill.arguments import DataArguments
from modeling_deit_distill.data.decoding import decode_image
from modeling_deit_distill.data.sources import load_image_data

ROWS = [("cat/0.png", "cat"), ("cat/1.png", "cat"), ("dog/0.png", "dog"), ("dog/1.png", "dog")]


@pytest.fixture
def images(tmp_path):
    """`images("a.png", ...)`: write such images; their folder, with the four of `ROWS`."""

    def make(*names: str) -> Path:
        for index, name in enumerate([*(name for name, _ in ROWS), *names]):
            save(tmp_path / "photos" / name, seed=index)
        return tmp_path / "photos"

    return make


@pytest.fixture
def table(images):
    """`table(rows, header, separator)`: a CSV file beside the images; as text, or as rows."""

    def write(rows=ROWS, header="path,label", name="labels.csv", encoding="utf-8", end="\n") -> str:
        text = rows if isinstance(rows, str) else end.join([header, *(",".join(row) for row in rows)]) + end
        (images() / name).write_bytes(text.encode(encoding))
        return str(images() / name)

    return write


def load(file: str, **options):
    return load_image_data(train_csv=file, **options)


def found(data) -> dict[str, str]:
    """The label of each image, by its name, training and held out."""
    return {
        os.path.basename(row["image"]["path"]): data.class_names[row["label"]]
        for row in [*data.train, *data.validation]
    }


def whole(data) -> list[tuple[str, str]]:
    rows = [*data.train, *data.validation]
    folders = [Path(row["image"]["path"]).parent.name for row in rows]
    return sorted((f, data.class_names[row["label"]]) for f, row in zip(folders, rows, strict=True))


EXPECTED = [("cat", "cat"), ("cat", "cat"), ("dog", "dog"), ("dog", "dog")]


# --- how it is written ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_separators_encodings_and_line_ends(table, separator, encoding, end):
    rows = [separator.join(row) for row in ROWS]
    data = load(table(end.join(["path" + separator + "label", *rows, "", separator]), encoding=encoding))
    assert whole(data) == EXPECTED and not data.skipped
    assert all(decode_image(row["image"]).size == (40, 24) for row in data.train)


def test_quotes_and_spaces(table, images):
    names = ["a,b.png", 'a"b.png', "a;b.png", "two\nlines.png", " space.png", "ü 😀.png", "last\u2028.png"]
    images(*names)
    quoted = ['"' + name.replace('"', '""') + '"' for name in names]
    lines = ['"path", "label"', *(f'{name}, "x, ""y"""' for name in quoted), *(", ".join(row) for row in ROWS)]
    data = load(table("\n".join(lines)))
    assert found(data) == {
        **dict.fromkeys(names, 'x, "y"'),
        "0.png": found(data)["0.png"],
        "1.png": found(data)["1.png"],
    }
    assert data.class_names == ["cat", "dog", 'x, "y"']


NAMES_OF_PATHS = ["path", "file", "filename", "file_name", "filepath", "image", "image_path", " Path "]
NAMES_OF_LABELS = ["label", "labels", "class", "class_name", "target", "category", "Label"]


@pytest.mark.parametrize(
    "header", [f"{name},label" for name in NAMES_OF_PATHS] + [f"path,{name}" for name in NAMES_OF_LABELS]
)
def test_names_of_the_columns(table, header):
    assert whole(load(table(header=header))) == EXPECTED


def test_columns_that_are_named(table):
    rows = [(path, "x", f"other {index}", label) for index, (path, label) in enumerate(ROWS)]
    file = table(rows, "path,label,class,kind of animal")
    assert whole(load(file, label_column="kind of animal")) == EXPECTED
    message = refusal(train_csv=file)
    assert "'path', 'label', 'class', 'kind of animal'" in message and "--label_column" in message
    turned = table([row[::-1] for row in ROWS], "a,b", name="turned.csv")
    assert whole(load(turned, image_column="b", label_column="a")) == EXPECTED
    message = refusal(train_csv=file, image_column="nope")
    assert "image_column 'nope'" in message and "'path', 'label', 'class', 'kind of animal'" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cat/0.png,cat\ndog/0.png,dog\n", ["'cat/0.png', 'cat'", "--image_column", "image_path"]),
        ("path\ncat/0.png\n", ["'path'", "--label_column", "category"]),
        ("id|class\ncat/0.png|cat\n", ["'id|class'"]),
        ("", ["labels.csv", "none"]),
        ("path,label\n", ["names no image", "skipped: nothing"]),
        (
            "path,label\ncat/0.png,cat,dog\n",
            ["train_csv", "line 2", "3 fields, the header has 2; put a value with ',' in double quotes"],
        ),
        ("path\tlabel\ncat/0.png\tcat\tdog\n", ["line 2", "3 fields", "put a value with a tab in double quotes"]),
        ("path,label\n\ncat/0.png\n", ["line 3", "1 field,", "give every row a value for each column"]),
        ("path,label\ncat/0.png,\n", ["line 2", "label is empty; fill it in"]),
        ("path,label\ncat/0.png,cat\n , cat\n", ["line 3", "path is empty"]),
        ('path,label\ncat/0.png,"cat\n', ["line 2", "unexpected end of data; end each value"]),
        ("path,label\ncat/0.png,cat\n./cat//0.png,dog\n", ["line 3", "'./cat//0.png'", "'dog'", "'cat'", "; keep one"]),
        ("path,label\nnowhere/0.png,cat\ngone.png,dog\n", ["2 missing files: nowhere/0.png, gone.png"]),
        ("path,label\ncat/\0.png,cat\n", ["not a text file"]),
    ],
)
def test_what_does_not_fit_is_refused(table, text, words):
    message = refusal(train_csv=table(text))
    assert [word for word in ("labels.csv", *words) if word not in message] == []


def test_what_is_no_table_is_refused(table, tmp_path):
    assert "line 2" in refusal(train_csv=table("path,label\ncat/0.png,H\xfc\n", encoding="latin-1"))
    assert "UTF-8" in refusal(train_csv=table("path,label\n", encoding="utf-16"))
    assert "No such file" in refusal(train_csv=str(tmp_path / "none.csv"))
    assert "Is a directory" in refusal(train_csv=str(tmp_path))
    assert "validation_csv" in refusal(train_csv=table(), validation_csv=str(tmp_path))


# --- labels -----------------------------------------------------------------------------------------------------------

TEXTS = ["007", "7", "None", "NA", "NaN", "null", "1e5", "100000", "true", "-1", "0x1", "2024-01-01", "1.0", "1"]


def test_text_stays_text(table, images):
    rows = [(f"{index}.png", text) for index, text in enumerate(TEXTS)]
    images(*(path for path, _ in rows))
    data = load(table(rows), validation_csv=table(rows, name="more.csv"))
    assert data.class_names == sorted(TEXTS)
    assert found(data) == dict(rows)


def test_unicode_forms_of_a_label_are_one_class(table, warnings):
    forms = [unicodedata.normalize(form, "Hüte") for form in ("NFC", "NFD")]
    rows = [*ROWS[:2], ("dog/0.png", forms[0]), ("dog/1.png", forms[1])]
    assert load(table(rows)).class_names == [forms[0], "cat"]
    assert not warnings()
    load(table([*ROWS[:2], ("dog/0.png", "Hut"), ("dog/1.png", "hut")]))
    assert warnings() == ["the classes 'Hut' and 'hut' differ only by case; are they one?"]


def test_labels_of_validation_that_training_does_not_know(table):
    message = refusal(train_csv=table(), validation_csv=table([("cat/0.png", "cow")], name="more.csv"))
    assert message.startswith("validation has classes without a training image: cow; name them as in training")


# --- paths ------------------------------------------------------------------------------------------------------------


def test_the_order_of_the_rows_does_not_matter(table):
    first, second = load(table()), load(table(ROWS[::-1], name="reversed.csv"))
    assert first.validation[:] == second.validation[:] and first.fingerprint() == second.fingerprint()


def test_a_table_gives_what_its_folder_gives(table, images):
    folder = load_image_data(train_dir=str(images()))
    data = load(table())
    assert data.fingerprint() == folder.fingerprint()
    assert [data.train[:], data.validation[:]] == [folder.train[:], folder.validation[:]]
    stream = load(table(), validation_csv=table(name="more.csv"), streaming=True)
    paths = [str(images() / name) for name, _ in ROWS]
    assert sorted(row["image"]["path"] for row in stream.train) == paths


def test_paths_inside_the_folder(table, images, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(images())
    save(tmp_path / "elsewhere" / "5.png")
    (images() / "other").symlink_to(tmp_path / "elsewhere")
    paths = [
        *(str(images() / "cat" / "0.png"), str(tmp_path / "link" / "cat" / "1.png")),
        *("./dog/0.png", "dog/../dog/1.png", "other/5.png"),
    ]
    rows = list(zip(paths, ["cat", "cat", "dog", "dog", "cow"], strict=True))
    table(rows)
    monkeypatch.chdir(tmp_path)
    for file in ("link/labels.csv", str(tmp_path / "link" / "labels.csv")):
        data = load(file)
        assert whole(data) == sorted([*EXPECTED, ("other", "cow")])
        assert len({row["image"]["path"].split("/photos/")[0] for row in [*data.train, *data.validation]}) == 1
        assert all(decode_image(row["image"]).size == (40, 24) for row in data.train)


@pytest.mark.parametrize(
    "path", ["../private/me.png", "cat/../../private/me.png", "{root}/private/me.png", "{root}/photos-of-mine/me.png"]
)
def test_no_path_leads_out_of_the_folder(table, tmp_path, path):
    for name in ("private", "photos-of-mine"):
        save(tmp_path / name / "me.png")
    path = path.format(root=tmp_path)
    message = refusal(train_csv=table([*ROWS, (path, "me")]))
    assert f"line 6: {path!r} leads out of the file's folder" in message


def test_dots_after_a_link_are_followed_as_the_system_follows_them(table, images, tmp_path):
    save(tmp_path / "private" / "me.png")
    (tmp_path / "private" / "deep").mkdir()
    (images() / "link").symlink_to(tmp_path / "private" / "deep")
    assert "leads out" in refusal(train_csv=table([*ROWS, ("link/../me.png", "me")]))


def test_a_name_may_have_two_dots(table, images, tmp_path):
    save(tmp_path / "elsewhere" / "a..b.png")
    images()
    (tmp_path / "photos" / "..b").symlink_to(tmp_path / "elsewhere")
    data = load(table([*ROWS, ("..b/a..b.png", "cow")]))
    assert found(data)["a..b.png"] == "cow"


def test_what_is_skipped_is_named(table, images):
    (images() / "zero.png").write_bytes(b"")
    (images() / "notes.txt").write_text("a")
    others = [
        ("gone.png", "cat"),
        ("zero.png", "cat"),
        ("notes.txt", "dog"),
        ("cat", "cat"),
        ("cat/../cat/0.png", "cat"),
    ]
    data = load(table([*ROWS, *others]), validation_csv=table([ROWS[0], ("gone.png", "dog")], name="more.csv"))
    assert len(data.train) == 4
    assert data.skipped == (
        "1 missing file: gone.png; 1 empty file: zero.png; 1 file of no image format: notes.txt; 1 special file: cat; "
        "1 repeated row: cat/0.png; of validation: 1 missing file: gone.png"
    )


def test_names_that_a_mac_decomposed(table, images):
    composed, decomposed = (unicodedata.normalize(form, "ü/é.png") for form in ("NFC", "NFD"))
    images(composed, unicodedata.normalize("NFD", "ö.png"))
    data = load(table([*ROWS, (decomposed, "cat"), ("ö.png", "dog")]))
    assert len(data.train) + len(data.validation) == 6 and not data.skipped


# --- arguments --------------------------------------------------------------------------------------------------------


def test_it_excludes_other_sources():
    for given, words in [
        ({"train_csv": "a.csv", "train_dir": "photos"}, "keep one"),
        ({"train_csv": "a.csv", "dataset_name": "digits"}, "keep one"),
        ({"train_dir": "photos", "validation_csv": "a.csv"}, "validation_csv goes with train_csv"),
        ({"train_csv": "a.csv", "validation_dir": "photos"}, "validation_dir goes with train_dir"),
    ]:
        with pytest.raises(InputError, match=words):
            DataArguments(**given)
    assert DataArguments(train_csv="a.csv", validation_csv="b.csv").sources["validation_csv"] == "b.csv"

"""A CSV file of images and their labels. Text stays text: `007`, `None`, `NA` and `1e5` are names of classes."""

import csv
import io
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError, one_line
from .image_files import MISSING, Found, plain_path, why_skipped

IMAGE_NAMES = ("path", "file", "filename", "file_name", "filepath", "image", "image_path")
LABEL_NAMES = ("label", "labels", "class", "class_name", "target", "category")
TAB = "\t"
DELIMITERS = ",;" + TAB
REPEATED = "repeated row{s}"


def read_table(file: str, argument: str, columns: tuple[str | None, str | None] = (None, None)) -> Found:
    """The images that a CSV file names, in the order of their paths.

    Paths are relative to the file's folder, or absolute; none leads out of that folder. The separator is a comma, a
    semicolon or a tab.

    Args:
        file: the CSV file, in UTF-8, with a header.
        argument: that named it, for messages.
        columns: that of paths and that of labels; by default each is found by its name.

    Raises:
        InputError: a file that cannot be read as such a table, a row without path or label, a path that leads out of
            the folder, an image with two labels, or no image at all.
    """
    path = Path(file).expanduser()
    where = f"{argument} {file!r}"
    rows = csv_rows(read_text(path, where), where)
    _, header = next(rows, (1, []))
    image = _the_column("image_column", columns[0], IMAGE_NAMES, header, where)
    label = _the_column("label_column", columns[1], LABEL_NAMES, header, where)
    folder = os.path.realpath(path.parent)
    roots = tuple(os.path.join(root, "") for root in (folder, os.path.abspath(path.parent)))
    labels: dict[str, str] = {}
    found = Found()
    for line, row in rows:
        name, text = row[image], unicodedata.normalize("NFC", row[label])
        if not name.strip() or not text.strip():
            empty = "label" if name.strip() else "path"
            raise InputError(f"{where}, line {line}: the {empty} is empty; fill it in, or remove the row")
        full = plain_path(os.path.join(folder, name))
        inside = next((full[len(root) :] for root in roots if full.startswith(root)), None)
        if inside is None:
            raise InputError(
                f"{where}, line {line}: {name!r} leads out of the file's folder; move the CSV file to a folder above "
                "the images, or put a link to their folder beside it"
            )
        full, kind = _look_up(os.path.join(folder, inside))
        if labels.get(full, text) != text:
            raise InputError(
                f"{where}, line {line}: {name!r} has the label {text!r}, and {labels[full]!r} in an earlier row; "
                "keep one"
            )
        if kind is None and full in labels:
            kind = REPEATED
        if kind is None:
            labels[full] = text
        else:
            found.skipped.add(kind, inside)
    if not labels:
        raise InputError(
            f"{where} names no image that can be read (skipped: {str(found.skipped) or 'nothing'}); give paths that "
            "are relative to the file's folder"
        )
    found.paths = sorted(labels)
    found.labels = [labels[each] for each in found.paths]
    return found


def read_text(path: Path, where: str) -> str:
    """The content of a text file in UTF-8; `where` names it in messages.

    Raises:
        InputError: it cannot be read, or is in another encoding.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{where} cannot be read ({error.strerror}); check the path") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{where}, line {line}: it is not UTF-8; save it as 'CSV UTF-8'") from error
    if "\0" in text:
        raise InputError(f"{where} is not a text file in UTF-8; save it as 'CSV UTF-8'")
    return text


def csv_rows(text: str, where: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of each row that is not blank; the first is the header.

    Raises:
        InputError: rows of different lengths, or quotes that do not end.
    """
    first = text.lstrip().splitlines()[:1]
    delimiter = max(DELIMITERS, key=lambda mark: len(next(csv.reader(first, delimiter=mark), [])))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    num_columns = None
    try:
        for row in reader:
            if not any(each.strip() for each in row):
                continue
            num_columns = num_columns or len(row)
            if len(row) != num_columns:
                number = f"{len(row)} field" + "s" * (len(row) != 1)
                remedy = "give every row a value for each column"
                if len(row) > num_columns:
                    remedy = f"put a value with {'a tab' if delimiter == TAB else repr(delimiter)} in double quotes"
                raise InputError(
                    f"{where}, line {reader.line_num}: it has {number}, the header has {num_columns}; {remedy}"
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise InputError(
            f"{where}, line {reader.line_num}: {one_line(error)}; end each value that begins with a double quote with "
            "one, and write one within a value twice"
        ) from error


def _the_column(argument: str, given: str | None, names: tuple[str, ...], header: list[str], where: str) -> int:
    """The place of the column that was given, or that has one of the names."""
    columns = [name.strip() for name in header]
    wanted = names if given is None else (given,)
    fitting = [place for place, name in enumerate(columns) if (name.lower() if given is None else name) in wanted]
    if len(fitting) == 1:
        return fitting[0]
    shown = ", ".join(map(repr, columns)) or "none"
    if given is not None:
        raise InputError(f"{argument} {given!r} is not one of the columns of {where}: {shown}; choose one of them")
    wanted = ", ".join(names)
    problem = "several columns fit" if fitting else f"no column is called one of {wanted}"
    raise InputError(f"{where} has the columns {shown}: {problem}; choose one with --{argument}")


def _look_up(path: str) -> tuple[str, str | None]:
    """A path as it is on the disk, and why its file is skipped, if it is. A Mac decomposes the letters of names."""
    kind = why_skipped(path)
    for form in ("NFC", "NFD") if kind == MISSING and not path.isascii() else ():
        other = unicodedata.normalize(form, path)
        if (kind := why_skipped(other)) != MISSING:
            return other, kind
    return path, kind

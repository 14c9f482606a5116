"""The README: short enough to be read to its end, its two first commands as they are run, nothing left to fill in."""

import re
from itertools import chain

from helpers.docs import name_of
from helpers.paths import ROOT
from helpers.prose import measure

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_short():
    prose = measure(README)
    assert prose.words <= 1200 and prose.words_a_sentence <= 20, prose


def test_nothing_is_left_to_fill_in():
    assert re.findall(r"\b[A-Z]+_[A-Z0-9]+\b", README) == []


def test_the_two_commands_are_written_as_they_are_run():
    assert "pip install -e . && accelerate launch --quiet train_deit.py examples/recipes/digits.yaml" in README
    assert "pip install -e '.[test]' && pytest" in README
    assert "s/^\\(pip install .*&& pytest\\)$" in (ROOT / ".ci" / "run").read_text()


def test_every_guide_is_linked():
    guides = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")}
    assert {guide for guide in guides if f"]({guide}" not in README} == set()


def test_every_page_is_in_the_navigation():
    """`mkdocs build --strict` ends at a page that is not; docs/site_hook.py shows it all of these."""
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [name_of(path) for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md") for path in ROOT.glob(pattern)]
    assert "examples/results/cpu/tables.md" in pages
    assert [page for page in pages if f": {page}\n" not in navigation] == []


def test_the_field_s_words_are_used():
    """No word that stands for recorded, distinguished, matched by, available, wrong, ignores, uses."""
    words = re.compile(r"(?<![a-z])(tol[d]|goes b[y]|at han[d]|lyin[g]|dea[f]|stands o[n])(?![a-z])")
    folders = ("modeling_deit_distill", "tests", "docs", "examples")
    paths = chain(ROOT.glob("*.md"), ROOT.glob("*.py"), *((ROOT / folder).rglob("*.[mp][dy]") for folder in folders))
    found = {f"{path.relative_to(ROOT)}: {word}" for path in paths for word in words.findall(path.read_text("utf-8"))}
    assert found == set()

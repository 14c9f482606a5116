"""The README: its commands and links hold, and nothing in it is left to fill in."""

import re

from helpers.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_link_to_a_file_leads_somewhere():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert len(links) > 5
    headings = {f"#{title.lower().replace(' ', '-')}" for title in re.findall(r"^#+ (.+)$", README, re.MULTILINE)}
    assert [link for link in links if not (link in headings if link[0] == "#" else (ROOT / link).exists())] == []


def test_nothing_is_left_to_fill_in():
    assert re.findall(r"\b[A-Z]+_[A-Z0-9]+\b", README) == []


def test_the_two_commands_stand_as_they_are_run():
    assert "pip install -e . && accelerate launch --quiet train_deit.py examples/recipes/digits.yaml" in README
    assert "pip install -e '.[test]' && pytest" in README
    assert "s/^\\(pip install .*&& pytest\\)$" in (ROOT / ".ci" / "run").read_text()


def test_the_example_of_the_library_names_its_classes():
    example = re.search(r"## As a library\n\n```python\n(.*?)args = ", README, re.DOTALL).group(1)
    found = {}
    exec(example, found)
    assert found["student"].config.id2label == {0: "hat", 1: "shirt", 2: "shoe"}
    assert found["student"].config.label2id["shoe"] == 2 and found["student"].cls_classifier.out_features == 3

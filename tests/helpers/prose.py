"""How long a Markdown text and its sentences are: `python tests/helpers/prose.py README.md docs/*.md`."""

import re
import sys
from pathlib import Path
from typing import NamedTuple

FENCE = re.compile(r"^( *)(`{3,}|~{3,}).*?^\1\2 *$", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
CODE = re.compile(r"`[^`\n]+`")
WORD = re.compile(r"\w[\w'’.,/%×+–-]*")
# A full stop ends a sentence where white space follows; one within a number or a file's name does not.
END = re.compile(r"(?<=[.!?])[*_)\"”]*\s+(?=[^a-z])")


class Prose(NamedTuple):
    """Counts of a text: `words` of all prose, tables and headings too; `sentences` and their words without those."""

    words: int
    sentences: int
    words_of_sentences: int

    @property
    def words_a_sentence(self) -> float:
        """Mean number of words; 0.0 of a text without sentences."""
        return self.words_of_sentences / self.sentences if self.sentences else 0.0


def without_code(markdown: str) -> str:
    """The text without blocks of code and comments; code in a line is one word, a link is its text."""
    text = COMMENT.sub("", FENCE.sub("", markdown))
    return LINK.sub(r"\1", CODE.sub("code", text))


def paragraphs(text: str) -> list[str]:
    """Paragraphs and items of lists, each in one line; headings and tables left out."""
    found = [""]
    for line in text.splitlines():
        words = line.strip()
        if not words or words.startswith(("#", "|")):
            found.append("")
        elif re.match(r"([-*+]|\d+\.) ", words):
            found.append(words)
        else:
            found[-1] += f" {words}"
    return [each.strip() for each in found if WORD.search(each)]


def measure(markdown: str) -> Prose:
    """Count the words of a Markdown text and those of its sentences."""
    text = without_code(markdown)
    sentences = [each for paragraph in paragraphs(text) for each in END.split(paragraph) if WORD.search(each)]
    return Prose(len(WORD.findall(text)), len(sentences), sum(len(WORD.findall(each)) for each in sentences))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        prose = measure(Path(name).read_text(encoding="utf-8"))
        print(f"{prose.words:6,} words  {prose.words_a_sentence:5.1f} a sentence  {name}")

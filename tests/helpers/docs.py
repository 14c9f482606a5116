"""The project's Markdown files, and what stands in them: links, headings, blocks of code, commands."""

import re
import shlex
import textwrap
from pathlib import Path

from helpers.paths import ROOT
from helpers.prose import COMMENT, FENCE

FOLDERS = ("docs", "docs/api", "examples", "examples/benchmarks", "examples/metrics", "examples/results")
FILES = sorted(path for folder in ("", *FOLDERS) for path in (ROOT / folder).glob("*.md"))
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1``` *$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)\s]+)\)")


def text_of(path: Path) -> str:
    """A file's text without comments."""
    return COMMENT.sub("", path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    """The path in the repository."""
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, language: str) -> list[str]:
    """The blocks of code of a language."""
    return [textwrap.dedent(code) for _, name, code in BLOCK.findall(text_of(path)) if name == language]


def links(path: Path) -> list[str]:
    """Where a file's links lead that do not leave the repository."""
    found = LINK.findall(FENCE.sub("", text_of(path)))
    return [link for link in found if not link.startswith(("http://", "https://", "mailto:"))]


def anchors(path: Path) -> set[str]:
    """The anchors of a file's headings, as code hosts and site generators make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text_of(path)), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower().strip() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


def commands(path: Path) -> list[list[str]]:
    """The command lines in a file's blocks of shell code, as words; those joined by `&&` apart, comments left out."""
    found = []
    for code in blocks(path, "bash"):
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while "&&" in words:
                found.append(words[: words.index("&&")])
                words = words[words.index("&&") + 1 :]
            found.append(words)
    return [words for words in found if words]

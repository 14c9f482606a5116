"""The messages in the source: each text, with what is filled in standing for anything."""

import ast
import re
from pathlib import Path

from helpers.paths import ROOT

PACKAGE = ROOT / "modeling_deit_distill"
FIXED = 20  # letters that a message has at least, so that it says something

Message = tuple[str | None, ...]  # its fixed parts in their order, None where something is filled in


def messages(folder: Path = PACKAGE) -> set[Message]:
    """Each text of a folder's Python files; texts in a row are one, as Python joins them."""
    sources = [path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.py"))]
    found = {_parts(node) for source in sources for node in ast.walk(ast.parse(source))}
    return {parts for parts in found if sum(len(part or "") for part in parts) >= FIXED}


def is_said(line: str, message: Message) -> bool:
    """Whether a line is a message with something filled in."""
    if not all(part in line for part in message if part):
        return False
    return bool(re.fullmatch("".join(".*" if part is None else re.escape(part) for part in message), line, re.DOTALL))


def _parts(node: ast.AST) -> Message:
    texts = node.values if isinstance(node, ast.JoinedStr) else [node]
    is_text = [isinstance(text, ast.Constant) and isinstance(text.value, str) for text in texts]
    if not any(is_text):
        return ()
    return tuple(text.value if is_one else None for text, is_one in zip(texts, is_text, strict=True))

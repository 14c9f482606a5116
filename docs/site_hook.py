"""Lets MkDocs see the files where they are in the repository, so that every relative link holds on the site too."""

from pathlib import Path

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[1]
# What the pages link to; code and recipes are shown as they are.
FILES = (
    *("*.md", "train_deit.py", "LICENSE", "CITATION.cff"),
    *("docs/**/*.md", "examples/**/*", "modeling_deit_distill/**/*.py", "tests/**/*.py"),
)
LEFT_OUT = ("__pycache__",)


def on_files(files: Files, config) -> Files:
    """The theme's files, and the repository's in place of those of `docs_dir`."""
    theirs = [each for each in files if not each.src_uri.endswith(".md") and not each.src_uri.endswith(".py")]
    paths = {path for pattern in FILES for path in ROOT.glob(pattern) if path.is_file()}
    return Files(theirs + [_as_file(path, config) for path in sorted(paths) if not set(LEFT_OUT) & set(path.parts)])


def _as_file(path: Path, config) -> File:
    name = path.relative_to(ROOT).as_posix()
    return File.generated(config, name, abs_src_path=str(path), inclusion=InclusionLevel.INCLUDED)

"""Where a model runs: in Python, without PyTorch, in a browser, on a phone; each with its size and speed."""

from .run import Run

PLACES = {
    "fp32": "ONNX Runtime: servers, Python without PyTorch",
    "fp16": "the same in half the size",
    "int8": "browsers on computers and phones, by WebAssembly",
}


def places(run: Run) -> list[tuple[str, str, str, str]]:
    """Place, file, megabytes and milliseconds an image; nothing where no export was measured."""
    exports = run.record.get("exports") or []
    if not exports:
        return []
    weights = sum(path.stat().st_size for path in run.folder.glob("model*.safetensors"))
    rows = [("Python with PyTorch", "`model.safetensors`", weights / 1e6, run.measured("milliseconds_per_image"))]
    rows += [
        (PLACES[each["precision"]], f"`{each['file']}`", each["megabytes"], each["milliseconds"]) for each in exports
    ]
    return [
        (place, file, f"{megabytes:.1f}" if megabytes else "–", f"{ms:.1f}" if ms is not None else "–")
        for place, file, megabytes, ms in rows
    ]


def decisions_of_exports(exports: list[dict]) -> str | None:
    """How many decisions of each export are PyTorch's, in a sentence."""
    measured = [(each["precision"], each["agreement"]) for each in exports if each.get("agreement")]
    if not measured:
        return None
    shares = ", ".join(f"{name} {agreement['equal']:,}" for name, agreement in measured)
    return f"Of {measured[0][1]['images']:,} held-out images the exports decide as PyTorch does: {shares}."


def demo_of(repo_id: str) -> str:
    """The Space of a model."""
    return f"{repo_id}-demo"

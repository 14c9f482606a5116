"""The scripts behind `reproduce_tables.py`, and what its finished runs leave."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np

from helpers.paths import ROOT

sys.path.insert(0, str(ROOT / "examples"))  # the scripts and new processes import by name

reproduce_tables, tables_figures, tables_paper, tables_report = map(
    importlib.import_module, ("reproduce_tables", "tables_figures", "tables_paper", "tables_report")
)
PROFILE = reproduce_tables.PROFILES["cpu"]


def finish(output_dir: Path, name: str, truth=(), record=None, tokens=None, **results):
    """The folder of a finished run; sets of decisions are given as `fused=[...]`."""
    folder = output_dir / name
    folder.mkdir(parents=True)
    decisions = {key: value for key, value in results.items() if isinstance(value, list)}
    results = {key: value for key, value in results.items() if key not in decisions}
    (folder / "predictions.json").write_text(json.dumps({"labels": list(truth), **decisions}))
    (folder / "run.json").write_text(json.dumps(record or {}))
    if tokens:
        (folder / "tokens.json").write_text(json.dumps(tokens))
    if "fused" in decisions:
        results.setdefault("eval_accuracy", float(np.mean(np.equal(truth, decisions["fused"]))))
    (folder / "all_results.json").write_text(json.dumps(results))

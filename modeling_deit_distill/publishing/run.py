"""What a run left in its folder, as its card needs it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from transformers import AutoConfig, PreTrainedConfig

from ..analysis import Measured
from ..errors import InputError, one_line
from ..output_folder import DECISIONS, RESULTS, RUN_RECORD, STATE, TOKENS, read_run_file
from .comparison import Outcome
from .pictures import distinct_names

# Sets of decisions in `predictions.json`, in the order of the paper's Table 4.
DECISION_NAMES = {
    "labels": "truth",
    "teacher": "teacher",
    "cls": "class head",
    "distillation": "distillation head",
    "fused": "this model",
}


@dataclass(frozen=True)
class Run:
    """What a run left in its folder; what is missing there is empty."""

    folder: Path
    config: PreTrainedConfig
    results: dict  # `all_results.json`; of a run under way, its last evaluation
    state: dict  # `trainer_state.json`
    decisions: dict[str, np.ndarray]  # `predictions.json`: (images,) class indices, `labels` among them
    record: dict  # `run.json`
    processor: dict  # `preprocessor_config.json`
    tokens: dict  # `tokens.json`
    is_finished: bool  # whether all results are there

    @cached_property
    def name(self) -> str:
        """Its name on the Hub, or that of its folder."""
        return self.record.get("name") or self.folder.resolve().name

    @cached_property
    def class_names(self) -> list[str]:
        """In the order of their indices, each of another."""
        return distinct_names(self.config.id2label)

    @property
    def num_images(self) -> int | None:
        """How many images were held out, if known."""
        return len(self.decisions["labels"]) if self.decisions else None

    @property
    def summary(self) -> dict:
        """What the run said of itself before it started, in words."""
        return self.record.get("facts") or {}

    @property
    def dataset(self) -> dict:
        """What it was trained and evaluated on: `name`, `id` on the Hub and `split`, as far as they are known."""
        return self.record.get("dataset") or {}

    @property
    def has_teacher(self) -> bool:
        """Whether it is known that a teacher took part; only a teacher trains a distillation token."""
        return self.config.use_distillation_token or self.summary.get("teacher", "none") != "none"

    @cached_property
    def outcome(self) -> Outcome:
        """What came of it."""
        return Outcome(self.results, self.decisions, self.class_names, self.record.get("teachers", ()))

    @property
    def judged(self) -> Measured:
        """What its decisions on the held-out images are worth; there must be some."""
        return self.outcome.judged["student"]

    def measured(self, key: str) -> float | None:
        """A result, if it was measured and is a number."""
        return self.outcome.measured(key)

    def file(self, name: str) -> str | None:
        """The name of a file if it is there."""
        return name if (self.folder / name).exists() else None


def read_run(folder: Path, results: dict[str, float] | None = None) -> Run:
    """What lies in the folder of a run; `results` instead of `all_results.json` if given.

    Raises:
        InputError: no model in the folder, or a file that is not what a run leaves.
    """
    if not (folder / "config.json").exists():
        raise InputError(f"{str(folder)!r} holds no config.json; give the output_dir of a run of train_deit.py")
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise InputError(f"config.json in {str(folder)!r} does not describe a model: {one_line(error)}") from error
    if config.model_type != "deit_distill":
        raise InputError(f"{str(folder)!r} holds a {config.model_type!r} model; the card is of a 'deit_distill' one")
    state, results = read_run_file(folder / STATE), results or read_run_file(folder / RESULTS)
    log = state.get("log_history", [])
    last_evaluation = next((entry for entry in reversed(log) if "eval_accuracy" in entry), {})
    return Run(
        folder,
        config,
        results or last_evaluation,
        state,
        _read_decisions(folder / DECISIONS, len(config.id2label)),
        read_run_file(folder / RUN_RECORD),
        read_run_file(folder / "preprocessor_config.json"),
        read_run_file(folder / TOKENS),
        is_finished=bool(results),
    )


def _read_decisions(path: Path, num_classes: int) -> dict[str, np.ndarray]:
    """Class indices (images,) by name; {} without the file, or without images."""
    decisions = {name: np.asarray(indices) for name, indices in read_run_file(path).items() if name in DECISION_NAMES}
    if not any(len(indices) for indices in decisions.values()):
        return {}
    lengths = {name: len(indices) for name, indices in decisions.items()}
    if len(set(lengths.values())) > 1 or not {"labels", "fused"} <= decisions.keys():
        raise InputError(f"{str(path)!r} must hold labels and fused, all of one length, and holds {lengths}; remove it")
    for name, indices in decisions.items():
        if indices.dtype.kind != "i" or indices.min() < 0 or indices.max() >= num_classes:
            raise InputError(f"{str(path)!r}: {name} are not class indices below {num_classes}; remove it")
    return decisions

"""The tables of `reproduce_tables.py` as figures, from what its runs left in their folders and nothing else.

A difference is judged by its standard error, which has two parts: by seed (another start, the same images) and by
image (other held-out images, the same models; images are paired, since all models saw the same ones). Each is widened
to what chance alone exceeds one time in twenty: 1.96 errors by image, by seed those of Student's t, as seeds are few.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student_t
from tables_paper import (
    ALONE,
    CONVNET,
    NO_DIFFERENCE,
    PAPER_COSINE,
    PAPER_NOISE,
    PAPER_TABLE_4,
    SETS,
    TABLES,
    Claim,
    Table,
)

from modeling_deit_distill import InputError
from modeling_deit_distill.analysis import disagreement, wilson_interval

# What the runs left


@dataclass(frozen=True)
class Left:
    """What a finished run left: `all_results.json`, `predictions.json` as arrays, `tokens.json`, `run.json`."""

    results: dict
    decisions: dict[str, np.ndarray]
    tokens: dict
    record: dict


def read(folder: Path) -> Left | None:
    """A finished run's files; None if it is not finished.

    Raises:
        InputError: the stored decisions do not give the accuracy that the run reported.
    """
    if not (folder / "all_results.json").exists():
        return None
    contents = {}
    for name in ("all_results", "predictions", "tokens", "run"):
        path = folder / f"{name}.json"
        contents[name] = json.loads(path.read_text()) if path.exists() else {}
    decisions = {name: np.asarray(indices) for name, indices in contents["predictions"].items()}
    left = Left(contents["all_results"], decisions, contents["tokens"], contents["run"])
    if "fused" in decisions:
        _check_accuracy(left, folder)
    return left


def _check_accuracy(run: Left, folder: Path):
    """Half an image is allowed for rounding."""
    stored, reported = float(right(run, "fused").mean()), run.results["eval_accuracy"]
    if abs(stored - reported) * len(run.decisions["labels"]) > 0.5:
        raise InputError(
            f"{folder}: predictions.json has a top-1 of {stored:.4f}, all_results.json of {reported:.4f}; they are not "
            "of one run: remove the folder, and the run is made again"
        )


def by_seed(left: dict[str, Left], runs: str) -> dict[int, Left]:
    """The finished runs `<runs>-<seed>`, by seed."""
    found = {name.rpartition("-"): run for name, run in left.items()}
    return {int(seed): run for (prefix, _, seed), run in sorted(found.items()) if prefix == runs}


def right(run: Left, head: str) -> np.ndarray:
    """Which held-out images a head was right on, (images,) of 0.0 and 1.0."""
    return (run.decisions[head] == run.decisions["labels"]).astype(float)


# How sure a difference is


class Deviation(NamedTuple):
    """The deviation between seeds, as a share, and from how many seeds it is known, less their means."""

    value: float
    freedom: int


@dataclass(frozen=True)
class Difference:
    """A difference of two mean shares, and the standard errors by seed and by image; all in points.

    An error that was not measured is None; `freedom` are the degrees of freedom of that by seed.
    """

    value: float
    seed_error: float | None
    image_error: float | None
    freedom: int = 0

    @property
    def margin(self) -> float | None:
        """What chance of both sources exceeds one time in twenty; None if no seed was repeated.

        Student's t for few seeds: 4.30 errors rather than 1.96 where there are three.
        """
        if self.seed_error is None:
            return None
        by_seed = float(student_t.ppf(0.975, self.freedom)) * self.seed_error
        return math.hypot(by_seed, float(norm.ppf(0.975)) * (self.image_error or 0.0))

    @property
    def is_clear(self) -> bool:
        """Whether chance alone would exceed it less than one time in twenty."""
        return self.margin is not None and abs(self.value) > self.margin


def difference(first: np.ndarray, second: np.ndarray, pooled: Deviation | None, paired: bool = False) -> Difference:
    """How much larger the mean of `first` is than that of `second`.

    Args:
        first, second: (seeds, images), 1 for a hit; the same images.
        pooled: between seeds of one kind of run, of all kinds, since three seeds tell little about their own; None if
            it is not known.
        paired: seeds belong together; then the deviation is that of their differences, if there are several.
    """
    by_image = first.mean(axis=0) - second.mean(axis=0)
    image_error = 100 * float(by_image.std(ddof=1)) / math.sqrt(by_image.size)
    seed_error, freedom = None, 0
    if paired and len(first) > 1:
        by_seed = first.mean(axis=1) - second.mean(axis=1)
        seed_error, freedom = seed_error_of(100 * by_seed), len(first) - 1
    elif pooled is not None:
        seed_error = 100 * pooled.value * math.sqrt(1 / len(first) + 1 / len(second))
        freedom = pooled.freedom
    return Difference(100 * float(by_image.mean()), seed_error, image_error, freedom)


def seed_error_of(values: Sequence[float]) -> float | None:
    """The standard error of a mean over seeds; None of one seed."""
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None


def pooled_deviation(groups: Sequence[Sequence[float]]) -> Deviation | None:
    """The deviation between seeds over several kinds of runs, each about its own mean; None if all have one seed."""
    squares = [float(np.var(group, ddof=1)) * (len(group) - 1) for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in groups if len(group) > 1)
    return Deviation(math.sqrt(sum(squares) / freedom), freedom) if freedom else None


def verdict(found: Difference, paper: float | None) -> str:
    """What a difference says about the paper's, in a few words; without an error by seed it is not decided."""
    if found.margin is None:
        return "not decided"
    if paper is not None and abs(paper) <= PAPER_NOISE:
        return verdict_on_none(found, paper)
    if not found.is_clear:
        return "not decided"
    if paper is None:
        return "better" if found.value > 0 else "worse"
    return "agrees in sign" if found.value * paper > 0 else "disagrees in sign"


def verdict_on_none(found: Difference, paper: float) -> str:
    """Where the paper finds no difference, a test of equivalence: only one that is known to be small agrees."""
    if abs(found.value) + found.margin <= NO_DIFFERENCE:
        return "agrees: no difference"
    is_large = abs(found.value) - found.margin > NO_DIFFERENCE
    if is_large or (found.is_clear and found.value * paper < 0):
        return "disagrees: a difference"
    return "not decided"


# The tables as figures


def figures(left: dict[str, Left]) -> dict[str, dict]:
    """All tables, by key, as they are written to `tables.json`."""
    kinds = sorted({name.rpartition("-")[0] for name in left})
    accuracies = [[run.results["eval_accuracy"] for run in by_seed(left, kind).values()] for kind in kinds]
    deviation = pooled_deviation(accuracies)
    tables = {table.key: accuracy_table(table, left, deviation) for table in TABLES}
    tables["table4"] = disagreement_table(left)
    tables["tokens"] = token_table(left)
    spread = None if deviation is None else 100 * deviation.value
    return {"seed_deviation": spread, "seed_freedom": deviation and deviation.freedom, "tables": tables}


def accuracy_table(table: Table, left: dict[str, Left], deviation: Deviation | None) -> dict:
    """Rows and judged claims of one table."""
    rows = [describe_row(table, place, left) for place in range(len(table.rows))]
    claims = []
    for claim in table.claims:
        judged = judge(claim, table, left, deviation)
        claims.append({"claim": claim.words, "paper": claim.paper, **judged})
    return {"title": table.title, "rows": rows, "claims": claims}


def describe_row(table: Table, place: int, left: dict[str, Left]) -> dict:
    """One row: each seed's top-1, their mean, deviation and interval, all in per cent; only names if nothing ran."""
    row = table.rows[place]
    runs = by_seed(left, row.runs)
    described = {"row": row.label, "runs": [f"{row.runs}-{seed}" for seed in runs], "paper": row.paper}
    if table.paper_teachers:
        described["paper_teacher"] = table.paper_teachers[place]
    if not runs:
        return described
    shares = [float(right(run, row.head).mean()) for run in runs.values()]
    num_images = len(right(runs[min(runs)], row.head))
    low, high = wilson_interval(round(float(np.mean(shares)) * num_images), num_images)
    described |= {
        "top1": [100 * share for share in shares],
        "mean": 100 * float(np.mean(shares)),
        "deviation": 100 * float(np.std(shares, ddof=1)) if len(shares) > 1 else None,
        "interval": [100 * low, 100 * high],
    }
    teachers = [run.results["teacher_accuracy"] for run in runs.values() if "teacher_accuracy" in run.results]
    if table.teacher and teachers:
        described["teacher"] = 100 * float(np.mean(teachers))
    if table.asked:
        described["asked"] = max(run.results.get("teacher_views_asked", 0) for run in runs.values())
        times = [run.results.get("teacher_milliseconds_per_image") for run in runs.values()]
        times = [time for time in times if time is not None]  # of a store alone nothing is known
        described["asked_seconds"] = described["asked"] * float(np.mean(times)) / 1000 if times else None
    return described


def judge(claim: Claim, table: Table, left: dict[str, Left], deviation: Deviation | None) -> dict:
    """The measured difference, its errors and the verdict; a claim whose runs are not finished says so."""
    rows = [table.rows[claim.first], table.rows[claim.second]]
    runs = [by_seed(left, row.runs) for row in rows]
    if claim.paired:
        common = runs[0].keys() & runs[1].keys()
        runs = [{seed: run for seed, run in each.items() if seed in common} for each in runs]
    if not all(runs):
        return {"verdict": "not run"}
    hits = [np.stack([right(run, row.head) for run in each.values()]) for row, each in zip(rows, runs, strict=True)]
    found = difference(*hits, deviation, claim.paired)
    return {**described_difference(found), "verdict": verdict(found, claim.paper)}


def described_difference(found: Difference) -> dict[str, float | None]:
    errors = {"seed_error": found.seed_error, "image_error": found.image_error, "margin": found.margin}
    return {"difference": found.value, **errors}


def disagreement_table(left: dict[str, Left]) -> dict:
    """Table 4: the mean over seeds of the share of images on which two sets of answers differ, in per cent."""
    title = {"title": "Table 4: who disagrees with whom"}
    token, alone = by_seed(left, "token"), by_seed(left, "none")
    seeds = sorted(token.keys() & alone.keys())
    if not seeds:
        return title
    runs = {"token": token, "none": alone}
    matrices = []
    for seed in seeds:
        sets = {name: runs[kind][seed].decisions[kept] for name, (kind, kept) in SETS.items()}
        matrices.append(disagreement(sets))
    mean = {
        one: {other: 100 * float(np.mean([matrix[one][other] for matrix in matrices])) for other in SETS}
        for one in SETS
    }
    return {**title, "seeds": seeds, "disagreement": mean, "claims": disagreement_claims(runs, seeds)}


def disagreement_claims(runs: dict[str, dict[int, Left]], seeds: list[int]) -> list[dict]:
    """What the paper reads from Table 4, with its differences."""

    def differ(one: str, other: str) -> np.ndarray:
        decided = [[runs[SETS[name][0]][seed].decisions[SETS[name][1]] for seed in seeds] for name in (one, other)]
        return (np.asarray(decided[0]) != np.asarray(decided[1])).astype(float)

    # "Than either to the convnet" is decided by the head that is nearer to it, here as measured.
    nearer_head = min(("distillation head", "class head"), key=lambda head: differ(CONVNET, head).mean())
    far, middle, near, heads = (
        PAPER_TABLE_4[pair]
        for pair in (
            (CONVNET, ALONE),
            (CONVNET, "class head"),
            (CONVNET, "distillation head"),
            ("class head", "distillation head"),
        )
    )
    compared = (
        ("the class head is nearer to the convnet than DeiT alone", far - middle, ALONE, (CONVNET, "class head")),
        (
            "the distillation head is nearer to the convnet than the class head",
            middle - near,
            "class head",
            (CONVNET, "distillation head"),
        ),
        (
            f"the two heads are nearer to each other than either to the convnet (the nearer: {nearer_head})",
            near - heads,
            nearer_head,
            ("class head", "distillation head"),
        ),
    )
    claims = []
    for words, paper, further, nearer in compared:
        found = difference(differ(CONVNET, further), differ(*nearer), None, paired=True)
        described = {**described_difference(found), "verdict": verdict(found, paper)}
        claims.append({"claim": words, "paper": round(paper, 1), **described})
    return claims


def token_table(left: dict[str, Left]) -> dict:
    """The cosine of the two tokens as learned and after each block, by seed, and whether it rises as in the paper."""
    title = {"title": "The two tokens' cosine"}
    runs = {seed: run for seed, run in by_seed(left, "token").items() if "cosine_by_block" in run.tokens}
    if not runs:
        return title
    curves = [[run.tokens["cosine_learned"], *run.tokens["cosine_by_block"]] for run in runs.values()]
    rises = [curve[-1] - curve[0] for curve in curves]
    # The runs keep means over images, so of the images' chance nothing is known.
    found = Difference(float(np.mean(rises)), seed_error_of(rises), None, len(rises) - 1)
    paper = PAPER_COSINE[1] - PAPER_COSINE[0]
    claim = {"claim": "the tokens are more alike after the last block than as learned", "paper": round(paper, 2)}
    described = {**described_difference(found), "verdict": verdict(found, paper)}
    images = next(iter(runs.values())).tokens["images"]
    return {**title, "seeds": sorted(runs), "images": images, "cosines": curves, "claims": [{**claim, **described}]}

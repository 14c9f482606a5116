"""The tables of `reproduce_tables.py`, from what its runs left in their folders and nothing else.

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

from modeling_deit_distill import InputError
from modeling_deit_distill.analysis import disagreement, wilson_interval
from modeling_deit_distill.report import duration

PAPER_NOISE = 0.2  # points; what the public code's README gives for two seeds of one run
NO_DIFFERENCE = (
    1.0  # points; half the least gain by distillation that the paper builds on (2.1), so less counts as none
)
TRUTH, CONVNET, ALONE = "truth", "convnet", "DeiT alone"
# Sets of decisions of Table 4: the runs and what they keep it under.
SETS = {
    TRUTH: ("token", "labels"),
    CONVNET: ("token", "teacher"),
    ALONE: ("none", "fused"),
    "class head": ("token", "cls"),
    "distillation head": ("token", "distillation"),
    "both heads": ("token", "fused"),
}
PAPER_TABLE_4 = {
    (TRUTH, CONVNET): 17.1,
    (TRUTH, ALONE): 18.2,
    (TRUTH, "class head"): 17.0,
    (TRUTH, "distillation head"): 16.9,
    (TRUTH, "both heads"): 16.6,
    (CONVNET, ALONE): 13.3,
    (CONVNET, "class head"): 11.2,
    (CONVNET, "distillation head"): 10.0,
    (CONVNET, "both heads"): 10.2,
    ("class head", "distillation head"): 5.0,
}
PAPER_COSINE = (0.06, 0.93)  # as learned, at the end of the last block (section 4)


@dataclass(frozen=True)
class Row:
    """A line of a table: runs of several seeds, the head that is read, and the paper's figure in per cent, if any."""

    label: str
    runs: str
    head: str = "fused"
    paper: float | None = None


@dataclass(frozen=True)
class Claim:
    """That one row is better than another, and by how many points it is in the paper; None where it has no figure.

    `paired` rows belong together seed by seed: two heads of one run, or a run and its fine-tuning.
    """

    words: str
    first: int
    second: int
    paper: float | None = None
    paired: bool = False


@dataclass(frozen=True)
class Table:
    """Rows and what is to be said about them; `claims` name rows by their place."""

    key: str
    title: str
    text: str
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...]
    teacher: bool = False  # a column of the teacher's accuracy, in per cent, the paper's in `paper_teachers`
    paper_teachers: tuple[float, ...] = ()


TABLES = (
    Table(
        "table3",
        "Table 3: how to distil",
        "The paper's figures are those of DeiT-Ti on ImageNet.",
        (
            Row("no distillation", "none", paper=72.2),
            Row("usual distillation, soft", "soft", paper=72.2),
            Row("usual distillation, hard", "hard", paper=74.3),
            Row("with the token: class head", "token", "cls", 73.9),
            Row("with the token: distillation head", "token", "distillation", 74.6),
            Row("with the token: both", "token", "fused", 74.5),
        ),
        (
            Claim("soft distillation against none", 1, 0, 0.0),
            Claim("hard distillation against none", 2, 0, 2.1),
            Claim("hard distillation against soft", 2, 1, 2.1),
            Claim("class head against none", 3, 0, 1.7),
            Claim("distillation head against none", 4, 0, 2.4),
            Claim("both heads against none", 5, 0, 2.3),
            Claim("both heads against usual hard distillation", 5, 2, 0.2),
            Claim("distillation head against class head", 4, 3, 0.7, paired=True),
            Claim("both heads against the distillation head", 5, 4, -0.1, paired=True),
        ),
    ),
    Table(
        "table2",
        "Table 2: which teacher",
        "A transformer (the undistilled student of seed 0, as in the paper, where DeiT-B teaches DeiT-B), a convnet "
        "that was trained for a short time only, to be about as good, and the convnet of all other tables. The paper's "
        "figures are those of DeiT-B taught by DeiT-B, RegNetY-8GF and RegNetY-16GF on ImageNet.",
        (
            Row("a transformer", "deit", paper=81.9),
            Row("a convnet trained briefly", "equal", paper=82.7),
            Row("the convnet", "token", paper=83.1),
        ),
        (
            Claim("the convnet trained briefly against a transformer", 1, 0, 0.8),
            Claim("the convnet against a transformer", 2, 0, 1.2),
            Claim("the convnet against the one trained briefly", 2, 1, 0.4),
        ),
        teacher=True,
        paper_teachers=(81.8, 81.7, 82.9),
    ),
    Table(
        "ablation",
        "Ablation: what the recipe's parts give",
        "All without distillation; the paper's figures are those of DeiT-B on ImageNet, of 300 epochs. Without erasing "
        "and without stochastic depth it fails to train there (4.3 and 3.4 %), which is no measure of what the part "
        "gives, so no difference is compared. Of RandAugment alone we hold no figure, and that with SGD is quoted from "
        "memory. SGD has a learning rate of its own, and the weight decay of the paper's transfer with SGD, 1e-4: in "
        "SGD the decay is added to the gradient, where AdamW's 0.05 would be far too strong.",
        (
            Row("the recipe", "none", paper=81.8),
            Row("without repeated augmentation", "no_repeats", paper=76.5),
            Row("without mixup and cutmix", "no_mixing", paper=75.8),
            Row("without erasing", "no_erasing", paper=4.3),
            Row("without stochastic depth", "no_depth", paper=3.4),
            Row("without RandAugment", "no_randaugment"),
            Row("SGD for AdamW", "sgd", paper=74.5),
        ),
        (
            Claim("without repeated augmentation", 1, 0, -5.3),
            Claim("without mixup and cutmix", 2, 0, -6.0),
            Claim("without erasing", 3, 0),
            Claim("without stochastic depth", 4, 0),
            Claim("without RandAugment", 5, 0),
            Claim("SGD for AdamW", 6, 0, -7.3),
        ),
    ),
    Table(
        "less_data",
        "Less data",
        "A share of the training images for student and teacher, as many steps as with all of them. The paper has no "
        "such table; that distillation saves data is its title.",
        (
            Row("10 % of the images, alone", "none_10"),
            Row("10 % of the images, distilled", "token_10"),
            Row("25 % of the images, alone", "none_25"),
            Row("25 % of the images, distilled", "token_25"),
            Row("50 % of the images, alone", "none_50"),
            Row("50 % of the images, distilled", "token_50"),
            Row("all images, alone", "none"),
            Row("all images, distilled", "token"),
        ),
        (
            Claim("distilled against alone, 10 %", 1, 0),
            Claim("distilled against alone, 25 %", 3, 2),
            Claim("distilled against alone, 50 %", 5, 4),
            Claim("distilled against alone, all", 7, 6),
            Claim("distilled on 50 % against alone on all", 5, 6),
        ),
        teacher=True,
    ),
    Table(
        "finer",
        "A finer resolution",
        "Fine-tuned at more pixels, positions resized, the distilled one with its teacher at that size too. The "
        "paper's figures are those of DeiT-B on ImageNet, at 224 and 384 pixels.",
        (
            Row("alone", "none", paper=81.8),
            Row("alone, finer", "none_finer", paper=83.1),
            Row("distilled", "token", paper=83.4),
            Row("distilled, finer", "token_finer", paper=84.5),
        ),
        (
            Claim("finer against coarser, alone", 1, 0, 1.3, paired=True),
            Claim("finer against coarser, distilled", 3, 2, 1.1, paired=True),
            Claim("distilled against alone, finer", 3, 1, 1.4),
        ),
        teacher=True,
    ),
)


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
        told = {**described_difference(found), "verdict": verdict(found, paper)}
        claims.append({"claim": words, "paper": round(paper, 1), **told})
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
    told = {**described_difference(found), "verdict": verdict(found, paper)}
    images = next(iter(runs.values())).tokens["images"]
    return {**title, "seeds": sorted(runs), "images": images, "cosines": curves, "claims": [{**claim, **told}]}


# The tables as they are read


def write(profile, runs, output_dir: Path, folder: Path) -> Path:
    """Write `tables.md`, `tables.json` and the plots of what is finished, and the page above them.

    Args:
        profile: a `reproduce_tables.Profile`.
        runs: all that were planned, each with `name`, `command` and `needs`.
        output_dir: where their folders lie.
        folder: where the tables are written.

    Raises:
        InputError: as [`read`].
    """
    left = {run.name: found for run in runs if (found := read(output_dir / run.name)) is not None}
    folder.mkdir(parents=True, exist_ok=True)
    content = {"profile": profile.name, "made": how_made(left, len(runs)), **figures(left)}
    (folder / "tables.json").write_text(json.dumps(rounded(content), indent=2) + "\n")
    commands = {run.name: with_needs(run) for run in runs}
    pictures = draw(content["tables"], folder)
    (folder / "tables.md").write_text(markdown(content, commands, pictures, profile) + "\n")
    write_index(folder.parent)
    return folder


def how_made(left: dict[str, Left], num_planned: int) -> dict:
    """By what and in which time the runs that are finished were made."""
    made = {"runs": len(left), "planned": num_planned}
    if not left:
        return made
    seconds = {name: run.results.get("train_runtime", 0.0) for name, run in left.items()}
    unasking = [seconds[name] for name, run in left.items() if not run.results.get("teacher_views_asked")]
    records = [left[name].record for name in sorted(left)]
    versions = [f"{name} {version}" for record in records for name, version in record.get("versions", {}).items()]
    return {
        **made,
        "held_out": len(left[min(left)].decisions["labels"]),
        "training_seconds": sum(seconds.values()),
        "student_seconds": float(np.median(unasking)) if unasking else None,
        "hardware": list(dict.fromkeys(record["hardware"] for record in records if record.get("hardware"))),
        "versions": list(dict.fromkeys(versions)),
        "finished": max(record.get("finished") or "" for record in records),
    }


def with_needs(run) -> str:
    """A run's command, under a line of what it needs, if anything."""
    return f"# after {', '.join(dict.fromkeys(run.needs))}\n{run.command}" if run.needs else run.command


def rounded(content):
    """Figures to what they are worth, so that a file says no more than was measured."""
    if isinstance(content, float):
        return round(content, 4)
    if isinstance(content, dict):
        return {name: rounded(value) for name, value in content.items()}
    return [rounded(value) for value in content] if isinstance(content, (list, tuple)) else content


def markdown(content: dict, commands: dict[str, str], pictures: dict[str, str], profile) -> str:
    """`tables.md`: every table with its claims, and the command of each of its runs."""
    tables = content["tables"]
    parts = [f"# The paper's tables on CIFAR-10, profile `{profile.name}`", introduction(content, profile)]
    for table in TABLES[:2]:
        parts += accuracy_part(table, tables[table.key], commands)
    parts += disagreement_part(tables["table4"])
    parts += token_part(tables["tokens"], pictures)
    for table in TABLES[2:]:
        parts += accuracy_part(table, tables[table.key], commands)
    if "methods" in pictures:
        parts.insert(2, f"![Top-1 by method]({pictures['methods']})")
    if "less_data" in pictures:
        parts.append(f"![Top-1 by share of the training images]({pictures['less_data']})")
    return "\n\n".join(parts)


def introduction(content: dict, profile) -> str:
    """How it was made and how it is read."""
    made = content["made"]
    lines = [
        f"Made by `python examples/reproduce_tables.py --profile {profile.name}`: {made['runs']} of {made['planned']} "
        f"runs are finished. The recipe is [`{profile.recipe}`](../../../{profile.recipe})."
    ]
    if made["runs"]:
        lines.append(made_in_words(made, profile))
    lines.append(
        "A command below may be run alone, after `python examples/reproduce_tables.py --profile "
        f"{profile.name} --prepare`, which writes the images, and after the runs that are named above it, whose "
        "teacher, weights or stored answers it uses."
    )
    return "\n\n".join([*lines, *how_it_is_read(content["seed_deviation"], content["seed_freedom"])])


def made_in_words(made: dict, profile) -> str:
    """Data, time, machines and versions of the finished runs."""
    median = (
        ""
        if made["student_seconds"] is None
        else (f", {duration(made['student_seconds'])} in the median run whose teacher had nothing to answer")
    )
    return (
        f"{profile.num_train:,} training images and {made['held_out']:,} held-out ones of CIFAR-10. The students' "
        f"training took {duration(made['training_seconds'])} over all runs (that of the teachers is not counted)"
        f"{median}; hardware: {'; '.join(made['hardware'])}; last one finished {made['finished']}; "
        f"{', '.join(made['versions'])}."
    )


def how_it_is_read(deviation: float | None, freedom: int | None) -> tuple[str, ...]:
    """What the figures, errors and verdicts mean, and what is in none of them."""
    pooled = "not known yet" if deviation is None else f"{deviation:.2f} points, {freedom} degrees of freedom"
    return (
        "Figures are top-1 in per cent, differences in points. *Deviation* is that between seeds, *interval* (95 %, "
        "Wilson) allows for the chance in which images were held out. A difference has two standard errors, by seed "
        "and by image; – is one that was not measured. The deviation by seed is pooled over all kinds of runs with "
        f"several seeds ({pooled}), since three tell little about their own, and is lent to rows with one seed; rows "
        "that belong together seed by seed have that of their differences. A difference is *clear* if it is larger "
        "than both errors together, that by image times 1.96 and that by seed times the 97.5 % point of Student's t. "
        "The two overlap, since models of other seeds also differ image by image, so their sum errs towards *not "
        "decided*.",
        "*Agrees in sign* says that a difference is clear and of the paper's sign, and nothing of its size; *disagrees "
        f"in sign*, that it is clear and of the other. Of the paper's differences of up to {PAPER_NOISE} points, which "
        f"count as none, *agrees* says that a difference of more than {NO_DIFFERENCE:g} point is excluded here, "
        "*disagrees* that it is clearly larger than that, or clear and of the other sign. All else is *not decided*, "
        "and so is what has no error by seed. Of some thirty claims one or two are clear by chance alone.",
        "All rows but those of Table 2 and of less data have one convnet as teacher, Table 2 has one transformer, and "
        "all runs see the views of one `data_seed`: what another teacher, or another order of the views, would give is "
        "in no error.",
    )


def accuracy_part(table: Table, described: dict, commands: dict[str, str]) -> list[str]:
    """A table's heading, rows, claims and commands."""
    text = " ".join([table.text, *teachers_in_words(table, described["rows"])])
    parts = [f"## {table.title}", text, row_lines(table, described["rows"]), claim_lines(described["claims"])]
    names = dict.fromkeys(row.runs for row in table.rows)
    shown = [commands[name] for name in commands if name.rpartition("-")[0] in names]
    parts.append("<details><summary>The command of each run</summary>\n\n" + fenced(shown) + "\n\n</details>")
    return parts


def teachers_in_words(table: Table, rows: list[dict]) -> list[str]:
    """How good the teachers are that are compared, as measured."""
    told = [f"{row['row']} {row['teacher']:.2f} %" for row in rows if "teacher" in row]
    return [f"Measured as teachers: {', '.join(told)}."] if table.paper_teachers and told else []


def row_lines(table: Table, rows: list[dict]) -> str:
    """The rows as Markdown."""
    has_teachers = table.teacher
    has_paper = any(row["paper"] is not None for row in rows)
    header = ["row", *(["its teacher"] if has_teachers else []), "top-1", "deviation", "interval", "by seed"]
    header += (["paper"] if has_paper else []) + (["paper's teacher"] if table.paper_teachers else [])
    lines = []
    for row in rows:
        is_run = "mean" in row
        cells = [row["row"]]
        if has_teachers:
            cells.append(number(row.get("teacher")))
        cells.append(f"**{row['mean']:.2f}**" if is_run else "not run")
        cells.append(number(row.get("deviation")) if is_run else "")
        cells.append("{:.1f} to {:.1f}".format(*row["interval"]) if is_run else "")
        cells.append(", ".join(f"{share:.2f}" for share in row["top1"]) if is_run else "")
        cells += [number(row["paper"], 1)] if has_paper else []
        cells += [number(row["paper_teacher"], 1)] if table.paper_teachers else []
        lines.append(cells)
    return as_table(header, lines)


def claim_lines(claims: list[dict], unit: str = "points", digits: int = 2) -> str:
    """Each claim with the paper's difference, the measured one, its errors and the verdict."""
    lines = []
    for claim in claims:
        paper = "–" if claim["paper"] is None else f"{claim['paper']:+g}"
        if "difference" not in claim:
            lines.append([claim["claim"], paper, "", "", "", claim["verdict"]])
            continue
        errors = [error_cell(claim[name], digits) for name in ("seed_error", "image_error")]
        lines.append([claim["claim"], paper, f"{claim['difference']:+.{digits}f}", *errors, f"**{claim['verdict']}**"])
    return as_table(["difference, " + unit, "paper", "here", "by seed", "by image", "verdict"], lines)


def error_cell(error: float | None, digits: int) -> str:
    """A standard error; a dash for one that was not measured, which is not an error of zero."""
    return "–" if error is None else f"± {error:.{digits}f}"


def disagreement_part(described: dict) -> list[str]:
    """Table 4."""
    heading = [f"## {described['title']}"]
    if "disagreement" not in described:
        return [*heading, "Not run."]
    lines = []
    for one, row in described["disagreement"].items():
        cells = [one]
        for other, share in row.items():
            paper = PAPER_TABLE_4.get((one, other), PAPER_TABLE_4.get((other, one)))
            told = f"{share:.1f}" + ("" if paper is None else f" ({paper:.1f})")
            cells.append("–" if one == other else told)
        lines.append(cells)
    text = (
        f"Per cent of the held-out images, mean over seeds {', '.join(map(str, described['seeds']))}; in brackets the "
        "paper's (DeiT-B on ImageNet). The runs are those of Table 3."
    )
    return [
        *heading,
        text,
        as_table(["differs from", *described["disagreement"]], lines),
        claim_lines(described["claims"]),
    ]


def token_part(described: dict, pictures: dict[str, str]) -> list[str]:
    """The cosine at the input and by block."""
    heading = [f"## {described['title']}"]
    if "cosines" not in described:
        return [*heading, "Not run."]
    names = ["as learned", *(f"block {block}" for block in range(1, len(described["cosines"][0])))]
    lines = [
        [f"seed {seed}", *(f"{cosine:.2f}" for cosine in curve)]
        for seed, curve in zip(described["seeds"], described["cosines"], strict=True)
    ]
    text = (
        f"Mean over {described['images']} held-out images, the student with the token of Table 3. The paper's: "
        f"{PAPER_COSINE[0]:.2f} as learned, {PAPER_COSINE[1]:.2f} at the end of the last layer (DeiT-B on ImageNet)."
    )
    claims = claim_lines(described["claims"], unit="of cosines")
    picture = [f"![The tokens' cosine by block]({pictures['tokens']})"] if "tokens" in pictures else []
    return [*heading, text, as_table(["", *names], lines), claims, *picture]


def write_index(folder: Path):
    """`README.md` of all profiles' results: Table 3, and what agrees with the paper and what does not."""
    parts = [
        "# Results",
        "Does distillation through a token pay? The paper's tables, trained from scratch on CIFAR-10 by "
        "[`reproduce_tables.py`](../reproduce_tables.py); each profile's page has every row with its seeds, errors and "
        "commands. Written by that script.",
    ]
    for path in sorted(folder.glob("*/tables.json")):
        content = json.loads(path.read_text())
        name, made = content["profile"], content["made"]
        parts += [f"## Profile `{name}`", f"[All tables]({name}/tables.md), {made['runs']} of {made['planned']} runs."]
        table, described = TABLES[0], content["tables"]["table3"]
        parts += [f"{table.title} ({table.text[0].lower()}{table.text[1:-1]}):", row_lines(table, described["rows"])]
        parts += [agreement(content["tables"])]
    (folder / "README.md").write_text("\n\n".join(parts) + "\n")


def agreement(tables: dict[str, dict]) -> str:
    """All claims under their verdicts."""
    lines: dict[str, list[str]] = {}
    for key, table in tables.items():
        for claim in table.get("claims", ()):
            digits = 2 if key == "tokens" else 1
            told = claim["claim"]
            if "difference" in claim:
                paper = "" if claim["paper"] is None else f" (paper {claim['paper']:+g})"
                margin = "error by seed not measured" if claim["margin"] is None else f"± {claim['margin']:.{digits}f}"
                told += f": {claim['difference']:+.{digits}f} {margin}{paper}"
            heading = claim["verdict"].partition(":")[0]
            lines.setdefault(heading, []).append(f"- {table['title'].partition(':')[0]}: {told}")
    names = {
        "agrees in sign": "Agrees with the paper in sign",
        "agrees": "Agrees with the paper that there is next to no difference",
        "disagrees in sign": "Disagrees with the paper in sign",
        "disagrees": "Disagrees with the paper that there is next to no difference",
        "not decided": "Not decided: chance may make as much, or the error by seed was not measured",
        "better": "Nothing in the paper to compare with, clearly better",
        "worse": "Nothing in the paper to compare with, clearly worse",
        "not run": "Not run",
    }
    return "\n\n".join(
        f"**{name}** (± what chance exceeds one time in twenty)\n\n" + "\n".join(lines[key])
        for key, name in names.items()
        if key in lines
    )


def as_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def fenced(lines: Sequence[str]) -> str:
    return "```bash\n" + "\n".join(lines) + "\n```"


def number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


# Plots


def draw(tables: dict[str, dict], folder: Path) -> dict[str, str]:
    """Plots of what was run: the methods, less data, the tokens; names of the files by what they show."""
    drawn = {}
    for name, plot, described in (
        ("methods", plot_methods, tables["table3"]),
        ("less_data", plot_less_data, tables["less_data"]),
        ("tokens", plot_tokens, tables["tokens"]),
    ):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 3.5), layout="constrained")
        axes = figure.subplots()
        if plot(axes, described):
            drawn[name] = f"{name}.png"
            figure.savefig(folder / drawn[name], dpi=120, metadata={"Software": None})
    return drawn


def plot_methods(axes, described: dict) -> bool:
    """Each method's seeds, and their mean with the deviation."""
    rows = [row for row in described["rows"] if "mean" in row]
    for place, row in enumerate(rows):
        axes.errorbar(row["mean"], place, xerr=row["deviation"] or 0, fmt="o", color="black", capsize=3)
        axes.plot(row["top1"], [place] * len(row["top1"]), "|", color="tab:blue", markersize=12)
    axes.set_yticks(range(len(rows)), [row["row"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("top-1 in per cent: seeds, mean and deviation")
    axes.grid(axis="x", alpha=0.3)
    return bool(rows)


def plot_less_data(axes, described: dict) -> bool:
    """Top-1 over the share of the images, alone and distilled, and the teacher's."""
    shares, drawn = (10, 25, 50, 100), False
    for name, rows in (("distilled", described["rows"][1::2]), ("alone", described["rows"][0::2])):
        points = [(share, row["mean"]) for share, row in zip(shares, rows, strict=True) if "mean" in row]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
            drawn = True
        teachers = [(share, row["teacher"]) for share, row in zip(shares, rows, strict=True) if "teacher" in row]
        if name == "distilled" and teachers:
            axes.plot(*zip(*teachers, strict=True), marker=".", linestyle=":", color="grey", label="teacher")
    axes.set(xlabel="share of the training images in per cent", ylabel="top-1 in per cent", xscale="log")
    axes.set_xticks(shares, [str(share) for share in shares])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend() if drawn else None
    return drawn


def plot_tokens(axes, described: dict) -> bool:
    """The cosine after each block, a line for each seed."""
    if "cosines" not in described:
        return False
    for seed, curve in zip(described["seeds"], described["cosines"], strict=True):
        axes.plot(range(len(curve)), curve, marker="o", label=f"seed {seed}")
    names = ["as learned", *(f"block {block}" for block in range(1, len(described["cosines"][0])))]
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("cosine of the two tokens")
    axes.grid(alpha=0.3)
    axes.legend()
    return True

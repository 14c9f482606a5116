"""The tables of `reproduce_tables.py` as they are read: Markdown, JSON and plots, and the page above all profiles."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tables_figures import Left, figures, read
from tables_paper import NO_DIFFERENCE, PAPER_COSINE, PAPER_NOISE, PAPER_TABLE_4, TABLES, Table

from modeling_deit_distill.files import write_json
from modeling_deit_distill.report import duration


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
    write_json(folder / "tables.json", rounded(content))
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
    words = [f"{row['row']} {row['teacher']:.2f} %" for row in rows if "teacher" in row]
    return [f"Measured as teachers: {', '.join(words)}."] if table.paper_teachers and words else []


def row_lines(table: Table, rows: list[dict]) -> str:
    """The rows as Markdown."""
    has_teachers = table.teacher
    has_paper = any(row["paper"] is not None for row in rows)
    header = ["row", *(["its teacher"] if has_teachers else []), "top-1", "deviation", "interval", "by seed"]
    header += ["teacher asked about"] if table.asked else []
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
        cells += [asked_cell(row)] if table.asked else []
        cells += [number(row["paper"], 1)] if has_paper else []
        cells += [number(row["paper_teacher"], 1)] if table.paper_teachers else []
        lines.append(cells)
    return as_table(header, lines)


def asked_cell(row: dict) -> str:
    """How many views the teacher was asked about, and how long it takes for them."""
    if "asked" not in row:
        return ""
    seconds = row["asked_seconds"]
    return f"{row['asked']:,} views" + (f", {duration(seconds)}" if seconds is not None else "")


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
            words = f"{share:.1f}" + ("" if paper is None else f" ({paper:.1f})")
            cells.append("–" if one == other else words)
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
        "Does distillation through a token raise accuracy? The paper's tables, trained from scratch on CIFAR-10 by "
        "[`reproduce_tables.py`](../reproduce_tables.py); each profile's page has every row with its seeds, errors and "
        "commands. Written by that script.",
        how_verdicts_are_read(),
    ]
    for path in sorted(folder.glob("*/tables.json")):
        content = json.loads(path.read_text())
        name, made = content["profile"], content["made"]
        parts += [f"## Profile `{name}`", f"[All tables]({name}/tables.md), {made['runs']} of {made['planned']} runs."]
        table, described = TABLES[0], content["tables"]["table3"]
        parts += [f"{table.title} ({table.text[0].lower()}{table.text[1:-1]}):", row_lines(table, described["rows"])]
        parts += [agreement(content["tables"])]
    (folder / "README.md").write_text("\n\n".join(parts) + "\n")


def how_verdicts_are_read() -> str:
    """What the margins and the headings of [`agreement`] mean."""
    return (
        "In the lists, ± is the 95 % margin. It adds the error by seed and that by image, and so is rather too wide. A "
        "difference larger than its margin is clear. *Agrees in sign* and *disagrees in sign* are about clear "
        f"differences. A difference of the paper of at most {PAPER_NOISE:g} points counts as none. There, a difference "
        f"here agrees if it is within {NO_DIFFERENCE:g} point, margin included. It disagrees if it is clearly above "
        f"{NO_DIFFERENCE:g} point, or clear and of the other sign. All else is not decided, as is what has no error by "
        "seed."
    )


def agreement(tables: dict[str, dict]) -> str:
    """All claims under their verdicts."""
    lines: dict[str, list[str]] = {}
    for key, table in tables.items():
        for claim in table.get("claims", ()):
            digits = 2 if key == "tokens" else 1
            words = claim["claim"]
            if "difference" in claim:
                paper = "" if claim["paper"] is None else f" (paper {claim['paper']:+g})"
                margin = "error by seed not measured" if claim["margin"] is None else f"± {claim['margin']:.{digits}f}"
                words += f": {claim['difference']:+.{digits}f} {margin}{paper}"
            heading = claim["verdict"].partition(":")[0]
            lines.setdefault(heading, []).append(f"- {table['title'].partition(':')[0]}: {words}")
    names = {
        "agrees in sign": "Agrees with the paper in sign",
        "agrees": "Agrees with the paper that there is next to no difference",
        "disagrees in sign": "Disagrees with the paper in sign",
        "disagrees": "Disagrees with the paper that there is next to no difference",
        "not decided": "Not decided",
        "better": "Nothing in the paper to compare with, clearly better",
        "worse": "Nothing in the paper to compare with, clearly worse",
        "not run": "Not run",
    }
    return "\n\n".join(f"**{name}**\n\n" + "\n".join(lines[key]) for key, name in names.items() if key in lines)


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

"""The model card, from what a run left in its folder: `python -m modeling_deit_distill.model_card OUTPUT_DIR`.

Every figure comes from the run, and what was not measured, or not recorded by an older run, leaves no trace.
"""

import argparse
import html
import json
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..analysis import disagreement, wilson_interval, worst_classes, worst_confusions
from ..arguments import BROWSER_REVISION, COPIES
from ..configuration_deit_distill import as_pair
from ..conversion.weight_names import why_not_native
from ..export.browser import js_options
from ..files import written_whole
from ..hardware import parts_in_words
from ..hub import check_license
from ..output_folder import CARD, CONFUSION, CURVES, DECISIONS, MISTAKES, PREDICTIONS
from ..report import ACCURACY_NAMES, duration
from .comparison import accuracies_of_teachers, comparison, verdict, views_asked_in_words
from .confusion import confusion_in_words, plot_confusion
from .pictures import HOW_CHOSEN, plot_training_curves
from .places import decisions_of_exports, places
from .record import note_words
from .run import DECISION_NAMES, Run, read_run

TEMPLATE = Path(__file__).with_name("card_template.md")
MAX_CLASSES = 20  # that are listed; of more, the first ten, and the worst of them with their figures
MAX_ROWS = 10
PAPER = "https://arxiv.org/abs/2012.12877"

FUSION_WORDS = {
    "logit_mean": "the mean of both heads' logits",
    "softmax_mean": "the mean of both heads' probabilities",
    "cls": "the class head's",
    "distillation": "the distillation head's",
}


def write_model_card(output_dir: str | Path, results: dict[str, float] | None = None) -> Path:
    """Write `README.md` into a run's folder from what lies there and nothing else.

    Only `config.json` must be there. A checkpoint of a run under way gets a card that says so. `results` are what
    `all_results.json` is about to hold, for the run itself, which writes that file last.

    Raises:
        InputError: no model in the folder, or a file that is not what a run leaves.
    """
    run = read_run(Path(output_dir), results)
    card = ModelCard.from_template(metadata(run), template_path=str(TEMPLATE), **content(run))
    with written_whole(run.folder / CARD) as partial:
        card.save(partial)
    return run.folder / CARD


def write_card_and_curves(output_dir: str | Path, results: dict[str, float] | None = None) -> Path:
    """As [`write_model_card`], with the curves drawn again, and the confusion matrix, where anything was kept."""
    run = read_run(Path(output_dir), results)
    plot_training_curves(run.state.get("log_history") or [], Path(output_dir, CURVES))
    if run.decisions:
        plot_confusion(run.judged.confusion, run.class_names, Path(output_dir, CONFUSION))
    return write_model_card(output_dir, results)


def metadata(run: Run) -> ModelCardData:
    """What the Hub reads of a card; what is None is left out."""
    evaluated, said = evaluation_results(run), run.record.get("card") or {}  # as given to `create_model_card`
    tags = ["image-classification", "vision", "vit", "deit", *(["distillation"] if run.has_teacher else [])]
    return ModelCardData(
        language=said.get("language"),
        license=said.get("license"),
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=list(dict.fromkeys([*tags, *_several(said.get("tags"))])),
        base_model=said.get("finetuned_from", run.record.get("base_model")),
        datasets=_several(said.get("dataset_tags") or run.dataset.get("id")) or None,
        metrics=["accuracy"] if run.measured("eval_accuracy") is not None else None,
        model_name=said.get("model_name", run.name) if evaluated else None,
        eval_results=evaluated or None,
    )


def evaluation_results(run: Run) -> list[EvalResult]:
    """The model-index; it needs the data's name, so a run that did not note it has none."""
    said = ", ".join(_several((run.record.get("card") or {}).get("dataset")))
    name = said or run.dataset.get("name") or run.dataset.get("id")
    metrics = {
        "eval_accuracy": ("accuracy", "top-1 accuracy"),
        "eval_top5_accuracy": ("accuracy", "top-5 accuracy"),
        "eval_balanced_accuracy": ("balanced_accuracy", "balanced accuracy"),
        "eval_macro_f1": ("f1", "macro-F1"),
        "eval_teacher_agreement": ("teacher_agreement", "agreement with the teacher"),
    }
    return [
        EvalResult(
            task_type="image-classification",
            task_name="Image classification",
            dataset_type=run.dataset.get("id") or "imagefolder",
            dataset_name=name,
            dataset_split=run.dataset.get("split"),
            metric_type=kind,
            metric_name=metric_name,
            metric_value=run.measured(key),
        )
        for key, (kind, metric_name) in metrics.items()
        if name and run.measured(key) is not None
    ]


def _several(words: str | list[str] | None) -> list[str]:
    return [words] if words and isinstance(words, str) else list(words or [])


def content(run: Run) -> dict[str, object]:
    """What the template is filled with; what is empty leaves no trace in the card."""
    # The branches and the Space are pushed at the end of a run.
    native, browser, demo = (bool(run.record.get(copy)) and run.is_finished for copy in COPIES)
    revision, settings = run.record.get("revision"), run.record.get("recipe")
    exports = run.record.get("exports") or []
    place = run.record.get("path") or run.name
    as_written = {"sort_keys": False, "allow_unicode": True, "width": 1000}
    return {
        "title": _text(run.name.rsplit("/", 1)[-1]),
        "introduction": introduction(run),
        "score": score(run),
        "picture": run.file(PREDICTIONS),
        "how_chosen": HOW_CHOSEN,
        "mistakes": run.file(MISTAKES),
        "confusion": run.file(CONFUSION) if run.decisions else None,
        "how_confused": confusion_in_words(run.judged.confusion) if run.decisions else None,
        "two_heads": run.config.use_distillation_token,
        "tokens": tokens(run),
        "name": json.dumps(place, ensure_ascii=False),
        "shell_name": shlex.quote(place),
        "heic": run.record.get("heic"),
        "revision": json.dumps(revision, ensure_ascii=False) if revision else None,
        "shell_revision": shlex.quote(revision) if revision else None,
        "native": native,
        "browser": browser,
        "browser_options": js_options(BROWSER_REVISION, {each["precision"] for each in exports}),
        "demo": demo,
        "url_name": quote(run.name),
        # Elsewhere its files would be named that are not there.
        "places": _table(("where", "file", "MB", "ms an image"), places(run)) if browser or demo else None,
        "decisions": decisions_of_exports(exports),
        "exportable": not native and why_not_native(run.config) is None,
        "comparison": comparison_table(run),
        "verdict": _text(words[0].upper() + words[1:]) if (words := verdict(run.outcome)) else None,
        "has_milliseconds": run.measured("milliseconds_per_image") is not None,
        "hardware": _text(run.record["hardware"]) if run.record.get("hardware") else None,
        "accuracies": accuracy_table(run),
        "num_images": f"{run.num_images:,}" if run.num_images else None,
        "disagreement": disagreement_table(run),
        "classes": class_table(run) if run.decisions else None,
        "worst_confusions": worst_confusions_table(run) if run.decisions else None,
        "method": method(run),
        "summary": summary_table(run),
        "curves": run.file(CURVES),
        "recipe": _fenced(yaml.safe_dump(settings, **as_written), "yaml") if settings else None,
        "parts": parts_table(run),
        "command": _fenced(run.record["command"], "bash") if run.record.get("command") else None,
        "versions": ", ".join(f"{_text(name)} {_text(each)}" for name, each in _known(run.record.get("versions"))),
        "limitations": list(limitations(run)),
        "licence": licence(run),
    }


def introduction(run: Run) -> str:
    """What the model is."""
    height, width = as_pair(run.config.image_size)
    parameters = run.measured("num_parameters")
    size = f" of {parameters / 1e6:.2f} million parameters" if parameters else ""
    what = (
        f"A vision transformer ([DeiT]({PAPER})){size} that classifies images of {height} × {width} pixels "
        f"into {len(run.class_names):,} classes: {class_list(run.class_names)}."
    )
    if run.config.use_distillation_token:
        how = (
            "It was distilled through attention: its class token learned from labels, its distillation token from "
            f"{_a_teacher(run)}'s answers. Its answer is {FUSION_WORDS[run.config.fusion]}."
        )
    elif run.has_teacher:
        how = f"It has a class token and one head, which learned from labels and from {_a_teacher(run)}'s answers."
    else:
        how = "It has a class token and one head."
    return f"{what}\n\n{how}"


def _a_teacher(run: Run) -> str:
    return f"an {run.outcome.called('teacher')}" if run.outcome.teachers else "a teacher"


def class_list(names: Sequence[str]) -> str:
    """The names; of very many, the first ones."""
    shown = names if len(names) <= MAX_CLASSES else names[:10]
    rest = f", ... and {len(names) - len(shown):,} others" if len(shown) < len(names) else ""
    return ", ".join(_text(name) for name in shown) + rest


def score(run: Run) -> str | None:
    """How good it is, in a sentence or two."""
    share, teacher = run.measured("eval_accuracy"), run.measured("teacher_accuracy")
    if share is None:
        return None if run.is_finished else "Training is still under way."
    images = f"{run.num_images:,} held-out images" if run.num_images else "the held-out images"
    text = f"It is right on **{_percent(share)}** of {images}"
    if run.num_images:
        text += f" (95 % interval: {_interval(share, run.num_images)})"
    if teacher is not None:
        text += f", its {run.outcome.called('teacher')} on {_percent(teacher)}"
    if run.is_finished:
        return text + "."
    if (epoch := run.measured("epoch")) is not None:
        total = run.state.get("num_train_epochs")
        text += f", after {epoch:g} epochs" + (f" of {total:g}" if total else "")
    return f"Training is still under way. {text}."


def tokens(run: Run) -> str | None:
    """How alike the two tokens are where they come in and where they come out, in a sentence."""
    blocks, learned = run.tokens.get("cosine_by_block"), run.tokens.get("cosine_learned")
    if not blocks or learned is None:
        return None
    return (
        f"Cosine similarity of the two token embeddings: {learned:.2f} as learned, {blocks[0]:.2f} after the first "
        f"block and {blocks[-1]:.2f} after the last (mean over {run.tokens['images']:,} held-out images). "
        "1: the two are alike, 0: they have nothing in common."
    )


def comparison_table(run: Run) -> str | None:
    """This model, its teacher, and what always answering the largest class would come to."""
    heads, rows = comparison(run.outcome)
    names = {"student": "this model", (teacher := run.outcome.called("teacher")): f"its {teacher}"}
    rows = [tuple(map(_text, row)) for row in rows]
    table = _table(("", *(_text(names.get(head, head)) for head in heads)), rows)
    alone = [(_text(name), _text(value)) for name, value in accuracies_of_teachers(run.outcome)]
    if not alone:
        return table
    words = "Each of the teachers alone:"
    return f"{table}\n\n{words}\n\n{_table(('', 'accuracy'), alone)}"


def accuracy_table(run: Run) -> str | None:
    """Shares of right answers by head and fusion."""
    names = {key: name.removeprefix("student, ") for key, name in ACCURACY_NAMES.items()}
    names |= {"eval_accuracy": "**this model**", "eval_teacher_agreement": "this model agrees with the teacher"}
    if run.config.use_distillation_token:
        names["eval_accuracy"] += f", {FUSION_WORDS[run.config.fusion]}"
        names.pop(f"eval_accuracy_{run.config.fusion}")  # the same once more
    else:
        names.pop("eval_accuracy_cls")
    rows = [(name, run.measured(key)) for key, name in names.items() if run.measured(key) is not None]
    header = ("top-1 and agreement", "share of held-out images", "95 % interval")
    if not run.num_images:
        return _table(header[:2], [(name, _percent(share)) for name, share in rows])
    return _table(header, [(name, _percent(share), _interval(share, run.num_images)) for name, share in rows])


def disagreement_table(run: Run) -> str | None:
    """Shares of images on which two sets of answers differ (paper, Table 4); of two sets alone it says nothing new."""
    names = dict(DECISION_NAMES)
    if not run.config.use_distillation_token:
        names.pop("cls")  # the model's own answer once more
    sets = {name: run.decisions[key] for key, name in names.items() if key in run.decisions}
    if len(sets) < 3:
        return None
    shares = disagreement(sets)
    rows = [
        (one, *("–" if one == other else _percent(share) for other, share in row.items()))
        for one, row in shares.items()
    ]
    return _table(("differs from", *sets), rows)


def class_table(run: Run) -> str:
    """Precision, recall and F1 of each class; of very many classes the worst, with what is left out."""
    classes = [each for each in run.judged.classes if each.f1 is not None]
    shown = classes if len(classes) <= MAX_CLASSES else worst_classes(classes, MAX_CLASSES)
    table = _table(
        ("class", "precision", "recall", "F1", "images"),
        [
            (_text(run.class_names[each.label]), *(_share(share) for share in each[1:4]), f"{each.num_images:,}")
            for each in shown
        ],
    )
    if len(shown) == len(classes):
        return f"Precision, recall and F1 of each class:\n\n{table}"
    left_out = len(classes) - len(shown)
    return (
        f"Precision, recall and F1 of the {len(shown)} classes with the lowest F1; the other {left_out:,} are left out "
        f"(`{DECISIONS}` has every decision):\n\n{table}"
    )


def worst_confusions_table(run: Run) -> str | None:
    """The commonest pairs of true class and wrong answer."""
    rows = [
        (_text(run.class_names[pair.label]), _text(run.class_names[pair.answer]), pair.count, _percent(pair.share))
        for pair in worst_confusions(run.judged.confusion, MAX_ROWS)
    ]
    return _table(("class", "taken for", "images", "share of the class"), rows)


def parts_table(run: Run) -> str | None:
    """The parts of a run that was extended: each from where the one before ended, the last being this one."""
    earlier = run.record.get("parts")
    if not earlier:
        return None
    last = {"results": run.results, "steps": run.state.get("global_step"), "length": run.summary.get("length")}
    parts = [*earlier, {**last, "finished": run.record.get("finished")}]
    rows = [
        (
            number,
            _text(part.get("length") or "?"),
            f"{part['steps']:,}" if part.get("steps") else "?",
            _text(part.get("finished") or "?"),
            _percent(accuracy) if (accuracy := part.get("results", {}).get("eval_accuracy")) is not None else "?",
        )
        for number, part in enumerate(parts, start=1)
    ]
    commands = "\n\n".join(_fenced(part["command"], "bash") for part in earlier if part.get("command"))
    words = "The run was extended: each part went on where the one before had ended, at the learning rate of its own "
    words += f"length.\n\n{_table(('part', 'length', 'last step', 'finished', 'accuracy'), rows)}"
    return f"{words}\n\nThe commands of the earlier parts:\n\n{commands}" if commands else words


def method(run: Run) -> str:
    """By what, from what, on what and with whose help."""
    parts = ["With `train_deit.py` of `modeling_deit_distill`"]
    if run.record.get("base_model"):
        parts.append(f"starting from {_hub_link(run.record['base_model'])}")
    if run.dataset.get("id"):
        parts.append(f"on {_hub_link(run.dataset['id'], 'datasets/')}")
    if teachers := _several(run.record.get("teacher")):
        parts.append(f"taught by {' and '.join(map(_hub_link, teachers))}")
    return ", ".join(parts) + "."


def summary_table(run: Run) -> str | None:
    """What the run said of itself, and what it took."""
    summary = {name: value for name, value in run.summary.items() if name != "output"}  # a folder of somebody's machine
    runtime, bad_images, asked = (run.measured(k) for k in ("train_runtime", "bad_images", "teacher_views_asked"))
    parts = run.record.get("hardware_by_step")
    added = {
        "hardware": parts_in_words(parts) if parts else run.record.get("hardware"),
        "training time": None if runtime is None else duration(runtime),
        **(dict([views_asked_in_words(run.outcome)]) if asked else {}),
        "images that could not be read": None if bad_images is None else f"{bad_images:,.0f}",
        "finished": run.record.get("finished") if run.is_finished else None,
    }
    rows = [(_text(name), _text(value)) for name, value in _known({**summary, **added})]
    return _table(("what", "in this run"), rows)


def limitations(run: Run) -> Iterable[str]:
    """What a user must know before relying on it, each from what the run noted."""
    yield (
        f"It knows the {len(run.class_names):,} classes above and no others: whatever an image shows, the answer is "
        "one of them."
    )
    edge, crop = ((run.processor.get(key) or {}) for key in ("size", "crop_size"))
    if run.processor.get("do_center_crop") and edge.get("shortest_edge") and crop.get("height") and crop.get("width"):
        yield (
            f"It sees the middle of an image alone: the shorter side is resized to {edge['shortest_edge']} pixels, and "
            f"{crop['height']} × {crop['width']} are cut from the centre."
        )
    yield reach(run)
    seen = set(run.decisions["labels"].tolist()) if run.decisions else ()
    unseen = [name for label, name in enumerate(run.class_names) if label not in seen]
    if seen and unseen:
        yield (
            f"Of {len(unseen):,} of the {len(run.class_names):,} classes no image was held out, so nothing is known "
            f"of how well it recognises them: {class_list(unseen)}."
        )
    if run.has_teacher:
        yield f"It learned from {_a_teacher(run)}, its mistakes included." + teacher_mistakes(run)
    if run.measured("bad_images"):
        yield f"{run.measured('bad_images'):,.0f} training image(s) could not be read, so it has not learned from them."
    if run.measured("bad_held_out_images"):
        number = run.measured("bad_held_out_images")
        yield f"{number:,.0f} held-out image(s) could not be read, so it was not measured on them."
    yield "Its probabilities are not calibrated: how often an answer given with 90 % is right was not measured."


def reach(run: Run) -> str:
    """What it was trained and measured on, and that the figures go no further."""
    trained, held_out = run.summary.get("data"), run.summary.get("held out")
    done = [f"trained on {_text(trained)}"] if trained else []
    if done and run.measured("unlabelled_images"):
        done[0] += f" and on {run.measured('unlabelled_images'):,.0f} images without labels"
    if held_out:
        done.append(f"measured on {_text(held_out)}")
    start = f"It was {', and '.join(done)}. " if done else ""
    return start + "How it does on images from elsewhere, taken by others or in another way, was not measured."


def teacher_mistakes(run: Run) -> str:
    """How often the student repeats its teacher's mistakes; empty where that is not known."""
    if "teacher" not in run.decisions:
        return ""
    wrong = run.decisions["teacher"] != run.decisions["labels"]
    if not wrong.any():
        return f" On the {run.num_images:,} held-out images the teacher made none."
    repeated = np.count_nonzero(wrong & (run.decisions["teacher"] == run.decisions["fused"]))
    return (
        f" The teacher is wrong on {np.count_nonzero(wrong):,} of the {run.num_images:,} held-out images, and this "
        f"model repeats {repeated:,} of these answers."
    )


def licence(run: Run) -> str:
    """The licence that its author gave it, or that there is none; never one that nobody chose."""
    given = (run.record.get("card") or {}).get("license")
    words = (
        f"The model's licence is {_text(', '.join(_several(given)))}."
        if given
        else "No licence was given for this model."
    )
    if run.record.get("base_model"):
        words += (
            f" The checkpoint that it started from, {_hub_link(run.record['base_model'])}, has a licence of its own."
        )
    return words


def main(arguments: list[str]) -> int:
    """Draw the curves and the confusion matrix of a run again and write its card again."""
    parser = argparse.ArgumentParser(
        prog="python -m modeling_deit_distill.model_card", description=__doc__.split(":")[0]
    )
    parser.add_argument("output_dir", help="folder of a run of train_deit.py, or a copy of its repository")
    parser.add_argument("--license", help="licence on the card, as the Hub names it; kept in run.json")
    given = parser.parse_args(arguments)
    check_license(given.license)
    read_run(Path(given.output_dir))  # before anything is written: it is a run's folder
    note_words(given.output_dir, {"license": given.license})
    print(f"wrote {write_card_and_curves(given.output_dir)}")
    return 0


def _known(values: dict | None) -> list[tuple[str, object]]:
    return [(name, value) for name, value in (values or {}).items() if value is not None and value != ""]


def _share(share: float | None) -> str:
    return "–" if share is None else _percent(share)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _interval(share: float, num_images: int) -> str:
    low, high = wilson_interval(round(share * num_images), num_images)
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def _hub_link(name: str, kind: str = "") -> str:
    return f"[{_text(name)}](https://huggingface.co/{kind}{name})"


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str | None:
    """A table in Markdown, whose cells are Markdown on one line; None without rows."""
    if not rows:
        return None
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _text(value: object) -> str:
    """A value on one line, in which no character is taken for Markdown, HTML or a formula."""
    line = html.escape(" ".join(str(value).split()), quote=False)
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", line)


def _fenced(text: str, language: str) -> str:
    """A block of code, whose fence is longer than any within it."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"

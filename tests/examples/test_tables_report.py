"""The paper's tables as figures and Markdown: errors, verdicts and rows worked by hand."""

import dataclasses
import json

import numpy as np
import pytest
from helpers.tables import PROFILE, finish, reproduce_tables, tables_figures, tables_paper, tables_report
from hypothesis import given
from hypothesis import strategies as st

from modeling_deit_distill import InputError

# How sure a difference is


def test_a_difference_has_an_error_by_seed_and_one_by_image():
    first, second = np.array([[1.0, 1, 1, 0]]), np.array([[1.0, 0, 0, 0], [1, 0, 1, 0]])
    found = tables_figures.difference(first, second, tables_figures.Deviation(0.02, 5))
    # 3/4 - 3/8; by image 0, 1, 1/2, 0 apart: variance (2·(3/8)² + (5/8)² + (1/8)²) / 3
    assert found.value == pytest.approx(37.5)
    assert found.seed_error == pytest.approx(2 * (1 + 1 / 2) ** 0.5)
    assert found.image_error == pytest.approx(100 * (0.6875 / 3 / 4) ** 0.5)
    # Student's t of 5 degrees of freedom by seed, the normal distribution by image
    margin = ((2.5706 * found.seed_error) ** 2 + (1.95996 * found.image_error) ** 2) ** 0.5
    assert found.margin == pytest.approx(margin, rel=1e-4)


def test_paired_seeds_err_by_their_differences():
    first, second = np.array([[1.0, 1], [1, 0]]), np.array([[1.0, 0], [0, 0]])
    pooled = tables_figures.Deviation(0.5, 7)
    found = tables_figures.difference(first, second, pooled, paired=True)
    assert (found.value, found.seed_error, found.freedom) == (50.0, 0.0, 1)  # both seeds gain one half
    alone = tables_figures.difference(first[:1], second[:1], pooled, paired=True)
    assert alone.seed_error == pytest.approx(100 * 0.5 * 2**0.5) and alone.freedom == 7  # one seed says nothing: lent
    unknown = tables_figures.difference(first[:1], second[:1], None, paired=True)
    assert (unknown.seed_error, unknown.margin, unknown.is_clear) == (None, None, False)
    assert tables_figures.verdict(unknown, 2.3) == tables_figures.verdict(unknown, 0.0) == "not decided"


def test_the_pooled_deviation_is_about_each_kinds_own_mean():
    pooled = tables_figures.pooled_deviation([[1, 3], [10, 10, 13], [7]])
    assert pooled.value == pytest.approx(((2 + 6) / 3) ** 0.5) and pooled.freedom == 3
    assert tables_figures.pooled_deviation([[1], [2]]) is None


VERDICTS = [  # a difference, the paper's, and what is said
    (2.0, 2.3, "agrees in sign"),
    (-2.0, 2.3, "disagrees in sign"),
    (0.51, 2.3, "not decided"),
    (-2.0, -5.3, "agrees in sign"),
    (2.0, None, "better"),
    (-2.0, None, "worse"),
    (0.51, None, "not decided"),
    # of none in the paper, by a margin of 0.5151
    (0.48, 0.0, "agrees: no difference"),
    (-0.48, 0.2, "agrees: no difference"),
    (0.49, 0.0, "not decided"),
    (1.49, 0.2, "not decided"),
    (1.52, 0.2, "disagrees: a difference"),
    (-1.52, 0.0, "disagrees: a difference"),
    (-0.52, 0.2, "disagrees: a difference"),  # of the other sign
]


def test_verdicts():
    for value, paper, expected in VERDICTS:
        # t of 2.2281, so 0.3342 by seed, 0.3920 by image
        found = tables_figures.Difference(value, 0.15, 0.2, freedom=10)
        assert found.margin == pytest.approx(0.5151, abs=1e-4)
        assert tables_figures.verdict(found, paper) == expected, (value, paper)


@given(st.floats(-5, 5), st.floats(0.25, 5), st.sampled_from([-1, 1]))
def test_the_other_sign_of_both_gives_the_same_verdict(value, size, sign):
    verdicts = [
        tables_figures.verdict(tables_figures.Difference(factor * value, 0.15, 0.2, freedom=10), factor * sign * size)
        for factor in (1, -1)
    ]
    assert verdicts[0] == verdicts[1]


def test_an_error_of_many_images_does_not_make_no_difference_of_an_unknown_one():
    assert tables_figures.verdict(tables_figures.Difference(0.2, 1.0, 1.0, freedom=10), 0.0) == "not decided"


# The tables

TRUTH = [0, 1, 2, 3, 4, 5, 6, 7]
TOKENS = {"images": 64, "cosine_learned": 0.1, "cosine_by_block": [0.5, 0.9], "attention_distance": [[1.0]]}
RECORD = {"hardware": "CPU", "versions": {"python": "3.12"}, "finished": "2026-11-25"}


def wrong(*places: int) -> list[int]:
    return [9 if place in places else label for place, label in enumerate(TRUTH)]


@pytest.fixture
def finished(tmp_path):
    """Table 3's runs, without soft distillation, of two seeds; and one ablation."""
    common = {"truth": TRUTH, "record": RECORD, "train_runtime": 60.0}
    for seed in (0, 1):
        finish(tmp_path, f"none-{seed}", fused=wrong(0, 1, 2, 3 + seed), **common)
        finish(tmp_path, f"hard-{seed}", fused=wrong(0, 1), teacher_accuracy=0.875, **common)
        heads = {"fused": wrong(0), "cls": wrong(0, 1), "distillation": wrong(0, 7), "teacher": wrong(7)}
        finish(tmp_path, f"token-{seed}", **heads, tokens=TOKENS, teacher_accuracy=0.875, **common)
    finish(tmp_path, "sgd-0", fused=wrong(0, 1, 2, 3, 4, 5), **common)
    return tmp_path


def left_in(folder) -> dict:
    names = [path.name for path in folder.iterdir() if (path / "all_results.json").exists()]
    return {name: tables_figures.read(folder / name) for name in names}


def test_rows_are_means_over_seeds_of_the_stored_decisions(finished):
    tables = tables_figures.figures(left_in(finished))["tables"]
    none, soft, hard, cls, distillation, both = tables["table3"]["rows"]
    assert (none["mean"], none["deviation"], none["runs"]) == (50.0, 0.0, ["none-0", "none-1"])
    assert soft == {"row": "usual distillation, soft", "runs": [], "paper": 72.2}  # not run, not left out
    assert [row["mean"] for row in (hard, cls, distillation, both)] == [75.0, 75.0, 75.0, 87.5]
    assert hard["top1"] == [75.0, 75.0] and "teacher" not in hard
    taught = tables["table2"]["rows"][2]
    assert (taught["teacher"], taught["paper_teacher"], taught["paper"]) == (87.5, 82.9, 83.1)


def test_claims_are_judged_from_the_decisions(finished):
    tables = tables_figures.figures(left_in(finished))["tables"]
    claims = {claim["claim"]: claim for claim in tables["table3"]["claims"]}
    assert claims["soft distillation against none"] == {
        "claim": "soft distillation against none",
        "paper": 0.0,
        "verdict": "not run",
    }
    both = claims["both heads against none"]
    # both: wrong on 0; none: on 0, 1, 2 and half the time on 3 and on 4
    by_image = np.array([0, 1, 1, 0.5, 0.5, 0, 0, 0])
    assert both["difference"] == 37.5 and both["seed_error"] == 0.0
    assert both["image_error"] == pytest.approx(100 * by_image.std(ddof=1) / 8**0.5)
    assert both["verdict"] == "agrees in sign"  # 2.39 errors by image, none by seed
    heads = claims["distillation head against class head"]
    assert (heads["difference"], heads["verdict"]) == (0.0, "not decided")
    ablations = {claim["claim"]: claim for claim in tables["ablation"]["claims"]}
    assert ablations["SGD for AdamW"]["difference"] == -25.0
    assert ablations["without erasing"]["verdict"] == "not run"


def test_the_disagreement_is_the_mean_over_seeds(finished):
    table = tables_figures.figures(left_in(finished))["tables"]["table4"]
    matrix = table["disagreement"]
    assert matrix["truth"] == {
        "truth": 0.0,
        "convnet": 12.5,
        "DeiT alone": 50.0,
        "class head": 25.0,
        "distillation head": 25.0,
        "both heads": 12.5,
    }
    assert matrix["convnet"]["DeiT alone"] == 62.5 and matrix["convnet"]["distillation head"] == 12.5
    assert matrix["class head"]["distillation head"] == 25.0
    nearer = table["claims"][0]
    assert (nearer["difference"], nearer["paper"]) == (62.5 - 37.5, 2.1)


def test_the_cosine_rises_or_it_does_not(finished, tmp_path):
    table = tables_figures.figures(left_in(finished))["tables"]["tokens"]
    assert table["cosines"] == [[0.1, 0.5, 0.9]] * 2
    (claim,) = table["claims"]
    assert (claim["difference"], claim["verdict"]) == (pytest.approx(0.8), "agrees in sign")
    assert (claim["seed_error"], claim["image_error"]) == (0.0, None)
    left = left_in(finished)
    falling = dataclasses.replace(left["token-0"], tokens={**TOKENS, "cosine_by_block": [0.5, 0.0]})
    (claim,) = tables_figures.token_table({"token-0": falling, "token-1": falling})["claims"]
    assert claim["verdict"] == "disagrees in sign"


def test_one_seed_has_no_error_by_seed_and_decides_nothing(finished):
    left = {name: run for name, run in left_in(finished).items() if name.endswith("-0")}
    content = tables_figures.figures(left)
    assert content["seed_deviation"] is None
    tables = content["tables"]
    claims = [claim for key in ("table3", "table4", "tokens") for claim in tables[key]["claims"] if len(claim) > 3]
    assert len(claims) > 10 and {claim["seed_error"] for claim in claims} == {None}
    assert {claim["verdict"] for claim in claims} == {"not decided"}
    (line,) = tables_report.claim_lines(tables["tokens"]["claims"]).splitlines()[2:]
    assert line.endswith("| +0.80 | – | – | **not decided** |")
    assert "**Not decided**" in tables_report.agreement(tables)
    assert "+37.5 error by seed not measured (paper +2.3)" in tables_report.agreement(tables)


def test_the_two_heads_are_compared_with_the_one_that_is_nearer_to_the_convnet(finished):
    left = left_in(finished)
    claim = tables_figures.disagreement_table(left)["claims"][2]
    # teacher wrong on 7; class head on 0 and 1, distillation head on 0 and 7: three and one apart, two from each other
    assert claim["claim"].endswith("(the nearer: distillation head)") and claim["difference"] == 12.5 - 25.0
    swapped = {
        name: dataclasses.replace(run, decisions={**run.decisions, "cls": wrong(7), "distillation": wrong(0, 1)})
        for name, run in left.items()
    }
    claim = tables_figures.disagreement_table(swapped)["claims"][2]
    assert claim["claim"].endswith("(the nearer: class head)") and claim["difference"] == 0.0 - 37.5


def test_decisions_that_do_not_give_the_reported_accuracy_are_refused(tmp_path):
    finish(tmp_path, "none-0", truth=TRUTH, fused=wrong(0), eval_accuracy=0.75)
    with pytest.raises(InputError, match=r"none-0: predictions.json has a top-1 of 0.8750, all_results.json of 0.7500"):
        tables_figures.read(tmp_path / "none-0")


def test_a_row_of_repeated_views_says_what_the_teacher_was_asked(tmp_path):
    cost = {"teacher_milliseconds_per_image": 1.5}
    finish(tmp_path, "views_16th-0", teacher_views_asked=80_000, **cost, truth=TRUTH, fused=TRUTH)
    finish(tmp_path, "views_16th-1", teacher_views_asked=0, truth=TRUTH, fused=wrong(0))
    table = next(table for table in tables_paper.TABLES if table.key == "view_epochs")
    rows = tables_figures.accuracy_table(table, left_in(tmp_path), None)["rows"]
    assert (rows[0]["asked"], rows[0]["asked_seconds"]) == (80_000, 120.0)
    first, others = tables_report.row_lines(table, rows).splitlines()[2:][0], rows[1:]
    assert first.endswith("| 80,000 views, 2 min 00 s |") and all("asked" not in row for row in others)


def test_every_machine_and_version_is_named_and_the_time_of_students_whose_teacher_is_silent(finished):
    record = {**RECORD, "hardware": "1 × GPU", "versions": {"python": "3.11"}}
    finish(finished, "token-2", record=record, train_runtime=600.0, teacher_views_asked=5, truth=TRUTH, fused=TRUTH)
    made = tables_report.how_made(left_in(finished), 9)
    assert made["hardware"] == ["CPU", "1 × GPU"] and made["versions"] == ["python 3.12", "python 3.11"]
    assert (made["training_seconds"], made["student_seconds"]) == (1020.0, 60.0)


def test_it_is_written_as_markdown_json_and_plots(finished):
    runs = reproduce_tables.plan(PROFILE, "outputs/tables/cpu")
    folder = tables_report.write(PROFILE, runs, finished, finished / "results" / "cpu")
    text = (folder / "tables.md").read_text()
    assert "7 of" in text and "both heads against none | +2.3 | +37.50 | ± 0.00 | ± 15.67 | **agrees in sign**" in text
    assert "| usual distillation, soft | not run |" in text
    assert "accelerate launch --quiet train_deit.py examples/recipes/tables_cpu.yaml" in text
    for run in runs:
        assert run.command in text, "a row without its command"
    assert f"# after token-0\n{next(run.command for run in runs if run.name == 'token-1')}" in text
    assert "reproduce_tables.py --profile cpu --prepare`" in text
    assert "Measured as teachers: the convnet 87.50 %." in text
    content = json.loads((folder / "tables.json").read_text())
    assert content["made"]["training_seconds"] == 420.0 and content["made"]["held_out"] == 8
    assert {path.name for path in folder.glob("*.png")} == {"methods.png", "less_data.png", "tokens.png"}
    index = (folder.parent / "README.md").read_text()
    assert "- Table 3: both heads against none: +37.5 ± 30.7 (paper +2.3)" in index.split("**Agrees")[1]
    assert "- Ablation: without erasing (paper" not in index and "**Not run**" in index
    assert str(finished) not in text + index


def test_without_any_run_everything_is_said_to_be_missing(tmp_path):
    runs = reproduce_tables.plan(PROFILE, "outputs/tables/cpu")
    folder = tables_report.write(PROFILE, runs, tmp_path / "none", tmp_path / "results" / "cpu")
    text = (folder / "tables.md").read_text()
    assert f"0 of {len(runs)} runs" in text and text.count("Not run.") == 2
    assert list(folder.glob("*.png")) == []

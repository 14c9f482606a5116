"""The metrics of `examples/metrics` as `evaluate` loads them: figures by hand, errors, several processes."""

import doctest
import multiprocessing

import evaluate
import numpy as np
import pytest
import torch
from helpers.paths import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

METRICS = ROOT / "examples" / "metrics"
NAMES = sorted(path.name for path in METRICS.iterdir() if path.is_dir())

# Nearly a classifier: eleven images, three classes, one tie.
LABELS = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1]
SCORES = np.array(
    [
        [0.75, 0.125, 0.125],
        [0.25, 0.5, 0.25],
        [0.5, 0.25, 0.25],
        [0.25, 0.25, 0.5],
        [0.5, 0.5, 0.0],
        [0.0, 0.0, 1.0],
        [0.625, 0.375, 0.0],
        [0.0, 1.0, 0.0],
        [0.125, 0.125, 0.75],
        [0.25, 0.75, 0.0],
        [0.25, 0.625, 0.125],
    ],
    dtype=np.float32,
)
SETTINGS = {"topk_accuracy": {"k": [1, 2]}, "teacher_agreement": {}, "expected_calibration_error": {"num_bins": 4}}


@pytest.fixture
def load(tmp_path):
    return lambda name, **settings: evaluate.load(str(METRICS / name), cache_dir=str(tmp_path / "cache"), **settings)


def test_there_are_three_of_them():
    assert sorted(SETTINGS) == NAMES


def test_each_documents_inputs_outputs_and_its_source(load):
    for name in NAMES:
        metric = load(name)
        assert metric.name == name
        assert all(heading in metric.inputs_description for heading in ("Args:", "Returns:", "Raises:", "Examples:"))
        assert "predictions:" in metric.compute.__doc__ and "references:" in metric.compute.__doc__
        assert metric.citation.strip().startswith("@")
        assert metric.info.reference_urls[0].startswith("https://arxiv.org/abs/")


def test_the_examples_of_their_documentation_give_what_they_say(load, monkeypatch):
    monkeypatch.chdir(METRICS.parent.parent)  # they name a metric by its path in the repository
    for name in NAMES:
        text = load(name).inputs_description
        outcome = doctest.DocTestRunner().run(doctest.DocTestParser().get_doctest(text, {}, name, None, None))
        assert outcome.failed == 0
        assert outcome.attempted >= 5


@pytest.mark.parametrize("name", NAMES)
def test_all_at_once_in_batches_one_by_one_and_in_memory_are_the_same(load, name):
    metric, references, settings = load(name), LABELS, SETTINGS[name]
    whole = metric.compute(predictions=SCORES, references=references, **settings)
    assert metric.compute(predictions=torch.tensor(SCORES), references=torch.tensor(references), **settings) == whole
    for start in range(0, 11, 4):
        metric.add_batch(predictions=SCORES[start : start + 4], references=references[start : start + 4])
    assert metric.compute(**settings) == whole
    for scores, label in zip(SCORES.tolist(), references, strict=True):
        metric.add(prediction=scores, reference=label)
    assert metric.compute(**settings) == whole
    in_memory = load(name, keep_in_memory=True)
    for _ in range(2):
        assert in_memory.compute(predictions=SCORES, references=references, **settings) == whole


def test_the_order_of_the_images_does_not_matter(load):
    draws = np.random.default_rng(0)
    scores = draws.dirichlet(np.ones(3), size=999).astype(np.float32)
    references = draws.integers(3, size=999)
    order = draws.permutation(999)
    for name in NAMES:
        metric = load(name)
        there = metric.compute(predictions=scores, references=references, **SETTINGS[name])
        assert metric.compute(predictions=scores[order], references=references[order], **SETTINGS[name]) == there


@pytest.fixture(scope="module")
def in_memory():
    """The metrics by name, whose images are kept in memory."""
    return {name: evaluate.load(str(METRICS / name), keep_in_memory=True) for name in NAMES}


SCORED = st.integers(2, 5).flatmap(
    lambda classes: st.lists(
        st.tuples(st.lists(st.integers(-3, 3), min_size=classes, max_size=classes), st.integers(0, classes - 1)),
        min_size=1,
        max_size=12,
    )
)


@settings(max_examples=30, deadline=None)
@given(SCORED)
def test_any_top_k_accuracy_is_that_of_a_stable_sort(in_memory, scored):
    scores, labels = (np.array(values) for values in zip(*scored, strict=True))
    every_k = list(range(1, scores.shape[1] + 1))
    result = in_memory["topk_accuracy"].compute(predictions=scores, references=labels, k=every_k)
    order = np.argsort(-scores, axis=1, kind="stable")
    hits = [np.mean((order[:, :k] == labels[:, None]).any(axis=1)) for k in every_k]
    assert list(result.values()) == hits
    assert hits == sorted(hits) and hits[-1] == 1.0


@settings(max_examples=30, deadline=None)
@given(SCORED)
def test_agreement_is_symmetric_and_the_rest_is_disagreement(in_memory, scored):
    scores, labels = (np.array(values) for values in zip(*scored, strict=True))
    metric = in_memory["teacher_agreement"]
    result = metric.compute(predictions=scores, references=labels)
    assert result == metric.compute(predictions=labels, references=scores)
    assert result["teacher_agreement"] == np.mean(scores.argmax(axis=1) == labels)
    assert result["teacher_agreement"] + result["disagreement"] == pytest.approx(1.0)


def add_shares(cache_dir, process_id, barrier, results):
    """One of two processes: seven images here, four there, then the other way round, with the same metrics."""
    shares = {"cache_dir": cache_dir, "num_process": 2, "process_id": process_id, "experiment_id": "both"}
    for name in NAMES:
        metric = evaluate.load(str(METRICS / name), **shares)
        for halves in ((slice(7), slice(7, 11)), (slice(7, 11), slice(7))):
            predictions, labels = SCORES[halves[process_id]], LABELS[halves[process_id]]
            metric.add_batch(predictions=predictions[:3], references=labels[:3])
            metric.add_batch(predictions=predictions[3:], references=labels[3:])
            results.put((process_id, name, metric.compute(**SETTINGS[name])))
            barrier.wait()  # evaluate itself does not keep a fast process from the files that the first still reads


@pytest.mark.slow
def test_two_processes_gather_what_one_would_say_twice(load, tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=add_shares, args=(str(tmp_path / "shared"), number, barrier, results), daemon=True)
        for number in range(2)
    ]
    for process in processes:
        process.start()
    answers = [results.get(timeout=120) for _ in range(4 * len(NAMES))]
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0]
    for name in NAMES:
        alone = load(name).compute(predictions=SCORES, references=LABELS, **SETTINGS[name])
        assert [answer for number, of, answer in answers if number == 0 and of == name] == [alone, alone]
        assert [answer for number, of, answer in answers if number == 1 and of == name] == [None, None]


def test_top_k_counts_the_k_highest(load):
    # Right at first: images 0, 1, 4 (see the tie) not, 5, 6, 7, 8, 10; second: 2 and 3 after a tie, 4, 9.
    result = load("topk_accuracy").compute(predictions=SCORES, references=LABELS, k=[1, 2, 3])
    assert result == {"top1_accuracy": 7 / 11, "top2_accuracy": 10 / 11, "top3_accuracy": 1.0}


def test_of_equal_scores_the_lower_class_comes_first(load):
    metric, equal = load("topk_accuracy"), np.full((4, 4), -2.5)
    result = metric.compute(predictions=equal, references=[0, 1, 2, 3], k=[1, 2, 3, 4])
    assert list(result.values()) == [0.25, 0.5, 0.75, 1.0]
    draws = np.random.default_rng(0)
    scores, labels = draws.integers(0, 3, size=(200, 6)).astype(np.float32), draws.integers(6, size=200)
    result = metric.compute(predictions=scores, references=labels, k=[1, 3])
    order = np.argsort(-scores, axis=1, kind="stable")
    assert result["top1_accuracy"] == np.mean(scores.argmax(axis=1) == labels)
    assert result["top3_accuracy"] == np.mean((order[:, :3] == labels[:, None]).any(axis=1))


def test_scores_are_kept_to_the_last_bit_of_float32(load):
    more = np.nextafter(np.float32(0.3), np.float32(1))
    metric = load("topk_accuracy")
    scores = np.array([[0.3, more], [more, 0.3]], dtype=np.float32)
    assert metric.compute(predictions=scores, references=[1, 0]) == {"top1_accuracy": 1.0}
    assert metric.compute(predictions=[[0.0, -np.inf], [3e38, -3e38]], references=[0, 0]) == {"top1_accuracy": 1.0}


NO_TOP_K = [
    (SCORES, LABELS, {"k": 4}, "k is 4, but there are 3 classes; give 1 to 3"),
    (SCORES, LABELS, {"k": [1, 0]}, "k is 0, but there are 3 classes"),
    (SCORES, LABELS, {"k": 1.5}, "k is 1.5, but there are 3 classes"),
    (SCORES, LABELS[:10], {}, r"Mismatch in the number of predictions \(11\) and references \(10\)"),
    (SCORES[:, 0], LABELS, {}, "match the expected format"),
    (SCORES[None], [0], {}, "match the expected format"),
    ([[0.5, 0.5], [1.0]], [0, 0], {}, r"predictions must be scores \(images, classes\).* lengths \[1, 2\]"),
    ([], [], {}, "there are no images"),
    (SCORES[:2], [0, 3], {}, "references hold class 3, but predictions have 3 classes"),
    (SCORES[:2], [-1, 0], {}, "references hold class -1, but predictions have 3 classes"),
    ([[0.5, np.nan], [1.0, 0.0]], [0, 0], {}, "1 of 2 predictions hold NaN"),
]


def test_top_k_refuses_what_has_no_meaning(load):
    for number, (predictions, references, choices, message) in enumerate(NO_TOP_K):
        metric = load("topk_accuracy", experiment_id=str(number))  # one that failed keeps its files locked
        with pytest.raises(ValueError, match=message):
            metric.compute(predictions=predictions, references=references, **choices)


def test_agreement_takes_decisions_and_scores_on_either_side(load):
    metric, decisions = load("teacher_agreement"), SCORES.argmax(axis=1)  # 0 1 0 2 0 2 0 1 2 1 1
    expected = {"teacher_agreement": 7 / 11, "disagreement": 4 / 11}
    one_hot = np.eye(3, dtype=np.float32)[LABELS]
    for student in (SCORES, decisions):
        for teacher in (LABELS, one_hot):
            assert metric.compute(predictions=student, references=teacher) == expected
            assert metric.compute(predictions=teacher, references=student) == expected
    assert metric.compute(predictions=SCORES, references=SCORES) == {"teacher_agreement": 1.0, "disagreement": 0.0}


NO_AGREEMENT = [
    (SCORES, SCORES[:, :2], "predictions have 3 classes, references 2; give both over the same classes"),
    ([0, 1], [0], r"Mismatch in the number of predictions \(2\) and references \(1\)"),
    ([[0.5, 0.5], [1.0]], [0, 0], r"predictions must be classes or scores .* lengths \[1, 2\]"),
    ([0, 0], [[0.5, 0.5], [np.nan, 1.0]], "1 of 2 references hold NaN"),
    ([["a"], ["b"]], [0, 0], "match the expected format"),
]


def test_agreement_refuses_what_has_no_meaning(load):
    for number, (predictions, references, message) in enumerate(NO_AGREEMENT):
        metric = load("teacher_agreement", experiment_id=str(number))
        with pytest.raises(ValueError, match=message):
            metric.compute(predictions=predictions, references=references)


def test_calibration_error_by_hand(load):
    result = load("expected_calibration_error").compute(predictions=SCORES, references=LABELS, num_bins=4)
    # Bin 2, (0.25, 0.5]: images 1 (right), 2, 3, 4 (wrong: a tie goes to class 0, or another class is ahead), all 0.5.
    # Bin 3, (0.5, 0.75]: 0, 6, 8, 10 (right), 9 (wrong) with 0.75, 0.625, 0.75, 0.625, 0.75. Bin 4: 5, 7, sure, right.
    assert result["bin_count"] == [0, 4, 5, 2]
    assert result["bin_confidence"] == [None, 0.5, 0.7, 1.0]
    assert result["bin_accuracy"] == [None, 0.25, 0.8, 1.0]
    assert result["expected_calibration_error"] == pytest.approx((4 * 0.25 + 5 * 0.1 + 2 * 0.0) / 11)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below(load):
    metric = load("expected_calibration_error")
    fifth = [[0.2] * 5]  # 3 / 15
    assert metric.compute(predictions=fifth, references=[0])["bin_count"].index(1) == 2
    above = np.full((1, 5), 0.2, dtype=np.float32)
    above[0, 3] = np.nextafter(above[0, 3], np.float32(1))
    assert metric.compute(predictions=above, references=[0])["bin_count"].index(1) == 3
    for num_bins in (1, 2, 7, 100):
        result = metric.compute(predictions=[[1.0, 0.0], [0.0, 1.0 + 1e-6]], references=[0, 0], num_bins=num_bins)
        assert result["bin_count"] == [0] * (num_bins - 1) + [2]
        assert result["expected_calibration_error"] == pytest.approx(0.5)


def test_sure_and_right_is_calibrated_sure_and_wrong_is_not(load):
    metric = load("expected_calibration_error")
    assert metric.compute(predictions=np.eye(4), references=[0, 1, 2, 3])["expected_calibration_error"] == 0.0
    assert metric.compute(predictions=np.eye(4), references=[1, 2, 3, 0])["expected_calibration_error"] == 1.0


NO_CALIBRATION = [
    ([[4.0, -3.0]], [0], {}, "row 0 has the sum 1 and the lowest value -3; if they are logits, apply a softmax"),
    ([[0.5, 0.5], [2.0, 1.0]], [0, 0], {}, "row 1 has the sum 3 and the lowest value 1; if they are logits"),
    ([[0.5, np.nan]], [0], {}, "row 0 has the sum nan"),
    ([[0.5, 0.5], [1.0]], [0, 0], {}, r"predictions must be probabilities \(images, classes\).* lengths \[1, 2\]"),
    (SCORES, LABELS[:10], {}, r"Mismatch in the number of predictions \(11\) and references \(10\)"),
    (SCORES[:1], [3], {}, "references hold class 3, but predictions have 3 classes"),
    (SCORES, LABELS, {"num_bins": 0}, "num_bins is 0; give a whole number of at least 1"),
    (SCORES, LABELS, {"num_bins": 2.5}, "num_bins is 2.5; give a whole number of at least 1"),
    ([], [], {}, "there are no images"),
]


def test_calibration_refuses_what_has_no_meaning(load):
    for number, (predictions, references, choices, message) in enumerate(NO_CALIBRATION):
        metric = load("expected_calibration_error", experiment_id=str(number))
        with pytest.raises(ValueError, match=message):
            metric.compute(predictions=predictions, references=references, **choices)


def test_probabilities_rounded_to_bfloat16_are_probabilities(load):
    probabilities = torch.randn(50, 1000).softmax(dim=-1).bfloat16()
    result = load("expected_calibration_error").compute(predictions=probabilities, references=[0] * 50)
    assert sum(result["bin_count"]) == 50


def test_they_combine(load):
    both = evaluate.combine([load("topk_accuracy"), load("expected_calibration_error")])
    both.add_batch(predictions=SCORES, references=LABELS)
    result = both.compute()
    assert result["top1_accuracy"] == 7 / 11
    assert len(result["bin_count"]) == 15

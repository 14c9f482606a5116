"""Several teachers as one: their mean probability, whatever their views and the order of their classes."""

import json

import numpy as np
import pytest
import torch
from helpers.labelling import asked_directly, content, sample_pixels, save_teacher
from helpers.teachers import DIGITS, save_resnet
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ViTImageProcessor

from modeling_deit_distill import InputError
from modeling_deit_distill.arguments import ModelArguments
from modeling_deit_distill.teachers.ensemble import Ensemble, ask_each, load_teachers, mean_logits
from modeling_deit_distill.teachers.store import TeacherStore
from modeling_deit_distill.teachers.teacher import Teacher, load_teacher


def named(*paths, **fields) -> ModelArguments:
    return ModelArguments(teacher_name_or_path=list(map(str, paths)), **fields)


# ---- the mean ----


def test_the_answer_is_the_logarithm_of_the_mean_probability():
    first, second = (torch.tensor([shares]).log() for shares in ([0.8, 0.2], [0.4, 0.6]))
    torch.testing.assert_close(mean_logits([first + 3, second - 5]), torch.tensor([[0.6, 0.4]]).log())


def test_hard_ties_go_to_the_first_class():
    first, second = (torch.tensor([shares]).log() for shares in ([0.1, 0.6, 0.3], [0.1, 0.3, 0.6]))
    assert mean_logits([first, second]).argmax().item() == 1
    assert mean_logits([second, first]).argmax().item() == 1


def test_the_mean_decides_otherwise_than_the_mean_of_logits():
    # One is sure of class 0, two lean to class 1: probabilities 0.99, 0.3, 0.3 of class 0 have the mean 0.53.
    each = [torch.tensor([[share, 1 - share]]).log() for share in (0.99, 0.3, 0.3)]
    assert mean_logits(each).softmax(-1)[0, 0].item() == pytest.approx(0.53)
    sure = torch.tensor([[0.9999, 0.0001]]).log()
    each = [sure, *(torch.tensor([[share, 1 - share]]).log() for share in (0.2, 0.2))]
    assert mean_logits(each).argmax().item() == 1 and torch.stack(each).mean(0).argmax().item() == 0


LOGITS = st.lists(st.lists(st.floats(-200, 200, width=32), min_size=4, max_size=4), min_size=1, max_size=5)


@settings(deadline=None)
@given(LOGITS)
def test_its_probabilities_are_the_mean_of_all_whatever_their_order(rows):
    each = [torch.tensor([row]) for row in rows]
    expected = torch.stack([logits.double().softmax(-1) for logits in each]).mean(0).float()
    torch.testing.assert_close(mean_logits(each).softmax(-1), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(mean_logits(each[::-1]), mean_logits(each), rtol=1e-5, atol=1e-4)


# ---- each in its own view and its own classes ----


def test_each_member_sees_its_own_view(tmp_path):
    processor = ViTImageProcessor(size={"height": 48, "width": 48}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    save_resnet(tmp_path / "own", processor=processor)
    save_teacher(tmp_path / "other", 3)
    paths, pixels = (tmp_path / "own", tmp_path / "other"), sample_pixels()[:4]
    ensemble = load_teachers(named(*paths), DIGITS, 16)
    assert [member.view.image_size for member in ensemble.members] == [48, 16]
    each = [load_teacher(ModelArguments(teacher_name_or_path=str(path)), DIGITS, 16)(pixels) for path in paths]
    probabilities = (each[0].softmax(-1) + each[1].softmax(-1)) / 2
    torch.testing.assert_close(ensemble(pixels).softmax(-1), probabilities)
    assert torch.equal(ask_each(ensemble, pixels)[1][1], each[1])


def test_members_with_other_orders_of_labels_are_brought_into_one(teachers, tmp_path):
    same = save_teacher(tmp_path / "same", 2, DIGITS[::-1])  # the weights of "mine", its classes called otherwise
    pixels, mine = sample_pixels()[:8], load_teachers(ModelArguments(teacher_name_or_path=teachers["mine"]), DIGITS, 16)
    expected = (mine(pixels).softmax(-1) + mine(pixels).flip(-1).softmax(-1)) / 2
    ensemble = load_teachers(named(teachers["mine"], same), DIGITS, 16)
    torch.testing.assert_close(ensemble(pixels).softmax(-1), expected)


def test_each_member_has_its_own_label_map_and_size(tmp_path):
    save_resnet(tmp_path / "words", [f"class {digit}" for digit in "9876543210"])
    save_resnet(tmp_path / "digits")
    (tmp_path / "map.json").write_text(json.dumps({digit: f"class {digit}" for digit in DIGITS}))
    maps = ["none", str(tmp_path / "map.json")]
    asked = named(tmp_path / "digits", tmp_path / "words", teacher_label_map=maps, teacher_image_size=[20, 24])
    first, second = load_teachers(asked, DIGITS, 16).members
    assert first.classes is None and second.classes.tolist() == list(range(9, -1, -1))
    assert (first.view.image_size, second.view.image_size) == (20, 24)


def test_one_teacher_is_no_ensemble(teachers):
    assert type(load_teachers(named(teachers["mine"]), DIGITS, 16)) is Teacher
    assert type(load_teachers(named(teachers["mine"], teachers["other"]), DIGITS, 16)) is Ensemble


def test_a_member_without_the_classes_is_named_with_its_label_map(tmp_path, teachers, run_of):
    save_resnet(tmp_path / "pets", ["cat", "dog"])
    run = run_of("--teacher_name_or_path", teachers["mine"], str(tmp_path / "pets"), teacher=None)
    with pytest.raises(
        InputError, match=r"^teacher 2 of 2, '\S+pets': 10 of .* --teacher_label_map none FILE"
    ) as caught:
        run.describe()
    assert "\n" not in str(caught.value)


def test_a_member_that_cannot_be_read_is_named(tmp_path, teachers, run_of):
    run = run_of("--teacher_name_or_path", str(tmp_path / "gone"), teachers["mine"], teacher=None)
    with pytest.raises(InputError, match="^teacher 1 of 2, .*gone.*no such file"):
        run.describe()


# ---- the arguments ----


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"teacher_image_size": [16, 24, 32]}, "3 values for 2 teachers; give one for all, or one each"),
        ({"teacher_image_size": [16, 0]}, "teacher_image_size is 0; it must be at least 1"),
        ({"teacher_label_map": "map.json"}, "1 value for 2 teachers; give one each, `none` for no map"),
        ({"train_teacher": True}, "train_teacher trains one teacher, and teacher_name_or_path names 2; train each in"),
    ],
)
def test_what_is_not_given_to_each_of_several_teachers_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        named("one", "two", **fields)


def test_of_one_teacher_one_value_is_enough():
    with pytest.raises(InputError, match="teacher_label_map has 2 values for 1 teacher; give one$"):
        named("one", teacher_label_map=["a.json", "b.json"])
    with pytest.raises(InputError, match="teacher_image_size has 2 values for 1 teacher; give one$"):
        ModelArguments(train_teacher=True, teacher_config_name="resnet", teacher_image_size=[16, 24])
    assert named("one", teacher_label_map=["none"], teacher_image_size=[16]).teacher_label_map is None


def test_a_teacher_that_is_named_twice_is_refused_unless_it_sees_another_size(tmp_path):
    with pytest.raises(InputError, match="/../one' twice"):
        (tmp_path / "one").mkdir()
        named(tmp_path / "one", f"{tmp_path}/one/../one")
    with pytest.raises(InputError, match="names 'one' twice"):
        named("one", "two", "one")
    assert len(named("one", "one", teacher_image_size=[16, 24]).teachers) == 2


# ---- its store ----


@pytest.fixture
def both(run_of, teachers):
    """`both(*arguments)`: a run with two teachers."""
    return lambda *words: run_of("--teacher_name_or_path", teachers["mine"], teachers["other"], *words, teacher=None)


def test_a_store_holds_the_answers_of_the_ensemble_and_agrees_about_all_teachers(both, run_of, teachers):
    run = both()
    teacher, store = run.prepare()
    run.fill(store, teacher)
    assert content(store)[:24].tolist() == (asked_directly(run, teacher).argmax(-1) + 1).tolist()
    assert store.about["teacher"] == [teachers["mine"], teachers["other"]]
    fields = store.fingerprint
    assert len(set(fields["teacher_weights"])) == len(fields["teacher_mean"]) == len(fields["label_map"]) == 2
    assert fields["teacher_image_size"] == [16, 16] and fields["teacher_precision"] == "fp32"
    assert both().find() is not None
    for words, differs in (
        (("mine",), "num_teachers 2, this run has 1"),
        (("mine", "other", "reversed"), "num_teachers 2, this run has 3"),
        (("other", "mine"), "teacher_weights of teacher 1 "),
        (("mine", "reversed"), "teacher_weights of teacher 2 "),
    ):
        with pytest.raises(InputError, match=rf"{differs}.*; name .* \({teachers['mine']} {teachers['other']}\)"):
            run_of("--teacher_name_or_path", *(teachers[name] for name in words), teacher=None).find()


def test_the_size_that_a_store_of_several_asks_for_is_one_for_each(both):
    run = both("--teacher_image_size", "16", "24")
    run.prepare()
    assert [member.view.image_size for member in both().plan().teacher_in(None).members] == [16, 24]
    with pytest.raises(InputError, match="size of teacher 1 16, this run has 24; pass --teacher_image_size 16 24, or"):
        both("--teacher_image_size", "24", "24").find()


def test_soft_answers_are_the_mean_too(both):
    run = both("--distillation_type", "soft", "--teacher_store_top_k", "10", "--distillation_temperature", "1")
    teacher, store = run.prepare()
    run.fill(store, teacher)
    entries = content(store)[:24]
    probabilities = np.zeros((24, 10), np.float32)
    np.put_along_axis(probabilities, entries["classes"] - 1, np.exp(entries["logits"].astype(np.float32)), 1)
    np.testing.assert_allclose(probabilities, asked_directly(run, teacher).softmax(-1), rtol=5e-3, atol=1e-4)


def test_the_order_of_the_teachers_changes_no_view(both, run_of, teachers):
    other_way = run_of("--teacher_name_or_path", teachers["other"], teachers["mine"], teacher=None)
    first, second = both(), other_way
    views = [run.views.__getitems__(list(run.sampler)) for run in (first, second)]
    assert torch.equal(views[0]["pixel_values"], views[1]["pixel_values"])
    asked = [asked_directly(run, run.plan().teacher_in(None)) for run in (first, second)]
    assert torch.equal(*asked)


def test_the_accuracy_of_each_is_kept_beside_that_of_all(both):
    _, store = both().prepare()
    store.write_validation("16 pixels", 0.5, np.array([1, 2]), np.array([1, 3]), [0.25, 1.0])
    kept = TeacherStore(store.directory).read_validation("16 pixels")
    assert (kept["accuracy"], kept["members"]) == (0.5, [0.25, 1.0])


def test_a_full_store_answers_for_teachers_that_are_gone(both, run_of, teachers, tmp_path):
    gone = save_teacher(tmp_path / "gone", 5)
    words = ("--teacher_name_or_path", teachers["mine"], gone, "--num_train_epochs", "1")
    run = run_of(*words, teacher=None)
    teacher, store = run.prepare()
    run.fill(store, teacher)
    (tmp_path / "gone").rename(tmp_path / "moved")
    plan = run_of(*words, teacher=None).plan()
    assert plan.teacher() is None and plan.teacher_names == [teachers["mine"], gone]
    longer = run_of(*words[:-1], "2", teacher=None).plan()
    with pytest.raises(InputError, match="lacks 24, the first of epoch 1, and the teacher .*gone' is gone"):
        longer.live_teacher()

"""Teacher, views and store together: what a run needs, who is asked about what, and which store a run may read."""

import dataclasses
import functools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_teacher import DIGITS, SMALL
from transformers import ResNetConfig, ResNetForImageClassification
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from modeling_deit_distill import InputError
from modeling_deit_distill.arguments import DataArguments, DistillationTrainingArguments, ModelArguments
from modeling_deit_distill.augmentation.augment import augment
from modeling_deit_distill.data.datasets import ViewDataset
from modeling_deit_distill.data.sources import ImageData, load_image_data
from modeling_deit_distill.data.views import AugmentationSettings, ViewSampler
from modeling_deit_distill.recipes import parse_arguments
from modeling_deit_distill.teachers.labelling import (
    ask,
    decisions,
    describe_loaded,
    fill,
    find_store,
    planned_views,
    prepare_teacher,
    sampler_of,
    store_for,
    teacher_description,
    teacher_schedule,
    verify,
)
from modeling_deit_distill.teachers.store import TeacherStore, decode_top_k, is_store
from modeling_deit_distill.teachers.teacher import Teacher, load_teacher, weights_checksum

# The examples of a property share its fixtures; each makes anew what it changes.
FEW = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NUM_IMAGES = 28  # three batches of 8 are an epoch, four images are left out


@functools.cache
def sample_pixels() -> torch.Tensor:
    """What a student is shown of the digits."""
    views = ViewDataset(load_image_data("digits").train, AugmentationSettings(16), seed=1)
    batch = views.__getitems__(list(ViewSampler(128, 128)))
    return augment(batch["pixel_values"], batch["draws"], IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def save_teacher(folder: Path, seed: int, class_names=DIGITS) -> str:
    """An untrained convnet whose head stretches its features, so that each class is said now and then."""
    torch.manual_seed(seed)
    config = ResNetConfig(**SMALL, num_labels=10, id2label=dict(enumerate(class_names)))
    model = ResNetForImageClassification(config).eval()
    head = model.classifier[-1]
    with torch.no_grad():
        features = model.resnet(pixel_values=sample_pixels()).pooler_output.flatten(1)
        values, vectors = torch.linalg.eigh(torch.cov(features.T))
        head.weight.copy_(torch.randn(10, 8) @ (vectors[:, -8:] / values[-8:].sqrt()).T)
        head.bias.copy_(-head.weight @ features.mean(0))
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("teachers")
    reversed_ = save_teacher(folder / "reversed", 2, DIGITS[::-1])
    return {"mine": save_teacher(folder / "mine", 2), "other": save_teacher(folder / "other", 3), "reversed": reversed_}


@pytest.fixture(scope="module")
def digits() -> ImageData:
    data = load_image_data("digits")
    return dataclasses.replace(
        data, train=data.train.select(range(NUM_IMAGES)), validation=data.validation.select(range(12))
    )


@dataclass
class Run:
    """What `train_deit.py` has before it needs a teacher."""

    model_args: ModelArguments
    data_args: DataArguments
    args: DistillationTrainingArguments
    data: ImageData
    views: ViewDataset

    @property
    def sampler(self) -> ViewSampler:
        return sampler_of(self.args, self.views)

    def describe(self):
        return teacher_description(self.model_args, self.args, self.data)

    def find(self) -> TeacherStore | None:
        return find_store(self.model_args, self.args, self.data, self.describe(), self.views)

    def prepare(self) -> tuple[Teacher, TeacherStore]:
        config, store = self.describe(), self.find()
        teacher = prepare_teacher(self.model_args, self.data_args, self.args, self.data, config, self.views, store)
        return teacher, store_for(self.data_args, self.args, self.data, self.views, teacher, store)

    def fill(self, store, teacher, epochs=(0,), batch_size=8, **share) -> list[tuple[int, int]]:
        return list(fill(store, teacher, self.views, self.sampler, epochs, batch_size=batch_size, **share))

    def verify(self, store, teacher, num_samples=1000) -> tuple[int, int]:
        return verify(store, teacher, self.views, self.sampler, num_samples)


@pytest.fixture
def run_of(tmp_path, teachers, digits):
    """`run_of(*arguments)`; `teacher=None` names none."""

    def make(*arguments: str, teacher: str | None = "mine", data: ImageData = digits) -> Run:
        base = {
            "dataset_name": "digits",
            "image_size": 16,
            "per_device_train_batch_size": 8,
            "use_cpu": "true",
            "bf16": "false",
        }
        base |= {"output_dir": tmp_path / "out", "teacher_store": tmp_path / "answers", "report_to": "none"}
        if teacher:
            base["teacher_name_or_path"] = teachers[teacher]
        words = [word for key, value in base.items() for word in (f"--{key}", str(value))]
        model_args, data_args, args = parse_arguments([*words, *arguments])
        augmentation = AugmentationSettings.from_arguments(args, model_args.image_size)
        views = ViewDataset(data.train, augmentation, args.seed if args.data_seed is None else args.data_seed)
        return Run(model_args, data_args, args, data, views)

    return make


@pytest.fixture
def filled(run_of):
    """A run with its teacher and a store that has the first of its epochs."""
    run = run_of()
    teacher, store = run.prepare()
    run.fill(store, teacher)
    return run, teacher, store


def count_asked(teacher: Teacher) -> list[int]:
    """Views of each batch that the teacher will see."""
    asked: list[int] = []
    teacher.register_forward_pre_hook(lambda module, inputs: asked.append(len(inputs[0])))
    return asked


def asked_directly(run: Run, teacher: Teacher, epoch: int = 0) -> torch.Tensor:
    """The teacher's logits about all views of an epoch, without labelling or store."""
    sampler = run.sampler
    sampler.set_epoch(epoch)
    batch = run.views.__getitems__(list(sampler))
    with torch.no_grad():
        return teacher(augment(batch["pixel_values"], batch["draws"], IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))


def content(store: TeacherStore, epoch: int = 0) -> np.ndarray:
    entries, _ = store.read(epoch, np.arange(store.num_views))
    return entries


def forget(store: TeacherStore, positions: list[int], epoch: int = 0):
    store.write(epoch, np.array(positions), np.zeros(len(positions), store.dtype))


# ---- how a teacher is trained ----


def test_a_new_teacher_is_trained_at_the_size_at_which_it_is_asked(run_of):
    words = ["--train_teacher", "true", "--teacher_image_size", "24"]
    new = run_of(*words, "--teacher_config_name", "resnet", teacher=None)
    assert teacher_schedule(new.model_args, new.views)["image_size"] == 24
    fine_tuned = run_of(*words, teacher="mine")
    assert teacher_schedule(fine_tuned.model_args, fine_tuned.views)["image_size"] == 16


# ---- which views a run needs ----


PLANNED = [
    (["--num_train_epochs", "2"], {0: 24, 1: 24}),
    (["--num_train_epochs", "1"], {0: 24}),
    (["--num_train_epochs", "0.1"], {0: 8}),  # 0.3 steps are one
    (["--num_train_epochs", "0.5"], {0: 16}),
    (["--num_train_epochs", "1.5"], {0: 24, 1: 16}),
    (["--num_train_epochs", "5", "--max_steps", "1"], {0: 8}),
    (["--max_steps", "3"], {0: 24}),
    (["--max_steps", "7"], {0: 24, 1: 24, 2: 8}),
    (["--num_train_epochs", "2", "--per_device_train_batch_size", "4"], {0: 28, 1: 28}),
    (["--num_train_epochs", "2", "--gradient_accumulation_steps", "2"], {0: 16, 1: 16}),
    (["--max_steps", "3", "--gradient_accumulation_steps", "2"], {0: 16, 1: 16, 2: 16}),
    (["--num_train_epochs", "2", "--per_device_train_batch_size", "40"], {0: 40, 1: 40}),  # fewer images than that
    (["--num_train_epochs", "1.5", "--per_device_train_batch_size", "40"], {0: 40, 1: 40}),
]


def test_planned_views_by_hand(run_of):
    for arguments, expected in PLANNED:
        run = run_of(*arguments)
        assert planned_views(run.args, run.views) == expected, arguments


@FEW
@given(steps=st.integers(1, 20), batch=st.sampled_from([2, 4, 8, 14, 28, 40]), accumulation=st.integers(1, 4))
def test_planned_views_are_whole_steps_of_whole_epochs_but_for_the_last(run_of, steps, batch, accumulation):
    words = [
        "--max_steps",
        steps,
        "--per_device_train_batch_size",
        batch,
        "--gradient_accumulation_steps",
        accumulation,
    ]
    run = run_of(*map(str, words))
    planned = list(planned_views(run.args, run.views).items())
    of_a_step = batch * accumulation
    of_an_epoch = max(NUM_IMAGES // of_a_step, 1) * of_a_step
    assert [epoch for epoch, _ in planned] == list(range(len(planned)))
    assert sum(views for _, views in planned) == steps * of_a_step
    assert all(views == of_an_epoch for _, views in planned[:-1])
    assert 0 < planned[-1][1] <= of_an_epoch


def test_planned_views_are_those_that_the_trainer_asks_for(run_of, tmp_path):
    from modeling_deit_distill import DeiTDistillConfig, DeiTDistillForImageClassification, DistillationTrainer

    run = run_of("--num_train_epochs", "1.7", "--save_strategy", "no", "--disable_tqdm", "true")
    teacher, store = run.prepare()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    student = DeiTDistillForImageClassification(DeiTDistillConfig(**sizes, image_size=16, patch_size=8, num_labels=10))
    DistillationTrainer(student, run.args, teacher, store, train_dataset=run.views).train()
    planned = planned_views(run.args, run.views)
    assert planned == {0: 24, 1: 24}
    assert {epoch: store.count(epoch) for epoch in store.epochs()} == planned
    assert store.holds(planned)


# ---- fill ----


def test_filled_entries_are_what_the_teacher_says(run_of):
    run = run_of()
    teacher, store = run.prepare()
    for epochs in ([0], [0, 3]):
        epoch = epochs[-1]
        assert run.fill(store, teacher, [epoch]) == [(epoch, 8)] * 3
        assert store.epochs() == epochs and store.count(epoch) == store.count(epoch, 24) == 24
        said = asked_directly(run, teacher, epoch).argmax(1)
        assert len(said.unique()) > 3  # else nothing is tested
        assert (content(store, epoch)[:24] == said.numpy() + 1).all()


def test_soft_entries_are_what_the_teacher_says(run_of):
    run = run_of("--distillation_type", "soft", "--teacher_store_top_k", "10", "--distillation_temperature", "2")
    teacher, store = run.prepare()
    run.fill(store, teacher)
    found = decode_top_k(content(store)[:24], 10, 2.0, "cpu")
    torch.testing.assert_close(found, asked_directly(run, teacher), rtol=2**-10, atol=1e-3)


def test_a_second_fill_asks_nothing(filled):
    run, teacher, store = filled
    asked, before = count_asked(teacher), content(store)
    assert run.fill(store, teacher) == [] == asked
    assert run.fill(TeacherStore(store.directory), teacher, batch_size=6) == [] == asked
    assert (content(store) == before).all()


def test_only_batches_with_holes_are_asked_and_only_holes_are_written(filled):
    run, teacher, store = filled
    expected = content(store)
    forget(store, [3, 9, 10])
    store.write(0, np.array([2]), np.array([11 - expected[2]], store.dtype))  # somebody's answer: to be left
    kept = content(store)[2]
    asked = count_asked(teacher)
    assert run.fill(store, teacher, batch_size=2) == [(0, 1), (0, 1), (0, 1)]
    assert asked == [2, 2, 2]  # pairs 2-3, 8-9 and 10-11
    expected[2] = kept
    assert (content(store) == expected).all()


def test_a_deleted_epoch_is_asked_again_and_no_other(filled):
    run, teacher, store = filled
    run.fill(store, teacher, [1, 2])
    before = [content(store, epoch) for epoch in range(3)]
    store.path(1).unlink()
    store = TeacherStore(store.directory)
    asked = count_asked(teacher)
    assert run.fill(store, teacher, range(3)) == [(1, 8)] * 3
    assert asked == [8] * 3
    assert all((content(store, epoch) == before[epoch]).all() for epoch in range(3))


def test_decisions_depend_neither_on_the_batch_nor_on_workers(filled):
    run, teacher, store = filled
    expected = content(store)
    for batch_size, num_workers in ((2, 0), (6, 0), (24, 0), (100, 0), (6, 2)):
        store.path(0).unlink()
        store = TeacherStore(store.directory)
        run.fill(store, teacher, batch_size=batch_size, num_workers=num_workers)
        assert (content(store) == expected).all(), (batch_size, num_workers)


def test_shares_are_disjoint_and_together_complete(filled):
    run, teacher, whole = filled
    expected = content(whole)
    whole.path(0).unlink()
    store, asked = TeacherStore(whole.directory), count_asked(teacher)
    assert run.fill(store, teacher, batch_size=4, rank=0, num_processes=2) == [(0, 4)] * 3
    known = store.read(0, np.arange(24))[1].reshape(6, 4)
    assert known.all(1).tolist() == [True, False] * 3 and known.sum() == 12
    assert run.fill(store, teacher, batch_size=4, rank=1, num_processes=2) == [(0, 4)] * 3
    assert asked == [4] * 6
    assert (content(store) == expected).all()


@settings(FEW, max_examples=7)
@given(st.integers(1, 4).flatmap(lambda number: st.tuples(st.just(number), st.lists(st.integers(0, number - 1)))))
def test_shares_stay_disjoint_whoever_is_ahead(filled, case):
    (num_processes, turns), (run, teacher, whole) = case, filled
    run.fill(whole, teacher, [0])
    expected = content(whole)
    for epoch in TeacherStore(whole.directory).epochs():
        whole.path(epoch).unlink()
    asked = count_asked(teacher)
    shares = []
    for rank in range(num_processes):
        store, share = TeacherStore(whole.directory), {"rank": rank, "num_processes": num_processes}
        shares.append(fill(store, teacher, run.views, run.sampler, [0, 1], batch_size=2, **share))
    steps = [next(shares[rank], None) for rank in turns]
    steps += [step for share in shares for step in share]
    assert asked == [2] * 24  # nothing twice
    assert sorted(filter(None, steps)) == [(0, 2)] * 12 + [(1, 2)] * 12
    store = TeacherStore(whole.directory)
    assert (content(store) == expected).all() and store.holds({0: 24, 1: 24})


def test_a_run_with_one_epoch_more_asks_about_that_alone(filled, run_of):
    _, teacher, store = filled
    longer = run_of("--num_train_epochs", "2", "--per_device_train_batch_size", "4")
    assert longer.fill(store, teacher, range(2), batch_size=4) == [(0, 4)] + [(1, 4)] * 7
    assert store.holds(planned_views(longer.args, longer.views))


def test_unmixed_views_need_no_pairs(run_of):
    run = run_of("--mixup_alpha", "0", "--cutmix_alpha", "0", "--per_device_train_batch_size", "5")
    teacher, store = run.prepare()
    assert run.fill(store, teacher, batch_size=7) == [(0, 7)] * 3 + [(0, 4)]
    assert (content(store)[:25] == asked_directly(run, teacher).argmax(1).numpy() + 1).all()


# ---- verify ----

LAYOUTS = pytest.mark.parametrize("distillation_type", ["hard", "soft"])


@LAYOUTS
def test_verify_agrees_with_the_right_teacher_and_not_with_another(run_of, teachers, distillation_type):
    run = run_of("--distillation_type", distillation_type)
    teacher, store = run.prepare()
    run.fill(store, teacher, range(3))
    before = [content(store, epoch) for epoch in range(3)]
    assert run.verify(store, teacher) == (72, 72)
    alike, compared = run.verify(store, load_teacher(teachers["other"], DIGITS, 16))
    assert compared == 72 and alike < 36
    assert all((content(store, epoch) == before[epoch]).all() for epoch in range(3))


def test_verify_compares_about_as_many_as_were_asked_for_from_all_epochs(filled):
    run, teacher, store = filled
    run.fill(store, teacher, range(1, 4))
    asked = count_asked(teacher)
    assert run.verify(store, teacher, 16) == (16, 16)
    assert sum(asked) == 16
    assert run.verify(store, teacher, 16) == (16, 16)


def test_verify_finds_what_was_tampered_with(filled):
    run, teacher, store = filled
    run.fill(store, teacher, [1])
    entries = content(store)[:24]
    store.write(0, np.arange(24), entries % 10 + 1)
    assert run.verify(store, teacher) == (24, 48)


def test_verify_compares_whole_pairs_of_an_incomplete_epoch(filled):
    run, teacher, store = filled
    forget(store, [0, 5, 20, 21])
    assert run.verify(store, teacher) == (18, 18)  # 0-1, 4-5 and 20-21 are left out
    run.fill(store, teacher)
    assert run.verify(store, teacher) == (24, 24)


def test_verify_of_an_empty_store_compares_nothing(run_of):
    run = run_of()
    teacher, store = run.prepare()
    assert run.verify(store, teacher) == (0, 0)
    store.path(2).touch()
    assert run.verify(store, teacher) == (0, 0)


def test_verify_takes_an_epoch_of_an_odd_number_of_views(run_of):
    run = run_of("--mixup_alpha", "0", "--cutmix_alpha", "0", "--per_device_train_batch_size", "5")
    teacher, store = run.prepare()
    run.fill(store, teacher)
    alike, compared = run.verify(store, teacher)
    assert alike == compared >= 24


def test_decisions_of_both_layouts(run_of):
    hard = run_of()
    teacher, store = hard.prepare()
    batch = hard.views.__getitems__(list(hard.sampler))
    said = asked_directly(hard, teacher).argmax(1).tolist()
    assert decisions(ask(store, teacher, batch)).tolist() == said
    assert decisions(np.zeros(2, store.dtype)).tolist() == [-1, -1]
    soft = run_of("--distillation_type", "soft", "--teacher_store", str(store.directory.with_name("soft")))
    assert decisions(ask(soft.prepare()[1], teacher, batch)).tolist() == said


# ---- which store a run may read ----


def test_a_store_is_made_where_there_is_none_and_says_whose_it_is(run_of, teachers, digits):
    run = run_of()
    assert run.find() is None
    assert not is_store(run.args.teacher_store)
    teacher, store = run.prepare()
    kept = store.fingerprint
    assert kept["teacher_weights"] == weights_checksum(teachers["mine"])
    assert (kept["teacher_image_size"], kept["teacher_precision"], kept["label_map"]) == (16, "fp32", None)
    assert (kept["dataset"], kept["num_images"], kept["num_views"]) == (digits.fingerprint(), NUM_IMAGES, NUM_IMAGES)
    assert store.about["teacher"] == teachers["mine"] and store.about["data"]["dataset_name"] == "digits"
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert run.find().fingerprint == kept
    assert run.prepare()[1].fingerprint == kept


def test_a_store_is_made_in_an_empty_folder(run_of):
    run = run_of()
    Path(run.args.teacher_store).mkdir()
    assert run.find() is None
    run.prepare()
    assert is_store(run.args.teacher_store)


def test_a_folder_of_other_things_is_left_alone(run_of):
    run = run_of()
    Path(run.args.teacher_store).mkdir()
    Path(run.args.teacher_store, "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is no store"):
        run.prepare()
    assert [path.name for path in Path(run.args.teacher_store).iterdir()] == ["thesis.txt"]


OTHER_RUNS = [
    (["--data_seed", "5"], "data_seed 42, this run has 5; pass --data_seed 42"),
    (["--seed", "5"], "data_seed 42, this run has 5; pass --data_seed 42"),
    (["--image_size", "32"], "image_size"),
    (["--random_crop_scale", "0.5", "1.0"], "crop_scale"),
    (["--horizontal_flip_prob", "0"], "flip_prob"),
    (["--rand_augment_magnitude", "5"], "rand_augment_magnitude"),
    (["--random_erasing_prob", "0.5"], "erasing_prob"),
    (["--mixup_alpha", "0.4"], "mixup_alpha"),
    (["--cutmix_alpha", "0"], "cutmix_alpha"),
    (["--repeated_augmentation", "2"], "repeated_augmentation"),
    (["--distillation_type", "soft"], "distillation_type"),
    (["--per_device_train_batch_size", "40"], "num_views"),
    (["--teacher_precision", "bf16"], "teacher_precision"),
    (["--teacher_image_size", "24"], "teacher_image_size"),
]


@pytest.mark.parametrize("teacher", ["mine", None])
def test_another_run_is_refused_by_the_field_that_differs(filled, run_of, teacher):
    _, _, store = filled
    before = {path.name: path.read_bytes() for path in store.directory.iterdir()}
    for arguments, field in OTHER_RUNS:
        other = run_of(*arguments, teacher=teacher)
        if teacher is None and "--teacher" in arguments[0]:
            assert other.find().fingerprint == store.fingerprint  # nobody will be asked
            continue
        with pytest.raises(InputError, match=rf"holds answers for {field}.*or choose another --teacher_store"):
            other.find()
        assert {path.name: path.read_bytes() for path in store.directory.iterdir()} == before


def test_another_soft_run_is_refused(run_of):
    soft = ["--distillation_type", "soft"]
    run_of(*soft, "--teacher_store_top_k", "5").prepare()
    for arguments, field in (
        (["--distillation_temperature", "1"], "temperature 3.0"),
        (["--teacher_store_top_k", "3"], "k 5, this run has 3"),
    ):
        with pytest.raises(InputError, match=field):
            run_of(*soft, *arguments).find()
    assert run_of(*soft).find().fingerprint["k"] == 5


SAME_ANSWERS = [
    ["--per_device_train_batch_size", "4"],
    ["--gradient_accumulation_steps", "2"],
    ["--num_train_epochs", "30"],
    ["--max_steps", "1"],
    ["--seed", "5", "--data_seed", "42"],
    ["--learning_rate", "1"],
    ["--distillation_alpha", "0.9"],
    ["--distillation_temperature", "1"],  # of decisions
    ["--teacher_image_size", "16", "--teacher_precision", "fp32"],
    ["--hidden_size", "48"],
]


def test_what_no_answer_depends_on_may_differ(filled, run_of):
    _, _, store = filled
    for arguments in SAME_ANSWERS:
        other = run_of(*arguments)
        assert other.find().fingerprint == store.fingerprint, arguments
        assert other.prepare()[1].directory == store.directory, arguments


def test_other_data_are_refused(filled, run_of, digits):
    rows = load_image_data("digits").train.select(range(NUM_IMAGES, 2 * NUM_IMAGES))
    for train in (rows, digits.train.select(range(NUM_IMAGES - 1))):
        with pytest.raises(InputError, match="holds answers for dataset"):
            run_of(data=dataclasses.replace(digits, train=train)).find()


def test_another_teacher_is_refused(filled, run_of, teachers):
    with pytest.raises(InputError, match="teacher_weights.*name the teacher that the store was made with"):
        run_of(teacher="other").find()


def test_the_same_teacher_elsewhere_is_the_same(filled, run_of, teachers, tmp_path):
    save_teacher(tmp_path / "copy", 2)
    teachers["copy"] = str(tmp_path / "copy")
    assert run_of(teacher="copy").find() is not None
    del teachers["copy"]


def test_a_teacher_changed_since_it_was_described_is_refused(filled, run_of, tmp_path):
    run, _, store = filled
    config = run.describe()
    run.model_args.teacher_name_or_path = save_teacher(tmp_path / "late", 9)
    teacher = prepare_teacher(run.model_args, run.data_args, run.args, run.data, config, run.views, store)
    with pytest.raises(InputError, match="teacher_weights"):
        store_for(run.data_args, run.args, run.data, run.views, teacher, store)


def test_no_store_is_looked_for_without_distillation(filled, run_of):
    for teacher in ("mine", None):
        run = run_of("--distillation_type", "none", teacher=teacher)
        assert run.describe() is None and run.find() is None


def test_size_and_precision_are_the_stores_unless_given(run_of):
    run_of("--teacher_image_size", "24", "--teacher_precision", "bf16").prepare()
    run = run_of()
    teacher, store = run.prepare()
    assert (teacher.view.image_size, teacher.precision) == (24, "bf16")
    assert describe_loaded(teacher).items() <= store.fingerprint.items()
    with pytest.raises(InputError, match='teacher_precision "bf16", this run has "fp32"'):
        run_of("--teacher_precision", "fp32").find()
    with pytest.raises(InputError, match="teacher_image_size 24, this run has 16; pass --teacher_image_size 24"):
        run_of("--teacher_image_size", "16").find()


def test_precision_is_the_runs_where_there_is_no_store(run_of):
    teacher, store = run_of("--bf16", "true").prepare()
    assert teacher.precision == store.fingerprint["teacher_precision"] == "bf16"


def test_without_a_store_nothing_is_kept(run_of, teachers, tmp_path):
    run = run_of()
    run.args.teacher_store = None
    assert run.find() is None
    teacher, store = run.prepare()
    assert store is None and teacher.view.image_size == 16
    assert not (tmp_path / "answers").exists()


# ---- without a teacher ----


def test_a_full_store_answers_in_the_place_of_a_teacher(filled, run_of):
    run = run_of("--num_train_epochs", "1", teacher=None)
    assert run.describe() is None
    assert run.find().holds(planned_views(run.args, run.views))


def test_a_store_with_holes_needs_a_teacher(filled, run_of):
    run = run_of("--num_train_epochs", "2", teacher=None)
    assert not run.find().holds(planned_views(run.args, run.views))
    with pytest.raises(
        InputError, match=r"lacks 24, the first of epoch 1, and no teacher is named.*--teacher_name_or_path"
    ):
        run.prepare()


def test_neither_store_nor_teacher_says_what_to_give(run_of):
    with pytest.raises(InputError, match="is no store yet, and no teacher is named to fill it.*--teacher_name_or_path"):
        run_of(teacher=None).describe()


# ---- classes in another order, and teachers trained here ----


def test_the_label_map_belongs_to_the_answers(run_of, tmp_path):
    run = run_of(teacher="reversed")
    teacher, store = run.prepare()
    assert store.fingerprint["label_map"] == list(range(9, -1, -1))
    run.fill(store, teacher)
    assert (content(store)[:24] == asked_directly(run, teacher).argmax(1).numpy() + 1).all()
    assert run.find() is not None
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"0": "1", "1": "0"}))
    with pytest.raises(InputError, match=r"label_map \[9, 8.*this run has \[8, 9.*--teacher_label_map"):
        run_of("--teacher_label_map", str(path), teacher="reversed").find()
    run = run_of(teacher="reversed")
    run.model_args.teacher_label_map = {"0": "1", "1": "0"}  # a program gives the mapping itself
    with pytest.raises(InputError, match=r"label_map \[9, 8.*this run has \[8, 9.*--teacher_label_map"):
        run.find()


def test_a_label_map_that_cannot_be_read_is_refused_before_the_teacher_is_loaded(run_of, tmp_path):
    for teacher in ("mine", "other"):
        with pytest.raises(InputError, match="teacher_label_map .*nowhere.json' cannot be read"):
            run_of("--teacher_label_map", str(tmp_path / "nowhere.json"), teacher=teacher).describe()


def test_reordered_classes_give_the_answers_of_the_same_weights(run_of):
    straight, reversed_ = (
        run_of(),
        run_of("--teacher_store", str(run_of().args.teacher_store) + "2", teacher="reversed"),
    )
    entries = []
    for run in (straight, reversed_):
        teacher, store = run.prepare()
        run.fill(store, teacher)
        entries.append(content(store)[:24].astype(int))
    assert (entries[0] + entries[1] == 11).all()  # class c is class 9 - c; both counted from one


def test_a_teacher_trained_here_is_known_by_how_it_was_trained(run_of):
    training = ["--train_teacher", "true", "--teacher_config_name", "resnet", "--disable_tqdm", "true"]
    training += ["--teacher_config_overrides", json.dumps(SMALL), "--teacher_num_train_epochs", "1"]
    run = run_of(*training, teacher=None)
    teacher, store = run.prepare()
    run.fill(store, teacher)
    again = run_of(*training, teacher=None)
    assert again.find().fingerprint == store.fingerprint  # before any teacher is trained
    assert again.verify(store, again.prepare()[0]) == (24, 24)
    with pytest.raises(InputError, match="teacher_training"):
        run_of(*training, "--teacher_num_train_epochs", "2", teacher=None).find()
    folder = str(Path(run.args.output_dir, "teacher"))
    assert run_of("--teacher_name_or_path", folder, teacher=None).find() is not None

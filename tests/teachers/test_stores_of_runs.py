"""Which store a run may read, and what it does without a teacher."""

import dataclasses
import json
from pathlib import Path

import pytest
from helpers.labelling import NUM_IMAGES, asked_directly, content, save_teacher
from helpers.stores import change
from helpers.teachers import SMALL

from modeling_deit_distill import InputError
from modeling_deit_distill.data.sources import load_image_data
from modeling_deit_distill.teachers.agreement import of_teacher
from modeling_deit_distill.teachers.labelling import fill, is_full, planned_views, whole_sampler
from modeling_deit_distill.teachers.store import is_store
from modeling_deit_distill.teachers.teacher import weights_checksum

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
    (["--random_crop_scale", "0.5", "1.0"], "random_crop_scale"),
    (["--horizontal_flip_prob", "0"], "horizontal_flip_prob"),
    (["--rand_augment_magnitude", "5"], "rand_augment_magnitude"),
    (["--random_erasing_prob", "0.5"], "random_erasing_prob"),
    (["--mixup_alpha", "0.4"], "mixup_alpha"),
    (["--cutmix_alpha", "0"], "cutmix_alpha"),
    (["--repeated_augmentation", "2"], "repeated_augmentation"),
    (["--balanced_views", "true"], "balanced_views false, this run has true; pass --balanced_views False"),
    (["--scaled_decoding", "true"], "scaled_decoding false, this run has true; pass --scaled_decoding False"),
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
    ["--class_weights", "balanced"],
]


def test_what_no_answer_depends_on_may_differ(filled, run_of):
    _, _, store = filled
    for arguments in SAME_ANSWERS:
        other = run_of(*arguments)
        assert other.find().fingerprint == store.fingerprint, arguments
        assert other.prepare()[1].directory == store.directory, arguments


@pytest.mark.parametrize("other", [["--per_device_train_batch_size", "4"], ["--repeated_augmentation", "3"]])
def test_a_store_of_balanced_views_answers_about_them_at_any_batch_size(run_of, other):
    balanced = ["--balanced_views", "true", "--repeated_augmentation", other[1] if "repeated" in other[0] else "1"]
    run = run_of(*balanced)
    teacher, store = run.prepare()
    whole = whole_sampler(store, run.views)
    assert len(whole) == NUM_IMAGES and list(whole)[: len(run.sampler)] == list(run.sampler)
    list(fill(store, teacher, run.views, whole, (0, 1), batch_size=8))
    again = run_of(*balanced, *other, "--num_train_epochs", "2", teacher=None)
    assert is_full(again.args, again.views, again.find())
    logits = asked_directly(again, teacher, epoch=1)
    assert (content(store, 1)[: len(again.sampler)] - 1).tolist() == logits.argmax(-1).tolist()
    with pytest.raises(InputError, match="balanced_views true, this run has false; pass --balanced_views True"):
        run_of(*balanced[2:]).find()


def test_other_data_are_refused(filled, run_of, digits):
    rows = load_image_data("digits").train.select(range(NUM_IMAGES, 2 * NUM_IMAGES))
    for train in (rows, digits.train.select(range(NUM_IMAGES - 1))):
        with pytest.raises(InputError, match="holds answers for dataset"):
            run_of(data=dataclasses.replace(digits, train=train)).find()


def test_a_store_that_knows_its_data_as_earlier_versions_did_is_read(filled, run_of, digits):
    _, _, store = filled
    path = store.directory / "store.json"
    change(path, fingerprint={"dataset": digits.fingerprint("0" * 16)})
    assert run_of().find().fingerprint["dataset"] == digits.fingerprint("0" * 16) != digits.fingerprint()
    change(path, fingerprint={"dataset": "0" * 16})
    with pytest.raises(InputError, match=f'dataset "{"0" * 16}", this run has "{digits.fingerprint("0" * 16)}"'):
        run_of().find()


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
    plan = run.plan()
    assert plan.store is not None and plan.teacher_configs
    run.arguments.model.teacher_name_or_path = save_teacher(tmp_path / "late", 9)
    with pytest.raises(InputError, match="teacher_weights"):
        plan.live_teacher()


def test_no_store_is_looked_for_without_distillation(filled, run_of):
    for teacher in ("mine", None):
        run = run_of("--distillation_type", "none", teacher=teacher)
        assert run.describe() is None and run.find() is None


def test_size_and_precision_are_the_stores_unless_given(run_of):
    run_of("--teacher_image_size", "24", "--teacher_precision", "bf16").prepare()
    run = run_of()
    teacher, store = run.prepare()
    assert (teacher.view.image_size, teacher.precision) == (24, "bf16")
    assert of_teacher(teacher).items() <= store.fingerprint.items()
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
    run.arguments.model.teacher_label_map = {"0": "1", "1": "0"}  # a program gives the mapping itself
    with pytest.raises(InputError, match=r"label_map \[9, 8.*this run has \[8, 9.*--teacher_label_map"):
        run.find()


def test_a_label_map_that_cannot_be_read_is_refused_before_any_teacher_is_loaded(run_of, tmp_path):
    for words in ([], ["--distillation_type", "none"]):
        with pytest.raises(InputError, match="teacher_label_map .*nowhere.json' cannot be read"):
            run_of("--teacher_label_map", str(tmp_path / "nowhere.json"), *words).describe()


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
    record = Path(folder, "teacher_training.json")
    # As an earlier version wrote it.
    known_by_few = {**json.loads(record.read_text()), "dataset": run.data.fingerprint("0" * 16)}
    record.write_text(json.dumps(known_by_few))
    change(store.directory / "store.json", fingerprint={"teacher_training": known_by_few})
    assert run_of(*training, teacher=None).find() is not None
    assert run_of(*training, teacher=None).plan().live_teacher().model.name_or_path == folder
    assert run_of("--teacher_name_or_path", folder, teacher=None).find() is not None

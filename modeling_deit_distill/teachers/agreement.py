"""What a store of answers and a run must agree about: the fields of `store.json`, each with the remedy of a difference.

Whatever decides an answer is here: the data, the order and the draws of the views, the teacher, and what is kept of it.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from ..augmentation.augment import AUGMENTATION_VERSION
from ..data.datasets import ViewDataset
from ..data.sources import ImageData
from ..data.views import AugmentationSettings, ViewSampler
from ..errors import InputError
from .classes import read_label_map, teacher_classes
from .ensemble import Ensemble
from .teacher import InputView, Teacher, own_view, weights_checksum
from .training import RECORDED_LATER, TeacherTraining, record_difference, training_record

_PASS = "pass --{field} {theirs}"
# In the remedies, {theirs} is the store's value and {teacher} the name of its teacher.
REMEDIES = {
    "format": "update the library, or fill a store with this one",
    # The data
    **dict.fromkeys(("dataset", "num_images", "num_classes"), "give the data that the store was made with"),
    "unlabelled_images": "give the --unlabeled_dir that the store was made with, or none if it was made without",
    # The views
    "num_views": "the data are smaller than a batch: give the run the store's batch size",
    "data_seed": "pass --data_seed {theirs}, which leaves --seed free for the student",
    "repeated_augmentation": _PASS,
    "balanced_views": _PASS,
    **dict.fromkeys((field.name for field in dataclasses.fields(AugmentationSettings)), _PASS),
    "random_crop_scale": "give --random_crop_scale the store's range",
    "augmentation_version": "the store was made by another version of this library: fill a new one",
    # What is kept of an answer
    "distillation_type": _PASS,
    "temperature": "pass --distillation_temperature {theirs}",
    "k": "pass --teacher_store_top_k {theirs}",
    # The teacher
    "teacher_weights": "name the teacher that the store was made with ({teacher})",
    "teacher_mean": "the teacher's image processor has changed: take the one of {teacher}",
    "teacher_std": "the teacher's image processor has changed: take the one of {teacher}",
    "teacher_image_size": _PASS,
    "teacher_precision": _PASS,
    "teacher_training": "train the teacher alike, or name the one that the store was made with ({teacher})",
    "label_map": "give the --teacher_label_map that the store was made with",
}

# Of several teachers each of these is a list, in the order of their names; but one precision that all have.
OF_TEACHER = (
    "teacher_weights",
    "teacher_mean",
    "teacher_std",
    "teacher_image_size",
    "teacher_precision",
    "teacher_training",
    "label_map",
)

# Fields that a store has only where there is something to agree about: those of earlier versions do without.
ONLY_IF_ANY = ("unlabelled_images",)
# Fields with a comparison of their own; it returns None for values that agree.
DIFFERENCES = {"teacher_training": record_difference}


def of_views(args, views: ViewDataset, data: ImageData | None = None, kept: Mapping | None = None) -> dict[str, object]:
    """The fields about the views of a run, and about what is kept of an answer.

    Args:
        data: where the views are from; without, the fields that tell one dataset from another are left out.
        kept: the fields of the store that is compared; it may know its data as earlier versions did.

    Raises:
        InputError: a training set whose samples have no positions.
    """
    if not isinstance(views, ViewDataset):
        raise InputError("a teacher_store keeps answers by position; a stream has none, nor has a dataset of yours")
    agreed = {
        "num_images": len(views),
        "data_seed": views.seed,
        "repeated_augmentation": args.repeated_augmentation,
        "balanced_views": args.balanced_views,
        **dataclasses.asdict(views.settings),
        "augmentation_version": AUGMENTATION_VERSION,
        "distillation_type": args.distillation_type,
    }
    if args.distillation_type == "soft":
        agreed["temperature"] = args.distillation_temperature
    if data is not None:
        num_classes, order = len(data.class_names), ViewSampler.from_arguments(args, views)
        num_views = max(len(views), len(order))
        dataset = data.fingerprint((kept or {}).get("dataset"))
        about_data = {"dataset": dataset, "unlabelled_images": data.unlabelled_fingerprint()}
        agreed = {**about_data, "num_classes": num_classes, "num_views": num_views, **agreed}
        if args.distillation_type == "soft" and args.teacher_store_top_k is not None:
            agreed["k"] = min(args.teacher_store_top_k, num_classes)
    return agreed


def of_named_teachers(trainings: Sequence[TeacherTraining], kept: Mapping) -> dict[str, object]:
    """The fields about the teachers that a run names, as far as its arguments say; nothing is loaded.

    Args:
        trainings: of each teacher; where none is trained, what it says of the one that is named.
        kept: see [`of_views`].
    """
    return of_several([_of_named_teacher(each, kept) for each in trainings])


def _of_named_teacher(training: TeacherTraining, kept: Mapping) -> dict[str, object]:
    model_args = training.model_args
    given = {"teacher_precision": model_args.teacher_precision, "teacher_image_size": model_args.teacher_image_size}
    agreed = {name: value for name, value in given.items() if value is not None}
    if model_args.train_teacher:
        record = training_record(training, kept.get("teacher_training"))
        # A full store needs no teacher: seed and batch are the student's alone. If one is trained, the plan looks.
        record = {name: value for name, value in record.items() if name not in RECORDED_LATER}
        return agreed | {"teacher_training": record, "label_map": None}
    name_or_path, label_map = model_args.teacher_name_or_path, read_label_map(model_args.teacher_label_map)
    view = own_view(name_or_path, InputView(training.student_image_size), model_args.trust_remote_code)
    return {
        "teacher_weights": weights_checksum(name_or_path),  # first: another teacher may have another size too
        "teacher_mean": list(view.mean),
        "teacher_std": list(view.std),
        "label_map": teacher_classes(training.config, training.data.class_names, label_map),
        **agreed,
    }


def of_teacher(teacher: Teacher | Ensemble) -> dict[str, object]:
    """The fields about a loaded teacher, or about several."""
    return of_several([of_member(member) for member in teacher.members])


def of_several(each: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """The fields about all of several teachers: lists, in the order of the teachers; one precision is that of all."""
    if len(each) == 1:
        return dict(each[0])
    together = {name: [fields[name] for fields in each] for name in each[0]}
    precisions = together.get("teacher_precision", [])
    return together | ({"teacher_precision": precisions[0]} if len(set(precisions)) == 1 else {})


def of_member(teacher: Teacher) -> dict[str, object]:
    """The fields about one loaded teacher."""
    return {
        "teacher_weights": weights_checksum(teacher.model.name_or_path),
        "teacher_mean": list(teacher.view.mean),
        "teacher_std": list(teacher.view.std),
        "teacher_image_size": teacher.view.image_size,
        "teacher_precision": teacher.precision,
        "label_map": None if teacher.classes is None else teacher.classes.tolist(),
    }

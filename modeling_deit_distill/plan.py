"""The plan of a run: everything that is known before training, made from its arguments.

`train_deit.py`, the labelling script and the augmentation preview use it. What costs time is made when it is first
asked for, and once.
"""

import contextlib
import json
import shutil
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedConfig, set_seed

from .classifiers import classes_of
from .conversion.checkpoint import PretrainedStudent
from .data.apart import check_folders_apart
from .data.datasets import StreamingViewDataset, ViewDataset
from .data.evaluation import DEFAULT_CROP_PCT, EvaluationDataset, evaluation_transform
from .data.inspection import has_large_photographs, readable, try_held_out, try_sample
from .data.loaders import views_repeat
from .data.sources import ImageData, load_image_data
from .data.views import NO_BALANCE, AugmentationSettings, with_current_names
from .errors import InputError
from .export.onnx import check_packages
from .files import write_json
from .hardware import hardware_going_on
from .hints import FROM_SCRATCH, run_hints
from .hub import offline_remedy
from .judging import judged_model
from .machines import check_shared_folders
from .modeling_deit_distill import DeiTDistillConfig, DeiTDistillForImageClassification
from .output_folder import IMAGES, OWN_STORE, TEACHER, agreed_in, check_contents, last_complete, read_run_file
from .recipes import Arguments, parse_arguments
from .report import say, summary_table
from .streaming import check_streaming
from .student import build_student, load_start, student_config, student_processor
from .summary import data_in_words, summary
from .teachers import agreement
from .teachers.description import describe_teachers
from .teachers.ensemble import Ensemble, load_teachers
from .teachers.identity import teacher_going_on
from .teachers.labelling import is_full, planned_views
from .teachers.store import TeacherStore, check_store_folder, create_store, in_words, is_store
from .teachers.teacher import Teacher
from .teachers.training import TRAINING_RECORD, TeacherTraining, find_or_train_teacher, holds_teacher, training_record
from .teachers.trial import check_teachers
from .training.checkpoints import agreement as checkpoint_agreement
from .training.checkpoints import as_the_main_process, check_fits, find_checkpoint, means_the_last
from .training.layers import check_layers
from .training.metrics import check_metric
from .training.objective import NEEDS_TEACHER
from .training.schedule import check_optimisation


class Plan:
    """Data, student, teacher, store and checkpoint of a run.

    Args:
        arguments: from [`parse_arguments`].
        command_line: the words that they were parsed from.

    Raises:
        InputError: what the arguments ask for cannot be. Each attribute raises what is wrong with it when it is made.
    """

    _keeps_own_store = False

    def __init__(self, arguments: Arguments, command_line: list[str]):
        self.model_args, self.data_args, self.args = arguments
        self.command_line = command_line
        if not self.args.do_train:
            self.model_args = replace(self.model_args, model_name_or_path=judged_model(self.model_args, self.args))
            return
        if self.data_args.is_held_out_alone:
            raise InputError(
                "there are no images to train on, only held-out ones; give --train_dir or --train_csv beside them, or "
                "--do_train false to judge a finished model"
            )
        check_streaming(*arguments)
        _check_unlabelled(arguments)
        self._keeps_own_store = self.distils and self.args.teacher_store is None and views_repeat(self.args)
        if self._keeps_own_store:
            self.args.teacher_store = str(Path(self.args.output_dir, OWN_STORE))
        check_folders_apart(self.data_args, self.args)
        check_shared_folders(self.model_args, self.args)

    @classmethod
    def from_arguments(cls, command_line: list[str]) -> "Plan":
        """The plan of `RECIPE.yaml --key value ...`."""
        return cls(parse_arguments(command_line), command_line)

    @cached_property
    def data(self) -> ImageData:
        """The images to train on and those held out, on all processes."""
        listing = self._listing()
        with self.args.main_process_first(desc="loading data"):
            sources = self.data_args.sources
            if not self.args.do_train:
                sources["unlabeled_dir"] = None
            data = load_image_data(**sources, listing=listing)
        if self.args.do_train and self.args.scaled_decoding is None:
            self.args.scaled_decoding = self._scales_when_decoding(data)
            self.args.note_filled_in(scaled_decoding=None)
        return data

    def _scales_when_decoding(self, data: ImageData) -> bool:
        """Whether large JPEGs are decoded at a part of their size, where the user says nothing.

        It is as the run has begun, its store's views were decoded, or its teacher was trained; else the images decide.
        """
        args, teacher = self.args, Path(self.args.output_dir, TEACHER, TRAINING_RECORD)
        if (resumed := self._resumed_from()) is not None:
            return with_current_names(agreed_in(resumed))["scaled_decoding"]
        if self.distils and is_store(args.teacher_store) and not self._replaces_own_store:
            return TeacherStore(args.teacher_store).fingerprint["scaled_decoding"]
        if self.distils and self.model_args.train_teacher and (record := read_run_file(teacher)):
            return record.get("scaled_decoding", False)
        if self.data_args.streaming:
            return False
        return as_the_main_process(args, lambda: has_large_photographs(data.shown))

    def _resumed_from(self) -> Path | None:
        # Not by `checkpoint` where it is the last: looking for it says that the run is resumed.
        args, wanted = self.args, self.args.resume_from_checkpoint
        if wanted and means_the_last(wanted):
            return as_the_main_process(args, lambda: last_complete(args.output_dir, contents=False)[0])
        return Path(self.checkpoint) if wanted else None

    @cached_property
    def checkpoint(self) -> str | None:
        """The checkpoint to resume from; `check` compares it with what will run."""
        return find_checkpoint(self.args)

    @cached_property
    def hardware(self) -> dict[str, str]:
        """What each part of the run is computed on, by the step before its first."""
        return hardware_going_on(self.checkpoint, self.args)

    @cached_property
    def start(self) -> PretrainedStudent | None:
        """What the student starts from; None for a new one."""
        with _naming_what_needs_no_network():
            return load_start(self.model_args)

    @cached_property
    def config(self) -> DeiTDistillConfig:
        """The student's configuration."""
        names = self.data.class_names if self.args.do_train else list(self.start.config.id2label.values())
        return student_config(self.model_args, self.args, names, self.start)

    @cached_property
    def processor(self):
        """The student's image processor, which is its evaluation transform."""
        return student_processor(self.config, self.data_args.crop_pct, self.start)

    @cached_property
    def bad_held_out(self) -> list[int]:
        """The held-out rows that cannot be read. All are decoded, and a sample of the training images is."""
        args = self.args

        def look() -> list[int]:
            """Decode them, on the main process."""
            limits = (args.on_bad_image, args.max_bad_image_fraction, not args.disable_tqdm)
            try:
                if self.args.do_train and not self.data_args.streaming:
                    try_sample(self.data.train, *limits)
                    if self.data.unlabelled is not None:
                        try_sample(self.data.unlabelled, *limits)
                return try_held_out(self.data.validation, *limits)
            except InputError:  # the summary does not come any more
                say(args, "What was read", summary_table(data_in_words(self.data)))
                raise

        return as_the_main_process(args, look)

    @cached_property
    def held_out(self) -> EvaluationDataset:
        """The held-out images that can be read, as the student sees them."""
        rows = readable(self.data.validation, self.bad_held_out)
        classes = None
        if not self.args.do_train:
            name, own_names = self.model_args.model_name_or_path, list(self.config.id2label.values())
            classes = classes_of(name, own_names, self.data.class_names)
        return EvaluationDataset(rows, evaluation_transform(self.processor), classes)

    @cached_property
    def views(self) -> ViewDataset | StreamingViewDataset:
        """The training images as the student sees them, those without labels last."""
        args, settings = self.args, AugmentationSettings.from_arguments(self.args, self.config.image_size)
        if not self.data_args.streaming:
            return ViewDataset(self.data.shown, settings, args.views_seed, args.keep_decoded_images)
        share = {"seed": args.views_seed, "rank": args.process_index, "num_processes": args.world_size}
        stream, repeats = self.data.train, args.repeated_augmentation
        return StreamingViewDataset(stream, settings, args.train_batch_size, repeats, **share)

    @property
    def distils(self) -> bool:
        """Whether a teacher takes part."""
        return self.args.distillation_type != "none"

    @cached_property
    def teacher_configs(self) -> list[PreTrainedConfig]:
        """That of each teacher; none without one, or where a store answers for teachers that are not named."""
        with _naming_what_needs_no_network():
            return describe_teachers(self.model_args, self.args, self.data.class_names)

    @property
    def teacher_names(self) -> list[str]:
        """What the teachers are called, those of the store where none is named; nothing of a new one, or of none."""
        if not self.distils:
            return []
        if self.model_args.teacher_names or self.model_args.train_teacher or self.store is None:
            return self.model_args.teacher_names
        names = self.store.about.get("teacher")
        return list(map(str, names)) if isinstance(names, list) else [str(names)]

    @cached_property
    def store(self) -> TeacherStore | None:
        """The store of the teacher's answers, if there is one; it fits what will run."""
        if not self.distils or not is_store(self.args.teacher_store):
            return None
        try:
            return self._fitting_store()
        except InputError:
            if self._replaces_own_store:
                return None
            raise

    @property
    def _replaces_own_store(self) -> bool:
        """Whether the answers in the output folder, of an earlier run, may go."""
        return self._keeps_own_store and self.args.overwrite_output_dir and not self.args.resume_from_checkpoint

    def _fitting_store(self) -> TeacherStore:
        store = TeacherStore(self.args.teacher_store)
        store.check(agreement.of_views(self.args, self.views, self.data, store.fingerprint))
        if self.teacher_configs:
            store.check(agreement.of_named_teachers(self.teachers_trainings, store.fingerprint))
        return store

    @cached_property
    def needs_teacher(self) -> bool:
        """Whether a live teacher takes part: there is distillation, and the store lacks answers about this run."""
        return self.distils and not is_full(self.args, self.views, self.store)

    @cached_property
    def trains_teacher(self) -> bool:
        """Whether a teacher will be trained first: one is asked for, and the output folder has none yet.

        Raises:
            InputError: the output folder holds another teacher, or the store answers of one of another training.
        """
        if not (self.needs_teacher and self.model_args.train_teacher and self.teacher_configs):
            return False
        directory, (training,) = Path(self.args.output_dir, TEACHER), self.teachers_trainings

        def is_missing() -> bool:
            """Look into the output folder, on the main process."""
            if self.store is not None:  # of answers that are not complete
                kept = self.store.fingerprint.get("teacher_training")
                self.store.check({"teacher_training": training_record(training, kept)})
            record = training_record(training, read_run_file(directory / TRAINING_RECORD))
            return not holds_teacher(directory, record, self.args)

        return as_the_main_process(self.args, is_missing)

    @property
    def students_title(self) -> str:
        """The heading of the student's training: of two phases where a teacher is trained before."""
        return "2 of 2: student" if self.trains_teacher else "student"

    def check(self):
        """Say what will run; whatever is wrong with it shows here, before anything is trained."""
        self._check_what_needs_no_data()
        if self._keeps_own_store and not views_repeat(self.args, len(self.views)):
            self.args.teacher_store, self._keeps_own_store = None, False
        check_metric(self.args, self.config)
        check_layers(self.args, self.config, is_new=self.start is None)
        check_fits(self.checkpoint, checkpoint_agreement(self.args, self.views, self.config), self.config)
        if self.args.teacher_store and self.needs_teacher:
            check_store_folder(self.args.teacher_store, is_written=True)
        say(self.args, "What will run", summary_table(self.summary()))
        if hints := run_hints(self):
            say(self.args, "Hints", summary_table(hints))

    def _check_what_needs_no_data(self):
        args = self.args
        if {"browser", "demo"} & set(args.copies):
            check_packages()
        check_metric(args, DeiTDistillConfig(num_labels=1000))  # which has every metric
        as_the_main_process(args, lambda: check_contents(args.output_dir, args.overwrite_output_dir))
        if args.teacher_store and self.distils:
            check_store_folder(args.teacher_store, is_written=False)
        _ = self.checkpoint, self.start  # before the data: neither may be one

    def keep_listing(self):
        """List the images in the output folder, so that the run can go on without those that are removed."""
        if self.data.listing and self.args.process_index == 0:
            wanted = (self.args.teacher_store, self.model_args.train_teacher, self.data.unlabelled is not None)
            if self.distils and any(wanted):
                self.data.keep_fingerprint()
            write_json(Path(self.args.output_dir, IMAGES), self.data.listing, indent=None)

    def summary(self) -> dict[str, str]:
        """What will run, in words: for the screen and the card. It is made once: a run changes its store."""
        return self._summary

    def student(self) -> DeiTDistillForImageClassification:
        """The student before training; its weights depend on the seed alone."""
        set_seed(self.args.seed)
        student = build_student(self.config, self.start, self.model_args.attn_implementation)
        if self.args.do_train:
            check_optimisation(self.args, student)
        return student

    def teacher(self) -> Teacher | Ensemble | None:
        """The live teacher, or several as one; None where there is nothing to ask."""
        if not self.needs_teacher:
            return None
        directory = Path(self.args.output_dir, TEACHER)
        is_trained_here = self.model_args.train_teacher and self.checkpoint is not None
        if is_trained_here and not (directory / TRAINING_RECORD).exists():
            raise InputError(
                f"{directory} is gone, where this run keeps the teacher that it trained; bring it back to go on from "
                f"{self.checkpoint}, or start again with --overwrite_output_dir true and without "
                "--resume_from_checkpoint"
            )
        return self.live_teacher(self.checkpoint)

    def live_teacher(self, checkpoint: str | None = None) -> Teacher | Ensemble:
        """The teacher on its device, trained first where the user asked for it, and tried; `store` is its store now.

        Args:
            checkpoint: the student's, to go on from; labelling has no student.

        Raises:
            InputError: none is named, it is no better than chance, or the checkpoint or the store is of another one.
        """
        self._check_teacher_is_named()
        held_out = self.held_out  # before a teacher is trained
        teacher = self._load_teacher().to(self.args.device)
        teacher_going_on(checkpoint, teacher)  # before a store is made for another one
        say(self.args, check_teachers(self.model_args, teacher, held_out, self.args.per_device_eval_batch_size))
        self.store = self._store_of(teacher)
        return teacher

    @property
    def teachers_trainings(self) -> list[TeacherTraining]:
        """What the training of each teacher depends on; one that is named is used as it is, and is no other."""
        each = zip(self.teacher_configs, self.model_args.teachers, strict=True)
        rest = (self.args, self.config.image_size)
        return [TeacherTraining(config, self.data, model_args, *rest) for config, model_args in each]

    @property
    def teachers_evaluation(self) -> tuple[float, Dataset]:
        """How the teacher is judged while it trains: `crop_pct`, and the rows that are held out."""
        return self.data_args.crop_pct or DEFAULT_CROP_PCT, self.held_out.rows

    def teacher_in(self, folder: Path | None) -> Teacher | Ensemble:
        """The teacher that was trained into a folder, or those that are named; on the CPU.

        Raises:
            InputError: none is named, or it cannot be loaded.
        """
        self._check_teacher_is_named()
        model_args, kept = self.model_args, {} if self.store is None else self.store.fingerprint
        if folder is not None:
            untrained = {"train_teacher": False, "teacher_config_name": None, "teacher_config_overrides": None}
            model_args = replace(model_args, teacher_name_or_path=str(folder), **untrained)
        chosen = {
            "teacher_image_size": model_args.teacher_image_size or kept.get("teacher_image_size"),
            "teacher_precision": model_args.teacher_precision or kept.get("teacher_precision") or self.args.precision,
        }
        return load_teachers(replace(model_args, **chosen), self.data.class_names, self.config.image_size)

    @cached_property
    def _summary(self) -> dict[str, str]:
        return summary(self)

    def _listing(self) -> dict[str, object] | None:
        """The images of the run that is gone on with; None for another run."""
        if not self.args.resume_from_checkpoint:
            return None
        # Not by the checkpoint where it is the last: looking for it says that the run is resumed.
        is_ours = means_the_last(self.args.resume_from_checkpoint) or self.checkpoint is None
        folder = self.args.output_dir if is_ours else Path(self.checkpoint).parent
        return as_the_main_process(self.args, lambda: read_run_file(Path(folder, IMAGES)))

    def _load_teacher(self) -> Teacher | Ensemble:
        if not self.model_args.train_teacher:
            return self.teacher_in(None)
        (training,) = self.teachers_trainings
        folder = find_or_train_teacher(training, *self.teachers_evaluation)
        self.keep_listing()  # the teacher is of these images, whatever ends the run from here on
        return self.teacher_in(folder)

    def _store_of(self, teacher: Teacher | Ensemble) -> TeacherStore | None:
        """The store for a loaded teacher's answers, a new one if there is none yet; None if the user wants none."""
        if self.args.teacher_store is None:
            return None
        agreed, store = agreement.of_teacher(teacher), self.store
        names = [member.model.name_or_path for member in teacher.members]
        if store is None:
            if self._replaces_own_store:
                as_the_main_process(self.args, lambda: shutil.rmtree(self.args.teacher_store, ignore_errors=True))
            path = Path(names[0], TRAINING_RECORD)
            agreed = {
                **agreement.of_views(self.args, self.views, self.data),
                **agreed,
                "teacher_training": json.loads(path.read_text()) if len(names) == 1 and path.exists() else None,
            }
            about = {"teacher": names if len(names) > 1 else names[0], "data": asdict(self.data_args)}
            store = create_store(self.args.teacher_store, agreed, about)
        store.check(agreed)
        return store

    def _check_teacher_is_named(self):
        combined = self.store.fingerprint.get("combined") if self.store else None
        if self.teacher_configs and not combined:
            return
        missing, gone = self.store.missing(planned_views(self.args, self.views)), self.model_args.teacher_names
        damage = f" ({self.store.damage()})" if self.store.damaged else ""
        lacks = (
            f"{sum(missing.values()):,}, the first of epoch {min(missing)}" if missing else "others that are asked for"
        )
        nobody = f"the teacher {in_words(gone)!r} is gone: bring it back, or" if gone else "no teacher is named to ask;"
        theirs = in_words(self.store.about.get("teacher"))
        remedy = f"{nobody} give --teacher_name_or_path (the store was made with {theirs})"
        if combined:
            remedy = (
                f"no teacher gives the {combined} of others; fill the stores that it was combined from, combine again"
            )
        raise InputError(
            f"teacher_store {self.args.teacher_store!r} has not all the views of this run: it lacks {lacks}{damage}, "
            f"and {remedy}, or train for fewer epochs"
        )


@contextlib.contextmanager
def _naming_what_needs_no_network():
    try:
        yield
    except InputError as error:
        if not offline_remedy(error):
            raise
        raise InputError(f"{error}; or train from scratch, which needs no download: {FROM_SCRATCH}") from error


def _check_unlabelled(arguments: Arguments):
    """Refuse images without labels where nothing would teach what they show, or where classes are counted."""
    _, data_args, args = arguments
    if data_args.unlabeled_dir is None:
        return
    if args.distillation_type == "none":
        raise InputError(f"unlabeled_dir: {NEEDS_TEACHER}")
    if args.distillation_alpha == 0:
        raise InputError(
            "unlabeled_dir: images without labels teach by the teacher's term alone, and distillation_alpha is 0; "
            "raise it, or leave unlabeled_dir out"
        )
    if args.balanced_views:
        raise InputError(f"unlabeled_dir: {NO_BALANCE}")

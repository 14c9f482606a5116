"""What the teacher says: asked live, or read from a store, which gets what is asked."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch import nn

from ..data.evaluation import labels_of
from ..errors import InputError, LocalInputError
from ..teachers.agreement import of_views
from ..teachers.ensemble import ask_each
from ..teachers.entries import decode_labels, decode_top_k
from ..teachers.labelling import accuracies_of
from ..teachers.store import TeacherStore

ASKED = "asked"  # in a batch: its answers, and whether they are finite; None for those of a store


class Answers:
    """The teacher's answers about batches of views, and about the held-out images.

    With a store the answers are always what the store keeps, also in the run that writes it: the same weights come
    out.

    Args:
        args: the [`DistillationTrainingArguments`].
        teacher: is frozen and moved to the device; from `pixel_values` to logits, or to an output that has `logits`.
        store: for these views.
        dataset: the training set; a store is about a [`ViewDataset`].
        num_classes: of the student.

    Attributes:
        num_asked: how many training views this process has asked about; of a store's views those that it lacked.

    Raises:
        InputError: a store of other views.
    """

    def __init__(self, args, teacher: nn.Module | None, store: TeacherStore | None, dataset, num_classes: int):
        self.teacher = None if teacher is None else teacher.to(args.device).requires_grad_(False).eval()
        self.store, self.num_classes = store, num_classes
        self.is_needed = args.distillation_type != "none"
        self.is_hard, self.args = args.distillation_type == "hard", args
        self.num_asked = 0
        self._are_finite: torch.Tensor | None = None  # None if all of the last came from a store
        self._dataset = dataset
        self.check_store()

    def check_store(self):
        """Refuse a store of other views.

        Raises:
            InputError: the first difference, with both values and the remedy.
        """
        if self.store is not None:
            self.store.check(of_views(self.args, self._dataset))

    def __call__(self, inputs: Mapping, pixel_values: torch.Tensor) -> torch.Tensor | None:
        """About a batch of views: class indices (batch,) for hard distillation, logits (batch, classes) for soft.

        None where there is no distillation.

        Args:
            inputs: the batch; of a store's views also their `epoch` and `position`.
            pixel_values: (batch, channels, height, width), what the student sees of them.

        Raises:
            InputError: the teacher has other classes than the student, or a file of the store is of another one.
            LocalInputError: a view that the store has not, and no teacher to ask; answers that are no numbers.
        """
        self._are_finite = None
        if not self.is_needed:
            return None
        if ASKED not in inputs:
            (inputs,) = self.about([inputs], [pixel_values])
        answers, self._are_finite = inputs[ASKED]
        return answers

    def asks_ahead(self, num_batches: int) -> bool:
        """Whether the teacher is asked about more than one of so many batches at once."""
        size = self.args.teacher_batch_size
        is_larger = size is not None and size > self.args.train_batch_size
        return num_batches > 1 and is_larger and self.is_needed and self.teacher is not None

    def about(self, batches: list[Mapping], pixel_values: list[torch.Tensor]) -> list[dict]:
        """Several batches of one epoch with their answers, for which the teacher is asked `teacher_batch_size` at once.

        Args:
            batches, pixel_values: as of a call.

        Raises:
            InputError, LocalInputError: as in a call.
        """
        sizes = [len(each) for each in pixel_values]
        if self.store is None:
            logits = torch.cat([self._ask(chunk) for chunk in chunks_of(pixel_values, self._at_once(sizes))])
            self.num_asked += len(logits)
            answers = logits.argmax(dim=-1) if self.is_hard else logits
            are_finite = logits.amax(dim=-1).isfinite().split(sizes)
            asked = zip(answers.split(sizes), [each.all() for each in are_finite], strict=True)
        else:
            positions = np.concatenate([each["position"] for each in batches])
            entries = self._read_or_ask(int(batches[0]["epoch"][0]), positions, pixel_values)
            parts = np.split(entries, np.cumsum(sizes)[:-1])
            asked = [
                (self._decoded(part, pixels.device), None) for part, pixels in zip(parts, pixel_values, strict=True)
            ]
        return [{**batch, ASKED: about} for batch, about in zip(batches, asked, strict=True)]

    def _decoded(self, entries: np.ndarray, device) -> torch.Tensor:
        if self.is_hard:
            return decode_labels(entries, device)
        return decode_top_k(entries, self.num_classes, self.args.distillation_temperature, device)

    def _at_once(self, sizes: list[int]) -> list[int]:
        """The numbers of views that the teacher is asked about at once, of batches of these sizes."""
        size = self.args.teacher_batch_size
        if size is None:
            return sizes
        whole, rest = divmod(sum(sizes), size)
        return [size] * whole + [rest] * (rest > 0)

    def checked(self, loss: torch.Tensor) -> torch.Tensor:
        """A loss of the last answers, NaN if these were not finite: the index of a NaN is a class like any other."""
        return loss if self._are_finite is None else torch.where(self._are_finite, loss, torch.nan)

    def about_held_out(
        self, batches: Callable[[str | None], Iterable], view: str, accelerator, name: str | None, dataset, keeps: bool
    ) -> dict | None:
        """The `accuracy`, `answers` and `labels` (images,) of a held-out set; None where neither knows.

        Of several teachers also `members`, the accuracy of each.

        Args:
            batches: from the set's name to its batches, prepared by `accelerator`; called if the teacher is asked.
            view: how the images are shown, see `data.evaluation.evaluation_view`.
            accelerator: Accelerate's.
            name, dataset: of the set; kept answers about one of other labels are passed over.
            keeps: whether the store keeps what the teacher says; it has room for one set.

        Raises:
            InputError: the set has no labels.
        """
        kept = None if self.store is None else self.store.read_validation(view)
        if kept is not None and not np.array_equal(kept["labels"], labels_of(dataset)):
            kept = None
        kept = broadcast_object_list([kept])[0]  # another run may be writing it: all processes go one way
        if kept is not None:
            return {**kept, "answers": np.array(kept["answers"]), "labels": np.array(kept["labels"])}
        if self.teacher is None:
            return None
        keeps = keeps and self.store is not None
        answers, labels, entries = [], [], []
        for batch in batches(name):
            if "labels" not in batch:
                raise InputError("the evaluation set has no labels, so nobody knows how often the teacher is right")
            logits, each = self._ask_each(batch["pixel_values"])
            decided = torch.stack([logits, *each], dim=1).argmax(dim=-1)
            asked = (decided, batch["labels"], *([logits] if keeps and self.store.is_soft else []))
            decided, true, *of_all = accelerator.gather_for_metrics(asked)
            entries += map(self.store.encode, of_all) if of_all else []
            answers.append(decided.cpu().numpy())
            labels.append(true.cpu().numpy())
        (answers, *members), labels = np.concatenate(answers).T, np.concatenate(labels)
        accuracy, shares = float(np.mean(answers == labels)), accuracies_of(members, labels)
        if keeps and accelerator.is_main_process:
            whole = np.concatenate(entries) if entries else None
            self.store.write_validation(view, accuracy, answers, labels, shares, whole)
        return {"accuracy": accuracy, "answers": answers, "labels": labels, "members": shares}

    def _read_or_ask(self, epoch: int, positions: np.ndarray, pixel_values: list[torch.Tensor]) -> np.ndarray:
        entries, known = self.store.read(epoch, positions)
        if known.all():
            return entries
        if self.teacher is None:
            damage = f" ({self.store.damage()})" if self.store.damaged else ""
            raise LocalInputError(
                f"teacher_store {str(self.store.directory)!r} lacks {np.count_nonzero(~known)} of {len(known)} views "
                f"of a batch of epoch {epoch}{damage}, and there is no teacher to ask; name it "
                "(--teacher_name_or_path), or fill the store"
            )
        sizes = self._at_once([len(each) for each in pixel_values])
        entries, ends = np.array(entries), np.cumsum(sizes)
        for end, chunk in zip(ends.tolist(), chunks_of(pixel_values, sizes), strict=True):
            views = slice(end - len(chunk), end)
            if known[views].all():
                continue
            # All of them, though only some may be unknown: the same shapes give the same bits.
            answered = self.store.encode(self._ask(chunk))
            unknown = ~known[views]
            self.num_asked += int(unknown.sum())
            self.store.write(epoch, positions[views][unknown], answered[unknown])
            entries[views] = np.where(known[views], entries[views], answered)
        return entries

    def _ask(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self._ask_each(pixel_values)[0].clone()  # a tensor of inference mode is of no use to a backward pass

    @torch.inference_mode()
    def _ask_each(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        output, each = ask_each(self.teacher, pixel_values)
        logits = output.logits if hasattr(output, "logits") else output
        if logits.shape[-1] != self.num_classes:
            raise InputError(
                f"the teacher has {logits.shape[-1]} classes, the student {self.num_classes}; they must be the same "
                "classes in the same order"
            )
        return logits, each


def chunks_of(pixel_values: Sequence[torch.Tensor], sizes: Sequence[int]) -> Iterator[torch.Tensor]:
    """Views (batch, ...) of several batches in others of these sizes; nothing is copied of what lies in one batch."""
    batches, left = iter(pixel_values), None
    for size in sizes:
        parts = []
        while size:
            left = next(batches) if left is None or not len(left) else left
            parts.append(left[:size])
            size, left = size - len(parts[-1]), left[size:]
        yield parts[0] if len(parts) == 1 else torch.cat(parts)


def check_objective(model, args, teacher: nn.Module | None, store: TeacherStore | None):
    """Refuse a teacher missing or superfluous, and a student that the objective does not fit.

    Raises:
        InputError: with the remedy.
    """
    if model.config.problem_type not in (None, "single_label_classification"):
        raise InputError(
            f"config.problem_type is {model.config.problem_type!r}; distillation is of one class out of several"
        )
    if args.distillation_type == "none":
        if teacher is not None or store is not None:
            raise InputError("distillation_type is 'none' but a teacher was given; choose soft or hard, or drop it")
        if model.config.use_distillation_token:
            raise InputError(
                "distillation_type is 'none' but use_distillation_token is true: nothing would train the distillation "
                "head, and it would still enter the mean; set use_distillation_token to false"
            )
    elif teacher is None and store is None:
        raise InputError(
            f"distillation_type is {args.distillation_type!r} but there is no teacher; give --teacher_name_or_path, "
            "--train_teacher true with --teacher_config_name, or --distillation_type none"
        )

"""What a run has come to, over all its resumptions: its losses, its time, and what its processes have counted."""

import json
import math
import time
from pathlib import Path

import torch
from accelerate.utils import gather_object, reduce, wait_for_everyone
from transformers import TrainerCallback

from ..data.bad_images import BadImages
from ..files import write_json
from ..output_folder import ASKED, checkpoint_folder, read_run_file
from .answers import Answers

COUNTS = "counts_{}.json"  # of a process, in a checkpoint


class Progress(TrainerCallback):
    """Means of the objective's terms for the log, and figures of the whole run for its end.

    Args:
        answers: counts the views that the teacher is asked about.
        bad_images: counts the images that could not be read; None for a training set that is not of views.
    """

    def __init__(self, answers: Answers, bad_images: BadImages | None):
        self._answers, self._bad_images = answers, bad_images
        self.start(None)

    def start(self, resumed: Path | None):
        """Forget what was trained before, but for what the checkpoint to resume from has counted."""
        self._resumed, self._first_step, self._answers.num_asked = resumed, 0, 0
        self._started, self._seconds = time.monotonic(), 0.0
        self._loss_sum = 0.0  # of the steps before the resumption
        self._unlogged: dict[str, torch.Tensor] = {}  # on the device: reading them would make the host wait
        self._loss, self._batches = 0.0, 0.0  # logged, over all processes

    def remember(self, terms: dict[str, torch.Tensor]):
        """Add a batch's terms, `loss` among them, to the sums; a batch whose loss is not finite counts for nothing."""
        is_finite = terms["loss"].detach().isfinite()
        for name, value in {**terms, "batches": torch.ones_like(terms["loss"])}.items():
            self._unlogged[name] = self._unlogged.get(name, 0.0) + torch.where(is_finite, value.detach(), 0.0)

    def means(self) -> dict[str, float]:
        """The mean of each term since the last call, over all processes; NaN where no batch was finite."""
        sums = self._sums()
        self._unlogged = {}
        if not sums:
            return {}
        batches = sums.pop("batches")
        self._loss, self._batches = self._loss + sums["loss"], self._batches + batches
        return {name: total / batches if batches else math.nan for name, total in sums.items()}

    def loss_so_far(self, step: int) -> float:
        """The losses of all steps until this one, called by all processes; of one that was not finite the mean."""
        sums = self._sums()
        loss, batches = self._loss + sums.get("loss", 0.0), self._batches + sums.get("batches", 0.0)
        return self._loss_sum + (loss / batches if batches else 0.0) * (step - self._first_step)

    def add_to(self, logs: dict[str, float], step: int, batch_size: int):
        """Add the means to a log of losses, and the figures of the whole run to the last log.

        Args:
            logs: what Trainer is about to log.
            step: update steps so far.
            batch_size: views of a step, over all processes.
        """
        if "loss" in logs:
            logs.update(self.means())
        if "train_loss" in logs:
            logs.update(self.summary(step, batch_size))

    def summary(self, step: int, batch_size: int) -> dict[str, float]:
        """Trainer's last figures (`train_loss`, `train_runtime`, rates), of the whole run instead of its last part."""
        seconds = self._seconds_so_far()
        return {
            "train_loss": self.loss_so_far(step) / max(step, 1),
            "train_runtime": round(seconds, 4),
            "train_steps_per_second": round(step / seconds, 3),
            "train_samples_per_second": round(step * batch_size / seconds, 3),
        }

    def counts(self) -> dict[str, int | None]:
        """Of all processes: `teacher_views_asked`, about how many, and `bad_images`, None if not of views."""
        counts = gather_object([self._count()])
        bad_images = {row for each in counts for row in each["bad_rows"]}
        asked = sum(each["teacher_views"] for each in counts)
        return {"teacher_views_asked": asked, "bad_images": None if self._bad_images is None else len(bad_images)}

    def on_train_begin(self, args, state, control, **kwargs):
        """Take up the counts of the checkpoint to resume from; there may be fewer processes by now, or more."""
        self._first_step = state.global_step
        paths = [] if self._resumed is None else self._resumed.glob(COUNTS.format("*"))
        counts = [json.loads(path.read_text()) for path in paths]
        self._seconds = max((each.pop("seconds") for each in counts), default=0.0)
        self._loss_sum = sum(each.pop("loss_sum") for each in counts) / max(len(counts), 1)
        if state.is_world_process_zero:
            self._answers.num_asked = self._asked_before(args, sum(each["teacher_views"] for each in counts))
            if self._bad_images is not None:
                self._bad_images.seen.update(row for each in counts for row in each["bad_rows"])
                self._bad_images.num_shown = sum(each.get("images_shown", 0) for each in counts)
        if self._answers.store is not None:
            wait_for_everyone()  # what the others ask from here on they count themselves

    def _asked_before(self, args, counted: int) -> int:
        """About how many views the run asked before this start; called by the main process before any asks again.

        Without a store that is `counted`, up to the checkpoint: what was asked after it is asked again. A store has it
        already. With one it is what the store has gained since the run began, of which `asked.json` keeps the count.
        """
        store = self._answers.store
        if store is None:
            return counted
        path, goes_on = Path(args.output_dir, ASKED), bool(self._resumed or args.resume_from_checkpoint)
        if not goes_on and self._answers.teacher is None:  # a full store: counting a large one takes minutes
            path.unlink(missing_ok=True)
            return 0
        noted = read_run_file((self._resumed.parent if self._resumed else path.parent) / ASKED) if goes_on else {}
        known = store.count_all()
        asked = max(counted, known - noted.get("known_before", known))
        write_json(path, {"known_before": known - asked})
        return asked

    def on_save(self, args, state, control, **kwargs):
        """Write the counts of this process into the checkpoint."""
        counts = {"seconds": self._seconds_so_far(), **self._count(), "loss_sum": self.loss_so_far(state.global_step)}
        folder = checkpoint_folder(args.output_dir, state.global_step)
        write_json(folder / COUNTS.format(args.process_index), counts, indent=None)

    def _count(self) -> dict[str, object]:
        bad_images, asked = self._bad_images, self._answers.num_asked
        if bad_images is None:
            return {"teacher_views": asked, "bad_rows": []}
        return {"teacher_views": asked, "bad_rows": sorted(bad_images.seen), "images_shown": bad_images.num_shown}

    def _seconds_so_far(self) -> float:
        return self._seconds + time.monotonic() - self._started

    def _sums(self) -> dict[str, float]:
        """The sums since the last log, over all processes, which all call this."""
        if not self._unlogged:
            return {}
        total = reduce(torch.stack(list(self._unlogged.values())), reduction="sum").tolist()
        return dict(zip(self._unlogged, total, strict=True))


def count_flops(model) -> int:
    """About what a training step takes for a view: 6 for each parameter and token (Kaplan et al. 2020)."""
    embeddings = model.base_model.embeddings
    height, width = embeddings.grid(embeddings.image_size)
    num_prefix_tokens = 2 if model.config.use_distillation_token else 1
    return 6 * (num_prefix_tokens + height * width) * model.num_parameters()

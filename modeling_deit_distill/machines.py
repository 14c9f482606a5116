"""Several machines: which folders they must share, and whether they do, looked at before anything is trained.

Process 0 alone writes results, card, checkpoints and the teacher that a run trains. Without a shared disk the others
cannot read these back. Data are cached by each machine on its own.
"""

import time
import uuid
from pathlib import Path

from accelerate.utils import broadcast_object_list, gather_object, wait_for_everyone

from .arguments import DistillationTrainingArguments, ModelArguments
from .errors import InputError, one_line
from .output_folder import OWN_STORE
from .report import say

# A network's file system may show a new file a little later.
SECONDS_TO_APPEAR = 5


def check_shared_folders(model_args: ModelArguments, args: DistillationTrainingArguments):
    """Refuse what must be read back where the processes do not see each other's files; called by all of them.

    Raises:
        InputError: folders that must be shared and are not, or `save_on_each_node` where one is.
    """
    if args.world_size == 1 or args.dry_run:
        return
    distils, name = args.distillation_type != "none", f"output_dir {args.output_dir!r}"
    is_shared, own_store = _is_shared(Path(args.output_dir), args), str(Path(args.output_dir, OWN_STORE))
    read_back = {
        "the teacher that process 0 trains there (train_teacher)": distils and model_args.train_teacher,
        "the checkpoint to go on from (resume_from_checkpoint)": args.resume_from_checkpoint,
        "the best checkpoint (load_best_model_at_end)": args.load_best_model_at_end,
        "the teacher's answers about repeated views (view_epochs)": args.teacher_store == own_store,
    }
    for what, is_needed in read_back.items():
        if is_needed and not is_shared:
            raise InputError(
                f"machines must share {name}, from which all read {what}; not all see what process 0 writes"
            )
    num_machines = sum(gather_object([args.local_process_index == 0]))
    if is_shared and args.save_on_each_node and num_machines > 1:
        raise InputError(
            f"save_on_each_node: {num_machines} machines share {name} and would write the same files; drop it"
        )
    if not is_shared:
        say(args, f"{name} is not shared: the results are where process 0 runs, and the run cannot be resumed")
    if distils and args.teacher_store:
        store = Path(args.teacher_store)
        if not _is_shared(store if store.is_dir() else store.parent, args):
            raise InputError(f"machines must share teacher_store {args.teacher_store!r}, which all read and write")


def _is_shared(folder: Path, args: DistillationTrainingArguments) -> bool:
    """Whether all processes see a file that process 0 writes into its folder."""
    name, error = f".shared-{uuid.uuid4().hex}", None
    if args.process_index == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        except OSError as raised:
            error = one_line(raised)
    name, error = broadcast_object_list([name, error])
    if error is not None:
        raise InputError(f"{str(folder)!r} cannot be written to ({error}); choose another folder")
    last = time.monotonic() + SECONDS_TO_APPEAR
    while not (is_seen := (folder / name).exists()) and time.monotonic() < last:
        time.sleep(0.1)
    is_shared = all(gather_object([is_seen]))
    wait_for_everyone()
    if args.process_index == 0:
        (folder / name).unlink(missing_ok=True)
    return is_shared

"""Train every row of the paper's tables on CIFAR-10 from scratch, and tabulate them.

    python examples/reproduce_tables.py --profile cpu                           # two CPU cores, about an hour
    python examples/reproduce_tables.py --profile gpu                           # one modern GPU
    python examples/reproduce_tables.py --profile cpu --dataset path/to/cifar10 # a local folder instead of the Hub
    python examples/reproduce_tables.py --profile cpu --list                    # every run's command; trains nothing
    python examples/reproduce_tables.py --profile cpu --prepare                 # the images for such a command

Each run is one command line of `train_deit.py`, which anybody may run alone. A finished run (its `all_results.json` is
there) is not run again, a killed one goes on from its checkpoint, so the same command completes what an earlier one
left. The tables are made by `tables_report.py`, from what lies in the runs' folders and nothing else.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
ABOUT = "about.json"  # beside the images: what they were made from
SUBSETS = (10, 25, 50)  # per cent of the training images
# Repeated views: the share of its epochs whose views are new.
ROUNDS = {"views_16th": 16, "views_8th": 8, "views_4th": 4, "views_all": 1}
# Changes to the recipe, by the name of the ablation. The optimiser's learning rate is the profile's.
ABLATIONS = {
    "no_repeats": ("--repeated_augmentation", "1"),
    "no_mixing": ("--mixup_alpha", "0", "--cutmix_alpha", "0"),
    "no_erasing": ("--random_erasing_prob", "0"),
    "no_depth": ("--drop_path_rate", "0"),
    "no_randaugment": ("--rand_augment_magnitude", "0"),
    # Of SGD the decay is L2, added to the gradient; the recipe's 0.05 is AdamW's. This is that of the paper's transfer.
    "sgd": ("--optim", "sgd", "--optim_args", "momentum=0.9,nesterov=true", "--weight_decay", "1e-4"),
}


@dataclass(frozen=True)
class Profile:
    """The sizes of a machine; all else lies in the recipe.

    Attributes:
        name: also that of the recipe, `tables_<name>.yaml`.
        num_train, num_held_out: images taken of CIFAR-10's training and test split, the same share of each class.
        seeds, teacher_seeds, ablation_seeds, subset_seeds, finer_seeds: the student's, for Table 3, Table 2, the
            ablations, less data and the finer resolution.
        equal_teacher_epochs: few, so that the convnet is about as good as the undistilled student; measured in Table 2.
        sgd_learning_rate: for SGD.
        finer_image_size, finer_epochs, finer_learning_rate: of the fine-tuning at more pixels.
        round_epochs: length of the runs that repeat views, a multiple of 16.
        jobs: runs beside each other, each with one thread; 1 leaves a run the whole machine.
    """

    name: str
    num_train: int
    num_held_out: int
    seeds: tuple[int, ...]
    teacher_seeds: tuple[int, ...]
    ablation_seeds: tuple[int, ...]
    subset_seeds: tuple[int, ...]
    finer_seeds: tuple[int, ...]
    equal_teacher_epochs: float
    sgd_learning_rate: float
    finer_image_size: int
    finer_epochs: int
    finer_learning_rate: float
    round_epochs: int
    jobs: int

    @property
    def recipe(self) -> str:
        """Its path in the project."""
        return f"examples/recipes/tables_{self.name}.yaml"


PROFILES = {
    "cpu": Profile(
        name="cpu",
        num_train=10_000,
        num_held_out=4_000,
        seeds=(0, 1, 2),
        teacher_seeds=(0, 1),
        ablation_seeds=(0,),
        subset_seeds=(0,),
        finer_seeds=(0,),
        equal_teacher_epochs=0.3,
        sgd_learning_rate=0.05,
        finer_image_size=30,  # of 32 that there are
        finer_epochs=2,
        finer_learning_rate=1e-4,
        round_epochs=16,
        jobs=2,
    ),
    "gpu": Profile(
        name="gpu",
        num_train=50_000,
        num_held_out=10_000,
        seeds=(0, 1, 2),
        teacher_seeds=(0, 1, 2),
        ablation_seeds=(0,),
        subset_seeds=(0,),
        finer_seeds=(0,),
        equal_teacher_epochs=12,
        sgd_learning_rate=0.05,
        finer_image_size=48,
        finer_epochs=30,
        finer_learning_rate=1e-5,  # the paper's 5e-6, for twice its 512 views
        round_epochs=400,
        jobs=1,
    ),
}


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: of its folder.
        arguments: of `train_deit.py`.
        needs: names of the runs that must be finished before: it uses their teacher, weights, or stored answers.
    """

    name: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """As a reader types it, in the project's folder."""
        return f"accelerate launch --quiet train_deit.py {shlex.join(self.arguments)}"


class Failed(Exception):
    """What lies there cannot be gone on from, or a run did not finish; the message says which, why and what to do."""


def main(words: list[str]) -> int:
    options = parse_options(words)
    profile = PROFILES[options.profile]
    output_dir = options.output_dir or f"outputs/tables/{profile.name}"
    runs = plan(profile, output_dir)
    if options.list:
        print("\n".join(run.command for run in runs))
        return 0
    os.chdir(ROOT)
    try:
        prepare_data(profile, options.dataset, Path(output_dir))
        if options.prepare:
            return 0
        refuse_stale(runs, Path(output_dir))
    except Failed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return make_tables(profile, runs, options)


def make_tables(profile: Profile, runs: list[Run], options: argparse.Namespace) -> int:
    """Run what is not finished and tabulate what is; the exit code."""
    import tables_report  # beside this script

    from modeling_deit_distill import InputError

    output_dir = Path(options.output_dir or f"outputs/tables/{profile.name}")
    failed = None
    try:
        execute(runs, output_dir, options.jobs or profile.jobs)
    except Failed as error:
        failed = error
    try:
        folder = tables_report.write(profile, runs, output_dir, Path(options.results_dir or results_dir(profile)))
        print(f"tables of what is finished: {folder}")
    except InputError as error:
        if failed is None:
            raise
        failed = f"{failed}; {error}"
    if failed:
        print(f"error: {failed}", file=sys.stderr)
    return 1 if failed else 0


def parse_options(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="reproduce_tables.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", choices=list(PROFILES), required=True, help="which sizes")
    parser.add_argument("--dataset", default="uoft-cs/cifar10", help="CIFAR-10: a local folder, or a name on the Hub")
    parser.add_argument("--output_dir", help="where runs are kept; default: outputs/tables/<profile>")
    parser.add_argument("--results_dir", help="where tables are written; default: examples/results/<profile>")
    parser.add_argument("--jobs", type=int, help="runs beside each other; default: the profile's")
    parser.add_argument("--list", action="store_true", help="print the commands of all runs, and stop")
    parser.add_argument("--prepare", action="store_true", help="write the images to train on, and stop")
    return parser.parse_args(words)


def results_dir(profile: Profile) -> str:
    """Where a profile's tables belong in the project."""
    return f"examples/results/{profile.name}"


# The runs


def plan(profile: Profile, output_dir: str) -> list[Run]:
    """Every run of a profile, each after those that it needs; what takes longest alone comes first.

    Answers of a teacher are stored where several runs see the same views of the same images by the same teacher. An
    ablation of the augmentation sees other views, a subset other images: the ablations need no teacher (the paper's
    neither), and each subset's run trains and asks its own.
    """
    recipe = yaml.safe_load((ROOT / profile.recipe).read_text())

    def run(name: str, seed: int, *words: object, images: object = "all", needs: Sequence[str] = ()) -> Run:
        places = ("--dataset_name", f"{output_dir}/data/{images}", "--output_dir", f"{output_dir}/{name}-{seed}")
        arguments = (profile.recipe, *places, "--seed", seed, *words)
        return Run(f"{name}-{seed}", tuple(map(str, arguments)), tuple(needs))

    answers = {name: ("--teacher_store", f"{output_dir}/answers/{name}") for name in ("hard", "soft", "equal", "deit")}
    alone = ("--distillation_type", "none")
    usual = ("--use_distillation_token", "false")
    first, *others = profile.seeds
    convnet = ("--teacher_name_or_path", f"{output_dir}/token-{first}/teacher")
    deit = ("--teacher_name_or_path", f"{output_dir}/none-{first}")
    taught = f"token-{first}"  # trains the convnet, and stores what it says

    runs = [run("token", first, *answers["hard"])]
    runs += [run("none", seed, *alone) for seed in profile.seeds]
    runs += [run("token", seed, *answers["hard"], needs=[taught]) for seed in others]
    runs += [run("hard", seed, *usual, *answers["hard"], needs=[taught]) for seed in profile.seeds]
    soft = ("--distillation_type", "soft", *usual, *convnet, *answers["soft"])
    runs += filling(run, "soft", soft, profile.seeds, [taught])
    equal = ("--teacher_num_train_epochs", profile.equal_teacher_epochs, *answers["equal"])
    runs += filling(run, "equal", equal, profile.teacher_seeds, [])
    runs += filling(run, "deit", (*deit, *answers["deit"]), profile.teacher_seeds, [f"none-{first}"])
    for name, share in ROUNDS.items():
        epochs = ("--num_train_epochs", profile.round_epochs, "--view_epochs", profile.round_epochs // share)
        words = (*epochs, *convnet, "--teacher_store", f"{output_dir}/answers/{name}")
        runs += filling(run, name, words, profile.seeds, [taught])
    for share in SUBSETS:
        longer = as_many_steps(recipe, share)
        for seed in profile.subset_seeds:
            runs.append(run(f"token_{share}", seed, *longer, images=share))
            runs.append(run(f"none_{share}", seed, *alone, *longer, images=share))
    for name, changed in ABLATIONS.items():
        rate = ("--learning_rate", profile.sgd_learning_rate) if name == "sgd" else ()
        runs += [run(name, seed, *alone, *changed, *rate) for seed in profile.ablation_seeds]
    finer = fine_tuning(profile)
    teacher_size = recipe.get("teacher_image_size", recipe["image_size"])
    finer_teacher_size = teacher_size * profile.finer_image_size // recipe["image_size"]
    for seed in profile.finer_seeds:
        start = {name: ("--model_name_or_path", f"{output_dir}/{name}-{seed}") for name in ("none", "token")}
        sharper = (*convnet, "--teacher_image_size", finer_teacher_size)
        runs.append(run("none_finer", seed, *alone, *start["none"], *finer, needs=[f"none-{seed}"]))
        runs.append(run("token_finer", seed, *start["token"], *finer, *sharper, needs=[f"token-{seed}", taught]))
    return runs


def filling(run, name: str, words: Sequence[object], seeds: Sequence[int], needs: list[str]) -> list[Run]:
    """Runs that share a store: the first fills it, the others follow, so that no view is asked about twice."""
    first, *others = seeds
    return [
        run(name, first, *words, needs=needs),
        *(run(name, seed, *words, needs=[*needs, f"{name}-{first}"]) for seed in others),
    ]


def as_many_steps(recipe: dict, share: int) -> tuple[object, ...]:
    """Epochs of a subset, so that student and teacher take as many steps as with all images."""
    names = ("num_train_epochs", "warmup_epochs", "teacher_num_train_epochs")
    return tuple(word for name in names for word in (f"--{name}", f"{recipe[name] * 100 / share:g}"))


def fine_tuning(profile: Profile) -> tuple[object, ...]:
    """At more pixels: a small constant rate (paper, section 5.1 and its code)."""
    schedule = ("--lr_scheduler_type", "constant", "--warmup_epochs", 0, "--num_train_epochs", profile.finer_epochs)
    rate = ("--learning_rate", f"{profile.finer_learning_rate:g}", "--weight_decay", "1e-8")
    return ("--image_size", profile.finer_image_size, *schedule, *rate)


# The images


def prepare_data(profile: Profile, dataset: str, output_dir: Path):
    """Write the images of all runs: `data/all`, and `data/10`, ... with a share of the training images.

    Every class keeps its share; a smaller set lies within the larger ones. What was written before is used again.

    Raises:
        Failed: it was written from another dataset, or with other numbers of images.
        InputError: a class has too few images.
    """
    folder = output_dir / "data"
    wanted = describe_data(profile, dataset)
    if folder.exists():
        check_data(folder, wanted)
        return
    from datasets import DatasetDict

    from modeling_deit_distill.data.sources import load_image_data

    data = load_image_data(dataset)
    train, held_out = first_of_each_class(data.train, profile.num_train), data.validation
    held_out = first_of_each_class(held_out, profile.num_held_out)
    partial = folder.with_name("data.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for share in (*SUBSETS, 100):
        rows = first_of_each_class(train, profile.num_train * share // 100)
        name = "all" if share == 100 else str(share)
        DatasetDict(train=rows, test=held_out).save_to_disk(partial / name)
    (partial / ABOUT).write_text(json.dumps(wanted, indent=2) + "\n")
    partial.rename(folder)  # all of them or none


def describe_data(profile: Profile, dataset: str) -> dict[str, str | int]:
    """What the images are made from: the dataset's name, of a local folder its last part, and how many are taken."""
    name = Path(dataset).resolve().name if Path(dataset).exists() else dataset
    return {"dataset": name, "num_train": profile.num_train, "num_held_out": profile.num_held_out}


def check_data(folder: Path, wanted: dict[str, str | int]):
    """Whether the images are those that are wanted; of images without an `about.json` the numbers alone are known.

    Raises:
        Failed: they are others.
    """
    if (folder / ABOUT).exists():
        found = json.loads((folder / ABOUT).read_text())
    else:
        from datasets import load_from_disk

        rows = load_from_disk(folder / "all").num_rows
        found = {"dataset": wanted["dataset"], "num_train": rows["train"], "num_held_out": rows["test"]}
    if found != wanted:
        sources = [f"{of['dataset']} ({of['num_train']:,} and {of['num_held_out']:,} images)" for of in (found, wanted)]
        raise Failed(
            f"{folder} was made from {sources[0]}, but {sources[1]} is asked for; give that --dataset and --profile "
            f"again, or another --output_dir, or remove {folder.parent} with all its runs"
        )


def first_of_each_class(rows, count: int):
    """`count` rows, the first of each class alike, in the order of the dataset (CIFAR-10's is random).

    Raises:
        InputError: a class has not as many.
    """
    from modeling_deit_distill import InputError

    labels = rows["label"][:]
    wanted = count // rows.features["label"].num_classes
    taken, chosen = dict.fromkeys(range(rows.features["label"].num_classes), 0), []
    for index, label in enumerate(labels):
        if taken[label] < wanted:
            taken[label] += 1
            chosen.append(index)
    if min(taken.values()) < wanted:
        raise InputError(
            f"the profile wants {wanted:,} images of each class, a class has {min(taken.values()):,} only; give the "
            "whole of CIFAR-10 as --dataset"
        )
    return rows.select(chosen)


# Running


def execute(runs: Iterable[Run], output_dir: Path, jobs: int):
    """Run what is not finished, at most `jobs` at a time, each in a process of its own.

    After a failure nothing new is started. SIGTERM is passed on: each run makes a checkpoint and ends.

    Raises:
        Failed: runs that failed, or that need one that did.
    """
    waiting = [run for run in runs if not is_finished(run, output_dir)]
    processes, failed = {}, []
    context = start_method(jobs)
    with terminating(processes):
        while processes or (waiting and not failed):
            ready = [run for run in waiting if all((output_dir / n / "all_results.json").exists() for n in run.needs)]
            for run in ready[: max(jobs - len(processes), 0)] if not failed else []:
                waiting.remove(run)
                print(f"{time.strftime('%H:%M:%S')} {run.command}", flush=True)
                log = str(output_dir / "logs" / f"{run.name}.log")
                process = context.Process(target=train, args=(list(run.arguments), log, 1 if jobs > 1 else None))
                process.start()
                processes[process.sentinel] = (run, process)
            if not processes:
                raise Failed(f"{', '.join(run.name for run in waiting)} wait for runs that are not planned")
            for sentinel in wait(list(processes)):
                run, process = processes.pop(sentinel)
                process.join()
                if process.exitcode != 0 or not is_finished(run, output_dir):
                    failed.append(f"{run.name} (exit code {process.exitcode}, {output_dir}/logs/{run.name}.log)")
    if failed:
        raise Failed(f"not finished: {', '.join(failed)}; the same command goes on from here")


def is_finished(run: Run, output_dir: Path) -> bool:
    """Whether a run has left its results, which it writes last."""
    return (output_dir / run.name / "all_results.json").exists()


def refuse_stale(runs: Iterable[Run], output_dir: Path):
    """Look whether each finished run was made by the command that is planned now.

    Raises:
        Failed: one was made with other arguments; it would be tabulated as what it is not. What used it goes with it.
    """
    stale, refused = set(), []
    for run in runs:  # each after what it needs
        if not is_finished(run, output_dir):
            continue
        changed = differing(run, output_dir)
        if changed or stale & set(run.needs):
            stale.add(run.name)
            reason = f"differs in {', '.join(changed)}" if changed else "used one of these"
            refused.append(f"{output_dir / run.name} ({reason})")
    if refused:
        raise Failed(
            f"finished runs were made by another command than today's: {'; '.join(refused)}; remove these folders, and "
            "the runs are made again"
        )


def differing(run: Run, output_dir: Path) -> list[str]:
    """Names of the arguments with which a finished run was not made as it is planned now."""
    from modeling_deit_distill.publishing.record import changed_arguments

    # A record has the last part of a folder's name; absolute, a folder is known as one though it be gone by now.
    words = [str(Path(word).absolute()) if Path(word).is_relative_to(output_dir) else word for word in run.arguments]
    return changed_arguments(str(output_dir / run.name), words)


def start_method(jobs: int):
    """Processes forked from one that has imported everything; a run on a GPU, which is longer, starts afresh."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    if jobs == 1:
        return multiprocessing.get_context("spawn")
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train_deit"])
    return context


def train(arguments: list[str], log: str, num_threads: int | None):
    """`train_deit.py` with its output in a file."""
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import torch

    import train_deit
    from modeling_deit_distill.script import run_script

    if num_threads is not None:
        torch.set_num_threads(num_threads)
    run_script(train_deit.main, arguments)


@contextlib.contextmanager
def terminating(processes: dict):
    """Pass SIGTERM on to the processes that run, wait for them, and end."""

    def end(number: int, frame):
        for _, process in processes.values():
            process.terminate()
        for _, process in processes.values():
            process.join()
        sys.exit(128 + number)

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


if __name__ == "__main__":
    from modeling_deit_distill.script import run_script

    run_script(main)

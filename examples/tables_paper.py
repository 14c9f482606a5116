"""What `reproduce_tables.py` compares: the paper's tables, its figures, and the runs of ours behind each row.

Paper: Touvron et al. 2020, arXiv 2012.12877.
"""

from dataclasses import dataclass

PAPER_NOISE = 0.2  # points; what the public code's README gives for two seeds of one run
NO_DIFFERENCE = (
    1.0  # points; half the least gain by distillation that the paper builds on (2.1), so less counts as none
)
TRUTH, CONVNET, ALONE = "truth", "convnet", "DeiT alone"
# Sets of decisions of Table 4: the runs and what they keep it under.
SETS = {
    TRUTH: ("token", "labels"),
    CONVNET: ("token", "teacher"),
    ALONE: ("none", "fused"),
    "class head": ("token", "cls"),
    "distillation head": ("token", "distillation"),
    "both heads": ("token", "fused"),
}
PAPER_TABLE_4 = {
    (TRUTH, CONVNET): 17.1,
    (TRUTH, ALONE): 18.2,
    (TRUTH, "class head"): 17.0,
    (TRUTH, "distillation head"): 16.9,
    (TRUTH, "both heads"): 16.6,
    (CONVNET, ALONE): 13.3,
    (CONVNET, "class head"): 11.2,
    (CONVNET, "distillation head"): 10.0,
    (CONVNET, "both heads"): 10.2,
    ("class head", "distillation head"): 5.0,
}
PAPER_COSINE = (0.06, 0.93)  # as learned, at the end of the last block (section 4)


@dataclass(frozen=True)
class Row:
    """A line of a table: runs of several seeds, the head that is read, and the paper's figure in per cent, if any."""

    label: str
    runs: str
    head: str = "fused"
    paper: float | None = None


@dataclass(frozen=True)
class Claim:
    """That one row is better than another, and by how many points it is in the paper; None where it has no figure.

    `paired` rows belong together seed by seed: two heads of one run, or a run and its fine-tuning.
    """

    words: str
    first: int
    second: int
    paper: float | None = None
    paired: bool = False


@dataclass(frozen=True)
class Table:
    """Rows and what is to be said about them; `claims` name rows by their place."""

    key: str
    title: str
    text: str
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...]
    teacher: bool = False  # a column of the teacher's accuracy, in per cent, the paper's in `paper_teachers`
    paper_teachers: tuple[float, ...] = ()
    asked: bool = False  # a column of the views that the teacher was asked about, and its time for them


TABLES = (
    Table(
        "table3",
        "Table 3: how to distil",
        "The paper's figures are those of DeiT-Ti on ImageNet.",
        (
            Row("no distillation", "none", paper=72.2),
            Row("usual distillation, soft", "soft", paper=72.2),
            Row("usual distillation, hard", "hard", paper=74.3),
            Row("with the token: class head", "token", "cls", 73.9),
            Row("with the token: distillation head", "token", "distillation", 74.6),
            Row("with the token: both", "token", "fused", 74.5),
        ),
        (
            Claim("soft distillation against none", 1, 0, 0.0),
            Claim("hard distillation against none", 2, 0, 2.1),
            Claim("hard distillation against soft", 2, 1, 2.1),
            Claim("class head against none", 3, 0, 1.7),
            Claim("distillation head against none", 4, 0, 2.4),
            Claim("both heads against none", 5, 0, 2.3),
            Claim("both heads against usual hard distillation", 5, 2, 0.2),
            Claim("distillation head against class head", 4, 3, 0.7, paired=True),
            Claim("both heads against the distillation head", 5, 4, -0.1, paired=True),
        ),
    ),
    Table(
        "table2",
        "Table 2: which teacher",
        "A transformer (the undistilled student of seed 0, as in the paper, where DeiT-B teaches DeiT-B), a convnet "
        "that was trained for a short time only, to be about as good, and the convnet of all other tables. The paper's "
        "figures are those of DeiT-B taught by DeiT-B, RegNetY-8GF and RegNetY-16GF on ImageNet.",
        (
            Row("a transformer", "deit", paper=81.9),
            Row("a convnet trained briefly", "equal", paper=82.7),
            Row("the convnet", "token", paper=83.1),
        ),
        (
            Claim("the convnet trained briefly against a transformer", 1, 0, 0.8),
            Claim("the convnet against a transformer", 2, 0, 1.2),
            Claim("the convnet against the one trained briefly", 2, 1, 0.4),
        ),
        teacher=True,
        paper_teachers=(81.8, 81.7, 82.9),
    ),
    Table(
        "ablation",
        "Ablation: what the recipe's parts give",
        "All without distillation; the paper's figures are those of DeiT-B on ImageNet, of 300 epochs. Without erasing "
        "and without stochastic depth it fails to train there (4.3 and 3.4 %), which is no measure of what the part "
        "gives, so no difference is compared. Of RandAugment alone we hold no figure, and that with SGD is quoted from "
        "memory. SGD has a learning rate of its own, and the weight decay of the paper's transfer with SGD, 1e-4: in "
        "SGD the decay is added to the gradient, where AdamW's 0.05 would be far too strong.",
        (
            Row("the recipe", "none", paper=81.8),
            Row("without repeated augmentation", "no_repeats", paper=76.5),
            Row("without mixup and cutmix", "no_mixing", paper=75.8),
            Row("without erasing", "no_erasing", paper=4.3),
            Row("without stochastic depth", "no_depth", paper=3.4),
            Row("without RandAugment", "no_randaugment"),
            Row("SGD for AdamW", "sgd", paper=74.5),
        ),
        (
            Claim("without repeated augmentation", 1, 0, -5.3),
            Claim("without mixup and cutmix", 2, 0, -6.0),
            Claim("without erasing", 3, 0),
            Claim("without stochastic depth", 4, 0),
            Claim("without RandAugment", 5, 0),
            Claim("SGD for AdamW", 6, 0, -7.3),
        ),
    ),
    Table(
        "view_epochs",
        "Repeated views: how many answers suffice",
        "With `--view_epochs K` the teacher is asked about the views of the first K epochs alone, and the run shows "
        "these again, in another order. All rows are of one length, 16 epochs in profile `cpu`, longer than those of "
        "Table 3. The paper has no such table: its teacher answers about every view once. The teacher's time is that "
        "of one image at a time on the run's machine, times the views: a run asks in batches, which is faster.",
        (
            Row("views of a sixteenth of the epochs", "views_16th"),
            Row("views of an eighth", "views_8th"),
            Row("views of a quarter", "views_4th"),
            Row("new views in every epoch", "views_all"),
        ),
        (
            Claim("a sixteenth against all", 0, 3),
            Claim("an eighth against all", 1, 3),
            Claim("a quarter against all", 2, 3),
        ),
        asked=True,
    ),
    Table(
        "less_data",
        "Less data",
        "A share of the training images for student and teacher, as many steps as with all of them. The paper has no "
        "such table; that distillation saves data is its title.",
        (
            Row("10 % of the images, alone", "none_10"),
            Row("10 % of the images, distilled", "token_10"),
            Row("25 % of the images, alone", "none_25"),
            Row("25 % of the images, distilled", "token_25"),
            Row("50 % of the images, alone", "none_50"),
            Row("50 % of the images, distilled", "token_50"),
            Row("all images, alone", "none"),
            Row("all images, distilled", "token"),
        ),
        (
            Claim("distilled against alone, 10 %", 1, 0),
            Claim("distilled against alone, 25 %", 3, 2),
            Claim("distilled against alone, 50 %", 5, 4),
            Claim("distilled against alone, all", 7, 6),
            Claim("distilled on 50 % against alone on all", 5, 6),
        ),
        teacher=True,
    ),
    Table(
        "finer",
        "A finer resolution",
        "Fine-tuned at more pixels, positions resized, the distilled one with its teacher at that size too. The "
        "paper's figures are those of DeiT-B on ImageNet, at 224 and 384 pixels.",
        (
            Row("alone", "none", paper=81.8),
            Row("alone, finer", "none_finer", paper=83.1),
            Row("distilled", "token", paper=83.4),
            Row("distilled, finer", "token_finer", paper=84.5),
        ),
        (
            Claim("finer against coarser, alone", 1, 0, 1.3, paired=True),
            Claim("finer against coarser, distilled", 3, 2, 1.1, paired=True),
            Claim("distilled against alone, finer", 3, 1, 1.4),
        ),
        teacher=True,
    ),
)

"""Types that several arguments share: ranges, and groups of arguments that describe one thing."""

from typing import Annotated

from ..fields import Group, Range

# Arguments that describe one thing. Each type below that names a group adds its field to it; see `fields.Choice`.
DATA = Group("data", "keep one")
STUDENT = Group("student", "keep one: a checkpoint has its size already")
TEACHER = Group("teacher", "keep the first for a trained teacher, the second for one trained from scratch")
REMOTE_CODE = Group("remote code")
LEARNING_RATE = Group(
    "learning rate", "keep one: the first is taken as it is, the second scales with the effective batch / 512"
)
WARM_UP = Group("warm-up")
AVERAGE = Group("average of weights", "keep one")

NotNegative = Annotated[float, Range(at_least=0)]
Positive = Annotated[float, Range(above=0)]
Fraction = Annotated[float, Range(at_least=0, at_most=1)]
Natural = Annotated[int, Range(at_least=0)]
Count = Annotated[int, Range(at_least=1)]
Rate = Annotated[float, Range(at_least=0, below=1)]  # what is kept, or dropped, of something; never all
# A step to take something at, or a share of all steps.
Every = Annotated[float, Range(above=0)]
# Above these no model has been trained, and building one takes the machine's memory before it fails.
Width = Annotated[int, Range(at_least=1, at_most=65_536)]
MOST_LAYERS = 1000
Depth = Annotated[int, Range(at_least=1, at_most=MOST_LAYERS)]
Epochs = Annotated[float, Range(above=0, at_most=1_000_000)]

"""The one exception that a user can mend."""


class InputError(ValueError):
    """Bad input: the message names the argument, what was found and the remedy, in one line.

    `train_deit.py` prints it without a stack of frames; anything else that is raised is a fault of ours and keeps its
    traceback.
    """

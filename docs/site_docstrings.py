"""Shows names in docstrings, written as [`Name`] for transformers' documentation builder, as plain code."""

import re

from griffe import Extension

REFERENCE = re.compile(r"\[(`[^`]+`)\](?![\[(])")


class PlainNames(Extension):
    """Takes the brackets off."""

    def on_object(self, *, obj, **kwargs):
        """Of each class, function and module."""
        if obj.docstring is not None:
            obj.docstring.value = REFERENCE.sub(r"\1", obj.docstring.value)

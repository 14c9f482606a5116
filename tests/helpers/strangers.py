"""New processes that have not this package."""

# What a new process runs first that is to be a stranger's, who has not this package.
WITHOUT_THE_PACKAGE = """
import sys


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "modeling_deit_distill":
            raise ImportError("the package is not here")


sys.meta_path.insert(0, Blocked())
"""

"""`python -m modeling_deit_distill.store_cli`: the command line of teachers' stores, under the name that cards give."""

from .script import run_script
from .teachers.command_line import main

if __name__ == "__main__":
    run_script(main)

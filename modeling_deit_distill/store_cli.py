"""`python -m modeling_deit_distill.store_cli`: the command line of teachers' stores, under the name that cards give."""

from .errors import run_command
from .teachers.command_line import main

if __name__ == "__main__":
    raise SystemExit(run_command(main))

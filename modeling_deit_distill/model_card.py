"""`python -m modeling_deit_distill.model_card OUTPUT_DIR`: the card of a run, written again."""

from .errors import run_command
from .publishing.card import main

if __name__ == "__main__":
    raise SystemExit(run_command(main))

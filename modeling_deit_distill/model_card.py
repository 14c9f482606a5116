"""`python -m modeling_deit_distill.model_card OUTPUT_DIR`: the card of a run, written again."""

from .publishing.card import main
from .script import run_script

if __name__ == "__main__":
    run_script(main)

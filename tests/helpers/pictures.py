"""Pictures of one colour in the place of those of a card: drawing them takes longer than a short run."""

import PIL.Image

from modeling_deit_distill.publishing import card, inside


def draw_blank_pictures(monkeypatch):
    """From now on, in this process."""

    def draw(*arguments):
        PIL.Image.new("RGB", (8, 8)).save(arguments[-1])

    monkeypatch.setattr(inside, "draw_predictions", draw)
    monkeypatch.setattr(card, "plot_training_curves", draw)
    monkeypatch.setattr(card, "plot_confusion", draw)

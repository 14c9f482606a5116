"""What the summary says of held-out images: what they cannot tell, and what was left out; by hand."""

import numpy as np
from helpers.images import grey, rows

from modeling_deit_distill.data.sources import ImageData, load_image_data
from modeling_deit_distill.data.views import ViewSampler
from modeling_deit_distill.summary import (
    balanced_views_in_words,
    class_weights_in_words,
    copies_in_words,
    held_out_in_words,
)


def of(counts, is_cut=True, bad=(), **more):
    """The lines about so many held-out images of each class."""
    names = [f"class {label}" for label in range(len(counts))]
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    held_out = rows(labels, names)
    data = ImageData(held_out, held_out, names, "photos", "held out", is_cut=is_cut, **more)
    return held_out_in_words(data, list(bad))


def test_enough_images_need_no_words():
    assert of([25, 25]) == {}


def test_few_images_of_a_class():
    # Wilson's interval of 2 right of 5: 11.8 % to 76.9 %
    words = of([5, 45])["class accuracies"]
    assert words == (
        "fewer than 10 held-out images in 1 of 2 classes; with 5 a class's accuracy is known to about ±33 percentage "
        "points"
    )


def test_few_images_in_all():
    # Wilson's interval of 12 right of 24: 31.4 % to 68.6 %
    assert of([12, 12]) == {
        "accuracy": "known to about ±19 percentage points with 24 held-out images; a larger "
        "--validation_fraction holds out more"
    }
    assert of([12, 12], is_cut=False)["accuracy"] == "known to about ±19 percentage points with 24 held-out images"


def test_classes_without_images():
    assert of([0, 30, 0, 30])["not measured"] == "2 of 4 classes have no held-out image: class 0, class 2"
    words = of([0] * 12 + [60])["not measured"]
    assert words.startswith("12 of 13 classes") and words.endswith("class 8, class 9, and 2 others")


def test_images_that_are_left_out():
    lines = of([1, 60], bad=[0])
    assert lines["left out"] == "1 held-out image(s) that cannot be read: row 0"
    assert lines["not measured"] == "1 of 2 classes have no held-out image: class 0"


def test_groups():
    assert of([30, 30], groups="8 by 'burst'") == {"groups": "8 by 'burst'"}


def test_copies_are_counted_wherever_they_lie(tmp_path):
    def save(*levels, folder):
        for number, level in enumerate(levels):
            (tmp_path / folder / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
            grey(level).save(tmp_path / folder / "ab"[number % 2] / f"{number}.png")
        return str(tmp_path / folder)

    photos, own = save(10, 20, 30, 40, 50, 60, folder="photos"), save(60, 70, 10, 20, folder="own")
    words = copies_in_words(load_image_data(train_dir=photos, validation_dir=own), [])["copies"]
    assert words.startswith("of 4 held-out images, 3 also among the training images, byte by byte, ")
    assert ": a/0.png, a/2.png, b/3.png; keep one file of each" in words
    assert (
        "of 3 held-out images, 2 also"
        in copies_in_words(load_image_data(train_dir=photos, validation_dir=own), [0])["copies"]
    )
    assert copies_in_words(load_image_data(train_dir=photos, validation_fraction=0.3), []) == {}
    alike = load_image_data(train_dir=save(*[10, 10] * 4, folder="alike"), validation_fraction=0.3)
    assert copies_in_words(alike, [])["copies"].startswith("of 3 held-out images, 3 also")


def test_one_image_of_a_class_tells_nothing():
    said = "fewer than 10 held-out images in 1 of 2 classes; the smallest class has 1 held-out image: its accuracy"
    assert of([1, 60])["class accuracies"] == f"{said} says nothing"
    # 4 of 9: 18.9 to 73.3 %
    assert of([9, 60])["class accuracies"].endswith("±27 percentage points")


# ---- what makes up for classes of few images ----


def test_how_often_balanced_views_draw_each_class():
    labels = np.repeat([0, 1, 2], [2, 10, 18])
    words = balanced_views_in_words(ViewSampler(30, 4, 1, 0, labels), labels, ["hat", "shoes", "t-shirt"])
    assert words == (  # 28 views, of which 9 or 10 of each class; the seed decides which has 10
        "an epoch keeps its 28 views and draws each of 3 classes 9 or 10 times: an image of t-shirt 0.5 times, of hat "
        "4.5 times"
    )
    words = balanced_views_in_words(ViewSampler(30, 4, 3, 0, labels), labels, ["hat", "shoes", "t-shirt"])
    assert "draws each of 3 classes 3 or 4 times, 3 views each: an image of t-shirt" in words


def test_which_weights_the_classes_have():
    weights, names = np.array([4.0, 4 / 3, 0.5]), ["hat", "shoes", "t-shirt"]
    words = class_weights_in_words("balanced", weights, np.array([1, 3, 8]), names)
    assert words == "balanced, from 0.5 (t-shirt) to 4 (hat); on average 1 over the training images"
    words = class_weights_in_words("balanced", np.array([1.0, 5 / 3, 5 / 7]), np.array([0, 3, 7]), names)
    assert words.endswith("; 1 for 1 class(es) without training images: hat")
    words = class_weights_in_words("/home/me/weights.json", weights, np.array([3, 0, 3]), names)
    assert words == "weights.json, from 0.5 (t-shirt) to 4 (hat); on average 2.25 over the training images"
    assert class_weights_in_words("w.csv", weights, None, names) == "w.csv, from 0.5 (t-shirt) to 4 (hat)"

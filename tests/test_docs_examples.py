"""The worked examples of `docs/change_the_method.md` do what they say, in the modules that they are written for."""

import argparse
import re

import numpy as np
import pytest
import torch
from helpers.docs import blocks, text_of
from helpers.drawn import columns
from helpers.paths import ROOT

from modeling_deit_distill import losses
from modeling_deit_distill.augmentation import operations
from modeling_deit_distill.data import views
from modeling_deit_distill.data.evaluation import evaluation_processor
from modeling_deit_distill.export import __main__ as export
from modeling_deit_distill.export.onnx import AllOutputs, check_answers

GUIDE = ROOT / "docs" / "change_the_method.md"
EXAMPLES = blocks(GUIDE, "python")


def defined(name: str, module, **more) -> object:
    """The function of an example, among the names of the module that it belongs to."""
    [code] = [code for code in EXAMPLES if f"def {name}(" in code]
    found = {**vars(module), **more}
    exec(code, found)
    return found[name]


def test_an_example_is_no_longer_than_the_linter_takes():
    assert [line for code in EXAMPLES for line in code.splitlines() if len(line) > 120] == []


def test_the_operation_of_rand_augment():
    blur = defined("blur", operations)
    pixels = torch.zeros(2, 3, 8, 8)
    pixels[:, :, 4, 4] = 90
    blurred = blur(pixels, torch.tensor([0.0, 1.0]))
    assert torch.equal(blurred[0], pixels[0])
    assert (blurred[1, :, 3:6, 3:6] == 10).all() and blurred[1].sum() == 3 * 9 * 10
    found = {"OPERATION_ARGUMENTS": dict(views.OPERATION_ARGUMENTS)}
    exec(next(code for code in EXAMPLES if code.startswith("OPERATION_ARGUMENTS")), found)
    assert found["OPERATION_ARGUMENTS"]["blur"](0.3, -1) == 0.3


def test_the_augmentation_with_an_argument_of_its_own():
    blur = defined("gaussian_blur", operations)
    pixels = torch.zeros(2, 3, 8, 8)
    pixels[:, :, 4, 4] = 160
    blurred = blur(pixels, np.array([False, True]))
    assert torch.equal(blurred[0], pixels[0])
    assert blurred[1, 0, 3:6, 3:6].tolist() == [[10, 20, 10], [20, 40, 20], [10, 20, 10]]
    assert blurred[1].sum() == 3 * 160
    assert (blur(torch.full((1, 3, 8, 8), 255.0), np.array([True])) == 255).all()


def test_the_guide_says_which_column_is_unused():
    """A column that is taken is in the guide no more, or the next augmentation would draw the same numbers."""
    width = views.draw_uniforms(0, 0, [0]).shape[1]
    unused = set(range(width)) - set(np.concatenate([*columns().values()]).tolist())
    text = text_of(GUIDE)
    assert {int(number) for number in re.findall(r"Column (\d+) is unused", text)} == unused
    assert f"A view has {width} uniform numbers" in text


def test_the_loss():
    loss = defined("logit_regression_loss", losses)
    student, teacher = torch.tensor([[1.0, 3.0]]), torch.tensor([[5.0, 5.0]])
    assert loss(student, teacher) == 0.5  # centred: (-1, 1) and (0, 0)
    assert loss(student, student + 7) == 0


@pytest.mark.slow
def test_the_export_format(tiny_model, tmp_path):
    export_pt2 = defined("export_pt2", export, torch=torch, AllOutputs=AllOutputs, check_answers=check_answers)
    source = export.Source(tiny_model().eval(), evaluation_processor(32))
    assert export_pt2(source, tmp_path, argparse.Namespace()).startswith("pt2, within ")
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt2", "config.json", "preprocessor_config.json"}

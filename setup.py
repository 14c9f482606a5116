"""Set-up of `modeling-deit-distill`; formatting and linting have their settings in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = Path(__file__).with_name("modeling_deit_distill")
VERSION = re.search(r'__version__ = "(.+)"', (PACKAGE / "__init__.py").read_text(encoding="utf-8")).group(1)
RECIPES = "modeling_deit_distill.recipe_files"
ONNX = ["onnx>=1.18", "onnxscript>=0.6", "onnxruntime>=1.22"]
# Its runtime is compiled against torch, which its own requirements do not say: 1.5.1 fails beside 2.11.
EXECUTORCH = ["executorch>=1.5.1", "torch>=2.14.1"]
DOCS = [
    "mkdocs>=1.6,<2",
    "mkdocstrings[python]>=1.0.7; python_version >= '3.11'",  # earlier ones fail beside newer pymdown-extensions
    "mkdocstrings[python]>=1.0; python_version < '3.11'",
    "pymdown-extensions<11; python_version < '3.11'",
]
NOTEBOOK = ["ipykernel>=6.29", "nbclient>=0.10"]
HEIC = ["pillow-heif>=0.14"]  # 0.13 turns photos that lie the wrong way round
TEST = [
    "hypothesis>=6.100",
    "import-linter>=2.0",
    "playwright>=1.55",  # earlier ones wait by `eval`, which the page forbids
    "pytest>=8",
    "pytest-xdist>=3.6",
    "ruff>=0.14",
    "setuptools>=77",  # a slow test builds a wheel; environments from Python 3.12 on have none
]

setup(
    name="modeling-deit-distill",
    version=VERSION,
    description="Distil any image classifier into a small, fast vision transformer (DeiT)",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    # The recipes travel within the package; in a checkout they stay where they are, as `recipes.py` knows.
    packages=[*find_packages(include=["modeling_deit_distill", "modeling_deit_distill.*"]), RECIPES],
    package_dir={RECIPES: "examples/recipes"},
    py_modules=["train_deit"],
    package_data={
        RECIPES: ["*.yaml"],
        "modeling_deit_distill.publishing": ["*.md"],
        "modeling_deit_distill.export": ["*.md", "page/*"],
    },
    python_requires=">=3.10",
    # The lowest versions that pass the tests. `.ci/run` installs exactly these and runs the fast tests.
    # `datasets` comes first: uv decides in this order, and the newest fsspec, which torch allows, rules out its lowest.
    install_requires=[
        "datasets>=4.8.4,!=5.0.0",  # 5.0.0 gives all images of a stream to one worker
        "torch>=2.11",
        "torchvision>=0.26",
        "simplejpeg>=1.7.6",  # the first with wheels for Python 3.10 to 3.13
        "transformers>=5.15",
        "accelerate>=1.14",
        "evaluate>=0.4.6",
        "huggingface-hub>=1.27",
        "timm>=1.0.26",
        "scikit-learn>=1.5",
        "scipy>=1.13",
        "safetensors>=0.8",
        "filelock>=3.16",
        "psutil>=6.0",
        "matplotlib>=3.9",
    ],
    extras_require={
        "heic": HEIC,
        "onnx": ONNX,
        "executorch": EXECUTORCH,
        "docs": DOCS,
        "notebook": NOTEBOOK,
        "test": [*HEIC, *ONNX, *TEST],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)

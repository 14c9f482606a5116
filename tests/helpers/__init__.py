"""What test files share: models, trainers, runs of the script, images, stores, and a small Hub."""

import pkgutil

import pytest

# A failed assertion of a helper shows its values, as in a test file.
pytest.register_assert_rewrite(*(f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)))

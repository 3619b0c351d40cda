"""What all families share."""

import pytest

from loaders.base import is_inside


@pytest.mark.parametrize(
    "name, expected",
    [
        ("model.visual", True),
        ("model.visual.blocks.0.weight", True),
        ("model.visual_projector.weight", False),
        ("model", False),
        ("base.model.visual.weight", False),
    ],
)
def test_a_module_path_is_a_prefix_of_whole_names(name, expected):
    assert is_inside(name, "model.visual") == expected

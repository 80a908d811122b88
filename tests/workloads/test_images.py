"""Sizes of images as a marker gives them."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_gpucap.requirement import ImageSize, RequirementError
from pytest_gpucap.workloads.images import LONGEST_SIDE, MOST_IMAGES, read_images


@pytest.mark.parametrize(
    ("value", "sizes"),
    [
        ("512x384", [(512, 384)]),
        (["512x512", " 1 x 8192 "], [(512, 512), (1, 8192)]),
        (("64x64",) * 3, [(64, 64)] * 3),
    ],
)
def test_one_size_or_a_list(value: Any, sizes: list[tuple[int, int]]) -> None:
    found = read_images(value, "images")
    assert found == tuple(ImageSize(*each) for each in sizes)
    assert str(found[0]) == f"{sizes[0][0]}x{sizes[0][1]}"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "images must be sizes such as \"512x512\" (width x height, pixels), not ''"),
        ("512", 'images must be sizes such as "512x512"'),
        ("2x512x512", 'images must be sizes such as "512x512"'),
        ("٣x٣", 'images must be sizes such as "512x512"'),
        ([512, 512], 'images must be sizes such as "512x512" (width x height, pixels), not 512'),
        (512, 'images must be a size such as "512x512" or a list of sizes, not 512'),
        ([], 'images must be a size such as "512x512" or a list of sizes, not []'),
        ({"512x512"}, 'images must be a size such as "512x512" or a list of sizes'),
        ("0x512", f"images must have sides of 1 to {LONGEST_SIDE} pixels, not '0x512'"),
        ("99999x1", f"images must have sides of 1 to {LONGEST_SIDE} pixels"),
        (["1x1"] * (MOST_IMAGES + 1), f"images must be at most {MOST_IMAGES} images, not {MOST_IMAGES + 1}"),
        (["8192x8192"], "images must have at most 33554432 pixels together, not 67108864"),
    ],
)
def test_a_mistake_is_one_line(value: Any, message: str) -> None:
    with pytest.raises(RequirementError) as caught:
        read_images(value, "images")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)

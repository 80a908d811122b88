"""Images beside every prompt: ``gpucap(images="512x512")``, or a list with the size of each."""

from __future__ import annotations

import re
from typing import Any, Final

from pytest_gpucap.errors import told
from pytest_gpucap.requirement import ImageSize, RequirementError

MOST_IMAGES: Final = 64
"""Of one prompt: more than any server takes unless it is told to."""
LONGEST_SIDE: Final = 8192
MOST_PIXELS: Final = 2**25
"""Of the images of one prompt together: they are drawn for every request."""
_SIZE: Final = re.compile(r"\s{0,9}([0-9]{1,5})\s?x\s?([0-9]{1,5})\s{0,9}")


def read_images(value: Any, what: str) -> tuple[ImageSize, ...]:
    """The sizes of a prompt's images.

    Args:
        value: as it was given: a size for one image, or a list of sizes.
        what: its name, for messages.

    Raises:
        RequirementError: one line, if a size cannot be read, or the images are too many or too large.
    """
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list | tuple) or not given:
        raise RequirementError(f'{what} must be a size such as "512x512" or a list of sizes, not {told(value)}')
    if len(given) > MOST_IMAGES:
        raise RequirementError(f"{what} must be at most {MOST_IMAGES} images, not {len(given)}")
    sizes = tuple(_size(each, what) for each in given)
    if (pixels := sum(size.width * size.height for size in sizes)) > MOST_PIXELS:
        raise RequirementError(f"{what} must have at most {MOST_PIXELS} pixels together, not {pixels}")
    return sizes


def _size(value: Any, what: str) -> ImageSize:
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise RequirementError(f'{what} must be sizes such as "512x512" (width x height, pixels), not {told(value)}')
    size = ImageSize(int(match[1]), int(match[2]))
    if not 1 <= min(size) <= max(size) <= LONGEST_SIDE:
        raise RequirementError(f"{what} must have sides of 1 to {LONGEST_SIDE} pixels, not {told(value)}")
    return size

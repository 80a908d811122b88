"""What stands beside the text of a prompt: images, then audio, as parts of a chat's last message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytest_gpucap.load.audio import AudioText, audio_parts
from pytest_gpucap.load.images import ImageText, image_parts
from pytest_gpucap.requirement import ImageSize, Workload


def media_parts(workload: Workload, key: int) -> list[dict[str, Any]]:
    """The parts of one message of the workload; empty where its prompts are text alone.

    Args:
        workload: says what there is.
        key: it is drawn from this number of 0 or more.
    """
    return [*image_parts(workload.images, key), *audio_parts(workload.audio_s, key)]


def with_media(messages: Sequence[dict[str, str]], parts: Sequence[Any]) -> list[dict[str, Any]]:
    """Messages with these parts after the text of the last one; the messages themselves where there are none."""
    if not parts:
        return [*messages]
    *before, last = messages
    return [*before, {**last, "content": [{"type": "text", "text": last["content"]}, *parts]}]


def named(*, images: bool, audio: bool) -> str:
    """What takes tokens beside a prompt's text, with its verb: ``template, the images and the audio take``."""
    beside = [f"the {name}" for name, there in (("images", images), ("audio", audio)) if there]
    if not beside:
        return "template takes"
    return f"{', '.join(['template', *beside[:-1]])} and {beside[-1]} take"


class MediaText:
    """The images and the audio of requests as they are written into a body.

    Args:
        images: sizes of each request's images.
        audio_s: lengths of each request's audio clips in seconds.
        key: they are drawn from it and the request's number.
    """

    def __init__(self, images: Sequence[ImageSize], audio_s: Sequence[float], key: int) -> None:
        self._kinds: list[ImageText | AudioText] = []
        if images:
            self._kinds.append(ImageText(images, key))
        if audio_s:
            self._kinds.append(AudioText(audio_s, key))

    def of(self, number: int) -> bytes:
        """The parts of request `number`, without the brackets of their list; empty where there are none."""
        return b",".join([kind.of(number) for kind in self._kinds])

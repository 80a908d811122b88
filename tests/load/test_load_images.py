"""Images in prompts: real PNG files, drawn from a number, counted by the server, and taken by a real vision model."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpucap.engines.server_spec import ServerSpec
from pytest_gpucap.engines.vllm import start_vllm
from pytest_gpucap.load.images import png
from pytest_gpucap.load.prompts import PromptRecipe, RequestComposer
from pytest_gpucap.load.protocol import LoadError
from pytest_gpucap.load.runner import HttpLoadRunner
from pytest_gpucap.requirement import ImageSize, Length, Wording, Workload
from pytest_gpucap.simulator.prompt_tokens import BadRequest, prompt_tokens
from pytest_gpucap.simulator.serve import SimulatedServer, start_simulator
from tests.load import vision_model
from tests.load.driven import drive

SIZES = (ImageSize(56, 84), ImageSize(30, 20))
IMAGES = Workload(Length.parse("uniform:40-60", "input_tokens"), Length.fixed(4), images=SIZES)


def pixels(file: bytes) -> tuple[int, int, bytes]:
    """Width, height and colours of a PNG file as we write them, by the specification."""
    assert file.startswith(b"\x89PNG\r\n\x1a\n")
    at, chunks = 8, {}
    while at < len(file):
        (length,) = struct.unpack_from(">I", file, at)
        kind, data = file[at + 4 : at + 8], file[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", file, at + 8 + length)[0] == zlib.crc32(kind + data)
        chunks[kind] = data
        at += 12 + length
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, *form = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert form == [8, 2, 0, 0, 0]
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + 3 * width).copy()
    for row in range(height):
        assert rows[row, 0] in {0, 2}
        if rows[row, 0] == 2:
            rows[row, 1:] += rows[row - 1, 1:]
    return width, height, rows[:, 1:].tobytes()


@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**128))
def test_an_image_is_a_png_file_of_its_size_and_seed(width: int, height: int, seed: int) -> None:
    size = ImageSize(width, height)
    file = png(size, seed)
    assert png(size, seed) == file
    found = pixels(file)
    assert found[:2] == (width, height)
    colours = np.frombuffer(found[2], np.uint8).reshape(height, width, 3)
    assert (colours == colours[np.ix_(np.arange(height) // 16 * 16, np.arange(width) // 16 * 16)]).all()


def test_no_two_images_are_the_same() -> None:
    composer = RequestComposer(PromptRecipe.of(IMAGES, "m", ("a", "b"), seed=3, nonce=4))
    files = [each for number in range(20) for each in sent(composer.body(number, 50, 4))]
    assert len(set(files)) == len(files) == 40
    again = RequestComposer(PromptRecipe.of(IMAGES, "m", ("a", "b"), seed=3, nonce=4))
    assert again.body(7, 50, 4) == composer.body(7, 50, 4)
    other = RequestComposer(PromptRecipe.of(IMAGES, "m", ("a", "b"), seed=3, nonce=5))
    assert not {*files} & {*sent(other.body(7, 50, 4))}


def sent(body: bytes) -> list[bytes]:
    """The images of a request."""
    parts = json.loads(body)["messages"][-1]["content"][1:]
    assert {part["type"] for part in parts} == {"image_url"}
    urls = [part["image_url"]["url"] for part in parts]
    return [base64.b64decode(url.removeprefix("data:image/png;base64,"), validate=True) for url in urls]


def test_images_follow_the_text_of_the_user() -> None:
    workload = Workload(images=SIZES, wording=Wording(system="Be brief.", instruction="What is it?"))
    recipe = PromptRecipe.of(workload, "m", ("a", "b"), opener="A", overhead=10)
    assert PromptRecipe.from_json(recipe.to_json()) == recipe
    composer = RequestComposer(recipe)
    for body in (composer.body(3, 40, 7), composer.probe(3, 40)):
        system, user = json.loads(body)["messages"]
        assert system == {"role": "system", "content": "Be brief."}
        text, *images = user["content"]
        assert text["type"] == "text"
        assert text["text"].startswith("A")
        assert text["text"].endswith("\nWhat is it?")
        assert len(text["text"]) == len("A") + 30 + len("\nWhat is it?")
        assert len(images) == 2
        assert [pixels(file)[:2] for file in sent(body)] == [(56, 84), (30, 20)]
    assert json.loads(composer.body(3, 40, 7))["max_tokens"] == 7


@pytest.fixture(scope="module")
def simulated() -> Iterator[SimulatedServer]:
    with start_simulator("cpu_tiny") as server:
        yield server


def test_a_simulated_server_counts_them_with_the_text(simulated: SimulatedServer) -> None:
    found = drive(simulated, IMAGES, 20.0, 1.0)
    journal = found.journal
    # The template, the opener, 2 x 3 patches and 2 x 1.
    assert found.recipe.overhead == 8 + 1 + 6 + 2
    assert journal.status.size > 5
    np.testing.assert_array_equal(journal.counted_prompt_tokens, journal.prompt_tokens)


def test_images_that_leave_no_room_for_text_are_refused(simulated: SimulatedServer) -> None:
    workload = Workload(Length.fixed(16), Length.fixed(4), images=SIZES)
    message = r"template and the images take 17 and .*; ask for input_tokens of at least 18"
    with (
        HttpLoadRunner(simulated.base_url, simulated.model, None, workload, 1) as runner,
        pytest.raises(LoadError, match=message),
    ):
        runner.prepare()


@pytest.mark.vllm_cpu
@pytest.mark.slow
def test_a_real_model_sees_images_and_reasons(vllm_python: str, tmp_path: Path) -> None:
    folder, ends_reasoning = vision_model.make(tmp_path / "model")
    spec = ServerSpec(
        str(folder), args=vision_model.ARGUMENTS, env=vision_model.VARIABLES, python=vllm_python, log_dir=tmp_path
    )
    seeing = Workload(
        Length.parse("uniform:300-400", "input_tokens"), Length.fixed(4), images=(*SIZES, ImageSize(256, 128))
    )
    # The token comes once in ten, so that an answer of 64 tokens without it comes once in a thousand.
    reasoning = Workload(Length.fixed(32), Length.fixed(64), extra_body={"logit_bias": {str(ends_reasoning): 5.3}})

    with start_vllm(spec) as server:
        found = drive(server, seeing, 4.0, 2.0, "vllm:prompt_tokens_total", "vllm:mm_cache_hits_total")
        journal = found.journal
        prompt_tokens_seen, images_known = found.grown
        assert found.recipe.overhead > 100  # of which the template takes none
        assert not found.recipe.by_usage
        np.testing.assert_array_equal(journal.counted_prompt_tokens, journal.prompt_tokens)
        assert prompt_tokens_seen == journal.prompt_tokens.sum()
        assert images_known == 0
        journal = drive(server, reasoning, 4.0, 2.0).journal
    reasoned, tokens = journal.reasoned, journal.reasoning_tokens
    assert tokens is not None
    answered = reasoned & ~np.isnan(journal.first_answer_s)
    assert answered.sum() > journal.status.size / 2
    assert (tokens[answered] < 64).all()
    assert (journal.counted_output_tokens == 64).all()
    assert (journal.ttft_s <= journal.ttfat_s)[answered].all()
    assert (journal.ttft_s < journal.ttfat_s).any()
    assert (journal.ttfat_s <= journal.e2e_s)[answered].all()


def test_what_the_simulator_cannot_count_is_a_bad_request() -> None:
    def count(url: Any) -> int:
        part = {"type": "image_url", "image_url": {"url": url}}
        return prompt_tokens({"messages": [{"role": "user", "content": [part]}]}, chat=True)

    file = base64.b64encode(png(ImageSize(28, 29), 1)).decode()
    assert count(f"data:image/png;base64,{file}") == 8 + 2
    for url in (
        "http://localhost/cat.png",
        f"data:image/jpeg;base64,{file}",
        "data:image/png;base64,AAAA",
        "x;base64,ä",
        5,
    ):
        with pytest.raises(BadRequest, match="an image must be a PNG file in a data URL"):
            count(url)

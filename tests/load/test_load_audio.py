"""Audio in prompts: real WAV files, drawn from a number, counted by the server, taken by a real model that hears."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import socket
import time
import wave
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpucap.engines.server_spec import ServerSpec
from pytest_gpucap.engines.vllm import start_vllm
from pytest_gpucap.load import event_loop
from pytest_gpucap.load.audio import AudioText
from pytest_gpucap.load.connection import RequestTemplate
from pytest_gpucap.load.prompts import PromptRecipe, RequestComposer
from pytest_gpucap.load.protocol import LoadError
from pytest_gpucap.load.runner import HttpLoadRunner
from pytest_gpucap.load.shared_memory import PhaseTable, RunTable, anonymous_memory
from pytest_gpucap.requirement import ImageSize, Length, Wording, Workload
from pytest_gpucap.simulator.prompt_tokens import BadRequest, prompt_tokens
from pytest_gpucap.simulator.serve import SimulatedServer, start_simulator
from tests.load import audio_model
from tests.load.driven import counted, drive
from tests.load.tokenserver import TokenServer

CLIPS = (0.8, 0.2)
AUDIO = Workload(Length.parse("uniform:40-60", "input_tokens"), Length.fixed(4), audio_s=CLIPS)


def files(parts: bytes) -> list[bytes]:
    """The WAV files of a message's parts."""
    found = json.loads(parts)
    assert {part["type"] for part in found} == {"input_audio"}
    assert {part["input_audio"]["format"] for part in found} == {"wav"}
    return [base64.b64decode(part["input_audio"]["data"], validate=True) for part in found]


def samples(file: bytes) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
    """The samples of a WAV file, which has the one form that servers take as it is."""
    with wave.open(io.BytesIO(file)) as found:
        assert (found.getframerate(), found.getnchannels(), found.getsampwidth()) == (16_000, 1, 2)
        whole = found.readframes(found.getnframes())
        assert len(file) == 44 + len(whole) == 44 + 2 * found.getnframes()
    return np.frombuffer(whole, "<i2")


@settings(max_examples=25)
@given(st.lists(st.integers(1600, 4000), min_size=1, max_size=3), st.integers(0, 2**64 - 1), st.integers(0, 2**40))
def test_a_clip_is_a_wav_file_of_its_length(lengths: list[int], key: int, number: int) -> None:
    text = AudioText([length / 16_000 for length in lengths], key)
    clips = files(b"[%b]" % text.of(number))
    assert [samples(clip).size for clip in clips] == lengths
    for clip in clips:
        noise = samples(clip)[8:-2].astype(float)
        # A quarter of full scale on either side, and no silence: 1024 of them lie within 2000 with odds of 10^-50.
        assert 2000 < np.abs(noise).max() <= 2**13
        assert noise[:1000].std() > 2**13 / 3
    assert len(set(clips)) == len(clips)


def test_no_two_clips_are_the_same() -> None:
    composer = RequestComposer(PromptRecipe.of(AUDIO, "m", ("a", "b"), seed=3, nonce=4))
    clips = [each for number in range(20) for each in sent(composer.body(number, 50, 4))]
    assert len(set(clips)) == len(clips) == 40
    # Nor are they one tape with other beginnings.
    assert len({samples(clip)[8:200].tobytes() for clip in clips}) == 40
    again = RequestComposer(PromptRecipe.of(AUDIO, "m", ("a", "b"), seed=3, nonce=4))
    assert again.body(7, 50, 4) == composer.body(7, 50, 4)
    other = RequestComposer(PromptRecipe.of(AUDIO, "m", ("a", "b"), seed=3, nonce=5))
    assert not {*clips} & {*sent(other.body(7, 50, 4))}


def sent(body: bytes) -> list[bytes]:
    """The clips of a request."""
    return files(json.dumps(json.loads(body)["messages"][-1]["content"][1:]).encode())


def test_audio_follows_the_text_and_the_images() -> None:
    wording = Wording(system="Be brief.", instruction="What is said?")
    workload = Workload(images=(ImageSize(30, 20),), audio_s=CLIPS, wording=wording)
    recipe = PromptRecipe.of(workload, "m", ("a", "b"), opener="A", overhead=10)
    assert PromptRecipe.from_json(recipe.to_json()) == recipe
    composer = RequestComposer(recipe)
    for body in (composer.body(3, 40, 7), composer.probe(3, 40)):
        system, user = json.loads(body)["messages"]
        assert system == {"role": "system", "content": "Be brief."}
        assert [part["type"] for part in user["content"]] == ["text", "image_url", "input_audio", "input_audio"]
        assert user["content"][0]["text"].endswith("\nWhat is said?")
        clips = files(json.dumps(user["content"][2:]).encode())
        assert [samples(clip).size for clip in clips] == [12_800, 3200]
    assert json.loads(composer.body(3, 40, 7))["max_tokens"] == 7


@pytest.fixture(scope="module")
def simulated() -> Iterator[SimulatedServer]:
    with start_simulator("cpu_tiny") as server:
        yield server


def test_a_simulated_server_counts_it_with_the_text(simulated: SimulatedServer) -> None:
    found = drive(simulated, AUDIO, 20.0, 1.0)
    journal = found.journal
    # The template, the opener, 25 tokens a second.
    assert found.recipe.overhead == 8 + 1 + 20 + 5
    assert journal.status.size > 5
    np.testing.assert_array_equal(journal.counted_prompt_tokens, journal.prompt_tokens)


def test_requests_of_many_megabytes_are_sent(simulated: SimulatedServer) -> None:
    """They take several writes, and few of them are made ahead."""
    long = Workload(Length.fixed(3000), Length.fixed(2), audio_s=(100.0,))
    found = drive(simulated, long, 4.0, 1.0)
    journal = found.journal
    assert found.recipe.overhead == 8 + 1 + 2500
    np.testing.assert_array_equal(journal.counted_prompt_tokens, journal.prompt_tokens)


def test_few_requests_of_megabytes_are_composed_ahead() -> None:
    recipe = PromptRecipe.of(replace(AUDIO, audio_s=(60.0,)), "m", ("a", "b"))
    assert composed_ahead(replace(recipe, audio_s=())) == [event_loop.AT_ONCE] * 6
    size = len(RequestComposer(recipe).body(0, 50, 4))
    assert size > event_loop.MOST_AT_ONCE
    assert composed_ahead(recipe) == [1] * math.ceil(event_loop.MOST_AHEAD / size)


def composed_ahead(recipe: PromptRecipe) -> list[int]:
    """How many requests a worker composes in each idle moment, until it has enough."""
    rows = event_loop.FEW_REQUESTS + 1
    run_table_fd = anonymous_memory(RunTable.size(1))
    table, fd = PhaseTable.create(rows, 1)
    template = RequestTemplate((socket.AF_INET, ("127.0.0.1", 1)), b"", True)
    run_table, now_s = RunTable.attach(run_table_fd, 1), time.monotonic()
    composer = RequestComposer(recipe)
    loop = event_loop.EventLoop(template, composer, run_table, 0, bins_start_s=now_s, request_timeout_s=1e6)
    for each in (run_table_fd, fd):
        os.close(each)
    table.prompt_tokens[:], table.output_tokens[:] = 50, 4
    loop.begin(table, start_s=now_s + 1e6, end_s=now_s + 2e6, concurrency=1, first_prompt=0)
    found = [0]
    while loop._compose_ahead():
        found.append(len(loop._requests))
    assert all(body == composer.body(number, 50, 4) for number, body in enumerate(loop._requests))
    loop.close()
    return np.diff(found).tolist()


def test_a_server_that_cannot_decode_audio_is_told_what_is_missing() -> None:
    async def fail(request: web.Request) -> web.Response:
        await request.read()
        return web.json_response({"error": {"message": "no package", "code": 500}}, status=500)

    told = {}
    with TokenServer(handler=fail) as server:
        for audio_s in ((), CLIPS):
            workload = replace(AUDIO, audio_s=audio_s)
            with (
                HttpLoadRunner(server.url, "m", None, workload, 1) as runner,
                pytest.raises(LoadError, match=r"answered a probe with HTTP 500: .*no package") as caught,
            ):
                runner.prepare()
            told[audio_s] = str(caught.value)
    assert "soundfile" not in told[()]
    assert told[CLIPS].endswith('; to decode audio, vLLM needs the package soundfile beside it ("vllm[audio]")')


@pytest.mark.parametrize(
    ("images", "told"), [((), "template and the audio"), ((ImageSize(30, 20),), "template, the images and the audio")]
)
def test_audio_that_leaves_no_room_for_text_is_refused(
    simulated: SimulatedServer, images: tuple[ImageSize, ...], told: str
) -> None:
    taken = 34 + 2 * len(images)
    workload = Workload(Length.fixed(16), Length.fixed(4), images=images, audio_s=CLIPS)
    message = rf"{told} take {taken} and .*; ask for input_tokens of at least {taken + 1}"
    with (
        HttpLoadRunner(simulated.base_url, simulated.model, None, workload, 1) as runner,
        pytest.raises(LoadError, match=message),
    ):
        runner.prepare()


@pytest.mark.vllm_cpu
@pytest.mark.slow
def test_a_real_model_hears(vllm_python: str, tmp_path: Path) -> None:
    folder = audio_model.make(tmp_path / "model")
    spec = ServerSpec(
        str(folder), args=audio_model.ARGUMENTS, env=audio_model.VARIABLES, python=vllm_python, log_dir=tmp_path
    )
    short = Workload(Length.parse("uniform:100-150", "input_tokens"), Length.fixed(4), audio_s=(1.0,))
    long = replace(short, input_tokens=Length.parse("uniform:400-450", "input_tokens"), audio_s=(10.0, 2.0))

    with start_vllm(spec) as server:
        taken = []
        for workload in (short, long):
            found = drive(server, workload, 4.0, 2.0, "vllm:prompt_tokens_total", "vllm:mm_cache_hits_total")
            journal = found.journal
            prompt_tokens_seen, clips_known = found.grown
            assert not found.recipe.by_usage
            np.testing.assert_array_equal(journal.counted_prompt_tokens, journal.prompt_tokens)
            assert prompt_tokens_seen == journal.prompt_tokens.sum()
            assert clips_known == 0
            taken.append(found.recipe.overhead)
        queries = counted(server, "vllm:mm_cache_queries_total")
    assert queries > 0  # else no hits would say nothing
    # One clip of a second, then two of twelve together.
    assert taken[1] - taken[0] == audio_model.TOKENS_PER_S * 11 + audio_model.AROUND


def test_what_the_simulator_cannot_count_is_a_bad_request() -> None:
    def count(data: Any) -> int:
        part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
        return prompt_tokens({"messages": [{"role": "user", "content": [part]}]}, chat=True)

    (clip,) = files(b"[%b]" % AudioText([0.1], 1).of(0))
    assert count(base64.b64encode(clip).decode()) == 8 + 3
    still = clip[:24] + bytes(4) + clip[28:]
    for bad in (b"", b"RIFF", clip[:30], b"MP3 " + clip, still):
        with pytest.raises(BadRequest, match="audio must be a WAV file in base64"):
            count(base64.b64encode(bad).decode())
    for text in ("ä", 5, None):
        with pytest.raises(BadRequest, match="audio must be a WAV file in base64"):
            count(text)

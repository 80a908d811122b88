"""Endpoints beside streamed chats and completions: what requests hold, and what is read from answers."""

from __future__ import annotations

import base64
import itertools
import json
import ssl
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from pytest_gpucap.load.prompts import PromptRecipe, RequestComposer
from pytest_gpucap.load.protocol import Journal, LoadError, Status
from pytest_gpucap.load.request_fields import told_usage
from pytest_gpucap.load.runner import HttpLoadRunner
from pytest_gpucap.load.schedule import open_loop
from pytest_gpucap.requirement import ApiKind, Length, Wording, Workload
from pytest_gpucap.simulator.serve import SimulatedServer, start_simulator
from tests.load.tokenserver import TokenServer
from tests.waiting import FOREVER_S

TLS = Path(__file__).with_name("tls")
"""A self-signed certificate for 127.0.0.1, made for tests."""


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    monkeypatch.setenv("SSL_CERT_FILE", str(TLS / "cert.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(TLS / "cert.pem", TLS / "key.pem")
    return context


def workload(api: ApiKind, *, tokens: int = 4, **more: Any) -> Workload:
    return Workload(Length.fixed(40), Length.fixed(tokens if api.generates else 1), endpoint=api, **more)


def body(wanted: Workload, *, number: int = 5, tokens: int = 40, **recipe: Any) -> dict[str, Any]:
    composer = RequestComposer(PromptRecipe.of(wanted, "m", ("a ", "b "), opener="A", **recipe))
    found: dict[str, Any] = json.loads(composer.body(number, tokens, 7))
    probed = json.loads(composer.probe(number, tokens))
    assert probed.keys() <= found.keys()
    assert not probed.get("stream")
    return found


def test_every_endpoint_has_its_own_fields() -> None:
    assert body(workload(ApiKind.EMBEDDINGS)).keys() == {"model", "input", "encoding_format"}
    assert body(workload(ApiKind.POOLING))["encoding_format"] == "base64"
    assert body(workload(ApiKind.CLASSIFY)).keys() == {"model", "input"}
    own = workload(ApiKind.EMBEDDINGS, extra_body={"encoding_format": "float", "dimensions": 64})
    assert body(own).items() >= {"encoding_format": "float", "dimensions": 64}.items()
    ids = RequestComposer(PromptRecipe.of(workload(ApiKind.EMBEDDINGS), "m", ("100", "101"), as_ids=True))
    assert len(json.loads(ids.body(3, 40, 1))["input"]) == 40
    responses = body(workload(ApiKind.RESPONSES, wording=Wording(system="Be brief.")))
    assert [each["role"] for each in responses["input"]] == ["system", "user"]
    assert (responses["max_output_tokens"], responses["stream"], responses["ignore_eos"]) == (7, True, True)
    assert not responses.keys() & {"max_tokens", "stream_options"}
    whole = body(workload(ApiKind.CHAT, stream=False))
    assert not whole.keys() & {"stream", "stream_options"}
    assert (whole["max_tokens"], whole["ignore_eos"]) == (7, True)


def test_documents_share_the_tokens_and_no_two_are_alike() -> None:
    wanted = workload(ApiKind.RERANK, documents=3)
    sent = [body(wanted, number=number, overhead=6) for number in range(20)]
    for each in sent:
        assert each.keys() == {"model", "query", "documents"}
        units = [len(text.removeprefix("A").split()) for text in each["documents"]]
        assert sorted(units) == [11, 11, 12]  # 40 tokens without the 6 that every request has
    texts = [text for each in sent for text in each["documents"]]
    assert len(set(texts)) == len(texts)
    recipe = PromptRecipe.of(wanted, "m", ("a", "b"), overhead=6)
    assert recipe.least_tokens == 9
    with pytest.raises(LoadError, match="ask for input_tokens of at least 9"):
        RequestComposer(recipe).body(0, 8, 1)


def test_counts_have_one_name_whatever_the_endpoint_calls_them() -> None:
    plain = {"prompt_tokens": 5, "completion_tokens": 2}
    assert told_usage(plain) is plain
    told = told_usage({"input_tokens": 5, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 4}})
    assert told == {**plain, "prompt_tokens_details": {"cached_tokens": 4}}


MEASURED = [
    workload(ApiKind.EMBEDDINGS),
    workload(ApiKind.RERANK, documents=3),
    workload(ApiKind.RESPONSES),
    workload(ApiKind.CHAT, stream=False),
]


@pytest.fixture(scope="module")
def simulated() -> Iterator[SimulatedServer]:
    with start_simulator("fast", time_scale=0.2) as server:
        yield server


@pytest.mark.parametrize("wanted", MEASURED, ids=lambda each: str(each.endpoint))
def test_a_server_is_measured_by_each(simulated: SimulatedServer, wanted: Workload) -> None:
    with HttpLoadRunner(simulated.base_url, simulated.model, None, wanted, 1, workers=1) as runner:
        span = runner.run(open_loop(wanted, 40.0, 0.5, 1, 0))
        assert runner.settle(FOREVER_S)
        journal = runner.journal()
    assert set(journal.status.tolist()) == {Status.OK}
    assert set(journal.counted_prompt_tokens.tolist()) == {40}
    answer = wanted.output_tokens.low
    assert set(journal.counted_output_tokens.tolist()) == {answer}
    assert journal.tokens.sum() == answer * journal.status.size > 0
    assert (journal.ttft_s > 0).all()
    if wanted.streamed:
        assert (journal.ttft_s <= journal.e2e_s).all()
        assert span.gaps.total > 0
    else:
        assert journal.ttft_s.tolist() == journal.e2e_s.tolist()
        assert span.gaps.total == 0


def served(
    answers: Sequence[Callable[[], web.Response]], wanted: Workload, tls: ssl.SSLContext | None = None
) -> tuple[Journal, dict[str, Status]]:
    """What a runner sees of a server that answers probes well, and the load with these in turn: status by words."""
    honest: list[bool] = []
    turns = itertools.cycle(answers)

    async def handler(request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        if honest:
            return next(turns)()
        given = asked.get("input") or asked["messages"]
        usage = {"prompt_tokens": len(given if asked.get("encoding_format") else given[-1]["content"])}
        return web.json_response({"data": [1], "choices": [{}], "usage": usage | {"completion_tokens": 1}})

    with (
        TokenServer(handler=handler, tls=tls) as server,
        HttpLoadRunner(server.url, "m", None, wanted, 1, workers=1) as runner,
    ):
        runner.prepare()
        honest.append(True)
        # Four of each, about.
        runner.run(open_loop(wanted, 8.0 * len(answers), 0.5, 1, 0))
        assert runner.settle(FOREVER_S)
        return runner.journal(), {error.text: error.status for error in runner.error_texts()}


def reply(content: object, **more: Any) -> Callable[[], web.Response]:
    return lambda: web.json_response(content, **more)


def closing(content: object) -> Callable[[], web.Response]:
    """An answer after which the connection is closed."""

    def made() -> web.Response:
        response = web.json_response(content)
        response.force_close()
        return response

    return made


VECTOR = {"data": [{"embedding": base64.b64encode(bytes(40_000)).decode()}], "usage": {"prompt_tokens": 40}}
VECTORS = {
    "": [reply(VECTOR), closing(VECTOR), reply({"data": [1]})],
    "no JSON object: no": [lambda: web.Response(text="no", content_type="application/json")],
    "answered with text/plain; charset=utf-8 instead of application/json: hi": [lambda: web.Response(text="hi")],
    "broken": [reply({"error": "broken"})],
    "busy": [reply({"error": "busy"}, status=503)],
}
WRONG = [Status.HTTP_5XX, Status.PROTOCOL, Status.PROTOCOL, Status.STREAM_ERROR]


@pytest.mark.parametrize("over_tls", [False, True])
def test_vectors_of_any_size_and_what_is_none(over_tls: bool, trusted: ssl.SSLContext) -> None:
    answers = [each for some in VECTORS.values() for each in some]
    journal, errors = served(answers, workload(ApiKind.EMBEDDINGS), trusted if over_tls else None)
    assert errors.keys() == VECTORS.keys() - {""}
    assert sorted(errors.values(), key=lambda status: status.name) == WRONG
    ok = journal.status == Status.OK
    assert 0 < ok.sum() < ok.size
    # One of them has no usage.
    assert set(journal.counted_prompt_tokens[ok].tolist()) == {0, 40}
    assert set(journal.counted_output_tokens[ok].tolist()) == {1}
    assert (journal.e2e_s[ok] > 0).all()
    assert np.isnan(journal.e2e_s[~ok]).all()


CHAT = {"choices": [{"finish_reason": "length"}], "usage": {"prompt_tokens": 40, "completion_tokens": 4}}


def counting(tokens: int) -> dict[str, Any]:
    return CHAT | {"usage": {"prompt_tokens": 40, "completion_tokens": tokens}}


CHATS = {
    "": (Status.OK, CHAT),
    "3 tokens instead of 4": (Status.SHORT, counting(3)),
    "finish_reason 'abort'": (Status.ABORTED, CHAT | {"choices": [{"finish_reason": "abort"}]}),
    "an answer without a choice": (Status.EMPTY, CHAT | {"choices": []}),
    "an answer without a token": (Status.EMPTY, counting(0)),
    "1000000 tokens were counted, and 4 were asked for": (Status.PROTOCOL, counting(10**6)),
}


def test_chats_that_are_not_streamed_are_judged_as_streams_are() -> None:
    journal, errors = served([reply(content) for _, content in CHATS.values()], workload(ApiKind.CHAT, stream=False))
    assert errors == {words: status for words, (status, _) in CHATS.items() if words}
    ok = journal.status == Status.OK
    assert set(journal.counted_output_tokens[ok].tolist()) == {4}
    assert journal.ttft_s[ok].tolist() == journal.e2e_s[ok].tolist()


def events(*told: object) -> Callable[[], web.Response]:
    """An event stream of these."""
    text = "".join(f"event: x\ndata: {each if isinstance(each, str) else json.dumps(each)}\n\n" for each in told)
    return lambda: web.Response(text=text, content_type="text/event-stream")


def delta(text: str) -> dict[str, str]:
    return {"type": "response.output_text.delta", "delta": text}


def ended(tokens: int, kind: str = "completed", **more: object) -> dict[str, Any]:
    usage = {"input_tokens": 40, "output_tokens": tokens}
    return {"type": f"response.{kind}", "response": {"usage": usage, "status": kind, **more}}


CUT = {"incomplete_details": {"reason": "max_output_tokens"}}
STREAMS = {
    "": (Status.OK, (delta("a"), delta(""), delta("bcd"), ended(4, "incomplete", **CUT))),
    "2 tokens instead of 4": (Status.SHORT, (delta("a"), delta("b"), ended(2))),
    "the answer ended before [DONE]": (Status.RESET, (delta("a"), delta("b"))),
    "engine died": (Status.STREAM_ERROR, (delta("a"), {"type": "error", "message": "engine died"})),
    "no luck": (Status.STREAM_ERROR, (delta("a"), ended(1, "failed", error={"message": "no luck"}))),
    "an event that is no JSON object": (Status.PROTOCOL, (delta("a"), "{")),
    "an answer without a token (finish_reason 'stop')": (Status.EMPTY, ({"type": "response.created"}, ended(0))),
}


def test_streamed_responses_are_judged_as_chats_are() -> None:
    journal, errors = served([events(*told) for _, told in STREAMS.values()], workload(ApiKind.RESPONSES))
    assert errors == {words: status for words, (status, _) in STREAMS.items() if words}
    ok = journal.status == Status.OK
    assert set(journal.counted_output_tokens[ok].tolist()) == {4}
    assert set(journal.counted_prompt_tokens[ok].tolist()) == {40}

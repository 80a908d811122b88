"""Answers in a given form end by themselves: they are counted as the server counts them, and the result says so."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading

import numpy as np
import pytest

from pytest_gpucap.engines.vllm import VllmServer
from pytest_gpucap.load.protocol import ClosedLoop, Journal, OpenLoop, Status
from pytest_gpucap.load.runner import HttpLoadRunner
from pytest_gpucap.requirement import ApiKind, Length, Workload
from tests.load.proxy import Proxy
from tests.load.rawserver import HEAD, RawServer, chunk, token, usage
from tests.waiting import FOREVER_S, UNTIL_STOPPED_S

SCHEMA = {
    "type": "object",
    "properties": {
        "queue": {"enum": ["billing", "repairs"]},
        "urgent": {"type": "boolean"},
        "code": {"type": "string", "pattern": "^[a-z]{4}$"},
    },
    "required": ["queue", "urgent", "code"],
    "additionalProperties": False,
}
FORM = {"response_format": {"type": "json_schema", "json_schema": {"name": "ticket", "schema": SCHEMA}}}


def ended_early(*, ignore_eos: bool, form: bool) -> tuple[Journal, tuple[str, ...]]:
    """What is known of an answer of 2 tokens where 8 were asked for."""
    events = [token("{"), token("}", finish="stop"), usage(completion=2), b"[DONE]"]
    script = [HEAD, *(chunk(b"data: %b\n\n" % event) for event in events), b"0\r\n\r\n"]
    workload = Workload(
        Length.fixed(32),
        Length.fixed(8),
        endpoint=ApiKind.COMPLETIONS,
        ignore_eos=ignore_eos,
        extra_body=FORM if form else {},
    )
    with RawServer(script) as server, HttpLoadRunner(server.url, "m", None, workload, 1, workers=1) as runner:
        runner.run(OpenLoop(0.05, np.zeros(1), np.full(1, 32, np.int32), np.full(1, 8, np.int32)))
        assert runner.settle(FOREVER_S)
        return runner.journal(), runner.remarks


@pytest.mark.parametrize("form", [True, False])
def test_an_answer_is_as_long_as_the_server_says(form: bool) -> None:
    journal, remarks = ended_early(ignore_eos=False, form=form)
    assert journal.status.tolist() == [Status.OK]
    assert (journal.output_tokens.tolist(), journal.counted_output_tokens.tolist()) == ([8], [2])
    assert journal.tokens.sum() == 2
    why = ": response_format ends an answer by itself" if form else ""
    assert remarks == (f"8 output tokens were asked for on average, and 2 came{why}",)


def test_to_go_on_beyond_a_form_is_told() -> None:
    journal, remarks = ended_early(ignore_eos=True, form=True)
    assert journal.status.tolist() == [Status.SHORT]
    (remark,) = remarks
    assert remark.startswith("response_format ends an answer, and ignore_eos=True has a server go on in free text")


class Listener(Proxy):
    """Keeps what comes back over each connection."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.answers: list[bytearray] = []

    def _serve(self, one: socket.socket) -> None:
        kept = bytearray()
        self.answers.append(kept)
        with contextlib.suppress(OSError), one, socket.create_connection(("127.0.0.1", self._port)) as other:
            threading.Thread(target=self._pump, args=(one, other), daemon=True).start()
            while data := other.recv(65536):
                kept += data
                one.sendall(data)

    @property
    def texts(self) -> list[str]:
        """The text of each streamed answer."""
        found = []
        for kept in self.answers:
            for answer in bytes(kept).split(b"data: [DONE]")[:-1]:
                events = [json.loads(each) for each in re.findall(rb"data: (\{.*\})\n\n", answer)]
                deltas = [choice["delta"] for event in events for choice in event["choices"]]
                found.append("".join(delta.get("content") or "" for delta in deltas))
        return found


@pytest.mark.vllm_cpu
@pytest.mark.slow
def test_the_real_vllm_keeps_answers_to_a_schema(vllm_cpu_server: VllmServer) -> None:
    server = vllm_cpu_server
    asked = 600  # more than the form takes, though a model of random weights likes white space

    def generated() -> float:
        return server.metrics().value("vllm:generation_tokens_total")

    workload = Workload(Length.fixed(64), Length.fixed(asked), ignore_eos=False, extra_body=FORM)
    port = int(server.base_url.split(":")[2].split("/")[0])
    with (
        Listener(port) as listener,
        HttpLoadRunner(listener.url, server.model, f"{server.api_key}", workload, 5, workers=1) as runner,
    ):
        runner.prepare()
        before = generated()
        n = 300
        rows = np.full(n, 64, np.int32), np.full(n, asked, np.int32)
        runner.run(ClosedLoop(UNTIL_STOPPED_S, 2, *rows), lambda progress: progress.completed >= 6)
        assert runner.settle(FOREVER_S)
        journal, remarks = runner.journal(), runner.remarks
        tokens, texts = generated() - before, listener.texts
    whole = journal.counted_output_tokens[journal.status == Status.OK]
    assert whole.size >= 6, runner.error_texts()
    assert (journal.status == Status.OK).all()
    assert (whole < asked).all()
    assert whole.sum() == journal.tokens.sum() == tokens
    assert len(remarks) == 1
    assert remarks[0].endswith("came: response_format ends an answer by itself")
    assert len(texts) == whole.size
    for text in texts:
        found = json.loads(text)
        assert set(found) == {"queue", "urgent", "code"}
        assert found["queue"] in {"billing", "repairs"}
        assert isinstance(found["urgent"], bool)
        assert re.fullmatch("[a-z]{4}", found["code"])

"""What answers in a given form cost: the same server with free text and with JSON schemas, in alternation.

    python benchmarks/structured.py [--model synthetic:tiny] [--repeats 3] [--concurrency 8] [--seconds 15]
        [--python .venv-vllm/bin/python] [--devices 0] [--arguments "--max-model-len 4096"] [--json FILE]

The server keeps a mask of the tokens that the form allows next, for each request and step. That costs its own
processor, not the GPU's, so the price shows where steps are short: small models, many requests.

Every repeat holds each kind of answer for so many seconds in a closed loop, in an order that turns from repeat to
repeat. Then a schema that the server has not seen asks for one answer, and the same again: what the first takes longer
is the compilation of its grammar, which the server keeps. Figures are medians over repeats.

Answers in a form end by themselves (the longest are cut off), so figures are per output token: the server's processor
time, which other work on the machine hardly changes, the tokens a second, and TPOT. A synthetic model chooses at random
among what is allowed, so it writes more white space than a real one; a step's work is the same.
"""

from __future__ import annotations

import argparse
import json
import secrets
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from pytest_gpucap.engines.server_spec import ServerSpec  # noqa: E402
from pytest_gpucap.engines.vllm import VllmServer, start_vllm  # noqa: E402
from pytest_gpucap.load.protocol import Status  # noqa: E402
from pytest_gpucap.load.runner import HttpLoadRunner  # noqa: E402
from pytest_gpucap.load.schedule import closed_loop  # noqa: E402
from pytest_gpucap.requirement import Length, Workload  # noqa: E402
from pytest_gpucap.vllm_arguments import VllmArguments  # noqa: E402

INPUT, OUTPUT = 128, 256
WARM_SHARE = 0.2
"""Of a hold, at its beginning: what ends there is left out."""
MOST_RPS = 4000.0
GENERATED = "vllm:generation_tokens_total"


def texts(letters: int) -> dict[str, Any]:
    """A list of four strings of so many letters: at most steps the grammar allows the same tokens as before."""
    text = {"type": "string", "pattern": f"^[a-z]{{{letters}}}$"}
    return {
        "type": "object",
        "properties": {"texts": {"type": "array", "items": text, "minItems": 4, "maxItems": 4}},
        "required": ["texts"],
        "additionalProperties": False,
    }


def tickets(letters: int) -> dict[str, Any]:
    """A list of small objects with enums, numbers and texts, as tools and extractors ask for."""
    ticket = {
        "type": "object",
        "properties": {
            "queue": {"enum": ["billing", "repairs", "returns", "other"]},
            "urgent": {"type": "boolean"},
            "score": {"type": "integer", "minimum": 0, "maximum": 99},
            "code": {"type": "string", "pattern": f"^[A-Z]{{2}}-[0-9]{{{letters}}}$"},
        },
        "required": ["queue", "urgent", "score", "code"],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {"tickets": {"type": "array", "items": ticket, "minItems": 3, "maxItems": 3}},
        "required": ["tickets"],
        "additionalProperties": False,
    }


def form(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The field of a request that asks for answers of a schema."""
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}}


KINDS: Mapping[str, Mapping[str, Any]] = {
    "free text": {},
    "any JSON object": {"response_format": {"type": "json_object"}},
    "list of texts": form(texts(48)),
    "list of objects": form(tickets(6)),
}
BASE = "free text"


@dataclass(frozen=True, slots=True)
class Held:
    """One hold.

    Attributes:
        cpu_s: processor time of the server's processes for an output token.
        tpot_s, ttft_s: medians over the requests that ended.
        tokens_per_s: output tokens of all requests.
        output_tokens: mean of an answer.
        requests: that ended.
    """

    cpu_s: float
    tpot_s: float
    ttft_s: float
    tokens_per_s: float
    output_tokens: float
    requests: int


def processor_s(server: VllmServer) -> float:
    """Processor time of the server's processes so far."""
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in server.pids())


def hold(server: VllmServer, extra_body: Mapping[str, Any], concurrency: int, seconds: float, seed: int) -> Held:
    """Keep so many requests in flight for a while.

    Raises:
        RuntimeError: if a request failed.
    """
    workload = Workload(
        Length.fixed(INPUT), Length.fixed(OUTPUT), ignore_eos=not extra_body, extra_body=dict(extra_body)
    )
    with HttpLoadRunner(server.base_url, server.model, f"{server.api_key}", workload, seed) as runner:
        runner.prepare()
        before_s, generated = processor_s(server), server.metrics().value(GENERATED)
        span = runner.run(closed_loop(workload, concurrency, seconds, MOST_RPS, seed, 0, hot=False))
        used_s, generated = processor_s(server) - before_s, server.metrics().value(GENERATED) - generated
        journal, texts = runner.journal(), runner.error_texts()
        runner.settle(0.0, cancel=True)
    if journal.failed.any():
        raise RuntimeError(f"requests failed: {texts}")
    from_s = span.start_s + WARM_SHARE * seconds
    ended = (journal.status == Status.OK) & (journal.end_s >= from_s) & (journal.end_s < span.end_s)
    first, last = ((at - journal.bins_start_s) / journal.bin_s for at in (from_s, span.end_s))
    tokens = journal.tokens[round(first) : round(last)].sum()
    return Held(
        used_s / generated,
        float(np.nanmedian(journal.tpot_s[ended])),
        float(np.median(journal.ttft_s[ended])),
        float(tokens) / (span.end_s - from_s),
        float(journal.counted_output_tokens[ended].mean()),
        int(ended.sum()),
    )


def first_and_again(server: VllmServer) -> tuple[float, float]:
    """Seconds for one answer in a form that the server has never seen, and for the same again."""
    name = f"a{secrets.token_hex(4)}"  # a name of its own makes it another grammar
    schema = tickets(6)
    schema["properties"][name] = schema["properties"].pop("tickets")
    schema["required"] = [name]
    took = []
    for _ in range(2):
        began = time.perf_counter()
        server.client.chat.completions.create(
            model=server.model,
            messages=[{"role": "user", "content": "Hello"}],
            max_tokens=1,
            extra_body=form(schema),
        )
        took.append(time.perf_counter() - began)
    return took[0], took[1]


def table(holds: Mapping[str, Sequence[Held]], compiled: Sequence[tuple[float, float]]) -> str:
    """Medians over the repeats, in Markdown; each kind against free text of the same repeat."""
    lines = [
        "| answers | tokens of an answer | processor time per token | against free text | tokens/s | TPOT | TTFT |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for kind, found in holds.items():
        ratio = statistics.median(one.cpu_s / base.cpu_s for one, base in zip(found, holds[BASE], strict=True))
        tokens, cpu_s, tpot_s, ttft_s, rate = (
            statistics.median(getattr(each, name) for each in found)
            for name in ("output_tokens", "cpu_s", "tpot_s", "ttft_s", "tokens_per_s")
        )
        against = "" if kind == BASE else f"{ratio - 1:+.1%}"
        lines.append(
            f"| {kind} | {tokens:.0f} | {cpu_s * 1e6:.0f} us | {against} | {rate:.0f} | {tpot_s * 1e3:.2f} ms "
            f"| {ttft_s * 1e3:.0f} ms |"
        )
    first, again = (statistics.median(each[place] for each in compiled) for place in (0, 1))
    lines += ["", f"The first request of a new schema: {first * 1e3:.0f} ms; the same again: {again * 1e3:.0f} ms."]
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="synthetic:tiny")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each hold")
    parser.add_argument("--python", default=str(ROOT / ".venv-vllm" / "bin" / "python"))
    parser.add_argument("--devices", default="", help="entries of CUDA_VISIBLE_DEVICES; none: the CPU")
    parser.add_argument("--arguments", default="")
    parser.add_argument("--logs", type=Path, default=Path(".gpucap/logs"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    devices = [each for each in given.devices.split(",") if each]
    spec = ServerSpec(given.model, args=VllmArguments.parse(given.arguments), python=given.python, log_dir=given.logs)
    holds: dict[str, list[Held]] = {kind: [] for kind in KINDS}
    compiled = []
    with start_vllm(spec, devices=devices) as server:
        version = server.version
        for extra_body in KINDS.values():  # so that no hold begins on a server that has never answered
            hold(server, extra_body, given.concurrency, 2.0, 1)
        for repeat in range(given.repeats):
            turned = [*KINDS][repeat % len(KINDS) :] + [*KINDS][: repeat % len(KINDS)]
            for kind in turned:
                holds[kind].append(hold(server, KINDS[kind], given.concurrency, given.seconds, 100 + repeat))
                print(f"repeat {repeat + 1}, {kind}: {json.dumps(asdict(holds[kind][-1]))}", flush=True)
            compiled.append(first_and_again(server))
    print(f"\nvLLM {version}, {given.model}, {given.concurrency} in flight, {given.repeats} x {given.seconds:g} s\n")
    print(table(holds, compiled))
    if given.json is not None:
        measured = {
            "vllm": version,
            "model": given.model,
            "concurrency": given.concurrency,
            "seconds": given.seconds,
            "holds": {kind: [asdict(each) for each in found] for kind, found in holds.items()},
            "new_schema_s": compiled,
        }
        given.json.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Writes ``markers.md``: the markers and their arguments. ``python docs/make_markers.py``.

What is said of an argument stands here. Which there are, how they are read and what their defaults are is the code's:
``tests/test_reference.py`` compares both, and reads every example as a marker would.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from docs.docstrings import cell
from pytest_gpucap.markers.keywords import MOST_DOCUMENTS, MOST_REPLICAS
from pytest_gpucap.plugin import MARKERS
from pytest_gpucap.requirement import ApiKind, ArrivalKind, Metric, Requirement, Slo, Workload
from pytest_gpucap.secondary import METRICS, SecondaryName
from pytest_gpucap.workloads.adapter_mix import DEFAULT_RANK


@dataclass(frozen=True)
class Argument:
    """One keyword of the ``gpucap`` marker.

    Attributes:
        examples: values that it takes.
        about: what it means, with its unit.
        otherwise: what applies where it is not given; None: nothing does.
    """

    examples: tuple[Any, ...]
    about: str
    otherwise: str | None = None


def _default(of: type, name: str) -> Any:
    return inspect.signature(of).parameters[name].default


_WORKLOAD: Final = Workload()
_LENGTHS: Final = (256, "uniform:128-512", "lognormal:mean=256,cv=0.8,high=2048")

REQUIREMENT: Final[Mapping[str, Argument]] = {
    "name": Argument(("chat",), "name in reports, up to 200 characters", "the test's name"),
    "qps": Argument((10, 2.5), "requests a second that all GPUs of the budget must carry together", "`--target-qps`"),
    "gpus": Argument((4,), "the budget: how many GPUs may serve `qps`", "`--gpus`, or one replica"),
    "headroom": Argument(
        (1.3,),
        "factor on `qps` for peaks and failures, 1 or more",
        f"`--gpucap-headroom`, or {float(_default(Requirement, 'headroom'))}",
    ),
    "replicas": Argument(
        (4, "budget"),
        f"replicas that are measured together, up to {MOST_REPLICAS} ([fleets](fleets.md))",
        "1",
    ),
    "on_replica_loss": Argument(
        ("invalid", "count"), "a replica that is lost makes the measurement INVALID, or is counted", '`"invalid"`'
    ),
}
LIMITS: Final[Mapping[str, Argument]] = {
    "ttft_p95": Argument(("500ms", 0.5), "time to first token; any percentile, as `ttft_p50` or `ttft_p99_9`"),
    "tpot_p95": Argument(("50ms",), "mean time per output token of a request, after its first"),
    "itl_p99": Argument(("200ms",), "gap between two tokens, over the gaps of all requests"),
    "e2e_p95": Argument(("20s",), "the whole request, from the time it was due"),
    "goodput": Argument(
        ("95%", 0.95), "share of the requests that keep all limits together ([goodput](statistics.md#goodput))"
    ),
    "ttft": Argument(("500ms",), "threshold of `goodput`"),
    "tpot": Argument(("50ms",), "threshold of `goodput`"),
    "e2e": Argument(("20s",), "threshold of `goodput`"),
    "max_error_rate": Argument(
        ("1%", 0.01), "share of the requests that may fail", f'`"{float(_default(Slo, "max_error_rate")):.0%}"`'
    ),
    "min_accuracy": Argument(("90%",), "share of `questions` that must be answered right"),
}
BESIDE: Final[Mapping[str, Argument]] = {
    SecondaryName.STARTUP: Argument(("90s",), "seconds from the start of the server until its first whole answer"),
    SecondaryName.KV_TOKENS: Argument((200_000,), "tokens that the KV cache of one replica holds"),
    SecondaryName.JOULES_PER_1K_TOKENS: Argument((400,), "energy of the devices for 1,000 output tokens"),
    SecondaryName.USD_PER_1M_TOKENS: Argument((0.5,), "price of the GPUs for 1,000,000 output tokens"),
    SecondaryName.ACCEPTANCE: Argument(("60%",), "share of the drafted tokens that were accepted"),
    SecondaryName.PREFIX_HIT_RATE: Argument(("50%",), "share of the prompt tokens that were in the prefix cache"),
    SecondaryName.PREEMPTIONS: Argument(("1%",), "preemptions over requests"),
}
WORKLOAD: Final[Mapping[str, Argument]] = {
    "workload": Argument(
        ("chat",),
        "a [preset](workloads.md); other keywords override what it says",
        "`--gpucap-workload`",
    ),
    "input_tokens": Argument(_LENGTHS, "tokens of each prompt", f"{_WORKLOAD.input_tokens.low}"),
    "output_tokens": Argument(_LENGTHS, "tokens of each answer", f"{_WORKLOAD.output_tokens.low}"),
    "shared_prefix_tokens": Argument(
        (64,), "tokens at the start that all prompts share", f"{_WORKLOAD.shared_prefix_tokens}"
    ),
    "sessions": Argument(
        ("turns=4 think=8s", "sessions.jsonl think=2s"),
        "requests are turns of [multi-turn sessions](workloads.md#sessions), "
        "drawn or from [a file](workloads.md#sessions-from-a-file)",
    ),
    "prompts": Argument(
        ("prompts.jsonl",),
        "a file of [prompts of your own](workloads.md#prompts-of-your-own), relative to the test's file",
    ),
    "images": Argument(
        ("512x512",), "[images](workloads.md#images) beside every prompt: a size in pixels, or a list of sizes"
    ),
    "audio": Argument(
        ("20s", 1.5), "[audio](workloads.md#audio) beside every prompt: a duration, or a list of durations"
    ),
    "system": Argument(("Be brief.",), "system message before every prompt"),
    "fold_system": Argument(
        (True,), "put `system` into the user's message, for models without a system role", "`False`"
    ),
    "opening": Argument(("Read this:",), "text before every prompt"),
    "instruction": Argument(("Answer in one word.",), "text after every prompt"),
    "questions": Argument(
        ("questions.jsonl", "arithmetic"),
        "a file of [questions](workloads.md#accuracy), or made ones, whose answers are graded",
    ),
    "answer_tokens": Argument(
        (512,), "most tokens of one answer to a question", "2048, or half the server's context where that is less"
    ),
}
ARRIVALS: Final[Mapping[str, Argument]] = {
    "arrivals": Argument(tuple(ArrivalKind), "when requests are due", f'`"{_WORKLOAD.arrivals.kind}"`'),
    "burstiness": Argument((2.0,), 'with `arrivals="gamma"`: standard deviation of the gaps over their mean'),
    "trace": Argument(
        ("trace.csv",), 'with `arrivals="trace"`: a [recorded load](workloads.md#traces), relative to the test\'s file'
    ),
}
REQUESTS: Final[Mapping[str, Argument]] = {
    "endpoint": Argument(
        tuple(ApiKind), "the [endpoint](workloads.md#endpoints) that requests go to", f'`"{_WORKLOAD.endpoint}"`'
    ),
    "stream": Argument((False,), "answers come token by token; otherwise E2E alone is known", f"`{_WORKLOAD.stream}`"),
    "ignore_eos": Argument(
        (False,),
        "generate exactly the output tokens asked for",
        f"`{_WORKLOAD.ignore_eos}`; `False` where `extra_body` asks for a form",
    ),
    "documents": Argument((10,), f'in each request of `endpoint="rerank"`, up to {MOST_DOCUMENTS}', "10"),
    "temperature": Argument((0.6,), "sampling parameter, 0 or more", "the server's"),
    "top_p": Argument((0.95,), "sampling parameter", "the server's"),
    "top_k": Argument((50, -1), "sampling parameter; -1: all tokens", "the server's"),
    "presence_penalty": Argument((0.5,), "sampling parameter", "the server's"),
    "frequency_penalty": Argument((0.5,), "sampling parameter", "the server's"),
    "extra_body": Argument(
        ({"response_format": {"type": "json_object"}},),
        "[further fields](workloads.md#further-fields-of-a-request) of every request",
    ),
    "adapters": Argument(
        ({"support": 0.7, "legal": 0.3},), "a [mix of LoRA adapters](workloads.md#lora-adapters): weights by name"
    ),
    "adapter_rank": Argument((16,), "rank of adapters that are made for a `synthetic:` model", f"{DEFAULT_RANK}"),
}
MEASUREMENT: Final[Mapping[str, Argument]] = {
    "max_time": Argument(("10m",), "server time for the verdict, of each start", "`--gpucap-max-time`"),
    "seed": Argument((7,), "seed of arrivals, lengths and prompts", "`--gpucap-seed`"),
    "priority": Argument(
        (5, -1), "which tests are measured first; higher first ([cost](cost.md#a-limit-on-a-whole-session))", "0"
    ),
}
GROUPS: Final[Mapping[str, Mapping[str, Argument]]] = {
    "The requirement": REQUIREMENT,
    "Limits": LIMITS,
    "Limits beside the rate": BESIDE,
    "Prompts and answers": WORKLOAD,
    "Arrivals": ARRIVALS,
    "Requests": REQUESTS,
    "The measurement": MEASUREMENT,
}
"""All keywords of ``gpucap``, by the title of their table. A percentile stands for all of its metric."""

NOTES: Final[Mapping[str, str]] = {
    "Limits": (
        f"A limit is named by its metric ({', '.join(f'`{metric.value}`' for metric in Metric)}) and a percentile; "
        "all limits apply at once. Without a percentile it is a threshold of `goodput`. "
        "[How to choose limits](choosing-limits.md) helps.\n\n"
    ),
    "Limits beside the rate": "What else a new version may lose ([limits beside the rate](limits.md)):\n\n",
}

HEAD = f"""\
# Markers

{"".join(f"- `{marker.partition(': ')[0]}`: {marker.partition(': ')[2]}" + chr(10) for marker in MARKERS)}
A marker may stand on a parameter (`pytest.param(..., marks=...)`), a function, a class, one of its base classes or a
module (`pytestmark`). They are merged keyword by keyword, and the closest one wins: the order is that of this list. Of
two on one function, it is the one next to it. What no marker says is taken from the [options](options.md). An unknown
keyword, or a value that cannot be, ends the session at collection with one line that names the test's file and line.

A time is a number with a unit (`"500ms"`, `"20s"`, `"10m"`, `"1h"`) or a plain number of seconds. A share is `"5%"` or
`0.05`.

```python
import pytest

pytestmark = pytest.mark.vllm(model="Qwen/Qwen2.5-1.5B-Instruct", max_model_len=4096)


@pytest.mark.gpucap(qps=10, gpus=4, input_tokens=256, output_tokens=512, e2e_p95="20s", ttft_p95="500ms")
def test_chat_capacity(gpucap):
    gpucap.check()
```

## gpucap

"""

TAIL = """
## vllm

`vllm(model, ...)`: the model may be the first argument. It is a name in the model hub, a folder, or `synthetic:NAME`
([models without a hub](gpus.md#models-without-a-hub)); without it `--gpucap-model` holds. Every other keyword becomes a
flag of `vllm serve`, known to the plugin or not: `max_model_len=4096` is `--max-model-len 4096`, `enforce_eager=True`
is `--enforce-eager`, `enable_prefix_caching=False` is `--no-enable-prefix-caching`. All spellings of a flag mean the
same, and two values for it are an error. A value that looks like a secret is refused ([SECURITY.md](../SECURITY.md)).

## engine

`engine(name, model=..., ...)` takes the place of `vllm(...)` for another [engine](engines.md). `engine("vllm", ...)` is
`vllm(...)`; a test has one of the two. With `command="..."` any server that speaks the OpenAI API is started.

## gpu_class

`gpu_class(name)`: the test is about this [GPU class](gpus.md). On any other `--gpu-class` it is skipped.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, arguments in GROUPS.items():
        parts.append(
            f"### {title}\n\n{NOTES.get(title, '')}| keyword | values | default | |\n| --- | --- | --- | --- |\n"
        )
        for name, argument in arguments.items():
            values = ", ".join(f"`{_written(example)}`" for example in argument.examples)
            about = (
                f"{METRICS[SecondaryName(name)].bound} this: {argument.about}" if title in _BOUNDED else argument.about
            )
            parts.append(f"| `{name}` | {' | '.join(map(cell, (values, argument.otherwise or 'none', about)))} |\n")
        parts.append("\n")
    return "".join(parts).rstrip("\n") + "\n" + TAIL


_BOUNDED: Final = frozenset({"Limits beside the rate"})


def _written(value: Any) -> str:
    """A value as it stands in a marker."""
    return f'"{value}"' if isinstance(value, str) else repr(value).replace("'", '"')


if __name__ == "__main__":
    Path(__file__).with_name("markers.md").write_text(page(), encoding="utf-8")

"""The shape of requests: what is sent, how long it is, when it is due."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_gpucap.api_dialect import ApiDialect
from pytest_gpucap.workload_parts import ApiKind, Arrivals, ImageSize, Length, Wording

if TYPE_CHECKING:  # every collection of our tests imports this file, and NumPy takes long
    from pytest_gpucap.arrays import Floats, Int32s, Ints

USUAL_OUTPUT: Final = 256
"""Output tokens where nothing is said."""


@dataclass(frozen=True, slots=True)
class OwnPrompts:
    """Prompts of the user's own, from a file (`workloads.prompt_file`), without their text.

    Attributes:
        path: of the file.
        sha256: of what the file holds, not of how it is packed.
        count: how many prompts it has.
        order: seed of the order in which they are sent.
        input_tokens: shape (count,), tokens of each prompt as a request has them; empty until they are counted.
        output_tokens: shape (count,), tokens that each asks for; 0: drawn from `drawn`.
        declared: of answers whose prompts do not say how long they are; None: nothing was declared.
        estimated: of how many prompts the tokens are estimated, not counted by the server.
        cached_apart: see `load.prompts.PromptRecipe`.
    """

    path: Path
    sha256: str
    count: int
    order: int = 0
    input_tokens: tuple[int, ...] = ()
    output_tokens: tuple[int, ...] = ()
    declared: Length | None = None
    estimated: int = 0
    cached_apart: bool = False

    def __hash__(self) -> int:
        # What is drawn for a workload is kept by it. A hundred thousand lengths would be hashed each time.
        return hash((self.path, self.sha256, self.order, self.declared, self.estimated))

    @property
    def drawn(self) -> Length:
        """Of answers whose length neither their prompt nor a recorded answer says."""
        return self.declared or Length.fixed(256)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class RecordedSessions:
    """Sessions from a file (`workloads.session_file`), without their text.

    Two are equal that send the same and whose tokens were counted alike.

    Attributes:
        path: of the file.
        sha256: of what is sent and asked for, and when: what the file holds and what is said beside its name.
        file_sha256: of what the file holds.
        personal: they are texts of the user's own; else prompts are made of blocks of tokens.
        in_order: sessions begin in the order of the file, else in a random one.
        begin: shape (s,), the first of each session's turns among all turns of the file.
        turns: shape (s,), how many of them are sent.
        start_s: shape (s,), when each session began; None: the file does not say.
        prompt, output: shape (t,), tokens of each turn of the file.
        shared: shape (t,), tokens at the start of a prompt that an earlier request of the file had.
        own: shape (t,), tokens at the start of a prompt that the turn before it had.
        think_s: shape (t,), from the end of the answer before; 0 for first turns.
        declared: output tokens of turns that do not say how long their answer is; None: nothing was declared.
        think_given_s: seconds that were declared instead of those of the file; None: those of the file.
        context: see `Sessions`.
        block: tokens of a block; None where there are none.
        order: seed of a random order.
        estimated: of how many prompts the tokens are estimated, not counted by the server.
        cached_apart: see `load.prompts.PromptRecipe`.
        lengths_sha256: of prompt and output tokens.
    """

    path: Path
    sha256: str
    file_sha256: str
    personal: bool
    in_order: bool
    begin: Ints
    turns: Ints
    start_s: Floats | None
    prompt: Int32s
    output: Int32s
    shared: Int32s
    own: Int32s
    think_s: Floats
    declared: int | None = None
    think_given_s: float | None = None
    context: int | None = None
    block: int | None = None
    order: int = 0
    estimated: int = 0
    cached_apart: bool = False
    lengths_sha256: str = ""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RecordedSessions) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[object, ...]:
        return self.sha256, self.lengths_sha256, self.in_order, self.order, self.estimated, self.cached_apart

    def __repr__(self) -> str:
        return f"RecordedSessions({self.path.name!r}, {self.count} sessions, sha256 {self.sha256[:12]})"

    @property
    def count(self) -> int:
        """How many sessions there are."""
        return int(self.begin.size)

    @property
    def usual_output(self) -> int:
        """Output tokens of turns that do not say how long their answer is."""
        return self.declared or USUAL_OUTPUT


@dataclass(frozen=True, slots=True)
class Sessions:
    """Multi-turn sessions: each turn's prompt is all that was said before, and new tokens (`workloads.sessions`).

    Attributes:
        turns: requests of a session.
        think_s: mean seconds from the end of an answer to the next turn.
        think_cv: standard deviation of that over its mean; 0: it is always the same, else it is lognormal.
        new: tokens that each turn adds to what was said before.
        first: tokens of the first turn; None: as of every other one.
        context: a session ends before a turn whose prompt and answer would have more tokens; None: no turn has.
        text: as it was declared.
        recorded: sessions from a file, which are sent as they are, and which the other attributes describe; None: they
            are drawn.
    """

    turns: Length
    think_s: float
    think_cv: float
    new: Length
    first: Length | None
    context: int | None
    text: str
    # None or `RecordedSessions`. What other nodes are told is typed by these fields, and sessions never go there.
    recorded: Any = None

    @property
    def opening(self) -> Length:
        """Tokens of the first turn."""
        return self.first or self.new


@dataclass(frozen=True, slots=True)
class Workload:
    """The shape of the requests: what is sent, how long it is, when it is due."""

    input_tokens: Length = field(default_factory=lambda: Length.fixed(256))
    """Tokens of a prompt."""
    output_tokens: Length = field(default_factory=lambda: Length.fixed(256))
    """Tokens of an answer; 1 where the endpoint's answers have none: a request then ends with the step that prefills
    the last of it."""
    arrivals: Arrivals = Arrivals()  # noqa: RUF009 - it is frozen
    """When requests of an open loop are due."""
    endpoint: ApiKind = ApiKind.CHAT
    """Which endpoint of the API they are sent to."""
    shared_prefix_tokens: int = 0
    """Tokens at the start of every prompt that all prompts share; 0: no two prompts share a first token block."""
    ignore_eos: bool = True
    """Ask the server to generate exactly the output tokens asked for (vLLM's ``ignore_eos``)."""
    sampling: Mapping[str, float | int] = field(default_factory=dict)
    """Sampling parameters passed through in the request body, such as ``temperature``."""
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of every request's body, as JSON has them (`workloads.extra_body`)."""
    wording: Wording = Wording()  # noqa: RUF009 - it is frozen
    """The text around every prompt of the chat endpoint. Its tokens count as input tokens."""
    preset: str | None = None
    """Name of the preset that it is based on."""
    questions: Path | None = None
    """File of question and answer pairs (JSON Lines). The server's answers are graded by them."""
    answer_tokens: int | None = None
    """Most tokens that one answer may take; None: 2048, or half the server's context where that is less."""
    prompts: OwnPrompts | None = None
    """Prompts from a file; None: they are made on the spot, with exactly the input tokens asked for."""
    images: tuple[ImageSize, ...] = ()
    """Of each of them one is drawn for every prompt of the chat endpoint. Their tokens count as input tokens."""
    audio_s: tuple[float, ...] = ()
    """Seconds of each audio clip that is drawn for every prompt of the chat endpoint. Their tokens count as well."""
    stream: bool = True
    """Ask for answers token by token, where the endpoint's answers have tokens."""
    documents: int = 1
    """Documents in each request of the rerank endpoint; its input tokens are those of all of them and of the query."""
    adapters: Mapping[str, float] = field(default_factory=dict)
    """Share of the requests of each LoRA adapter, by the name that they send as their model (`BASE_MODEL`: the server's
    own); empty: every request is for the server's model."""
    adapter_rank: int | None = None
    """Rank of adapters that are made for a synthetic model; None: they are not made."""
    dialect: ApiDialect = field(default_factory=ApiDialect)
    """How the server that is measured is asked for all this; see `served`."""
    sessions: Sessions | None = None
    """Requests are turns of sessions, whose whole prompts `input_tokens` describes; None: no two belong together."""

    @property
    def recorded(self) -> RecordedSessions | None:
        """The sessions, where they are from a file."""
        found: RecordedSessions | None = None if self.sessions is None else self.sessions.recorded
        return found

    @property
    def own_texts(self) -> Path | None:
        """The file of prompts or sessions whose texts are the user's own; None: prompts are made."""
        if self.prompts is not None:
            return self.prompts.path
        return self.recorded.path if self.recorded is not None and self.recorded.personal else None

    @property
    def streamed(self) -> bool:
        """Whether answers come token by token. Otherwise only their end to end latency is known."""
        return self.stream and self.endpoint.generates

    def served(self, dialect: ApiDialect) -> Workload:
        """The workload as a server that speaks this dialect can be asked for it.

        Where an engine cannot be asked for answers of an exact length, they end where the model ends them.
        """
        exact = self.ignore_eos and dialect.exact_length is not None
        if (dialect, exact) == (self.dialect, self.ignore_eos):
            return self
        return replace(self, dialect=dialect, ignore_eos=exact)

    @property
    def longest(self) -> tuple[int, int]:
        """Input and output tokens of the longest request. Of a trace's rows `load.trace.longest_request` knows."""
        return self.input_tokens.high, self.output_tokens.high


def too_long(request: tuple[int, int], max_model_len: int, place: str | None = None) -> str:
    """Why a request of so many input and output tokens does not fit a server's context; empty if it does.

    Args:
        request: input and output tokens.
        max_model_len: tokens of the context.
        place: the file that the request's prompt is from, if it is from one.
    """
    prompt, answer = request
    if prompt + answer <= max_model_len:
        return ""
    if place is not None:
        return (
            f"{place}: a prompt of {prompt} and an answer of {answer} tokens do not fit max_model_len={max_model_len}: "
            "leave longer prompts out of the file, lower output_tokens, or raise max_model_len"
        )
    return (
        f"a prompt of {prompt} and an answer of {answer} tokens, which the workload may ask for, do not fit "
        f"max_model_len={max_model_len}: lower input_tokens or output_tokens, or raise max_model_len"
    )

"""Request bodies whose prompts have an exact number of tokens and share no first block.

A prompt is a sequence of units of exactly one token each: words with a space, letters, or token ids (`calibrate` finds
out which). First come the units that all prompts share (`Workload.shared_prefix_tokens`). Then comes the prompt's
number written in units, which no other prompt of the measurement has. The rest is a slice of a fixed ring of units, so
a body costs microseconds whatever its length.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from pytest_gpucap.api_dialect import ApiDialect
from pytest_gpucap.load.adapters import draw_of
from pytest_gpucap.load.hashing import hash64
from pytest_gpucap.load.media import MediaText, named, with_media
from pytest_gpucap.load.protocol import LoadError
from pytest_gpucap.load.request_fields import answer_fields, prompt_fields, tokens_field
from pytest_gpucap.requirement import ApiKind, ImageSize, Wording, Workload

NUMBER_BITS = 40
"""Prompt numbers go up to 2**40. Written in 64 units, that takes 7 tokens, well inside a first block of 16."""
RING_UNITS = 8192
_HOLE, _MEDIA = "\x00", "\x01"
"""Stand for the prompt and the images and audio beside it in the template. No JSON text holds these characters."""


@dataclass(frozen=True, slots=True)
class PromptRecipe:
    """How prompts are made for one server, in plain values that go to a worker as JSON.

    Attributes:
        model: the model's name at the server.
        api: an `ApiKind`'s value.
        units: texts of one token each, or token ids with `as_ids`; a power of two of them, in any order.
        as_ids: send prompts as lists of token ids.
        opener: text before the first unit, so that a server that trims prompts does not change the first unit.
        overhead: tokens that the server counts beyond the units: chat template, begin-of-text, opener, wording, images,
            audio.
        shared: units at the start that all prompts share.
        seed, nonce: prompts are made from both. The nonce differs between runs with the same seed, so that a run finds
            nothing of an earlier one in the server's prefix cache.
        ignore_eos, sampling, extra_body: fields of the body.
        dialect: how the server wants some of them.
        wording: what stands around the prompt of a chat request.
        images: sizes of the images that follow the text.
        audio_s: lengths of the audio clips that follow them, in seconds.
        cached_apart: the server counts the tokens of a prompt without those that were in its cache, which its usage
            has beside them.
        by_usage: the server's ``/tokenize`` counts otherwise than its usage, and usage was taken.
        adapters, stream, documents: see `Workload`.
    """

    model: str
    api: str
    units: tuple[str, ...]
    as_ids: bool = False
    opener: str = ""
    overhead: int = 0
    shared: int = 0
    seed: int = 0
    nonce: int = 0
    ignore_eos: bool = True
    sampling: Mapping[str, float | int] = field(default_factory=dict)
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    wording: Wording = field(default_factory=Wording)
    cached_apart: bool = False
    by_usage: bool = False
    images: tuple[ImageSize, ...] = ()
    audio_s: tuple[float, ...] = ()
    adapters: Mapping[str, float] = field(default_factory=dict)
    stream: bool = True
    documents: int = 1
    dialect: ApiDialect = field(default_factory=ApiDialect)

    @classmethod
    def of(cls, workload: Workload, model: str, units: tuple[str, ...], **rest: Any) -> PromptRecipe:
        """The recipe of a workload; `rest`: the other attributes by name."""
        return cls(
            model,
            workload.endpoint.value,
            units,
            shared=workload.shared_prefix_tokens,
            ignore_eos=workload.ignore_eos,
            dialect=workload.dialect,
            sampling=dict(workload.sampling),
            extra_body=dict(workload.extra_body),
            wording=workload.wording,
            images=workload.images,
            audio_s=workload.audio_s,
            adapters=dict(workload.adapters),
            stream=workload.stream,
            documents=workload.documents,
            **rest,
        )

    @property
    def least_tokens(self) -> int:
        """The fewest prompt tokens that can be asked for."""
        return self.overhead + max(self.shared, self.documents)

    def check(self, prompt_tokens: int) -> None:
        """Check that a prompt of this many tokens can be made.

        Raises:
            LoadError: if it is shorter than what every request has (template and shared prefix).
        """
        if prompt_tokens < self.least_tokens:
            taken = named(images=bool(self.images), audio=bool(self.audio_s))
            raise LoadError(
                f"a prompt of {prompt_tokens} tokens cannot be made: this server's {taken} {self.overhead} and "
                f"the shared prefix {self.shared}; ask for input_tokens of at least {self.least_tokens}"
            )

    def to_json(self) -> str:
        """The recipe as JSON; see `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> PromptRecipe:
        """The inverse of `to_json`."""
        values = json.loads(text)
        read = {"wording": Wording(**values["wording"]), "dialect": ApiDialect(**values["dialect"])}
        read |= {"images": tuple(ImageSize(*each) for each in values["images"])}
        read |= {name: tuple(values[name]) for name in ("audio_s", "units")}
        return cls(**{**values, **read})


class BodyComposer(Protocol):
    """Makes the bodies of requests."""

    @property
    def cached_apart(self) -> bool:
        """See `PromptRecipe`."""
        ...

    @property
    def personal(self) -> bool:
        """Whether prompts are a user's own: then nothing that may repeat one is kept."""
        ...

    def body(self, number: int, prompt_tokens: int, output_tokens: int, left: int = 0) -> bytes:
        """The body of request `number`; of a session from a file, of the turn after which so many are left."""
        ...


class RequestComposer:
    """Makes the bodies of requests by a recipe."""

    personal = False

    def __init__(self, recipe: PromptRecipe) -> None:
        units = recipe.units
        if len(units) < 2 or len(units) & (len(units) - 1):  # noqa: PLR2004 - a digit needs two values
            raise ValueError(f"the number of units must be a power of two and at least 2, not {len(units)}")
        self.recipe = recipe
        self._least, self._taken = recipe.least_tokens, recipe.overhead + recipe.shared
        separator = "," if recipe.as_ids else ""
        self._units = [(separator + unit).encode() for unit in units]
        self._digit_bits = len(units).bit_length() - 1
        self._digits = -(-NUMBER_BITS // self._digit_bits)
        # Two digits at a time.
        self._pairs = [low + high for high in self._units for low in self._units]
        self._key = hash64(hash64(recipe.seed) ^ recipe.nonce)
        # The ring comes from the seed alone, so the filler's units do not depend on the nonce.
        picks = np.random.Generator(np.random.Philox(recipe.seed)).bit_generator.random_raw(RING_UNITS)
        ring = [self._units[int(pick) % len(units)] for pick in picks]
        self._ring = b"".join(ring) * 2
        self._starts = [0, *np.cumsum([len(unit) for unit in ring * 2]).tolist()]
        self._shared_text = self._filler(0, recipe.shared)
        self._media = MediaText(recipe.images, recipe.audio_s, self._key)
        self._draw = draw_of(recipe.adapters, recipe.seed)
        models = [recipe.model] if self._draw is None else self._draw.models(recipe.model)
        templates = [self._template(model, stream=recipe.stream) for model in models]
        self._heads, (_, self._before, self._middle) = [head for head, _, _ in templates], templates[0]
        self._generates = ApiKind(recipe.api).generates
        self._between = f'","{recipe.opener}'.encode()
        """From the end of one document to the units of the next."""

    @property
    def cached_apart(self) -> bool:
        """See `PromptRecipe`."""
        return self.recipe.cached_apart

    def _template(self, model: str, *, stream: bool) -> tuple[bytes, bytes, bytes]:
        """The body up to the prompt, on to what is beside it, and on to the number of output tokens, which ends it."""
        recipe, api = self.recipe, ApiKind(self.recipe.api)
        hole: Any = [_HOLE] if recipe.as_ids else recipe.opener + _HOLE
        # The other documents of a request come with the prompt.
        prompt = prompt_fields(api, hole, recipe.wording)
        beside = bool(recipe.images or recipe.audio_s)
        if beside:
            prompt["messages"] = with_media(prompt["messages"], [_MEDIA])
        body: dict[str, Any] = {
            "model": model,
            **prompt,
            **recipe.sampling,
            **recipe.extra_body,
            **answer_fields(api, recipe.extra_body, recipe.dialect, stream=stream, ignore_eos=recipe.ignore_eos),
        }
        text = json.dumps(body, separators=(",", ":"))
        head, _, rest = text.partition(json.dumps(_HOLE) if recipe.as_ids else json.dumps(_HOLE)[1:-1])
        before, _, middle = rest.partition(json.dumps(_MEDIA)) if beside else ("", "", rest)
        tokens = tokens_field(api)
        return head.encode(), before.encode(), (middle if tokens is None else f'{middle[:-1]},"{tokens}":').encode()

    def body(self, number: int, prompt_tokens: int, output_tokens: int, left: int = 0) -> bytes:  # noqa: ARG002 - all turns are beginnings of one text
        """The body of request `number`.

        Raises:
            LoadError: as `PromptRecipe.check`.
        """
        head = self._heads[0 if self._draw is None else self._draw.of(number)]
        prompt = b"%b%b%b" % (self._prompts(number, prompt_tokens), self._before, self._media.of(number))
        if not self._generates:
            return b"%b%b%b" % (head, prompt, self._middle)
        return b"%b%b%b%d}" % (head, prompt, self._middle, output_tokens)

    def around(self, prompt: bytes, output_tokens: int) -> bytes:
        """The body of a request with a prompt of units that are written already, with no image and no audio."""
        return b"%b%b%b%b%d}" % (self._heads[0], prompt, self._before, self._middle, output_tokens)

    def probe(self, number: int, prompt_tokens: int) -> bytes:
        """The body of a request that asks for one output token, not streamed."""
        head, before, middle = self._template(self.recipe.model, stream=False)
        prompt = b"%b%b%b" % (self._prompts(number, prompt_tokens), before, self._media.of(number))
        return b"%b%b%b%b" % (head, prompt, middle, b"1}" if self._generates else b"")

    def _prompts(self, number: int, prompt_tokens: int) -> bytes:
        """The prompt; of several documents their texts, which share the tokens evenly."""
        count = self.recipe.documents
        if count == 1:
            return self.prompt(number, prompt_tokens)
        self.recipe.check(prompt_tokens)
        each, more = divmod(prompt_tokens - self._taken, count)
        own = (each + (place < more) for place in range(count))
        texts = [self.prompt(number * count + place, self._taken + tokens) for place, tokens in enumerate(own)]
        return self._between.join(texts)

    def prompt(self, number: int, prompt_tokens: int) -> bytes:
        """The prompt's units, as they are written in the body."""
        if prompt_tokens < self._least and self.recipe.documents == 1:
            self.recipe.check(prompt_tokens)
        own = prompt_tokens - self._taken
        digits = min(self._digits, own)
        text = self._shared_text + self._number(number, digits) + self._filler(hash64(number ^ self._key), own - digits)
        return text[1:] if self.recipe.as_ids else text

    def _number(self, number: int, digits: int) -> bytes:
        # The lowest digit comes first, so that prompts too short for all digits still differ as long as possible.
        value = number ^ self._key
        bits, pairs, units = self._digit_bits, self._pairs, self._units
        mask = len(pairs) - 1
        text = b"".join([pairs[(value >> (2 * bits * place)) & mask] for place in range(digits // 2)])
        return text + units[(value >> (bits * (digits - 1))) & (len(units) - 1)] if digits % 2 else text

    def _filler(self, start: int, count: int) -> bytes:
        start %= RING_UNITS
        rounds, rest = divmod(count, RING_UNITS)
        starts = self._starts
        whole = self._ring[starts[start] : starts[start + RING_UNITS]] * rounds if rounds else b""
        return whole + self._ring[starts[start] : starts[start + rest]]

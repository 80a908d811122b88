"""The arguments of one vLLM server, and what they say of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import InitVar, dataclass, field
from types import MappingProxyType
from typing import Final

from pytest_gpucap.errors import told
from pytest_gpucap.requirement import RequirementError, positive
from pytest_gpucap.vllm_arguments.reading import joined, read
from pytest_gpucap.vllm_arguments.spelling import as_given, long_name, spelled, split_words
from pytest_gpucap.vllm_arguments.values import (
    Value,
    identity_of,
    json_object,
    number_with_unit,
    root_of,
    several,
    whole_number,
    within,
    words_of,
)

_SIZES: Final = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
    "prefill_context_parallel_size",
    "decode_context_parallel_size",
)
_AUTO_LENGTH: Final = frozenset({"auto", "-1"})


@dataclass(frozen=True, slots=True)
class VllmArguments:
    """The arguments of one vLLM server. Equal ones start equal servers, however they were spelled.

    Args:
        given: by name in any spelling. True is ``--flag`` and False ``--no-flag``; None leaves the argument out, also
            where a default would set it. A mapping becomes JSON, a list or tuple several values.

    Raises:
        RequirementError: for an argument that we own, a value that no command line can carry, one argument in two
            spellings with different values, or a number that vLLM would not take for one.
    """

    given: InitVar[Mapping[str, object] | None] = None
    values: Mapping[str, Value] = field(init=False, compare=False)
    """By long name, read-only. One key of a JSON argument, ``name.key``, stays as it was given."""
    identity: tuple[tuple[str, str], ...] = field(init=False, repr=False)
    """What the arguments say, free of spelling and order: sorted pairs of name and value as text."""

    def __post_init__(self, given: Mapping[str, object] | None) -> None:
        values = read(as_given(given or {}))
        object.__setattr__(self, "values", MappingProxyType(values))
        object.__setattr__(self, "identity", identity_of(values))
        # Asked for once here, so that what is no number is found before a server is started.
        for name in _SIZES:
            self._size(name)
        _ = (self.max_num_seqs, self.max_model_len, self.gpu_memory_utilization, self.api_server_count)

    @classmethod
    def parse(cls, text: str) -> VllmArguments:
        """Arguments as they stand on a command line, such as ``--max-num-seqs 64 -tp=2 --no-enable-prefix-caching``.

        Several words after a flag are a tuple. ``--name=`` is None: the argument is left out.

        Raises:
            RequirementError: as for the class; and for a word that belongs to no argument.
            ValueError: for an unclosed quote.
        """
        pairs = []
        for spelling, value, shown in spelled(split_words(text), strict=True):
            left_out = value == "" and shown.endswith("=")
            pairs.append((spelling, None if left_out else value, shown))
        return cls(read(pairs))

    def flags(self) -> list[str]:
        """The words of the command line that carry the arguments."""
        return [word for name, value in self.values.items() for word in words_of(name, value)]

    def overlaid(self, top: VllmArguments) -> VllmArguments:
        """These arguments, with those of `top` in their place where both name one; ``name.key`` replaces that key."""
        kept = {name: value for name, value in self.values.items() if not any(within(name, on) for on in top.values)}
        return VllmArguments(joined({**kept, **top.values}))

    def with_defaults(self, defaults: Mapping[str, object]) -> VllmArguments:
        """These arguments, and those of `defaults` that were not given in any spelling."""
        given = {root_of(name) for name in self.values}
        added = {name: value for name, value in read(as_given(defaults)).items() if root_of(name) not in given}
        return VllmArguments({**self.values, **added})

    def only(self, names: Iterable[str]) -> VllmArguments:
        """Those of these long names that were given, in the order of the names."""
        return VllmArguments(
            {given: value for name in names for given, value in self.values.items() if root_of(given) == name}
        )

    def count(self, name: str) -> int | None:
        """The value of an argument as a whole number of at least 1, ``"8K"`` too; None if not given.

        Raises:
            RequirementError: if it is no such number.
        """
        value = self.get(name)
        readable = number_with_unit(value) if isinstance(value, str) else None
        return None if value is None else whole_number(name, value if readable is None else readable)

    def has(self, spelling: str) -> bool:
        """Whether an argument, by a spelling of its name without leading dashes, was given a value."""
        name, _ = long_name(spelling, None)
        return any(root_of(given) == name for given, value in self.values.items() if value is not None)

    def get(self, name: str) -> Value:
        """The value of an argument by its long name, or of ``name.key`` if it was given so; None if not given."""
        return self.values.get(name)

    @property
    def lora_names(self) -> tuple[str, ...]:
        """The names of the adapters in ``lora_modules``, each given as ``name=path`` or as JSON; empty if not given."""
        return tuple(filter(None, map(_lora_name, several(self.get("lora_modules")))))

    @property
    def tensor_parallel_size(self) -> int:
        """GPUs that share every layer."""
        return self._size("tensor_parallel_size")

    @property
    def pipeline_parallel_size(self) -> int:
        """Groups of GPUs that hold a part of the layers each."""
        return self._size("pipeline_parallel_size")

    @property
    def data_parallel_size(self) -> int:
        """Engines side by side that share the requests."""
        return self._size("data_parallel_size")

    @property
    def prefill_context_parallel_size(self) -> int:
        """Groups of GPUs that share the tokens of a prompt."""
        return self._size("prefill_context_parallel_size")

    @property
    def decode_context_parallel_size(self) -> int:
        """GPUs that share the KV cache of a sequence; they are GPUs of the sizes above."""
        return self._size("decode_context_parallel_size")

    @property
    def gpus_per_replica(self) -> int:
        """Tensor x pipeline x data x prefill-context parallel size, on this machine or others.

        As vLLM's ``ParallelConfig.world_size_across_dp``. Expert parallelism and decode-context parallelism use the
        GPUs of the other sizes and add none.
        """
        return (
            self.tensor_parallel_size
            * self.pipeline_parallel_size
            * self.data_parallel_size
            * self.prefill_context_parallel_size
        )

    @property
    def api_server_count(self) -> int | None:
        """Front ends: processes that take requests and hand out tokens; None if not given."""
        return self.count("api_server_count")

    @property
    def max_num_seqs(self) -> int | None:
        """Sequences that each engine runs at once; None if not given."""
        return self.count("max_num_seqs")

    @property
    def max_model_len(self) -> int | None:
        """Tokens of the longest sequence; None if not given or left to vLLM ("auto", -1)."""
        value = self.get("max_model_len")
        return None if str(value).strip().lower() in _AUTO_LENGTH else self.count("max_model_len")

    @property
    def gpu_memory_utilization(self) -> float | None:
        """Share of a GPU's memory that the server plans with; None if not given."""
        value = self.get("gpu_memory_utilization")
        if value is None:
            return None
        if isinstance(value, bool | tuple):
            raise RequirementError(f"vllm: gpu_memory_utilization must be a number, not {told(value)}")
        return float(positive(value, "vllm: gpu_memory_utilization"))

    @property
    def dtype(self) -> str | None:
        """Type of the weights, as given."""
        return self._text("dtype")

    @property
    def quantization(self) -> str | None:
        """Method that the weights are quantised with, as given."""
        return self._text("quantization")

    @property
    def kv_cache_dtype(self) -> str | None:
        """Type of the KV cache's entries, as given."""
        return self._text("kv_cache_dtype")

    @property
    def speculative_tokens(self) -> int:
        """Tokens drafted for each pass; 0 where speculative decoding is off.

        Raises:
            RequirementError: if it is on and their number is not given: vLLM then takes it from the draft model.
        """
        name = "speculative_config"
        if not any(value for given, value in self.values.items() if root_of(given) == name):
            return 0
        config = dict(self.identity)[name]
        found = json_object(config) or {}
        if found.get("num_speculative_tokens") is None:
            raise RequirementError(f"{name} names no num_speculative_tokens")
        return whole_number("num_speculative_tokens", found["num_speculative_tokens"])

    def _size(self, name: str) -> int:
        value = self.get(name)
        return 1 if value is None else whole_number(name, value)

    def _text(self, name: str) -> str | None:
        value = self.get(name)
        return None if value in {None, ""} else str(value)


def _lora_name(given: object) -> str:
    """The name in one entry of ``lora_modules``; empty where there is none."""
    text = str(given)
    found = json_object(text)
    return text.partition("=")[0] if found is None else str(found.get("name") or "")

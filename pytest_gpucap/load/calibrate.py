"""Finds out how a server counts prompt tokens, so that prompts can have an exact number of tokens.

Two things are needed: a set of texts that cost one token each wherever they stand, and the number of tokens that the
server adds by itself (chat template, begin of text). vLLM's ``/tokenize`` counts where the server has it, else the
usage of one-token requests. The usage of real requests always verifies the result.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

from pytest_gpucap.load.address import ServerAddress
from pytest_gpucap.load.hashing import hash64
from pytest_gpucap.load.prompts import PromptRecipe, RequestComposer
from pytest_gpucap.load.protocol import LoadError, PromptCountError
from pytest_gpucap.load.request_fields import OPENER, WITH_IDS, prompt_fields
from pytest_gpucap.load.token_probe import ADVICE, ProbeRefused, TokenProbe, Usage
from pytest_gpucap.requirement import Workload

_COMMON = """
the of and to in is that for it as was with be by on not he his but at are this have from or had an they which one you
were her all she there would their we him been has when who will more no if out so said what up its about into than them
can only other new some could time these two may then do first any my now such like our over man me even most made after
also did many before must through back years where much your way well down should because each just those people how too
little state good very make world still own see men work long get here between both life being under never day same
another know while last might us great old year off come since against go came right used take three
"""
WORDS = tuple(" " + word for word in _COMMON.split())
LETTERS = tuple("etaoinshrdlcumwfgypbvkjxqz")
SPACED_LETTERS = tuple(" " + letter for letter in LETTERS)
IDS = tuple(str(token) for token in range(100, 228))
"""Token ids above the control tokens and single bytes of common vocabularies, and inside every practical one."""
MOST_UNITS = 64
LEAST_UNITS = 4
LEAST_SAME = 3
"""How often the same prompt is sent to see whether it is counted alike."""
MOST_SAME = 12
"""And how often if something does not fit. One server in four that counts otherwise is missed once in thirty times."""
MOST_SHOWN = 4
_LEAST_WORDS = 8
"""Of a prompt that is sent several times. Servers that count unlike may agree on fewer."""
_NOT_TAKEN = -1
"""Stands for the tokens of a text that the server refuses, which no text has."""

CountTokens = Callable[[str], int]
"""Prompt tokens of a request whose prompt is this text."""
Cost = Callable[[Sequence[str]], int]
"""Tokens that some texts in a row add to a prompt; `_NOT_TAKEN` where the server refuses them."""


def calibrate(server: ServerAddress, model: str, workload: Workload, seed: int, nonce: int) -> PromptRecipe:
    """Find out how this server counts, and verify it.

    Raises:
        LoadError: if the server does not answer, or exact prompts cannot be made for it; names the cause and the fix.
    """
    probe = TokenProbe(server, model, workload)
    probe.cached_apart = count_alike(probe, nonce, LEAST_SAME)
    try:
        recipe = _recipe(probe, model, workload, seed, nonce)
    except LoadError:
        count_alike(probe, nonce, MOST_SAME)  # a cause that explains every other mismatch
        if not probe.has_tokenize:
            raise
        # Something before the server may change the prompts of real requests, which /tokenize does not see.
        probe.count_by_usage()
        recipe = replace(_recipe(probe, model, workload, seed, nonce), by_usage=True)
    return replace(recipe, cached_apart=probe.cached_apart)


def _recipe(probe: TokenProbe, model: str, workload: Workload, seed: int, nonce: int) -> PromptRecipe:
    if workload.endpoint in WITH_IDS:
        recipe = _by_ids(probe, model, workload, seed, nonce)
        if recipe is not None:
            return recipe
    units, overhead = _find_units(probe.count)
    recipe = PromptRecipe.of(workload, model, units, opener=OPENER, overhead=overhead, seed=seed, nonce=nonce)
    _verify(probe, recipe, workload)
    return recipe


def _same_prompt(probe: TokenProbe, nonce: int, times: int) -> tuple[bytes, list[Usage]]:
    """A request with a prompt that this run alone sends, and its usage: no cache holds more of it than the template.

    It has as many words as fit the server's context, where they may cost a token per byte.
    """
    words = sorted(WORDS, key=lambda word: hash64(int.from_bytes(word.encode(), "big") ^ nonce))
    while True:
        body = probe.plain_body(OPENER + "".join(words))
        try:
            return body, probe.again(body, times)
        except ProbeRefused:
            if len(words) <= _LEAST_WORDS:
                return body, []
            words = words[: len(words) // 2]


def count_alike(probe: TokenProbe, nonce: int, times: int) -> bool:
    """Send the same prompt several times; returns whether its cached tokens stand beside its tokens.

    Raises:
        PromptCountError: if the counts differ otherwise: cached tokens are not told, or servers count unlike.
    """
    body, usages = _same_prompt(probe, nonce, times)
    prompts = [usage.prompt for usage in usages]
    if len(set(prompts)) <= 1:
        return probe.cached_apart
    if len({usage.prompt + (usage.cached or 0) for usage in usages}) == 1:
        return True
    usages += probe.again(body, MOST_SAME)
    prompts = [usage.prompt for usage in usages]
    last = prompts[-MOST_SAME // 2 :]
    if len(set(last)) == 1 and last[0] < prompts[0] == max(prompts) and not any(usage.cached for usage in usages):
        raise PromptCountError(
            f"the server leaves cached tokens out of usage.prompt_tokens: it counted the same prompt as {prompts[0]} "
            f"tokens, and then as {last[0]}; have it tell them in usage.prompt_tokens_details.cached_tokens, or turn "
            "its prefix cache off"
        )
    counted = " and ".join(str(count) for count in sorted(set(prompts))[:MOST_SHOWN])
    raise PromptCountError(
        f"the same prompt was counted differently: as {counted} tokens in {len(prompts)} requests; a load balancer "
        "seems to mix servers with unlike tokenizers or chat templates: measure one of them by its own URL"
    )


def _by_ids(probe: TokenProbe, model: str, workload: Workload, seed: int, nonce: int) -> PromptRecipe | None:
    """A recipe of token ids; None where the server does not take them."""
    recipe = PromptRecipe.of(workload, model, IDS, as_ids=True, seed=seed, nonce=nonce)
    composer = RequestComposer(recipe)
    ids = prompt_fields(workload.endpoint, [int(token) for token in IDS], workload.wording)
    every_id = json.loads(composer.probe(0, recipe.least_tokens)) | ids
    counted = probe.try_usage(json.dumps(every_id).encode())
    if isinstance(counted, str) or counted < len(IDS):
        return None
    recipe = PromptRecipe.of(workload, model, IDS, as_ids=True, overhead=counted - len(IDS), seed=seed, nonce=nonce)
    _verify(probe, recipe, workload)
    return recipe


def _find_units(count: CountTokens) -> tuple[tuple[str, ...], int]:
    """Units of one token each, and what the server adds to them."""
    bare = count(OPENER)
    refused: list[ProbeRefused] = []

    def cost(units: Sequence[str]) -> int:
        try:
            return count(OPENER + "".join(units)) - bare
        except ProbeRefused as error:  # it may be too long for the context
            refused.append(error)
            return _NOT_TAKEN

    for candidates in (WORDS, LETTERS, SPACED_LETTERS):
        # Counted in order and shuffled: two units that merge into one token show in one of the orders.
        if cost(candidates) == len(candidates) and cost(_shuffled(candidates)) == len(candidates):
            return _power_of_two(candidates), bare
    found: list[str] = []
    for candidates in (WORDS, SPACED_LETTERS, LETTERS):
        _search(cost, candidates, found)
        units = _power_of_two(found)
        if len(units) >= LEAST_UNITS and cost(_shuffled(units * 2)) == 2 * len(units):
            return units, bare
        found.clear()
    if refused:
        raise refused[-1]
    raise LoadError(f"no texts of exactly one token were found for this server's tokenizer; {ADVICE}")


def _search(cost: Cost, candidates: Sequence[str], found: list[str]) -> None:
    """Halve the candidates until each part has one token per text; collect such parts up to `MOST_UNITS` texts."""
    if len(found) >= MOST_UNITS or not candidates:
        return
    if cost(candidates) == len(candidates):
        found.extend(candidates)
    elif len(candidates) > 1:
        half = len(candidates) // 2
        _search(cost, candidates[:half], found)
        _search(cost, candidates[half:], found)


def _shuffled(units: Sequence[str]) -> list[str]:
    return sorted(units, key=lambda unit: hash64(int.from_bytes(unit.encode(), "big")))


def _power_of_two(units: Sequence[str]) -> tuple[str, ...]:
    most = min(len(units), MOST_UNITS)
    return tuple(units[: 1 << (most.bit_length() - 1)]) if most else ()


def _verify(probe: TokenProbe, recipe: PromptRecipe, workload: Workload) -> None:
    """Check that the server counts the intended tokens in requests with the workload's lengths.

    Raises:
        LoadError: if it does not, or the workload asks for fewer tokens than a prompt must have.
    """
    composer = RequestComposer(recipe)
    length = workload.input_tokens
    # A trace's shortest prompts are lengthened to what the template takes.
    as_recorded = workload.arrivals.trace is not None or workload.recorded is not None
    low = max(length.low, recipe.least_tokens) if as_recorded else length.low
    recipe.check(low)
    middle = max(low, round(length.mean))
    # Numbers far above those of a measurement, so that it finds no probe in the server's prefix cache.
    for probe_number, tokens in enumerate(sorted({low, middle, max(low, min(length.high, 2 * middle))})):
        body = composer.probe((1 << 39) + probe_number, tokens)
        counted = probe.usage(body)
        if counted != tokens:
            raise PromptCountError(
                f"prompts of an exact token count cannot be made for this server: one meant to have {tokens} tokens "
                f"was counted as {counted}; {ADVICE}"
            )

"""Prompts: exact counts as the server counts them, whatever its tokenizer, and no shared first block."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import cycle, pairwise

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pytest_gpucap.api_dialect import ApiDialect
from pytest_gpucap.load.address import ServerAddress
from pytest_gpucap.load.calibrate import calibrate
from pytest_gpucap.load.prompts import NUMBER_BITS, PromptRecipe, RequestComposer
from pytest_gpucap.load.protocol import LoadError, OpenLoop, PromptCountError
from pytest_gpucap.load.runner import HttpLoadRunner
from pytest_gpucap.requirement import ApiKind, Length, Workload
from pytest_gpucap.results.problems import ProblemKind
from tests.load.tokenserver import TokenServer
from tests.waiting import FOREVER_S

BLOCK = 16

CORPUS = [
    "the quick brown fox jumps over the lazy dog and it was not his to have or had from one of them",
    "that there would their we him been has when who will more no if out so said what up its about into than them",
    "can only other new some could time these two may then do first any my now such like our over man me even most",
    "in the beginning was the word and all that you know is by on this at be with as for are but not they which she",
] * 20


def byte_level() -> Tokenizer:
    """Every byte is one token: what synthetic models use at their smallest."""
    return train(256)


def small_bpe() -> Tokenizer:
    """A few merges: hardly a word is one token, and letters merge."""
    return train(300)


def bpe() -> Tokenizer:
    """Enough merges that common words are one token."""
    return train(900)


def train(size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet))
    return tokenizer


def metaspace() -> Tokenizer:
    """Like SentencePiece: a mark at the start of each word, one of them in front of the text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>"]))
    return tokenizer


TEMPLATES: dict[str, Callable[[str], str]] = {
    "none": lambda text: text,
    "with a system prompt": lambda text: f"<|system|>\nYou are a helpful assistant.\n<|user|>\n{text}\n<|assistant|>\n",
    "trimming": lambda text: f"[INST] {text.strip()} [/INST]",
}


def counter(tokenizer: Tokenizer) -> Callable[[str], int]:
    return lambda text: len(tokenizer.encode(text).ids)


@pytest.mark.parametrize("tokenize", [True, False], ids=["tokenize", "usage"])
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("tokenizer", [byte_level, small_bpe, bpe, metaspace])
def test_chat_prompts_are_exact(tokenizer: Callable[[], Tokenizer], template: str, tokenize: bool) -> None:
    count = counter(tokenizer())
    with TokenServer(count, template=TEMPLATES[template], tokenize=tokenize) as server:
        recipe = calibrate(ServerAddress.parse(server.url, None), "m", Workload(Length.fixed(256)), seed=3, nonce=7)
        assert server.probes < 400
        composer = RequestComposer(recipe)
        for number, tokens in enumerate([recipe.least_tokens, recipe.least_tokens + 1, 128, 1000, 20_000]):
            body = json.loads(composer.body(number, tokens, 10))
            assert server.prompt_tokens(body) == tokens
            assert body["max_tokens"] == 10


@pytest.mark.parametrize(("tokenizer", "context"), [(byte_level, 512), (bpe, 100)])
def test_probes_fit_a_short_context(tokenizer: Callable[[], Tokenizer], context: int) -> None:
    """A hundred words are 640 bytes, which a tokenizer without merges makes as many tokens of."""
    with TokenServer(counter(tokenizer()), context=context) as server:
        recipe = calibrate(ServerAddress.parse(server.url, None), "m", Workload(Length.fixed(64)), seed=3, nonce=7)
        composer = RequestComposer(recipe)
        for number, tokens in enumerate(range(recipe.least_tokens, context, 37)):
            assert server.prompt_tokens(json.loads(composer.body(number, tokens, 1))) == tokens


def test_servers_behind_one_address_that_count_unlike_are_found_in_a_short_context() -> None:
    turn = cycle((1, 2))
    with (
        TokenServer(lambda text: len(text) + next(turn), context=300) as server,
        pytest.raises(PromptCountError, match="the same prompt was counted differently"),
    ):
        calibrate(ServerAddress.parse(server.url, None), "m", Workload(Length.fixed(64)), seed=3, nonce=7)


def test_what_a_server_says_of_a_context_that_fits_nothing_is_told() -> None:
    with (
        TokenServer(len, context=20) as server,
        pytest.raises(LoadError, match=r"HTTP 400: .*maximum context length is 20"),
    ):
        calibrate(ServerAddress.parse(server.url, None), "m", Workload(Length.fixed(19)), seed=3, nonce=7)


@pytest.mark.parametrize("ids", [True, False], ids=["ids", "text"])
def test_completions_send_ids_or_text_where_ids_are_refused(ids: bool) -> None:
    workload = Workload(
        Length.parse("uniform:64-512", "input_tokens"), endpoint=ApiKind.COMPLETIONS, shared_prefix_tokens=40
    )
    with TokenServer(counter(bpe()), ids=ids) as server:
        recipe = calibrate(ServerAddress.parse(server.url, None), "m", workload, seed=3, nonce=7)
        assert recipe.as_ids is ids
        composer = RequestComposer(recipe)
        for number, tokens in enumerate(range(64, 512, 37)):
            assert server.prompt_tokens(json.loads(composer.body(number, tokens, 1))) == tokens


def units(count: int = 64) -> tuple[str, ...]:
    return tuple(f" w{i}" for i in range(count))


def firsts(composer: RequestComposer, numbers: range, tokens: int, block: int = BLOCK) -> list[bytes]:
    return [b" ".join(composer.prompt(number, tokens).split()[:block]) for number in numbers]


@pytest.mark.parametrize("size", [4, 64])
def test_no_two_prompts_share_their_first_block(size: int) -> None:
    composer = RequestComposer(PromptRecipe("m", "chat", units(size), seed=1, nonce=5))
    block = BLOCK if size == 64 else 2 * BLOCK  # 40 bits in digits of 2 take 20 units
    blocks = firsts(composer, range(20_000), 100, block)
    assert len(set(blocks)) == 20_000
    far = firsts(composer, range((1 << (NUMBER_BITS - 1)) - 100, (1 << (NUMBER_BITS - 1)) + 100), 100, block)
    assert not set(blocks) & set(far)


def test_prompts_share_exactly_the_prefix_asked_for() -> None:
    composer = RequestComposer(PromptRecipe("m", "chat", units(), shared=40, seed=1, nonce=5))
    texts = [composer.prompt(number, 100).split() for number in range(50)]
    assert {tuple(text[:40]) for text in texts} == {tuple(texts[0][:40])}
    assert all(one[40:56] != other[40:56] for one, other in pairwise(texts))
    assert all(len(text) == 100 for text in texts)


def test_another_run_of_the_same_seed_finds_nothing_of_this_one_in_a_cache() -> None:
    one, other = (RequestComposer(PromptRecipe("m", "chat", units(), seed=1, nonce=nonce)) for nonce in (5, 6))
    again = RequestComposer(PromptRecipe("m", "chat", units(), seed=1, nonce=5))
    assert one.prompt(3, 100) == again.prompt(3, 100)
    assert not set(firsts(one, range(2000), 100)) & set(firsts(other, range(2000), 100))


def test_a_prompt_longer_than_the_ring_goes_round() -> None:
    composer = RequestComposer(PromptRecipe("m", "chat", units(), seed=1))
    for tokens in (8191, 8192, 8193, 16_384, 40_001):
        assert len(composer.prompt(9, tokens).split()) == tokens


def test_the_sampling_parameters_stand_in_the_body() -> None:
    workload = Workload(sampling={"temperature": 0.6, "top_p": 0.95}, ignore_eos=False)
    body = json.loads(RequestComposer(PromptRecipe.of(workload, "m", units(), opener="A")).body(0, 20, 7))
    assert body["temperature"] == 0.6
    assert body["top_p"] == 0.95
    assert "ignore_eos" not in body
    assert body["stream_options"] == {"include_usage": True}
    assert body["messages"][0]["content"].startswith("A w")


def test_a_recipe_travels_as_json() -> None:
    recipe = PromptRecipe.of(Workload(sampling={"temperature": 1}), "m", units(), seed=2**63, nonce=3)
    again = PromptRecipe.from_json(recipe.to_json())
    assert again == recipe
    assert RequestComposer(again).body(5, 40, 1) == RequestComposer(recipe).body(5, 40, 1)


def test_too_few_tokens_for_the_template_is_one_clear_line() -> None:
    with (
        TokenServer(counter(bpe()), template=TEMPLATES["with a system prompt"]) as server,
        pytest.raises(LoadError, match="a prompt of 8 tokens cannot be made: this server's template takes") as caught,
    ):
        calibrate(ServerAddress.parse(server.url, None), "m", Workload(Length.fixed(8)), 0, 0)
    assert "\n" not in str(caught.value)


def test_a_row_that_is_too_short_is_refused_before_anything_is_sent() -> None:
    """As a trace can hold."""
    with TokenServer() as server, HttpLoadRunner(server.url, "m", None, Workload(Length.fixed(100)), 1) as runner:
        rows = np.array([100, 7], np.int32)
        with pytest.raises(LoadError, match="a prompt of 7 tokens cannot be made"):
            runner.run(OpenLoop(1.0, np.zeros(2), rows, rows))
        assert not server.seen.bodies


def test_a_tokenizer_that_cannot_be_understood_is_said_so() -> None:
    """Tokens of three bytes across everything: nothing has a cost of its own."""
    with (
        TokenServer(lambda text: (len(text) + 2) // 3) as server,
        pytest.raises(LoadError, match=r"no texts of exactly one token .* token ids"),
    ):
        calibrate(ServerAddress.parse(server.url, None), "m", Workload(), 0, 0)


def test_every_prompt_of_a_run_is_counted_as_asked_for() -> None:
    workload = Workload(Length.fixed(100), Length.fixed(2))
    with TokenServer(counter(bpe()), tokenize=True) as server:
        with HttpLoadRunner(server.url, "m", None, workload, 1, workers=1) as runner:
            prompts = np.arange(60, 160, dtype=np.int32)
            span = runner.run(OpenLoop(1.0, np.linspace(0, 0.9, 100), prompts, np.full(100, 2, np.int32)))
            assert runner.settle(FOREVER_S)
            journal = runner.journal()
        # That the generator was late is possible on a busy machine, and no matter here.
        assert not [problem for problem in span.check.problems if problem.kind is ProblemKind.PROMPT_TOKENS]
        np.testing.assert_array_equal(journal.counted_prompt_tokens, prompts)
        assert server.seen.prompt_tokens == prompts.sum()


def test_a_server_that_counts_differently_under_load_is_a_problem() -> None:
    """As when a router sends some requests to a server with another chat template."""
    extra = 0
    with TokenServer(lambda text: len(text) + extra) as server:
        with HttpLoadRunner(server.url, "m", None, Workload(Length.fixed(100)), 1, workers=1) as runner:
            runner.prepare()
            extra = 1
            span = runner.run(
                OpenLoop(0.5, np.linspace(0, 0.2, 10), np.full(10, 100, np.int32), np.full(10, 2, np.int32))
            )
        assert any(problem.kind is ProblemKind.PROMPT_TOKENS for problem in span.check.problems)


def test_an_engines_own_fields_say_where_an_answer_ends_and_that_its_usage_is_told() -> None:
    dialect = ApiDialect(exact_length={"min_tokens": 9}, streamed={}, tokenizes=False)
    recipe = PromptRecipe.of(Workload().served(dialect), "m", units())
    body = json.loads(RequestComposer(PromptRecipe.from_json(recipe.to_json())).body(0, 64, 8))
    assert body["min_tokens"] == 9
    assert not {"ignore_eos", "stream_options"} & set(body)


def test_an_engine_without_exact_lengths_lets_answers_end_where_the_model_ends_them() -> None:
    served = Workload().served(ApiDialect(exact_length=None))
    assert not served.ignore_eos
    body = json.loads(RequestComposer(PromptRecipe.of(served, "m", units())).body(0, 64, 8))
    assert "ignore_eos" not in body
    # Nothing was asked for here, so nothing is asked for there.
    assert not Workload(ignore_eos=False).served(ApiDialect()).ignore_eos
    assert Workload().served(ApiDialect()) == Workload()

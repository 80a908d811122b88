"""What a secret is, and that one masking finds it wherever it stands."""

from __future__ import annotations

import copy
import json
import pickle

import pytest

from pytest_gpucap.errors import GpuCapError
from pytest_gpucap.masking import Secret, is_secret_name, masked, refusal
from tests.planted import PLANTED


def test_a_secret_shows_itself_to_nobody_and_is_sent_as_it_is() -> None:
    key = Secret("a-key-of-some-length")
    shown = [repr(key), str(key), f"{key!r} {key!s}", "%s %r" % (key, key), repr({"k": [key]}), repr(Secret(key))]  # noqa: UP031
    assert not [each for each in shown if "a-key-of" in each]
    for each in (key, Secret(key), copy.deepcopy(key), pickle.loads(pickle.dumps(key))):
        assert f"Bearer {each}" == "Bearer a-key-of-some-length"
        assert json.dumps([each]) == '["a-key-of-some-length"]'
        assert each.encode() == b"a-key-of-some-length"
        assert each == "a-key-of-some-length"


def test_every_secret_of_the_process_is_masked_everywhere() -> None:
    Secret("Bearer its-own-kind-of-text")
    assert masked("x its-own-kind-of-text y") == "x *** y"
    assert "its-own-kind" not in str(GpuCapError("the server said its-own-kind-of-text"))
    Secret("EMPTY")
    assert masked("the queue is EMPTY") == "the queue is EMPTY"  # a key of servers that need none


def test_what_the_environment_keeps_secret_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_PASSWORD", "correct-horse")
    monkeypatch.setenv("TOKENIZER_FOLDER", "some-long-folder")
    assert masked("correct-horse in some-long-folder") == "*** in some-long-folder"
    monkeypatch.setenv("SHORT_TOKEN", "1")
    assert masked("1 of 1") == "1 of 1"


@pytest.mark.parametrize("kind", PLANTED)
def test_every_kind_of_secret_is_seen_in_every_writing(kind: str) -> None:
    planted = PLANTED[kind]
    line = planted.argument
    for text in (
        line,
        f"said: {line}.",
        json.dumps({"x": line}),
        f"{{'x': {line!r}}}",
        f"a\n{line}\nb",
        f"{line} {line}",
    ):
        assert planted.core not in masked(text), text


@pytest.mark.parametrize("kind", PLANTED)
def test_every_kind_of_secret_is_refused_in_an_argument(kind: str) -> None:
    planted = PLANTED[kind]
    for value in (
        planted.argument,
        [planted.argument],
        {"a": {"b": [planted.argument]}},
        json.dumps({"a": planted.argument}),
    ):
        why = refusal("some_argument", value)
        assert why.startswith("some_argument")
        assert " holds " in why
        assert planted.core not in why
        assert "\n" not in why


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("hf_token", "x", "hf_token holds a secret by its name, .*: set HF_TOKEN in the environment, which the server"),
        ("hf-token", "x", "hf-token holds a secret by its name, .*: set HF_TOKEN in the environment"),
        ("config", {"api_key": "x"}, r"config\.api_key holds a secret by its name, .*: let the server read it from"),
        ("config", '{"a": {"client_secret": "x"}}', r"config\.a\.client_secret holds a secret by its name"),
        ("model_loader_extra_config.aws_secret_access_key", "x", "holds a secret by its name, .*: set AWS_ACCESS_KEY_"),
        ("ssl_keyfile_password", "x", "ssl_keyfile_password holds a secret by its name"),
        ("model", "s3://key:pw@bucket/m", "model holds a password in a URL, .*: set AWS_ACCESS_KEY_ID and"),
        ("model", "https://abcdef@hub.example/m", "model holds a password in a URL"),
        ("a", {"ghp_" + "x1" * 10: "ghp_" + "y1" * 10}, r"a\.___ holds a GitHub token, .*: set GITHUB_TOKEN"),
    ],
)
def test_a_refusal_names_the_place_the_kind_and_the_variable(name: str, value: object, why: str) -> None:
    import re

    assert re.search(why, refusal(name, value))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"),
        ("model", "s3://bucket/folder/model"),
        ("model", "/models/sk-learn/with-a-long-name-2"),
        ("model", "task-specific-model-12345678901234"),
        ("max_num_seqs", 64),
        ("hf_token", True),
        ("hf_token", None),
        ("hf_token", "true"),
        ("hf_token", "$HF_TOKEN"),
        ("tokenizer", "org/tokenizer"),
        ("hf_overrides", {"eos_token": "</s>", "bos_token_id": 1, "image_token": "<image>"}),
        ("reasoning_config", '{"reasoning_start_str": "<think>"}'),
        ("chat_template", "{{ bos_token }}{% for message in messages %}"),
        ("middleware", "my_package.Basic"),
        ("num_speculative_tokens", "5"),
        ("max_num_batched_tokens", "8192"),
        ("speculative_config", '{"method": "ngram", "num_speculative_tokens": 3}'),
    ],
)
def test_what_is_no_secret_is_taken(name: str, value: object) -> None:
    assert refusal(name, value) == ""


@pytest.mark.parametrize(
    "text",
    [
        'vllm:prompt_tokens_total{model_name="b"} 4.0',
        "the key is read from $MY_KEY; a gateway may need a header as well (--gpucap-header)",
        "401 Unauthorized; no key was sent: set $OPENAI_API_KEY, or name another with --gpucap-api-key-env",
        "--gpucap-api-key-env=MY_KEY --gpucap-url=http://10.0.0.5:8000/v1 --max-num-batched-tokens 8192",
        "http://127.0.0.1:8000/v1/chat/completions answered 400 Bad Request: 'max_tokens' must be at least 1",
        "Basic arithmetic and bearer of good news",
        'WWW-Authenticate: Bearer realm="x"',
        "token ids are words; eos_token: </s>; output_tokens=32 tokens: 5",
        "secret: none, password: not set",
        "the URL carries a user or password: name the environment variable that holds the key",
        "tests/test_a.py::test_b[secret] p95 E2E 20 s",
        "python /x/vllm_serve.py org/model@main --served-model-name gpucap-m-0123456789ab",
    ],
)
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert masked(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("x-{jwt} y", "*** y"),
        ("/eyJabcdefghij-{jwt}/", "/***/"),
        (r"run\n--api-key opaque1 more", r"run\n--api-key *** more"),
        ("'--hf-token' '--hub-token opaque1'", "'--hf-token' '--hub-token ***'"),
        ("-----\n--api-key opaque1\n-----", "-----\n--api-key ***\n-----"),
    ],
)
def test_a_secret_is_seen_next_to_what_looks_alike(text: str, shown: str) -> None:
    assert masked(text.format(jwt=PLANTED["JSON web token"].core)) == shown


def test_masking_is_quick_on_long_lines() -> None:
    # Each would take minutes if the patterns could go back and forth in it.
    for text in (
        "a-" * 100_000,
        "a" * 300_000,
        "http://" * 30_000,
        "api_key" * 30_000,
        "Bearer " * 30_000,
        "://" * 90_000,
        "eyJ-" * 1_000_000,
        "-" * 1_000_000,
    ):
        masked(text)


def test_names() -> None:
    assert all(map(is_secret_name, ["api_key", "--api-key", "x.hf_token", "token", "--token", "AWS_SECRET_ACCESS_KEY"]))
    assert not any(map(is_secret_name, ["eos_token", "tokens", "tokenizer", "key", "keyfile", "max_tokens", "monkey"]))

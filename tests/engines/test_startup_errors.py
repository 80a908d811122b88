# ruff: noqa: E501  (messages are quoted as they were logged)
"""What a log says of a failed start: logs of real vLLM servers, and messages that users of GPUs reported in public."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from pytest_gpucap.engines.startup_errors import PATTERNS, diagnose, find, oom_kills

LOGS = Path(__file__).with_name("logs")
"""Shortened logs of vLLM 0.32.0 (CPU build), each provoked with the tiny model."""


@pytest.mark.parametrize(
    ("log", "name", "cause"),
    [
        ("unknown_flag", "unknown flag", "this vLLM does not know --no-such-flag"),
        ("bad_argument", "bad argument", "vLLM refused an argument: argument --dtype: invalid choice: 'float12'"),
        ("bad_argument_int", "bad argument", "vLLM refused an argument: argument --max-model-len: invalid"),
        ("bad_value", "bad configuration", "vLLM refused its configuration: gpu_memory_utilization: Input should be"),
        ("tp2", "bad configuration", "vLLM refused its configuration: Total number of attention heads (4) must be"),
        ("quant", "bad configuration", "vLLM refused its configuration: Cannot find the config file for awq; "),
        ("model_not_found_hub", "model not found", "the model was not found"),
        ("model_not_found_folder", "model not found", "the model was not found"),
        (
            "max_model_len_too_large",
            "max_model_len too large",
            "max_model_len 100000 is more than the model can take (max_position_embeddings=8192.0 ",
        ),
        (
            "kv_cache_too_small",
            "KV cache too small",
            "the KV cache is too small for max_model_len 8192: 0.01 GiB needed, 0.0 GiB available; lower max_model_len",
        ),
        (
            "out_of_host_memory_kv",
            "out of host memory",
            "not enough host memory for the KV cache: 6.75/8.21 GiB free, 2000.0 GiB asked for",
        ),
        (
            "out_of_host_memory_util",
            "out of host memory",
            "not enough host memory: 6.06/8.21 GiB free, 0.999, 8.2 GiB asked for",
        ),
        ("port_taken", "port taken", "a port was taken"),
    ],
)
def test_a_real_log_names_its_cause(log: str, name: str, cause: str) -> None:
    text = (LOGS / f"{log}.txt").read_text()
    found = find(text)
    assert found is not None
    assert found[0].name == name
    assert diagnose(text, 1).startswith(cause)
    assert "\n" not in diagnose(text, 1)


def test_every_recorded_log_is_tested() -> None:
    source = Path(__file__).read_text()
    assert {path.stem for path in LOGS.iterdir() if path.stem not in source} == set()


REPORTED = [
    # vllm-project/vllm#20305, pytorch/pytorch#175666
    (
        (
            "ValueError: Free memory on device cuda:0 (19.77/22.05 GiB) on startup is less than desired GPU memory "
            "utilization (0.9, 19.84 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
        ),
        "not enough free GPU memory: 19.77/22.05 GiB free, 0.9, 19.84 GiB asked for",
    ),
    # ovg-project/kvcached#29 (vLLM 0.9.2)
    (
        (
            "ValueError: Free memory on device (59.32/79.15 GiB) on startup is less than desired GPU memory utilization "
            "(0.9, 71.24 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
        ),
        "not enough free GPU memory: 59.32/79.15 GiB free, 0.9, 71.24 GiB asked for",
    ),
    # vllm-project/vllm#27508
    (
        (
            "(EngineCore_DP0 pid=6880) ValueError: To serve at least one request with the models's max seq len (131072), "
            "(4.54 GiB KV cache is needed, which is larger than the available KV cache memory (1.71 GiB). Based on the "
            "available memory, the estimated maximum model length is 49360."
        ),
        "the KV cache is too small for max_model_len 131072: 4.54 GiB needed, 1.71 GiB available",
    ),
    # vllm-project/vllm#2418
    (
        (
            "ValueError: The model's max seq len (4096) is larger than the maximum number of tokens that can be stored in "
            "KV cache (3664). Try increasing `gpu_memory_utilization` or decreasing `max_model_len`"
        ),
        "the KV cache is too small for max_model_len 4096: 3664 tokens fit",
    ),
    # vllm-project/vllm#14574
    (
        (
            "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when "
            "initializing the engine."
        ),
        "no GPU memory is left for the KV cache",
    ),
    # vllm-project/vllm#16343
    (
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 350.00 MiB. GPU 0 has a total capacity of "
            "23.68 GiB of which 212.81 MiB is free."
        ),
        "out of GPU memory (tried to allocate 350.00 MiB)",
    ),
    # vllm-project/vllm#1157
    (
        (
            "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your Tesla T4 GPU has "
            "compute capability 7.5. You can use float16 instead by explicitly setting the `dtype` flag in CLI, for "
            "example: --dtype=half."
        ),
        'the Tesla T4 (compute capability 7.5) has no Bfloat16; add dtype="half" to the vllm marker',
    ),
    # lllyasviel/Fooocus#1313 (the message is PyTorch's)
    (
        (
            "RuntimeError: The NVIDIA driver on your system is too old (found version 11040). Please update your GPU "
            "driver by downloading and installing a new version"
        ),
        "the NVIDIA driver is too old for this build of vLLM (it found 11040)",
    ),
    # vllm-project/vllm#13815
    (
        "ValueError: invalid literal for int() with base 10: 'GPU-52a3a85d-3c55-ca3a-a955-82c69ed360fc'",
        "this vLLM does not accept devices by UUID (GPU-52a3a85d-3c55-ca3a-a955-82c69ed360fc)",
    ),
    # vllm-project/vllm#12847
    ("RuntimeError: Failed to infer device type", "vLLM sees no GPU that it can use"),
    # vllm-project/vllm#9051
    (
        "ImportError('libcuda.so.1: cannot open shared object file: No such file or directory')",
        "vLLM sees no GPU that it can use",
    ),
    # vllm-project/vllm#28873
    (
        "AssertionError: local_world_size (16) must be less than or equal to the number of visible devices (8).",
        "it needs more GPUs than it sees",
    ),
    # vllm-project/vllm#15217
    (
        "RuntimeError: please ensure that world_size (2) is less than than max local gpu count (1)",
        "it needs more GPUs than it sees",
    ),
    # LLaVA-VL/LLaVA-NeXT#140 (the message is the hub client's)
    (
        (
            "OSError: You are trying to access a gated repo.\nMake sure to have access to it at "
            "https://huggingface.co/google/gemma-2-2b.\n401 Client Error.\nAccess to model google/gemma-2-2b is "
            "restricted. You must have access to it and be authenticated to access it. Please log in."
        ),
        "the model is gated and this machine has no token for it",
    ),
    (
        (
            "/usr/bin/python3: Error while finding module specification for 'vllm.entrypoints.openai.api_server' "
            "(ModuleNotFoundError: No module named 'vllm')"
        ),
        "the interpreter has no vLLM; install vLLM there or choose another with --gpucap-vllm-python",
    ),
    # Provoked on a virtual machine whose CPU shows AMX but does not grant its tile registers
    (
        (
            "(EngineCore pid=11635) ERROR 11-22 19:28:39 [multiproc_executor.py:315] Worker proc VllmWorker-0 died "
            "unexpectedly (exit code: -4), shutting down executor."
        ),
        "a process of it used an instruction that this CPU does not grant (SIGILL)",
    ),
]


@pytest.mark.parametrize(("text", "cause"), REPORTED)
def test_a_reported_message_names_its_cause(text: str, cause: str) -> None:
    noise = "INFO 04-09 05:39:54 [core.py:390] loading\n"
    after = "\nRuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n"
    assert diagnose(noise + text + after, 1).startswith(cause)


def test_a_sound_log_names_no_cause() -> None:
    warnings = (
        'WARNING [_custom_ops.py:20] Failed to import from vllm._C with ModuleNotFoundError("No module named '
        "'vllm._C'\")\nINFO: Application startup complete.\n"
    )
    assert find(warnings) is None


@pytest.mark.parametrize(
    ("log", "exit_code", "cause"),
    [
        ("", -signal.SIGKILL, "it was killed with SIGKILL, which is what the kernel does when host memory runs out"),
        ("", -signal.SIGILL, "it used an instruction that this CPU does not grant (SIGILL)"),
        ("", -signal.SIGSEGV, "it was ended by SIGSEGV, and the log names no cause"),
        ("hello", 3, "it ended with exit code 3, and the log names no cause"),
        ("hello", None, "the log names no cause"),
        (
            (
                "a.b.OddError: first\nValueError: the odd cause\nRuntimeError: Engine core initialization failed. See root "
                "cause above."
            ),
            1,
            "ValueError: the odd cause",
        ),
    ],
)
def test_an_unknown_log_is_told_as_it_is(log: str, exit_code: int | None, cause: str) -> None:
    assert diagnose(log, exit_code).startswith(cause)


def test_an_engine_that_was_killed_leaves_no_word() -> None:
    text = (LOGS / "engine_killed.txt").read_text()
    assert diagnose(text, 1).startswith("its engine process ended without a message, so it was probably killed")
    assert diagnose(text, 1, oom_kills=1).startswith(
        "the kernel's out-of-memory killer ended a process while it started"
    )


def test_the_kernel_counts_its_kills() -> None:
    assert oom_kills() >= 0
    assert f"oom_kill {oom_kills()}\n" in Path("/proc/vmstat").read_text()


def test_no_pattern_catches_all() -> None:
    for pattern in PATTERNS:
        assert pattern.log.search("INFO 11-22 19:40:11 [model.py:2152] Using max model len 4096") is None, pattern.name

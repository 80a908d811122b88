# ruff: noqa: E501  (messages are quoted as they were logged)
"""What a log says of a failed start: logs of real vLLM servers, and messages that users of GPUs reported in public."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from pytest_gpucap.engines.startup_diagnosis import diagnose, find, oom_kills
from pytest_gpucap.engines.startup_errors import PATTERNS, Given
from pytest_gpucap.vllm_arguments import VllmArguments

LOGS = Path(__file__).with_name("logs")
"""Shortened logs of vLLM 0.32.0 (CPU build), each provoked with the tiny model or a stand-in for the hub."""


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
            "not enough host memory: 6.06/8.21 GiB free, 8.2 GiB asked for",
        ),
        ("port_taken", "port taken", "a port was taken"),
        (
            "import_error",
            "packages do not fit",
            "flash_attn_2_cuda.cpython-311-x86_64-linux-gnu.so was built for another",
        ),
        (
            "shm_full",
            "shared memory full",
            "the shared memory (/dev/shm) is too small: 160 MiB needed, 8 MiB free; give the container more shared memory",
        ),
        ("hub_429", "hub refuses", "hub.example refused the download: too many requests (HTTP 429); set HF_TOKEN"),
        ("hub_tls", "certificate", "a TLS certificate on the way to the model's hub cannot be verified"),
        ("hub_403", "model not allowed", "the model is gated and this machine has no token for it (model f/x)"),
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
        "not enough free GPU memory: 19.77/22.05 GiB free, 19.84 GiB asked for",
    ),
    # ovg-project/kvcached#29 (vLLM 0.9.2)
    (
        (
            "ValueError: Free memory on device (59.32/79.15 GiB) on startup is less than desired GPU memory utilization "
            "(0.9, 71.24 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
        ),
        "not enough free GPU memory: 59.32/79.15 GiB free, 71.24 GiB asked for",
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
    # vllm-project/vllm#48879, with the words of vLLM 0.32
    (
        (
            "RuntimeError: Insufficient space in /dev/shm for shared-memory ring buffer: 240 MiB required, 64 MiB free. "
            "Increase /dev/shm (e.g. --shm-size or --ipc=host)."
        ),
        "the shared memory (/dev/shm) is too small: 240 MiB needed, 64 MiB free; give the container more shared memory",
    ),
    # logicalclocks/hopsworks#1557 (the message is PyTorch's)
    (
        "RuntimeError: unable to write to file </torch_739_144252761_4>: No space left on device (28)",
        "the shared memory (/dev/shm) is full; give the container more shared memory (docker run --shm-size=8g",
    ),
    # NVIDIA/Megatron-LM#878 (the message is Python's)
    (
        (
            '  File "/usr/lib/python3.10/multiprocessing/synchronize.py", line 57, in __init__\n'
            "    sl = self._semlock = _multiprocessing.SemLock(\nOSError: [Errno 28] No space left on device"
        ),
        "the shared memory (/dev/shm) is full",
    ),
    # vllm-project/vllm#789 and NCCL's troubleshooting guide, "Shared Memory"
    (
        (
            "[0] misc/shmutils.cc:72 NCCL WARN Error: failed to extend /dev/shm/nccl-UlhyGj to 5767524 bytes, error: No "
            "space left on device (28)\nRuntimeError: NCCL error: unhandled system error (run with NCCL_DEBUG=INFO for "
            "details)"
        ),
        "the shared memory (/dev/shm) is full",
    ),
    # odysseus-dev/odysseus#6259
    ("RuntimeError: scheduler died during initialization (exit code: -7)", "the shared memory (/dev/shm) is full"),
    ("OSError: [Errno 28] No space left on device: '/root/.cache/huggingface/x.incomplete'", "the disk is full; free"),
    # vllm-project/vllm#36802
    (
        (
            "triton.runtime.errors.OutOfResources: out of resource: shared memory, Required: 81920, Hardware limit: 65536. "
            "Reducing block sizes or `num_stages` may help."
        ),
        "a Triton kernel needs more shared memory than the GPU has (81920 of 65536); name an attention_backend",
    ),
    # huggingface/transformers#34841
    (
        (
            "requests.exceptions.HTTPError: 429 Client Error: Too Many Requests for url: https://huggingface.co/meta-llama/"
            "Meta-Llama-3-8B/resolve/main/config.json\n\nThe above exception was the direct cause of the following "
            "exception:\n\nOSError: We couldn't connect to 'https://huggingface.co' to load the files"
        ),
        "huggingface.co refused the download: too many requests (HTTP 429); set HF_TOKEN",
    ),
    # huggingface/huggingface_hub#3312
    (
        "HTTP Error 429 thrown while requesting HEAD https://huggingface.co/a/b/resolve/v2/config.json",
        "the model's hub refused the download: too many requests (HTTP 429)",
    ),
    # Stability-AI/stable-virtual-camera#23 (the message is the hub client's)
    (
        (
            "urllib3.exceptions.MaxRetryError: HTTPSConnectionPool(host='huggingface.co', port=443): Max retries exceeded "
            "with url: /naver/DUSt3R/resolve/main/config.json (Caused by SSLError(SSLCertVerificationError(1, '[SSL: "
            "CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate in certificate chain "
            "(_ssl.c:1007)')))\nhuggingface_hub.errors.LocalEntryNotFoundError: An error happened while trying to locate"
        ),
        "the TLS certificate of huggingface.co cannot be verified, as behind a proxy that inspects TLS; set SSL_CERT_FILE",
    ),
    # the same from httpx, which newer hub clients use
    (
        (
            "httpx.ConnectError: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: unable to get local issuer "
            "certificate (_ssl.c:1000)"
        ),
        "a TLS certificate on the way to the model's hub cannot be verified",
    ),
    (
        (
            "requests.exceptions.ConnectionError: HTTPSConnectionPool(host='huggingface.co', port=443): Max retries exceeded "
            "with url: /a/b (Caused by NameResolutionError(\"Failed to resolve 'huggingface.co' ([Errno -3] Temporary "
            "failure in name resolution)\"))\nOSError: We couldn't connect to 'https://huggingface.co' to load the files"
        ),
        "the model's hub cannot be reached; check the network and HTTPS_PROXY",
    ),
    (
        "OSError: Tunnel connection failed: 407 Proxy Authentication Required",
        "the proxy on the way to the model's hub refused the connection; correct HTTPS_PROXY",
    ),
    (
        "huggingface_hub.errors.HfHubHTTPError: 403 Forbidden: Please enable access to public gated repositories",
        "the model's hub does not let this machine read the model; set HF_TOKEN",
    ),
    (
        "huggingface_hub.errors.HfHubHTTPError: 503 Service Unavailable for url: https://huggingface.co/a/b",
        "huggingface.co has a fault (HTTP 503); run again later",
    ),
    # vllm-project/vllm#31018
    (
        "ImportError: libcudart.so.12: cannot open shared object file: No such file or directory",
        "libcudart.so.12 of CUDA is missing: vLLM was built for another CUDA version; install the vLLM that is built for",
    ),
    (
        "ImportError: libGL.so.1: cannot open shared object file: No such file or directory",
        "the shared library libGL.so.1 is missing; install the system package that has it",
    ),
    # flashinfer-ai/flashinfer#1919, #1781; vllm-project/vllm#36077
    (
        "(Worker_TP1 pid=3534) ERROR 10-11 22:28:17 [multiproc_executor.py:694] RuntimeError: Could not find nvcc",
        "a kernel is compiled at the start, and there is no nvcc; install the CUDA toolkit of vLLM's CUDA version",
    ),
    (
        "FileNotFoundError: [Errno 2] No such file or directory: 'nvcc'",
        "a kernel is compiled at the start, and there is no nvcc",
    ),
    (
        (
            "RuntimeError: Ninja build failed. Ninja output:\n/bin/sh: 1: :/usr/local/cuda-12.8/bin/nvcc: not found\n"
            "ninja: build stopped: subcommand failed."
        ),
        "a kernel is compiled at the start, and there is no nvcc",
    ),
    (
        "FileNotFoundError: [Errno 2] No such file or directory: 'ninja'",
        "a kernel is compiled at the start, and there is no n",
    ),
    # flashinfer-ai/flashinfer#4410
    (
        "tensor_fill.h:63:10: fatal error: curand_kernel.h: No such file or directory\nninja: build stopped: subcommand failed.",
        "a kernel does not compile at the start: curand_kernel.h: No such file or directory",
    ),
    # vllm-project/vllm#10626
    (
        "RuntimeError: NCCL error: unhandled system error (run with NCCL_DEBUG=INFO for details)",
        "NCCL, which connects the GPUs, failed: unhandled system error; start once with NCCL_DEBUG=INFO",
    ),
    # vllm-project/vllm#19185
    (
        "RuntimeError: CUDA error: no kernel image is available for execution on the device",
        "this build of vLLM has no kernels for the GPU; install a vLLM that is built for its compute capability",
    ),
    # vllm-project/vllm#14452 (the message is PyTorch's)
    (
        "NVIDIA GeForce RTX 5090 with CUDA capability sm_120 is not compatible with the current PyTorch installation.",
        "this build of vLLM has no kernels for the NVIDIA GeForce RTX 5090 (sm_120)",
    ),
    # vllm-project/vllm#4202, #14040
    (
        (
            "ValueError: The quantization method awq is not supported for the current GPU. Minimum capability: 75. Current "
            "capability: 70."
        ),
        "quantization awq needs compute capability 75, and the GPU has 70",
    ),
    (
        (
            "RuntimeError: ('Quantization scheme is not supported for ', 'the current GPU. Min capability: 80. ', 'Current "
            "capability: 75.')"
        ),
        "the model's quantization needs compute capability 80, and the GPU has 75",
    ),
    # Provoked on a virtual machine whose CPU shows AMX but does not grant its tile registers
    (
        (
            "(EngineCore pid=11635) ERROR 11-22 19:28:39 [multiproc_executor.py:315] Worker proc VllmWorker-0 died "
            "unexpectedly (exit code: -4), shutting down executor."
        ),
        "a process of it used an instruction that this CPU does not grant (SIGILL)",
    ),
    # sgl-project/sglang#4330
    (
        "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.",
        "no GPU memory is left for the KV cache; raise mem_fraction_static",
    ),
    # NVIDIA/TensorRT-LLM#5950 and #4497
    (
        (
            "RuntimeError: Executor creation failed due to insufficient GPU memory.\n\nThe following component could not "
            "be created: Additional executor resources\nTotal GPU memory (GiB): 95.00"
        ),
        "out of GPU memory: TensorRT-LLM could not create a part (Additional executor resources); lower kv_cache_free",
    ),
    (
        (
            "RuntimeError: Executor creation failed with an error which might indicate insufficient GPU memory.\n\nThe "
            "following component could not be created: Model\nTotal GPU memory (GiB): 95.09"
        ),
        "out of GPU memory: TensorRT-LLM could not create a part (Model)",
    ),
]


@pytest.mark.parametrize(("text", "cause"), REPORTED)
def test_a_reported_message_names_its_cause(text: str, cause: str) -> None:
    noise = "INFO 04-09 05:39:54 [core.py:390] loading\n"
    after = "\nRuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n"
    assert diagnose(noise + text + after, 1).startswith(cause)


INSPECTED = (LOGS / "failed_to_be_inspected.txt").read_text()
RAISED = re.search(r"ImportError: /opt/vllm.*", INSPECTED)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        # vllm-project/vllm#13047
        (
            "ImportError: /tmp/vllm/vllm/_C.abi3.so: undefined symbol: _ZN3c105ErrorC2ENS_14SourceLocationE",
            "_C.abi3.so was built for another PyTorch than the one here (undefined symbol); install vLLM into an environment",
        ),
        (
            "ImportError: cannot import name 'Mllama4Config' from 'transformers' (/usr/lib/x/__init__.py)",
            "Python packages do not fit together: ImportError: cannot import name 'Mllama4Config' from 'transformers'; ",
        ),
        ("ModuleNotFoundError: No module named 'timm'", "the Python package timm is missing; install it where vLLM is"),
        (
            "ValueError: Using a `device_map` requires `accelerate`. You can install it with `pip install accelerate`",
            "the Python package accelerate is missing; install it where transformers is",
        ),
        ("ImportError: numpy is too new", "an import fails: ImportError: numpy is too new; install vLLM into"),
        ("AssertionError: nobody has seen this before", "AssertionError: nobody has seen this before"),
        ("", "Model architectures ['Qwen2ForCausalLM'] failed to be inspected"),
    ],
)
def test_the_innermost_cause_wins_over_the_summary_below_it(error: str, cause: str) -> None:
    assert RAISED is not None
    quiet = "(APIServer pid=1) WARNING 08-07 01:36:08 [x.py:1] OSError: [Errno 28] No space left on device, no harm\n"
    assert diagnose(quiet + INSPECTED.replace(RAISED[0], error), 1).startswith(cause)


def test_of_a_chain_the_first_cause_is_told_with_what_came_of_it() -> None:
    text = (
        "builtins.OddError: the disk hiccuped\n\nThe above exception was the direct cause of the following exception:\n\n"
        "Traceback (most recent call last):\nValueError: cannot load the model\n"
    )
    assert diagnose(text, 1) == "builtins.OddError: the disk hiccuped (it led to ValueError: cannot load the model)"


@pytest.mark.parametrize(
    ("log", "exit_code", "given", "said", "unsaid"),
    [
        ("Failed to find C compiler", 1, {}, "or add enforce_eager=True", ""),
        ("Failed to find C compiler", 1, {"enforce_eager": True}, "install them", "enforce_eager"),
        ("", -signal.SIGILL, {"dtype": "float32"}, "install a vLLM that is built for this CPU", "add dtype"),
        ("MemoryError", 1, {"cpu": False}, "free memory of the host", "VLLM_CPU"),
        ("MemoryError", 1, {"cpu": True}, "lower VLLM_CPU_KVCACHE_SPACE", ""),
        ("MemoryError", 1, {"cpu": True, "kv_cache_memory_bytes": "2G"}, "lower kv_cache_memory_bytes", "VLLM_CPU"),
        ("No available memory for the cache blocks", 1, {"cpu": False}, "raise gpu_memory_utilization", "CPU"),
        (
            "No available memory for the cache blocks",
            1,
            {"kv_cache_memory_bytes": "2G"},
            "raise kv_cache_mem",
            "utilization",
        ),
        ("Unknown quantization method: wow", 1, {"quantization": "wow"}, "remove quantization='wow' from", ""),
        ("Unknown quantization method: wow", 1, {}, "the model in another format", "remove"),
        ("CUDA out of memory", 1, {"data_parallel_size": 2}, "lower gpu_memory_utilization", "tensor_parallel"),
        (
            "Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your T4 GPU has compute capability 7.5",
            *(1, {"dtype": "bfloat16"}, 'change dtype="bfloat16" of the vllm marker to "half"', "add"),
        ),
        (
            "OutOfResources: out of resource: shared memory, Required: 2, Hardware limit: 1",
            1,
            {},
            "name an attention",
            "",
        ),
        (
            "OutOfResources: out of resource: shared memory, Required: 2, Hardware limit: 1",
            *(1, {"attention_backend": "TRITON_ATTN"}, "name another attention_backend than TRITON_ATTN", "name an a"),
        ),
    ],
)
def test_no_advice_contradicts_the_command(
    log: str, exit_code: int, given: dict[str, object], said: str, unsaid: str
) -> None:
    cpu = given.pop("cpu", None) if "cpu" in (given := dict(given)) else None
    told = diagnose(log, exit_code, given=Given(VllmArguments(given), None if cpu is None else bool(cpu)))
    assert said in told
    assert not unsaid or unsaid not in told.partition(";")[2]


def test_a_sound_log_names_no_cause() -> None:
    warnings = (
        'WARNING [_custom_ops.py:20] Failed to import from vllm._C with ModuleNotFoundError("No module named '
        "'vllm._C'\")\nINFO: Application startup complete.\n"
    )
    assert find(warnings) is None


SGLANG_FAILED = (
    "[2026-11-02 18:18:34 TP0] Scheduler hit an exception: Traceback (most recent call last):\n"
    "ValueError: the odd cause\n\n"
    "[2026-11-02 18:18:34] Received sigquit from a child process. It usually means the child failed.\n"
)


@pytest.mark.parametrize(
    ("log", "exit_code", "cause"),
    [
        ("", -signal.SIGKILL, "it was killed with SIGKILL, which is what the kernel does when host memory runs out"),
        ("", -signal.SIGILL, "it used an instruction that this CPU does not grant (SIGILL)"),
        (
            "",
            -signal.SIGBUS,
            "it was ended by SIGBUS, which is what the kernel does when /dev/shm is full; give the con",
        ),
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
        ("ValueError: the odd cause\nRuntimeError: Executor worker returned error\n", 1, "ValueError: the odd cause"),
        # SGLang ends itself; where the kernel ended one of its processes, no exception stands above
        (SGLANG_FAILED, -signal.SIGKILL, "ValueError: the odd cause"),
        (SGLANG_FAILED.partition("\n\n")[2], -signal.SIGKILL, "it was killed with SIGKILL"),
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

"""Why a vLLM server did not start: patterns in its log, each with a cause and a fix."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Pattern:
    """A known cause of failure.

    Attributes:
        name: short and stable, for tests and reports.
        log: regular expression to find in the log (``^`` and ``$`` match at every line); its groups fill `cause`.
        cause: what happened.
        fix: what to do about it.
    """

    name: str
    log: re.Pattern[str]
    cause: str
    fix: str

    def describe(self, match: re.Match[str]) -> str:
        """One line: the cause with the log's details, and the fix."""
        groups = {key: value.strip() for key, value in match.groupdict(default="?").items()}
        return f"{self.cause.format(**groups)}; {self.fix.format(**groups)}"


_MORE_MEMORY = "free memory, lower VLLM_CPU_KVCACHE_SPACE, or take a smaller model"


_LESS_GPU_MEMORY = "lower gpu_memory_utilization, max_num_seqs or max_model_len, or take a larger GPU"


def _pattern(name: str, log: str, cause: str, fix: str) -> Pattern:
    return Pattern(name, re.compile(log, re.MULTILINE), cause, fix)


# The first pattern found wins, so special causes stand before general ones: a server that runs out of memory also logs
# "Engine core initialization failed".
PATTERNS = (
    _pattern(
        "no vllm",
        # Not "vllm._C": a build for one device logs that about other devices' kernels, but still runs.
        r"Error while finding module specification for 'vllm|No module named '?(?:vllm|torch)'?\)?$",
        "the interpreter has no vLLM",
        "install vLLM there or choose another with --gpucap-vllm-python",
    ),
    _pattern(
        "no interpreter", r"cannot start (?P<what>\S+): (?P<why>.*)", "{what} cannot be run: {why}", "check the path"
    ),
    _pattern(
        "unknown flag",
        # `vllm serve` lists their values too.
        r"error: unrecognized arguments: (?P<flags>-\S*(?: -\S*)*)",
        "this vLLM does not know {flags}",
        "correct or remove the keyword of the vllm marker",
    ),
    _pattern(
        "bad argument",
        r"error: (?P<what>argument \S+: .*|ambiguous option: .*)",
        "vLLM refused an argument: {what}",
        "correct the keyword of the vllm marker",
    ),
    _pattern(
        "port taken",
        r"(?:Errno 98|EADDRINUSE).*|[Aa]ddress already in use.*",
        "a port was taken",
        "another process took it before the server did; run again",
    ),
    _pattern(
        "driver too old",
        r"NVIDIA driver on your system is too old \(found version (?P<version>\d+)\)"
        r"|CUDA driver version is insufficient for CUDA runtime version",
        "the NVIDIA driver is too old for this build of vLLM (it found {version})",
        "update the driver, or install a vLLM built for its CUDA version",
    ),
    _pattern(
        "not enough GPUs",
        r"[Ww]orld size \((?P<asked>\d+)\) is larger than the number of available GPUs \((?P<have>\d+)\)",
        "it needs {asked} GPUs and sees {have}",
        "lower tensor_parallel_size x pipeline_parallel_size or give it more devices",
    ),
    _pattern(
        "not enough GPUs",
        r"local_world_size \(\d+\) must be less than or equal to the number of visible devices"
        r"|ensure that world_size \(\d+\) is less than than max local gpu count",
        "it needs more GPUs than it sees",
        "lower tensor_parallel_size x pipeline_parallel_size or give it more devices",
    ),
    _pattern(
        "device id",
        r"(?:invalid literal for int\(\) with base 10:|Non-integer device ID) '(?P<device>(?:GPU|MIG)-[^']*)'",
        "this vLLM does not accept devices by UUID ({device})",
        "use a newer vLLM, or name the GPU by its index",
    ),
    _pattern(
        "no GPU",
        r"No CUDA GPUs are available|Failed to infer device type|no NVIDIA driver on your system"
        r"|NVML Shared Library Not Found|libcuda\.so\.1: cannot open shared object file"
        r"|CUDA error: no CUDA-capable device",
        "vLLM sees no GPU that it can use",
        "check nvidia-smi and CUDA_VISIBLE_DEVICES; without a GPU choose an interpreter with the CPU build of vLLM",
    ),
    _pattern(
        "dtype not supported",
        r"(?P<dtype>[Bb][Ff]loat16) is only supported on GPUs with compute capability of at least (?P<need>[\d.]+?)\.? "
        r"Your (?P<gpu>.*?) GPU has compute capability (?P<have>[\d.]+\d)",
        "the {gpu} (compute capability {have}) has no {dtype}",
        'add dtype="half" to the vllm marker',
    ),
    _pattern(
        "KV cache too small",
        r"To serve at least one request with the models?'s max seq len \((?P<length>[\d,]+)\).*?"
        r"(?P<need>[\d.]+ GiB) KV cache is needed.*?available KV cache memory \((?P<have>[\d.]+ GiB)\)",
        "the KV cache is too small for max_model_len {length}: {need} needed, {have} available",
        "lower max_model_len, or raise gpu_memory_utilization (on a CPU: VLLM_CPU_KVCACHE_SPACE)",
    ),
    _pattern(
        "KV cache too small",
        r"The model's max seq len \((?P<length>\d+)\) is larger than the maximum number of tokens "
        r"that can be stored in KV cache \((?P<have>\d+)\)",
        "the KV cache is too small for max_model_len {length}: {have} tokens fit",
        "lower max_model_len or raise gpu_memory_utilization",
    ),
    _pattern(
        "KV cache too small",
        r"No available memory for the cache blocks",
        "no GPU memory is left for the KV cache",
        "raise gpu_memory_utilization, or take a GPU with more memory",
    ),
    _pattern(
        "no GPU memory",
        r"Free memory on device (?:\S+ )?\((?P<have>[^)]*)\) on startup "
        r"is less than desired GPU memory utilization \((?P<want>[^)]*)\)",
        "not enough free GPU memory: {have} free, {want} asked for",
        "end the other programs on the GPU, or lower gpu_memory_utilization",
    ),
    _pattern(
        "no GPU memory",
        r"(?:CUDA|HIP) out of memory\. Tried to allocate (?P<size>[\d.]+ [KMG]iB)",
        "out of GPU memory (tried to allocate {size})",
        _LESS_GPU_MEMORY,
    ),
    _pattern(
        "no GPU memory", r"CUDA out of memory|torch\.(?:cuda\.)?OutOfMemoryError", "out of GPU memory", _LESS_GPU_MEMORY
    ),
    _pattern(
        "out of host memory",
        r"Available memory on node \d+ \((?P<have>[^)]*)\) on kv cache allocation "
        r"is less than requested memory for kv \((?P<want>[^)]*)\)",
        "not enough host memory for the KV cache: {have} free, {want} asked for",
        "lower VLLM_CPU_KVCACHE_SPACE or kv_cache_memory_bytes",
    ),
    _pattern(
        "out of host memory",
        r"Available memory on node \d+ \((?P<have>[^)]*)\) on startup is less than desired CPU memory utilization "
        r"\((?P<want>[^)]*)\)",
        "not enough host memory: {have} free, {want} asked for",
        "lower gpu_memory_utilization (on the CPU it is the share of host memory)",
    ),
    _pattern(
        "out of host memory",
        r"DefaultCPUAllocator: (?:can't|not enough).*?allocate (?P<size>\d+ bytes|memory)|MemoryError|std::bad_alloc"
        r"|Cannot allocate memory|[Nn]ot enough (?:available )?(?:CPU )?memory.*",
        "out of host memory",
        _MORE_MEMORY,
    ),
    _pattern(
        "model not allowed",
        r"(?:Access to model (?P<model>\S+) is restricted|You are trying to access a gated repo|GatedRepoError).*",
        "the model is gated and this machine has no token for it (model {model})",
        "accept its licence on its hub and set HF_TOKEN",
    ),
    _pattern(
        "model not found",
        r"Invalid repository ID or local directory specified|is not a local folder and is not a valid model identifier"
        r"|Repo id must be in the form|RepositoryNotFoundError|Can't load the configuration of '"
        r"|couldn't connect to 'https://huggingface\.co'|LocalEntryNotFoundError|OfflineModeIsEnabled"
        r"|Cannot find model (?:weights|config)|No such file or directory: '[^']*config\.json'",
        "the model was not found",
        "check its name or folder, and that the hub can be reached (or name a synthetic: model)",
    ),
    _pattern(
        "max_model_len too large",
        r"User-specified max_model_len \((?P<asked>\d+)\) is greater than the derived max_model_len \((?P<why>[^)]*)",
        "max_model_len {asked} is more than the model can take ({why})",
        "lower max_model_len",
    ),
    _pattern(
        "illegal instruction",
        r"died unexpectedly \(exit code: -4\)|Failed core proc\(s\): \{[^}]*: -4\b",
        "a process of it used an instruction that this CPU does not grant (SIGILL)",
        'add dtype="float32" to the vllm marker',
    ),
    _pattern(
        "out of host memory",
        r"died unexpectedly \(exit code: -9\)|Failed core proc\(s\): \{[^}]*: -9\b",
        "a process of it was killed with SIGKILL, which is what the kernel does when host memory runs out",
        _MORE_MEMORY,
    ),
    _pattern(
        "disk full", r"No space left on device", "the disk is full", "free disk space for models and temporary files"
    ),
    _pattern(
        "no compiler",
        r"InvalidCxxCompiler|Failed to find C compiler|fatal error: Python\.h: No such file",
        "torch.compile finds no compiler or no Python headers",
        "install them, or add enforce_eager=True to the vllm marker",
    ),
    _pattern(
        "bad configuration",
        r"validation errors? for \w+\n\s+Value error, (?P<why>.*?)(?: \[type=.*)?$",
        "vLLM refused its configuration: {why}",
        "correct the keyword of the vllm marker",
    ),
    _pattern(
        "bad configuration",
        r"validation errors? for \w+\n(?P<field>\S+)\n\s+(?P<why>.*?)(?: \[type=.*)?$",
        "vLLM refused its configuration: {field}: {why}",
        "correct the keyword of the vllm marker",
    ),
)

_EXCEPTION = re.compile(
    r"(?:^|\s)((?:[\w.]+\.)?(?:[A-Z]\w*(?:Error|Interrupt)|Exception)): (?P<text>.+)$", re.MULTILINE
)
_ROOT_ELSEWHERE = re.compile(
    r"root cause|Engine core initialization failed|EngineDeadError|RuntimeError: cancelled|See stack trace"
)
_SIGNALS: dict[int | None, str] = {
    -signal.SIGKILL: (
        f"it was killed with SIGKILL, which is what the kernel does when host memory runs out; {_MORE_MEMORY}"
    ),
    -signal.SIGILL: (
        'it used an instruction that this CPU does not grant (SIGILL); add dtype="float32" to the vllm marker'
    ),
}
_ENGINE_FAILED = "Engine core initialization failed"


def find(log: str) -> tuple[Pattern, re.Match[str]] | None:
    """The first known cause that the log shows, and its match; None if it shows none."""
    for pattern in PATTERNS:
        if match := pattern.log.search(log):
            return pattern, match
    return None


def diagnose(log: str, exit_code: int | None = None, oom_kills: int = 0) -> str:
    """The cause in one line, with the fix where one is known.

    Args:
        log: the whole log.
        exit_code: of the main process, negative for a signal; None while it runs.
        oom_kills: processes that the kernel's out-of-memory killer ended during the start (see `oom_kills`).
    """
    if found := find(log):
        pattern, match = found
        return pattern.describe(match)
    if oom_kills:
        return f"the kernel's out-of-memory killer ended a process while it started; {_MORE_MEMORY}"
    if exit_code in _SIGNALS:
        return _SIGNALS[exit_code]
    raised = [match for match in _EXCEPTION.finditer(log) if not _ROOT_ELSEWHERE.search(match[0])]
    if raised:
        return f"{raised[-1][1]}: {raised[-1]['text']}"
    if _ENGINE_FAILED in log:
        return "its engine process ended without a message, so it was probably killed; look for the reason in dmesg"
    return ended(exit_code)


def oom_kills() -> int:
    """Processes that the kernel's out-of-memory killer has ended since boot; 0 if the kernel does not report it."""
    try:
        counters = Path("/proc/vmstat").read_text(encoding="ascii")
    except OSError:
        return 0
    match = re.search(r"^oom_kill (\d+)$", counters, re.MULTILINE)
    return int(match[1]) if match else 0


def ended(exit_code: int | None) -> str:
    """How a process ended, in words."""
    if exit_code is None:
        return "the log names no cause"
    if exit_code < 0:
        return f"it was ended by {signal.Signals(-exit_code).name}, and the log names no cause"
    return f"it ended with exit code {exit_code}, and the log names no cause"

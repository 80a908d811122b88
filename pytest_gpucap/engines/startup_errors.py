"""Known causes why a vLLM server does not start: patterns in its log, each with a cause and a fix."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from pytest_gpucap.vllm_arguments import VllmArguments


@dataclass(frozen=True, slots=True)
class Given:
    """What is known of the command that failed, so that no advice contradicts it.

    Attributes:
        arguments: of the server.
        cpu: it runs on the CPU; None if that is not known.
    """

    arguments: VllmArguments = field(default_factory=VllmArguments)
    cpu: bool | None = None


NOTHING = Given()


@dataclass(frozen=True, slots=True)
class Pattern:
    """A known cause of failure.

    Attributes:
        name: short and stable, for tests and reports.
        log: regular expression to find in the log (``^`` and ``$`` match at every line); its groups fill `cause`.
        cause: what happened.
        fix: what to do about it, by what was given.
    """

    name: str
    log: re.Pattern[str]
    cause: str
    fix: Callable[[Given], str]

    def describe(self, match: re.Match[str], given: Given = NOTHING) -> str:
        """One line: the cause with the log's details, and the fix."""
        groups = {key: " ".join(value.split()) for key, value in match.groupdict(default="?").items()}
        return f"{self.cause.format(**groups)}; {self.fix(given).format(**groups)}"


def more_memory(given: Given) -> str:
    """What to do where host memory runs out."""
    if given.cpu is False:
        return "free memory of the host, or take a smaller model"
    if given.cpu and given.arguments.get("kv_cache_memory_bytes") is not None:
        return "free memory, lower kv_cache_memory_bytes, or take a smaller model"
    return "free memory, lower VLLM_CPU_KVCACHE_SPACE, or take a smaller model"


def _more_kv_cache(given: Given) -> str:
    if given.arguments.get("kv_cache_memory_bytes") is not None:
        return "lower max_model_len, or raise kv_cache_memory_bytes"
    if given.cpu is None:
        return "lower max_model_len, or raise gpu_memory_utilization (on a CPU: VLLM_CPU_KVCACHE_SPACE)"
    return f"lower max_model_len, or raise {'VLLM_CPU_KVCACHE_SPACE' if given.cpu else 'gpu_memory_utilization'}"


def _more_kv_memory(given: Given) -> str:
    if given.arguments.get("kv_cache_memory_bytes") is not None:
        return "raise kv_cache_memory_bytes, or take a GPU with more memory"
    return "raise gpu_memory_utilization, or take a GPU with more memory"


def _less_gpu_memory(given: Given) -> str:
    sharing = "" if given.arguments.data_parallel_size > 1 else ", spread it over more GPUs (tensor_parallel_size)"
    return f"lower gpu_memory_utilization, max_num_seqs or max_model_len{sharing}, or take a larger GPU"


def plain_dtype(given: Given) -> str:
    """What to do where the CPU lacks an instruction of the build."""
    if given.arguments.dtype in {"float32", "float"}:
        return "install a vLLM that is built for this CPU"
    return 'add dtype="float32" to the vllm marker'


def _half(given: Given) -> str:
    if given.arguments.dtype is None:
        return 'add dtype="half" to the vllm marker'
    return f'change dtype="{given.arguments.dtype}" of the vllm marker to "half"'


def _without_compiling(given: Given) -> str:
    return "install them" + (
        "" if given.arguments.get("enforce_eager") else ", or add enforce_eager=True to the vllm marker"
    )


def _other_quantization(given: Given) -> str:
    other = "take a GPU that has it, or the model in another format"
    if given.arguments.quantization is None:
        return other
    return f"remove quantization={given.arguments.quantization!r} from the vllm marker, or {other}"


def _other_attention(given: Given) -> str:
    backend = given.arguments.get("attention_backend")
    one = "an attention_backend" if backend is None else f"another attention_backend than {backend}"
    return f"name {one} in the vllm marker, update vLLM, or take a GPU class with more shared memory"


def _fewer_gpus(given: Given) -> str:
    asked = given.arguments.gpus_per_replica
    lower = (
        "lower tensor_parallel_size x pipeline_parallel_size" if asked > 1 else "lower what its configuration asks for"
    )
    return f"{lower} or give it more devices"


def _pattern(name: str, log: str, cause: str, fix: str | Callable[[Given], str]) -> Pattern:
    said = fix if callable(fix) else lambda _, text=fix: text
    return Pattern(name, re.compile(log, re.MULTILINE), cause, said)


MORE_SHM = (
    "give the container more shared memory (docker run --shm-size=8g or --ipc=host; in Kubernetes mount an emptyDir "
    "with medium: Memory at /dev/shm)"
)
_HUB = "the model's hub"
_ALONE = "install vLLM into an environment of its own, with the versions that it asks for"


# What a pattern leaves open is of a bounded length: else its time would grow with the square of a log's.
# The first pattern found wins, so special causes stand before general ones: a hub that refuses a download also makes
# transformers say that there is no such model. A summary that points to a cause above it matches nothing
# (see `startup_diagnosis.find`).
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
        "shared memory full",
        r"[Ii]nsufficient space in /dev/shm[^\n:]{0,100}: (?P<need>\d+ MiB) required, (?P<have>\d+ MiB) free",
        "the shared memory (/dev/shm) is too small: {need} needed, {have} free",
        MORE_SHM,
    ),
    _pattern(
        "shared memory full",
        r"unable to (?:write to file|mmap|open shared memory object) </?torch_|[Ii]nsufficient shared memory"
        r"|[Ii]nsufficient space in /dev/shm|out of shared memory|/dev/shm\b[^\n]{0,300}?No space left on device"
        r"|No space left on device[^\n]{0,300}?'/?(?:dev/shm|psm_|sem\.)"
        r"|(?:SemLock|shared_memory\.py|_posixshmem)[^~]{0,400}?No space left on device"
        r"|[Bb]us error \(core dumped\)|\(exit code: -7\)|Failed core proc\(s\): \{[^}]{0,300}: -7\b",
        "the shared memory (/dev/shm) is full",
        MORE_SHM,
    ),
    _pattern(
        "driver too old",
        r"NVIDIA driver on your system is too old \(found version (?P<version>\d+)\)",
        "the NVIDIA driver is too old for this build of vLLM (it found {version})",
        "update the driver, or install a vLLM built for its CUDA version",
    ),
    _pattern(
        "driver too old",
        r"CUDA driver version is insufficient for CUDA runtime version|compiled with an unsupported toolchain"
        r"|forward compatibility was attempted on non supported HW|unsupported display driver / cuda driver combination"
        r"|cudaErrorInsufficientDriver|CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
        "the NVIDIA driver is too old for this build of vLLM",
        "update the driver, or install a vLLM built for its CUDA version (nvidia-smi shows the newest that it can)",
    ),
    _pattern(
        "GPU not supported by build",
        r"(?:^|\s)(?P<gpu>(?:NVIDIA|Tesla|Quadro)[^\n]{0,100}?) with CUDA capability (?P<have>sm_\d+) is not "
        r"compatible with the current PyTorch installation",
        "this build of vLLM has no kernels for the {gpu} ({have})",
        "install a vLLM that is built for it",
    ),
    _pattern(
        "GPU not supported by build",
        r"no kernel image is available for execution on the device|named symbol not found[^\n]{0,300}?sm_\d"
        r"|Value 'sm_\d\w{0,20}' is not defined for option 'gpu-name'",
        "this build of vLLM has no kernels for the GPU",
        "install a vLLM that is built for its compute capability, or take a GPU class that this one knows",
    ),
    _pattern(
        "GPU busy",
        r"CUDA-capable device\(s\) is/are busy or unavailable|cudaErrorDevicesUnavailable",
        "another process holds the GPU for itself (compute mode exclusive), or the GPU has a fault",
        "end that process; nvidia-smi shows it",
    ),
    _pattern(
        "GPU fault",
        r"uncorrectable ECC error encountered|GPU is lost|fallen off the bus",
        "the GPU has a hardware fault",
        "look at dmesg for XID errors, and reset or replace the GPU",
    ),
    _pattern(
        "not enough GPUs",
        r"[Ww]orld size \((?P<asked>\d+)\) is larger than the number of available GPUs \((?P<have>\d+)\)",
        "it needs {asked} GPUs and sees {have}",
        _fewer_gpus,
    ),
    _pattern(
        "not enough GPUs",
        r"local_world_size \(\d+\) must be less than or equal to the number of visible devices"
        r"|ensure that world_size \(\d+\) is less than than max local gpu count",
        "it needs more GPUs than it sees",
        _fewer_gpus,
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
        r"|CUDA error: no CUDA-capable device|CUDA driver initialization failed",
        "vLLM sees no GPU that it can use",
        "check nvidia-smi and CUDA_VISIBLE_DEVICES; without a GPU choose an interpreter with the CPU build of vLLM",
    ),
    _pattern(
        "dtype not supported",
        r"(?P<dtype>[Bb][Ff]loat16) is only supported on GPUs with compute capability of at least "
        r"(?P<need>[\d.]{1,9}?)\.? Your (?P<gpu>.{0,100}?) GPU has compute capability (?P<have>[\d.]{1,9}\d)",
        "the {gpu} (compute capability {have}) has no {dtype}",
        _half,
    ),
    _pattern(
        "kernel too large",
        r"OutOfResources: out of resource: (?P<what>[\w ]+), Required: (?P<need>\d+), Hardware limit: (?P<have>\d+)",
        "a Triton kernel needs more {what} than the GPU has ({need} of {have})",
        _other_attention,
    ),
    _pattern(
        "quantization not supported",
        r"[Tt]he quantization method (?P<method>\S+) is not supported for the current GPU\. "
        r"Minimum capability: (?P<need>\d+)\.\s*Current capability: (?P<have>\d+)",
        "quantization {method} needs compute capability {need}, and the GPU has {have} (10 times the version)",
        _other_quantization,
    ),
    _pattern(
        "quantization not supported",
        r"Quantization scheme is not supported for[\s',\"]*the current GPU\.[\s',\"]*"
        r"Min capability: (?P<need>\d+)\.[\s',\"]*Current capability: (?P<have>\d+)",
        "the model's quantization needs compute capability {need}, and the GPU has {have} (10 times the version)",
        _other_quantization,
    ),
    _pattern(
        "quantization not supported",
        r"(?P<why>Unknown quantization method: \S+?|\b[\w.]{1,40} is not supported for quantization method \w+"
        r"|\b\w{1,40} quantization is currently not supported[^\n]*?"
        r"|Quantization method specified in the model config [^\n]*?)"
        r"(?:\. |\.?$| \[type=)",
        "vLLM cannot serve this quantization: {why}",
        _other_quantization,
    ),
    _pattern(
        "no CUDA compiler",
        r"Could not find nvcc|nvcc: (?:command )?not found|No such file or directory: '(?:\S*/)?nvcc'"
        r"|CUDA_HOME environment variable is not set|nvcc: No such file or directory|Cannot find CUDA_HOME",
        "a kernel is compiled at the start, and there is no nvcc",
        "install the CUDA toolkit of vLLM's CUDA version and set CUDA_HOME to it, or set VLLM_USE_FLASHINFER_SAMPLER=0 "
        "if the kernel is FlashInfer's sampler",
    ),
    _pattern(
        "no ninja",
        r"Ninja is required to load C\+\+ extensions|No such file or directory: '(?:\S*/)?ninja'"
        r"|ninja: (?:command )?not found",
        "a kernel is compiled at the start, and there is no ninja",
        "pip install ninja into vLLM's environment, and put its bin folder on PATH",
    ),
    _pattern(
        "kernel does not compile",
        r"fatal error: (?P<what>(?!Python\.h)\S[^\n]*)",
        "a kernel does not compile at the start: {what}",
        "read the compiler's lines in the log: the CUDA toolkit must be complete and fit vLLM's CUDA version",
    ),
    _pattern(
        "kernel does not compile",
        r"[Nn]inja build failed|Error building extension|ninja: build stopped",
        "a kernel does not compile at the start",
        "read the compiler's lines in the log: the CUDA toolkit must be complete and fit vLLM's CUDA version",
    ),
    _pattern(
        "NCCL",
        r"NCCL error(?:: | in: [^\n]{0,300}?, )(?P<what>(?!remote process exited)[^\n(,]*[^\n(, ])",
        "NCCL, which connects the GPUs, failed: {what}",
        "start once with NCCL_DEBUG=INFO and read its lines in the log; in a container give more shared memory "
        "(--shm-size or --ipc=host)",
    ),
    _pattern(
        "KV cache too small",
        r"To serve at least one request with the models?'s max seq len \((?P<length>[\d,]+)\).{0,100}?"
        r"(?P<need>[\d.]{1,20} GiB) KV cache is needed.{0,200}?"
        r"available KV cache memory \((?P<have>[\d.]+ GiB)\)",
        "the KV cache is too small for max_model_len {length}: {need} needed, {have} available",
        _more_kv_cache,
    ),
    _pattern(
        "KV cache too small",
        r"The model's max seq len \((?P<length>\d+)\) is larger than the maximum number of tokens "
        r"that can be stored in KV cache \((?P<have>\d+)\)",
        "the KV cache is too small for max_model_len {length}: {have} tokens fit",
        _more_kv_cache,
    ),
    _pattern(
        "KV cache too small",
        r"No available memory for the cache blocks",
        "no GPU memory is left for the KV cache",
        _more_kv_memory,
    ),
    _pattern(
        "KV cache too small",
        r"Not enough memory\. Please try to increase --mem-fraction-static"
        r"|Loaded weights leave no GPU memory for the KV cache",
        "no GPU memory is left for the KV cache",
        "raise mem_fraction_static, or take more GPUs or ones with more memory",
    ),
    _pattern(
        "no GPU memory",
        r"Executor creation failed (?:due to|with an error which might indicate) insufficient GPU memory\.\s{1,9}"
        r"The following component could not be created: (?P<part>[^\n]{1,100})",
        "out of GPU memory: TensorRT-LLM could not create a part ({part})",
        "lower kv_cache_free_gpu_memory_fraction, max_batch_size or max_seq_len, or take more GPUs",
    ),
    _pattern(
        "no GPU memory",
        r"Free memory on device (?:\S{1,50} )?\((?P<have>[^)]{0,100})\) on startup "
        r"is less than desired GPU memory utilization \((?:[\d.]{1,20}, )?(?P<want>[^)]{0,100})\)",
        "not enough free GPU memory: {have} free, {want} asked for",
        "end the other programs on the GPU, or lower gpu_memory_utilization",
    ),
    _pattern(
        "no GPU memory",
        r"(?:CUDA|HIP) out of memory\. Tried to allocate (?P<size>[\d.]+ [KMG]iB)",
        "out of GPU memory (tried to allocate {size})",
        _less_gpu_memory,
    ),
    _pattern(
        "no GPU memory", r"CUDA out of memory|torch\.(?:cuda\.)?OutOfMemoryError", "out of GPU memory", _less_gpu_memory
    ),
    _pattern(
        "out of host memory",
        r"Available memory on node \d+ \((?P<have>[^)]{0,100})\) on kv cache allocation "
        r"is less than requested memory for kv \((?P<want>[^)]{0,100})\)",
        "not enough host memory for the KV cache: {have} free, {want} asked for",
        "lower VLLM_CPU_KVCACHE_SPACE or kv_cache_memory_bytes",
    ),
    _pattern(
        "out of host memory",
        r"Available memory on node \d+ \((?P<have>[^)]{0,100})\) on startup is less than desired CPU memory "
        r"utilization \((?:[\d.]{1,20}, )?(?P<want>[^)]{0,100})\)",
        "not enough host memory: {have} free, {want} asked for",
        "lower gpu_memory_utilization (on the CPU it is the share of host memory)",
    ),
    _pattern(
        "out of host memory",
        r"DefaultCPUAllocator: (?:can't|not enough).{0,200}?allocate (?P<size>\d+ bytes|memory)|MemoryError"
        r"|std::bad_alloc|Cannot allocate memory|[Nn]ot enough (?:available )?(?:CPU )?memory.*",
        "out of host memory",
        more_memory,
    ),
    _pattern(
        "hub refuses",
        r"429 (?:Client Error|Too Many Requests)[^\n]{0,200}?for url:? '?https?://(?P<hub>[^/\s]+)",
        "{hub} refused the download: too many requests (HTTP 429)",
        "set HF_TOKEN, wait, or download the model once and set HF_HUB_OFFLINE=1",
    ),
    _pattern(
        "hub refuses",
        r"429 Client Error|429 Too Many Requests|HTTP Error 429|Too Many Requests for url"
        r"|[Rr]ate.?limit(?:ed)?\b[^\n]{0,300}?huggingface|Client error '429",
        f"{_HUB} refused the download: too many requests (HTTP 429)",
        "set HF_TOKEN, wait, or download the model once and set HF_HUB_OFFLINE=1",
    ),
    _pattern(
        "certificate",
        r"host='(?P<host>[^']{1,255})'(?:(?!host=')[^\n]){0,1000}?"
        r"(?:CERTIFICATE_VERIFY_FAILED|certificate verify failed)",
        "the TLS certificate of {host} cannot be verified, as behind a proxy that inspects TLS",
        "set SSL_CERT_FILE and REQUESTS_CA_BUNDLE to your organisation's CA file, or name a downloaded model's folder",
    ),
    _pattern(
        "certificate",
        r"CERTIFICATE_VERIFY_FAILED|[Cc]ertificate verify failed|SSLCertVerificationError"
        r"|self.signed certificate in certificate chain|unable to get local issuer certificate",
        f"a TLS certificate on the way to {_HUB} cannot be verified, as behind a proxy that inspects TLS",
        "set SSL_CERT_FILE and REQUESTS_CA_BUNDLE to your organisation's CA file, or name a downloaded model's folder",
    ),
    _pattern(
        "proxy",
        r"Tunnel connection failed: \d+|ProxyError\(",
        f"the proxy on the way to {_HUB} refused the connection",
        "correct HTTPS_PROXY, or name a downloaded model's folder",
    ),
    _pattern(
        "model not allowed",
        r"Access to model (?P<model>\S+) is restricted",
        "the model is gated and this machine has no token for it (model {model})",
        "accept its licence on its hub and set HF_TOKEN",
    ),
    _pattern(
        "model not allowed",
        r"You are trying to access a gated repo|GatedRepoError|Cannot access gated repo",
        "the model is gated and this machine has no token for it",
        "accept its licence on its hub and set HF_TOKEN",
    ),
    _pattern(
        "model not allowed",
        r"40[13] Client Error: (?:Unauthorized|Forbidden) for url|403 Forbidden: "
        r"|'40[13] (?:Unauthorized|Forbidden)' for url",
        f"{_HUB} does not let this machine read the model",
        "set HF_TOKEN to a token that may read it, and check the model's name",
    ),
    _pattern(
        "hub fault",
        r"(?P<code>50[0-9]) (?:Server Error|Internal Server Error|Bad Gateway|Service \w*|Gateway Time-?out)"
        r"[^\n]{0,200}? for url:? '?https?://(?P<hub>[^/\s]+)",
        "{hub} has a fault (HTTP {code})",
        "run again later, or name a downloaded model's folder",
    ),
    _pattern(
        "remote code",
        r"(?:pass the argument|setting) `trust_remote_code=True`|requires you to execute the \w+ file in that repo",
        "the model brings Python code of its own, which vLLM does not run unasked",
        "read that code, then add trust_remote_code=True to the vllm marker",
    ),
    _pattern(
        "hub not reachable",
        r"Failed to resolve '[^']+'|Temporary failure in name resolution|Name or service not known"
        r"|Network is unreachable|Max retries exceeded with url|ConnectTimeout|Connection to \S+ timed out"
        r"|ConnectError: (?!\[SSL)",
        f"{_HUB} cannot be reached",
        "check the network and HTTPS_PROXY, or name a downloaded model's folder",
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
        "model not supported",
        r"model type `(?P<kind>[^`]{0,200})` but Transformers does not recognize this architecture",
        "the installed transformers does not know the model type {kind}",
        "update vLLM and transformers, or take another model",
    ),
    _pattern(
        "weights damaged",
        r"SafetensorError: |invalid load key, '",
        "a file of the model's weights is damaged or no weights at all, such as a Git LFS pointer",
        "download the model again",
    ),
    _pattern(
        "model not supported",
        r"[Mm]odel architectures? \[?(?P<what>'[^\]\n]{0,500}')\]? (?:is|are) not supported",
        "this vLLM does not know the model's architecture {what}",
        "update vLLM and transformers, or take another model",
    ),
    _pattern(
        "max_model_len too large",
        r"User-specified max_model_len \((?P<asked>\d+)\) is greater than the derived max_model_len \((?P<why>[^)]*)",
        "max_model_len {asked} is more than the model can take ({why})",
        "lower max_model_len",
    ),
    _pattern(
        "illegal instruction",
        r"died unexpectedly \(exit code: -4\)|Failed core proc\(s\): \{[^}]{0,300}: -4\b",
        "a process of it used an instruction that this CPU does not grant (SIGILL)",
        plain_dtype,
    ),
    _pattern(
        "out of host memory",
        r"died unexpectedly \(exit code: -9\)|Failed core proc\(s\): \{[^}]{0,300}: -9\b",
        "a process of it was killed with SIGKILL, which is what the kernel does when host memory runs out",
        more_memory,
    ),
    _pattern(
        "disk full",
        r"No space left on device|Disk quota exceeded|[Nn]ot enough free disk space",
        "the disk is full",
        "free disk space for models and temporary files, or point HF_HOME and TMPDIR to another disk",
    ),
    _pattern(
        "no permission",
        r"PermissionError: \[Errno 13\] Permission denied: '(?P<path>[^']+)'",
        "it may not write to {path}",
        "change its owner, or point HF_HOME, VLLM_CACHE_ROOT and TMPDIR to a folder of yours",
    ),
    _pattern(
        "too many open files",
        r"\[Errno 24\]|Too many open files",
        "too many files are open",
        "raise the limit with ulimit -n",
    ),
    _pattern(
        "too many threads",
        r"can't start new thread|pthread_create failed|Resource temporarily unavailable",
        "the limit of threads or processes is reached",
        "raise ulimit -u or the container's limit of processes (--pids-limit), or set OMP_NUM_THREADS=1",
    ),
    _pattern(
        "no compiler",
        r"InvalidCxxCompiler|Failed to find C compiler|fatal error: Python\.h: No such file",
        "torch.compile finds no compiler or no Python headers",
        _without_compiling,
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
    _pattern(
        "library missing",
        r"(?P<library>lib(?:cud|cu|nv|nccl)[\w-]{0,100}\.so[.\d]{0,20}): cannot open shared object file",
        "{library} of CUDA is missing: vLLM was built for another CUDA version",
        "install the vLLM that is built for this CUDA version, or that CUDA version's runtime",
    ),
    _pattern(
        "library missing",
        r"(?P<library>lib[\w+-]{1,100}\.so[.\d]{0,20}): cannot open shared object file",
        "the shared library {library} is missing",
        "install the system package that has it, or add its folder to LD_LIBRARY_PATH",
    ),
    _pattern(
        "packages do not fit",
        r"(?P<file>(?<![\w.-])[\w.-]{1,120}\.so(?:\.\d+){0,5}): undefined symbol",
        "{file} was built for another PyTorch than the one here (undefined symbol)",
        _ALONE,
    ),
    _pattern(
        "packages do not fit",
        r"(?P<version>version `[^'\n]{1,100}' not found)",
        "the system's libraries are older than the ones vLLM was built for ({version})",
        "run vLLM's container, or a newer system",
    ),
    _pattern(
        "packages do not fit",
        r"^(?P<error>ImportError: cannot import name '[^']+' from '[^']+'"
        r"|AttributeError: module '[^']+' has no attribute '[^']+')",
        "Python packages do not fit together: {error}",
        _ALONE,
    ),
    _pattern(
        "package missing",
        r"^(?:ModuleNotFoundError: )No module named '(?P<package>[^']+)'",
        "the Python package {package} is missing",
        "install it where vLLM is installed (--gpucap-vllm-python names that interpreter)",
    ),
    _pattern(
        "package missing",
        r"requires `(?P<package>accelerate)`\. You can install it",
        "the Python package {package} is missing",
        "install it where transformers is: transformers serve loads no model without it",
    ),
    _pattern("import", r"^(?P<error>ImportError: [^\n]+)", "an import fails: {error}", _ALONE),
)

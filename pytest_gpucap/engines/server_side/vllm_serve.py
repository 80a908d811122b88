"""Runs what ``vllm serve`` runs, with the key asked for on every path.

The interpreter that has vLLM runs this file by its path. It needs nothing of ours but the file beside it.

``python vllm_serve.py MODEL [arguments of vllm serve]`` does what vLLM's console script does. It also works for builds
of vLLM whose distribution has another name than ``vllm``, where the console script fails. A vLLM without this command
is started by its older module, which starts one API server whatever its arguments say.
"""

import importlib
import importlib.metadata
import os
import runpy
import sys
from importlib.util import find_spec
from types import SimpleNamespace

COMMAND_LINE = "vllm.entrypoints.cli.main"
OLD_MODULE = "vllm.entrypoints.openai.api_server"
KEY = "gpucap_key.RequireKey"
CONFIG = "--config"
NO_KEY_OF_VLLM = ["--api-key", ""]
"""Overrides a key in the user's own file of arguments: no request carries it, so vLLM would refuse all."""
DEVELOPMENT = "VLLM_SERVER_DEV_MODE"
"""Enables the endpoints that reset caches and tell the configuration, and others that are dangerous without a key."""


def main() -> None:
    """Become the server."""
    # As `python -m` has it. The file beside this one comes last. Processes that are spawned get the same path.
    here, sys.path[0] = sys.path[0], os.getcwd()  # noqa: PTH109 - a text, as every entry
    sys.path.append(here)
    model, *arguments = sys.argv[1:]
    if CONFIG in arguments:
        arguments += NO_KEY_OF_VLLM
    arguments += ["--middleware", KEY]  # the last one is the outermost
    os.environ.setdefault(DEVELOPMENT, "1")
    if not _has(COMMAND_LINE):
        sys.argv[1:] = ["--model", model, *arguments]
        runpy.run_module(OLD_MODULE, run_name="__main__", alter_sys=True)
        return
    command_line = importlib.import_module(COMMAND_LINE)
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        # The command line asks for this version, to be able to print it. Others of vLLM's modules ask too, and need to
        # hear that there is none: they know the other names of their build.
        version = str(importlib.import_module("vllm").__version__)
        told = SimpleNamespace(version=lambda _: version)
        command_line.importlib = SimpleNamespace(**{**vars(importlib), "metadata": told})  # type: ignore[attr-defined]
    sys.argv = ["vllm", "serve", model, *arguments]
    sys.exit(command_line.main())


def _has(module: str) -> bool:
    """Whether vLLM has the module. An error of vLLM's own, such as a missing PyTorch, is raised."""
    if find_spec("vllm") is None:
        return False
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError as error:
        if error.name is not None and module.startswith(f"{error.name}."):
            return False
        raise


if __name__ == "__main__":
    main()

"""Engines whose server is a program of this machine that speaks the OpenAI API.

A subclass says by its attributes how the program is called and what it can do. What an engine lacks is left at its
default, and the result names the evidence that was therefore not to be had.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final

from pytest_gpucap.access import LOOPBACK, NO_KEY
from pytest_gpucap.api_dialect import ApiDialect
from pytest_gpucap.engines import program_arguments, synthetic
from pytest_gpucap.engines.errors import ServerStartError
from pytest_gpucap.engines.launch import Launched, LaunchedServer, free_port, launch
from pytest_gpucap.engines.program_arguments import FlagStyle, Value
from pytest_gpucap.engines.protocol import (
    Capabilities,
    Engine,
    EnginePair,
    MetricNames,
    Server,
    ServerRequest,
    ServingIdentity,
)
from pytest_gpucap.errors import told
from pytest_gpucap.requirement import RequirementError
from pytest_gpucap.vllm_arguments import VllmArguments

OWN_KEYWORDS: Final = ("command", "program", "python", "served_name")
"""Keywords of a marker that are texts about the program, and no arguments of it."""
GPUS: Final = "gpus_per_replica"
"""The keyword that says how many GPUs a server takes where its arguments do not."""
PORT, MODEL, HOST = "{port}", "{model}", "{host}"
_OWNED: Final = {
    "host": "the server listens on loopback only",
    "port": "the plugin chooses a free port",
    "model": "it is given by model=",
}
_VERSION_S: Final = 60.0
_FIND_VERSION: Final = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"


class ProgramServer(LaunchedServer):
    """The server of a `ProgramEngine`. Subclasses read what theirs reports of itself.

    Args:
        launched: its process.
        engine: that started it.

    Attributes:
        engine: that started it.
    """

    def __init__(self, launched: Launched, engine: ProgramEngine) -> None:
        self.engine = engine
        self.software = engine.title
        super().__init__(launched)

    @cached_property
    def version(self) -> str | None:
        """The version of its Python package, or what ``/version`` says."""
        return self.engine.package_version() or super().version

    @property
    def max_num_seqs(self) -> int | None:
        """Requests that it runs at once; None if it does not tell."""
        return self.engine.count(self.engine.sequences)

    @property
    def kv_tokens(self) -> int | None:
        """Tokens that its KV cache holds; None if it does not tell."""
        return self.engine.count(self.engine.cache)

    def capabilities(self) -> Capabilities:
        """See `Server.capabilities`."""
        engine = self.engine
        return Capabilities(
            max_num_seqs=self.max_num_seqs,
            kv_tokens=self.kv_tokens,
            metrics=engine.metrics,
            simulated=self.simulated,
            loopback=self.loopback,
            models=() if engine.request.model is None else (engine.request.model,),
            arguments=engine.as_vllm(),
            max_model_len=engine.max_model_len or self.max_model_len,
            dialect=engine.dialect,
            resets=engine.resets,
        )

    def facts(self) -> Mapping[str, object]:
        """See `Server.facts`."""
        told_facts = super().facts()
        sizes = {"max_num_seqs": self.max_num_seqs, "kv_tokens": self.kv_tokens}
        return {
            **told_facts,
            "server": " ".join(filter(None, (self.software, self.version))),
            "model": self.engine.request.model or self.model,
            "server_args": self.engine.recorded(),
            **{name: size for name, size in sizes.items() if size is not None},
        }

    def reset_caches(self) -> bool:
        """See `HttpServer.reset_caches`; False without asking where the engine has no such endpoint."""
        return self.engine.resets and super().reset_caches()


class ProgramEngine(Engine):
    """Starts a program of this machine that speaks the OpenAI API.

    Attributes:
        call: words before the model: a program on PATH, or ``("python", "-m", "MODULE")``, which runs with the
            interpreter of ``python=`` or of the session.
        model_flag: the flag before the model; empty: the model stands alone.
        name_flag: the flag that names the served model; empty: the program has none, and its list tells the name.
        fixed: words of every command, such as the flag that turns its metrics on.
        style: how its arguments are spelled.
        owned: arguments that the plugin sets, beside host, port and model, and why.
        sizes: arguments whose product is the GPUs that one server takes, each with its spellings.
        context: spellings of the argument for the tokens of prompt and answer together.
        sequences: the same for the requests that run at once.
        cache: the same for the tokens of the KV cache.
        vllm_names: its arguments that the physical limit depends on, by the names that vLLM has for them.
        metrics: names on its page of metrics; without any, nothing is read.
        dialect: what its requests need.
        resets: it has vLLM's ``/reset_prefix_cache``, or its server overrides `reset_caches`.
        listed: it lists its model in ``/v1/models``.
        any_port: it can bind port 0. Otherwise it is told a free one.
        key_variable: the environment variable from which it takes a key; empty: it asks for none.
        variables: set in its environment.
        package: the Python package that has its version.
        server_type: what its server is.
        arguments: of its command: those of the test, without what the plugin reads itself.
    """

    call: ClassVar[Sequence[str]] = ()
    model_flag: ClassVar[str] = "--model"
    name_flag: ClassVar[str] = ""
    fixed: ClassVar[Sequence[str]] = ()
    style: ClassVar[FlagStyle] = FlagStyle()
    owned: ClassVar[Mapping[str, str]] = {}
    sizes: ClassVar[Sequence[Sequence[str]]] = ()
    context: ClassVar[Sequence[str]] = ()
    sequences: ClassVar[Sequence[str]] = ()
    cache: ClassVar[Sequence[str]] = ()
    vllm_names: ClassVar[Mapping[str, str]] = {}
    metrics: ClassVar[MetricNames] = MetricNames()
    dialect: ClassVar[ApiDialect] = ApiDialect()
    resets: ClassVar[bool] = False
    listed: ClassVar[bool] = True
    any_port: ClassVar[bool] = True
    key_variable: ClassVar[str] = ""
    variables: ClassVar[Mapping[str, str]] = {}
    package: ClassVar[str] = ""
    server_type: ClassVar[type[ProgramServer]] = ProgramServer

    def __init__(self, request: ServerRequest) -> None:
        super().__init__(request)
        self._own, given = self._split(request.arguments)
        self.arguments: dict[str, Value] = program_arguments.read(self.name, given, {**_OWNED, **self.owned})
        if request.model is None:
            raise ValueError(f'engine("{self.name}"): no model is named: write model="..." or give --gpucap-model')
        self._words = self._program()
        self._check()

    @classmethod
    def gpus_per_replica(cls, arguments: Mapping[str, object]) -> int:
        """See `Engine.gpus_per_replica`."""
        own = program_arguments.count(cls.name, arguments, [GPUS])
        return own or program_arguments.product(cls.name, arguments, cls.sizes)

    @property
    def max_model_len(self) -> int | None:
        """See `Engine.max_model_len`."""
        return self.count(self.context)

    @property
    def key(self) -> Hashable:
        """See `Engine.key`."""
        given = sorted((name, str(value)) for name, value in self.arguments.items())
        return self.request.model, json.dumps([self._words, self._own, given])

    @property
    def in_python(self) -> bool:
        """Whether an interpreter that is known runs it."""
        return self.call[:1] == ("python",) and "command" not in self._own

    def count(self, names: Sequence[str]) -> int | None:
        """The whole number that was given under one of these names; None if it was not."""
        return program_arguments.count(self.name, self.arguments, names)

    def recorded(self) -> dict[str, object]:
        """The arguments as a result keeps them: what was given, and the program if it is not the usual one."""
        own = {name: value for name, value in self._own.items() if name in {"command", "served_name"}}
        return {
            **own,
            **{name: list(each) if isinstance(each, tuple) else each for name, each in self.arguments.items()},
        }

    def as_vllm(self) -> VllmArguments:
        """The arguments that the physical limit depends on, as vLLM names them; empty where vLLM has no such value."""
        known = {theirs: self.arguments[ours] for ours, theirs in self.vllm_names.items() if ours in self.arguments}
        with suppress(ValueError):
            return VllmArguments(known)
        return VllmArguments()

    def package_version(self) -> str | None:
        """The version of its Python package, asked of the interpreter that runs it; None if there is none."""
        if not self.package or not self.in_python:
            return None
        try:
            found = subprocess.run(
                [self._words[0], "-c", _FIND_VERSION, self.package],
                capture_output=True,
                text=True,
                timeout=_VERSION_S,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return found.stdout.strip()[:100] or None

    def start(self, devices: Sequence[str], on_wait: Callable[[str], None]) -> Server:
        """See `Engine.start`."""
        known = self.request.identity or ServingIdentity.new(str(self.request.model))
        if known.host != LOOPBACK and not self.key_variable:
            cause = "it asks for no key, so it may listen on this machine alone: measure its replicas here, or by a URL"
            raise ServerStartError(cause, title=self.title)
        model = self.model_at(on_wait)
        key = known.api_key if self.key_variable else NO_KEY
        port = None if self.any_port and "command" not in self._own else free_port(known.host)
        command = self.command(model, known, port or 0)
        launched = launch(
            command,
            model=self._served_name(model, known),
            log_path=self.request.new_log(f"{self.name}-{Path(str(self.request.model)).name}"),
            timeout_s=self.request.startup_timeout_s,
            devices=devices,
            env={**self.environment(devices), **({self.key_variable: key} if self.key_variable else {})},
            api_key=key,
            host=known.host,
            port=port,
            listed=self.listed,
            title=self.title,
            arguments=self.as_vllm(),
            on_wait=on_wait,
        )
        return self.server_type(launched, self)

    def command(self, model: str, known: ServingIdentity, port: int) -> list[str]:
        """The words of the command line.

        Args:
            model: what the program is to load.
            known: its name for the model, and the address that it listens on.
            port: to listen on; 0: the kernel chooses.
        """
        if "command" in self._own:
            values = {PORT: str(port), MODEL: model, HOST: known.host}
            return [_filled(word, values) for word in self._words]
        named = [self.name_flag, self._own.get("served_name", known.name)] if self.name_flag else []
        where = ["--host", known.host, "--port", str(port)]
        given = self.style.words(self.arguments)
        return [*self._words, *filter(None, [self.model_flag]), model, *named, *where, *self.fixed, *given]

    def environment(self, devices: Sequence[str]) -> Mapping[str, str]:
        """Variables of the server's environment, over those of this process."""
        del devices
        return {"PYTHONUNBUFFERED": "1", "DO_NOT_TRACK": "1", **self.variables}

    def model_at(self, on_wait: Callable[[str], None]) -> str:
        """What the program loads: the model as it was named, or the folder of a synthetic one.

        Raises:
            ServerStartError: if it cannot be made.
        """
        del on_wait
        return str(self.request.model)

    def made(self, write: Callable[[str], Path], on_wait: Callable[[str], None]) -> Path:
        """The files of the test's synthetic model, as `write` makes them.

        Raises:
            ServerStartError: if the disk has no room for them.
        """
        on_wait(f"writing the weights of {self.request.model}")
        try:
            return write(str(self.request.model))
        except OSError as error:
            cause = f"the weights of {self.request.model} cannot be written: {error}"
            raise ServerStartError(cause, title=self.title) from None

    def with_base(self, base_args: str, base_python: str | None) -> EnginePair[Engine]:
        """See `Engine.with_base`."""
        try:
            given = program_arguments.parse(self.name, base_args)
        except ValueError as error:
            raise ValueError(f"--gpucap-base-args: {error}") from None
        if "command" in self._own:
            raise ValueError(f"--gpucap-base-...: engine({self.name!r}, command=...) is one command: it has no base")
        arguments = {**self.request.arguments, **given}
        if base_python is not None:
            if not self.in_python:
                raise ValueError(f"--gpucap-base-python: {self.title} does not run in Python: give --gpucap-base-args")
            arguments["python"] = base_python
        return ProgramPair(type(self)(replace(self.request, arguments=arguments)), self)

    def line(self) -> str:
        """Program and arguments in one line, for what differs between base and head."""
        return shlex.join([*self._words, *self.style.words(self.arguments)])

    def _served_name(self, model: str, known: ServingIdentity) -> str | None:
        """The name that requests carry; None: the list of models tells it."""
        if (given := self._own.get("served_name")) is not None:
            return given
        if self.name_flag and "command" not in self._own:
            return known.name
        return None if self.listed else model

    def _split(self, given: Mapping[str, object]) -> tuple[dict[str, str], dict[str, object]]:
        """What a marker says of the program, and its arguments."""
        own: dict[str, str] = {}
        rest = {name: value for name, value in given.items() if name != GPUS}
        for name in OWN_KEYWORDS:
            value = rest.pop(name, None)
            if value is None:
                continue
            text = os.fspath(value) if isinstance(value, os.PathLike) else value
            if not isinstance(text, str) or not text.strip() or not text.isprintable():
                raise RequirementError(f"{self.name}: {name} must be a text in one line, not {told(value)}")
            own[name] = text
        return own, rest

    def _program(self) -> list[str]:
        """The words that call the program: those of `call`, or of ``command=``."""
        if (line := self._own.get("command")) is not None:
            return self._commanded(line)
        program, *rest = self.call
        if program == "python":
            if "program" in self._own:
                raise RequirementError(f"{self.name}: it is started by Python: write python=, not program=")
            interpreter = self._own.get("python", self.request.python)
            return [self._found(interpreter, "python", "the interpreter that has it"), *rest]
        if "python" in self._own:
            raise RequirementError(f"{self.name}: it is a program of its own: write program=, not python=")
        return [self._found(self._own.get("program", program), "program", "its path"), *rest]

    def _commanded(self, line: str) -> list[str]:
        """The words of ``command=``, their program found."""
        if other := next((name for name in ("program", "python") if name in self._own), None):
            raise RequirementError(f"{self.name}: command= names the program itself: leave {other}= out")
        if self.arguments:
            name = next(iter(self.arguments))
            raise RequirementError(f"{self.name}: command= is the whole command: write {name} into it")
        words = program_arguments.split(line, f"{self.name}: command")
        if not any(PORT in word for word in words):
            raise RequirementError(f"{self.name}: command= must say where the port goes: write {PORT} into it")
        return [self._found(words[0], "command", "a path in it"), *words[1:]]

    def _found(self, program: str, keyword: str, instead: str) -> str:
        """The absolute path of a program.

        Raises:
            RequirementError: one line, if there is none.
        """
        path = shutil.which(program)
        if path is None:
            raise RequirementError(f"{self.name}: there is no program {told(program)}: name {instead} with {keyword}=")
        # Not resolved: a virtual environment's python is a link, and Python finds the environment by the link's path.
        return str(Path(path).absolute())

    def _check(self) -> None:
        """Check model and arguments further, before anything starts.

        Raises:
            ValueError: one line, if one cannot be meant.
        """
        if synthetic.is_synthetic(str(self.request.model)):
            raise ValueError(f"engine {self.name} has no synthetic models: name a model that it can load")


class ProgramPair(EnginePair[ProgramEngine]):
    """Base and head of one engine. Their shares of a GPU's memory must leave room for both."""

    def changes(self) -> list[str]:
        """See `EnginePair.changes`."""
        before, after = self.base.line(), self.head.line()
        return [*self.model_change(), *([] if before == after else [f"command: {before} -> {after}"])]


def _filled(word: str, values: Mapping[str, Any]) -> str:
    """A word with its placeholders filled. Other braces stay as they are: they may be JSON."""
    for place, value in values.items():
        word = word.replace(place, value)
    return word

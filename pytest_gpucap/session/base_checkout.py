"""The base checkout of ``--gpucap-base-dir``: the same tests as pytest collects them there, and their servers.

A process of its own collects them (`pytest_gpucap.session.base_collection`), so no code of the base runs in this one.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, NamedTuple

import msgspec
import pytest

from pytest_gpucap.errors import GpuCapError
from pytest_gpucap.foreign_text import on_one_line
from pytest_gpucap.markers.declaration import Declaration
from pytest_gpucap.markers.server import DeclaredServer
from pytest_gpucap.masking import refusal
from pytest_gpucap.options.table import Options, all_options
from pytest_gpucap.requirement import Requirement
from pytest_gpucap.results.comparison import ComparedBaseline, Comparison, RegressionDecision
from pytest_gpucap.session import base_collection
from pytest_gpucap.session.base_collection import ASKED, COLLECTED, FOLDER, MOST_COLLECTED, BaseTest, Collected
from pytest_gpucap.session.kept import KeptResult
from pytest_gpucap.session.placement import Placement, place
from pytest_gpucap.session.workers import words_of
from pytest_gpucap.user_files import UserFileError, is_file, read_bytes, shown_path

FLAG: Final = "--gpucap-base-dir"
BASE: Final = "base"
LONGEST_S: Final = 1800.0
"""That a collection may take: models and data sets may be loaded in it."""
_MOST_SAID: Final = 64 * 2**10
_LONGEST_REASON: Final = 300
_ERROR: Final = re.compile(r"(?:E  |ERROR:|INTERNALERROR>|[\w ./-]{1,100}: error:)\s{0,9}")
"""How lines begin that say why pytest did not collect."""
_FORWARDED: Final = (Options.gpu_class, Options.model, Options.gpu_file)
"""Options of ours that a test of the base is collected under; all others would check or write what is the head's."""


class BaseMistake(GpuCapError, ValueError):  # noqa: N818 - whose mistake it is
    """The base checkout cannot be used. The message is one line, which names the option, the place and the fix."""

    needs_traceback = False

    def __init__(self, why: str) -> None:
        super().__init__(f"{FLAG}: {why}")


class NothingToCompare(GpuCapError):  # noqa: N818 - the name states what is so
    """The base has nothing that a test can be compared with; the message is one sentence that says why."""

    needs_traceback = False


class OfBase(NamedTuple):
    """What the base checkout says of one test.

    Attributes:
        place: of the test there.
        server: that the test has there; None if there is nothing to compare with.
        reason: why there is nothing to compare with; else empty.
        key: equal for the same server or reason.
    """

    place: str
    server: DeclaredServer | None
    reason: str
    key: Hashable


@dataclass(frozen=True, slots=True)
class BaseCheckout:
    """A base checkout, collected.

    Attributes:
        folder: that stands for pytest's root folder.
        found: what pytest found there.
    """

    folder: Path
    found: Collected

    def of(self, item: pytest.Item) -> OfBase:
        """What it says of the test with this node id.

        Raises:
            BaseMistake: if the test is there and cannot be read.
        """
        test, folder = self.found.tests.get(item.nodeid), shown_path(self.folder)
        if test is not None:
            return self._server(test)
        file = item.nodeid.partition("::")[0]
        why = next((why for name, why in self.found.broken.items() if _holds(name, item.nodeid)), None)
        if why is not None and item.nodeid not in self.found.others:
            raise BaseMistake(f"{file} of {folder} cannot be collected: {why}: mend it there, or leave the option out")
        if item.nodeid in self.found.others:
            reason = f"{item.nodeid} measures nothing in the base ({folder})"
        elif is_file(self.folder / file):
            reason = f"the base ({folder}) has no test {item.nodeid}"
        else:
            reason = f"the base ({folder}) has no file {file}"
        return OfBase("", None, reason, reason)

    def _server(self, test: BaseTest) -> OfBase:
        place = f"{test.place} of {shown_path(self.folder)}"
        if test.mistake:
            raise BaseMistake(f"{place}: {test.mistake}")
        for name, value in test.arguments.items():
            if why := refusal(name, value):
                raise BaseMistake(f"{place}: {test.engine}: {why}")
        return OfBase(place, DeclaredServer(test.engine, test.model, test.arguments), "", msgspec.json.encode(test))


class NotCompared:
    """Stands for the comparison of a test that the base has nothing to compare with.

    Args:
        reason: one sentence.
        max_regression: share of the rate that might be lost.
    """

    def __init__(self, reason: str, max_regression: float) -> None:
        self._reason, self._max_regression = reason, max_regression

    def compare(self, requirement: Requirement, kept: KeptResult) -> None:
        """Add to the result that it was not compared, and why."""
        del requirement
        kept.compare(
            Comparison(
                baseline=ComparedBaseline(BASE),
                decision=RegressionDecision.NOT_COMPARABLE,
                head_rate=kept.result.sustainable_rate,
                max_regression=self._max_regression,
                reason=self._reason,
            )
        )


def _holds(name: str, test: str) -> bool:
    """Whether a test is in the folder, file or class of this node id."""
    return not name or test == name or test.startswith((f"{name}/", f"{name}::"))


def placed_base(of_base: OfBase, declared: Declaration, head: Placement, options: Options) -> Placement:
    """Where the test would be measured under the base's markers.

    Args:
        of_base: what the base says of the test.
        declared: what the test declares in the head.
        head: where it is measured.
        options: of the session.

    Raises:
        NothingToCompare: if the base has no such test, or one whose server cannot stand beside the head's.
        BaseMistake: one line, if its markers are invalid.
    """
    server = of_base.server
    if server is None:
        raise NothingToCompare(of_base.reason)
    if server.engine != declared.engine and head.simulated is None:
        raise NothingToCompare(f"it runs on the engine {server.engine} there, and on {declared.engine} here")
    try:
        placed = place(server.of(declared), options, needs_server=True)
    except ValueError as error:
        raise BaseMistake(f"{of_base.place}: {error}") from None
    if placed.engine is not None and placed.engine.gpus > head.devices:
        raise NothingToCompare(
            f"one replica there takes {placed.engine.gpus} GPUs, and it would run on the {head.devices} of the head"
        )
    return placed


def collect_base(folder: Path, items: Sequence[pytest.Item], options: Options, config: pytest.Config) -> BaseCheckout:
    """Let pytest collect the files of these tests in the base checkout.

    Args:
        folder: of the base checkout.
        items: tests of the head.
        options: of the session.
        config: of the session.

    Raises:
        BaseMistake: one line, if pytest does not start there or a file of ours is not as it was written.
    """
    names = dict.fromkeys(item.nodeid.partition("::")[0] for item in items)
    if outside := next((item for item in items if not item.path.is_relative_to(config.rootpath)), None):
        raise BaseMistake(
            f"{shown_path(outside.path)} lies outside pytest's root folder, {shown_path(config.rootpath)}, which the "
            f"base is a copy of: name the root with --rootdir"
        )
    there = [str(folder / name) for name in names if is_file(folder / name)]
    if not there:
        return BaseCheckout(folder, Collected())
    with tempfile.TemporaryDirectory(prefix="gpucap-base-") as told:
        Path(told, ASKED).write_bytes(msgspec.json.encode(there))
        said, collected = _run(folder, Path(told), options, config), Path(told, COLLECTED)
        if not is_file(collected):
            raise BaseMistake(f"pytest does not collect {shown_path(folder)}: {said}")
        return BaseCheckout(folder, read_collected(collected))


def read_collected(path: Path) -> Collected:
    """What the collecting process has written.

    Raises:
        BaseMistake: one line, if that cannot be read: code of the base ran in that process.
    """
    try:
        return msgspec.json.decode(read_bytes(path, MOST_COLLECTED), type=Collected)
    except UserFileError as error:
        raise BaseMistake(f"what pytest collected in the base cannot be read: {error.why}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BaseMistake(f"what pytest collected in the base is not as it was written: {error}") from None


def _run(folder: Path, told: Path, options: Options, config: pytest.Config) -> str:
    """Run the collection; returns what it said last, in one line."""
    started_in = config.invocation_params.dir
    inside = started_in.relative_to(config.rootpath) if started_in.is_relative_to(config.rootpath) else Path()
    cwd = folder / inside if (folder / inside).is_dir() else folder
    # `python -m pytest` has the folder where it was started on its path, and `pytest` has not.
    safe = [] if _on_path(started_in) else ["-P"]
    command = [sys.executable, *safe, "-m", "pytest", *_words(folder, options, config)]
    with tempfile.TemporaryFile() as output:
        try:
            subprocess.run(  # pytest and the base's own tests
                command,
                cwd=cwd,
                env=_environment(told),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=LONGEST_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise BaseMistake(
                f"pytest did not collect {shown_path(folder)} within {LONGEST_S / 60:g} minutes"
            ) from None
        except OSError as error:  # too many words, or no memory
            raise BaseMistake(f"pytest does not start in {shown_path(folder)}: {error.strerror}") from None
        return _last_words(output)


def _words(folder: Path, options: Options, config: pytest.Config) -> list[str]:
    """The session's own command line, for the base: its tests are collected under the options that the head's are."""
    positional = {str(word) for word in config.getoption("file_or_dir") or []}
    root = f"{config.rootpath}{os.sep}"
    words = [
        str(folder / word.removeprefix(root)) if word in positional and word.startswith(root) else word
        for word in words_of(config)
    ]
    # An empty value is none. Flags and choices cannot be taken back, and do no harm here.
    taken_back = [
        f"{row.flag}=" for row in all_options() if row.metavar and not row.repeatable and row not in _FORWARDED
    ]
    reported = ["--junit-xml="] if config.getoption("xmlpath", None) else []
    own = [] if options.gpu_file is None else [f"{Options.gpu_file.flag}={options.gpu_file}"]
    return [
        *words,
        *("--collect-only", "-q", "--rootdir", str(folder), "-p", base_collection.__name__),
        *taken_back,
        *own,
        *reported,
    ]


def _environment(told: Path) -> Mapping[str, str]:
    """That of this process, without what pytest and its workers say of themselves."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST_")}
    own.pop("PYTEST_CURRENT_TEST", None)
    return {**own, FOLDER: str(told)}


def _on_path(folder: Path) -> bool:
    return any(not each or Path(each) == folder for each in sys.path)


def _last_words(output: IO[bytes]) -> str:
    """The reason in what pytest has said: its last line of an error, else its last line."""
    output.seek(max(0, output.seek(0, os.SEEK_END) - _MOST_SAID))
    lines = [line.strip() for line in output.read().decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR.match(line)]
    return on_one_line(_ERROR.sub("", (errors or lines or ["it said nothing"])[-1]))[:_LONGEST_REASON]

"""Reads results of other load generators into a result file, which the other commands read.

It takes vllm bench serve and sweep, AIPerf, GuideLLM, inference-perf and SGLang's bench_serving. Each result is a
point: a load, and what came of it. It has no interval, and nobody checked the load generator.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

from pytest_gpucap.cli import CommandError
from pytest_gpucap.cli._runs import put, report_skipped

HELP: Final = "read results of other load generators"
_DEFAULT_OUT: Final = Path(".gpucap/imported.json")
_MOST_GPUS: Final = 1_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The files, what the user says of them, and where the result file goes."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="results, or folders of results")
    parser.add_argument(
        "-o", "--out", type=Path, default=_DEFAULT_OUT, metavar="OUT", help=f"the result file ({_DEFAULT_OUT})"
    )
    told = parser.add_argument_group("what the files do not say")
    told.add_argument("--gpu-class", metavar="CLASS", help="that the servers ran on, such as h200; plan needs it")
    told.add_argument("--model", metavar="NAME", help="in place of the name in the files")
    told.add_argument(
        "--server-arg",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="an argument of the servers, such as tensor_parallel_size=2; repeatable",
    )
    told.add_argument(
        "--slo", metavar="NAME=VALUE", action="append", default=[], help="a limit such as e2e_p95=20s; repeatable"
    )
    told.add_argument("--name", metavar="NAME", help="of the results, before their load (default: the model's name)")


def run(options: argparse.Namespace) -> int:
    """Write the result file, and print what is in it.

    Raises:
        CommandError: if a file cannot be read or written, or an option is wrong.
    """
    # Imported here, as in all commands: the help does not need it.
    from pytest_gpucap.other_tools.reading import read_points
    from pytest_gpucap.other_tools.results import imported_file
    from pytest_gpucap.report import terminal
    from pytest_gpucap.report.columns import terminal_columns
    from pytest_gpucap.report.formatting import shown
    from pytest_gpucap.requirement import RequirementError
    from pytest_gpucap.results import result_file
    from pytest_gpucap.user_files import UserFileError

    try:
        told = _told(options)
        _check_out(options.out, options.files)
        files = []
        for path in options.files:
            found, skipped = read_points(path)
            files += found
            report_skipped(skipped)
        content = imported_file(files, told)
    except (UserFileError, RequirementError) as error:
        raise CommandError(str(error)) from None
    try:
        result_file.write(options.out, content)
    except (OSError, ValueError) as error:
        raise CommandError(str(UserFileError.of(options.out, error))) from None
    count = len(content.results)
    put(terminal.summary(content.results, terminal_columns()))
    put(f"{count} point{'' if count == 1 else 's'} in {shown(options.out)}")
    return 0


def _check_out(out: Path, files: list[Path]) -> None:
    """Check that no result that the user measured is replaced.

    Raises:
        CommandError: if the file is one of those that are read, or holds anything but imported results.
    """
    from pytest_gpucap.results import result_file
    from pytest_gpucap.user_files import is_file, is_folder, real_path, shown_path

    if is_folder(out):
        raise CommandError(f"-o {shown_path(out)}: is a folder; name the result file")
    if not is_file(out):
        return
    if real_path(out) in {real_path(path) for path in files}:
        raise CommandError(f"-o {shown_path(out)}: is one of the files that are read, and would be replaced")
    try:
        before = result_file.read(out).results
    except result_file.ResultFileError as error:
        raise CommandError(f"-o {error}; it is not overwritten: name another file") from None
    if any(result.imported is None for result in before):
        raise CommandError(f"-o {shown_path(out)}: holds results that were measured; it is not overwritten")


def _told(options: argparse.Namespace) -> Any:
    from pytest_gpucap.gpu.classes import GpuClassError, find_class
    from pytest_gpucap.other_tools.results import Told
    from pytest_gpucap.requirement import RequirementError, Slo, declared_limits
    from pytest_gpucap.vllm_arguments import VllmArguments

    slo = Slo(declared_limits(dict(_pair("--slo", text, "e2e_p95=20s") for text in options.slo)))
    if slo.goodput is not None:
        raise RequirementError("--slo goodput: a point has percentiles only, so it cannot be held against a goodput")
    arguments = VllmArguments(
        dict(_pair("--server-arg", text, "tensor_parallel_size=2") for text in options.server_arg)
    )
    if arguments.gpus_per_replica > _MOST_GPUS:
        raise RequirementError(f"--server-arg: one server on more than {_MOST_GPUS} GPUs")
    try:
        gpu_class = None if options.gpu_class is None else find_class(options.gpu_class).name
    except GpuClassError as error:
        raise CommandError(f"--gpu-class: {error}") from None
    return Told(gpu_class, dict(arguments.values), options.model, options.name, slo)


def _pair(flag: str, text: str, example: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise CommandError(f"{flag} {text}: write NAME=VALUE, such as {example}")
    return name.strip(), value.strip()

"""Every command of the README and the docs, run as a stranger would: ``make strangers``.

    python tests/strangers/run.py [--wheel dist/*.whl] [--vllm .venv-vllm | --no-vllm] [--page docs/reports.md] [--list]

Each page gets an empty folder, an empty home with empty caches, a PATH of little more than the system's own, and an
environment that has the wheel, what it needs, and nothing else. Its commands run one after the other in one shell, so a
`cd` holds for the next. What it takes for granted, such as a result file, comes from `rules.toml`, which also says what
is left out and why, and what a page advises where a command fails. A checkout is a copy of the files that git knows. It
may use a CPU build of vLLM that is there already, instead of fetching it anew. `--no-vllm` leaves out what needs one.

Prints each command with its time, below one that failed its output, and at the end what was left out. Exits with 1 if
one failed.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.strangers.commands import ROOT, RULES, Step, pages, steps

CHECKOUT = "pytest-gpucap"
IN_CHECKOUT = {"README.md", "CONTRIBUTING.md"}
"""Pages whose commands are given in a checkout. For others it lies beside the folder of the project that they make."""
PAGE_S = 3600
"""Longest time for a page: the README's demo installs everything."""
TOLD_LINES = 25


@dataclass(frozen=True, slots=True)
class Ran:
    """A step that was run: its exit code, seconds, what it printed, and whether that was after the page's advice."""

    step: Step
    code: int
    seconds: float
    output: str
    advised: bool = False

    @property
    def failed(self) -> bool:
        """Whether it ended otherwise than its page says."""
        return self.code not in self.step.exits


class Place:
    """A fresh place, in a temporary folder.

    Args:
        folder: empty.
        wheel: what is installed.
        vllm: an environment with the CPU build of vLLM; None: a checkout installs its own.
    """

    def __init__(self, folder: Path, wheel: Path, vllm: Path | None) -> None:
        self.folder, self.vllm = folder, vllm
        self.venv, self._pristine = folder / "venv", folder / "venv.pristine"
        self._wheels = folder / "wheels"
        self._wheels.mkdir()
        shutil.copy(wheel, self._wheels)
        subprocess.run([sys.executable, "-m", "venv", self.venv], check=True)
        install = [str(self.venv / "bin" / "python"), "-m", "pip", "install", "-q", str(wheel)]
        (folder / "home").mkdir()
        subprocess.run(install, check=True, env=self.environment(folder / "home"))
        self.venv.rename(self._pristine)

    def environment(self, home: Path) -> dict[str, str]:
        """The whole environment of a stranger's shell; pip finds our wheel beside the index."""
        found = [str(self.venv / "bin"), "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"]
        return {
            "PATH": os.pathsep.join(found),
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "PIP_FIND_LINKS": str(self._wheels),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "GIT_AUTHOR_NAME": "A stranger", "GIT_AUTHOR_EMAIL": "stranger@example.org",
            "GIT_COMMITTER_NAME": "A stranger", "GIT_COMMITTER_EMAIL": "stranger@example.org",
        }  # fmt: skip

    def run(self, page: str, wanted: Sequence[Step]) -> list[Ran]:
        """Run steps of one page, in their order."""
        if not any(not step.file for step in wanted):
            return []
        own = self.folder / page.replace("/", "-").removesuffix(".md")
        home, work = own / "home", own / "work"
        home.mkdir(parents=True)
        work.mkdir()
        if self.venv.exists():
            shutil.rmtree(self.venv)
        # At the same path, since an environment's scripts name their interpreter by it.
        subprocess.run(["cp", "-a", "--reflink=auto", self._pristine, self.venv], check=True)
        if page in IN_CHECKOUT or any(CHECKOUT in step.text for step in wanted):
            self.check_out(work / CHECKOUT)
        self._grant(page, work)
        try:
            return in_one_shell(wanted, work / CHECKOUT if page in IN_CHECKOUT else work, self.environment(home))
        finally:
            shutil.rmtree(own)

    def check_out(self, into: Path) -> None:
        """A copy of what git knows, as it is here now."""
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
        for name in filter(None, listed.split("\0")):
            if not (ROOT / name).exists():
                continue
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, into / name)
            os.utime(into / name, (0, 0))  # older than all that make has made: vLLM's environment is up to date
        if self.vllm is not None:
            (into / ".venv-vllm").symlink_to(self.vllm.resolve())

    @staticmethod
    def _grant(page: str, work: Path) -> None:
        for name, source in RULES["granted"].get(page, {}).items():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            if source.startswith("text: "):
                (work / name).write_text(source.removeprefix("text: "), encoding="utf-8")
            elif (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, work / name)
            else:
                shutil.copy(ROOT / source, work / name)


def in_one_shell(wanted: Sequence[Step], folder: Path, environment: dict[str, str]) -> list[Ran]:
    """Run steps one after the other in one shell; a file is written when its turn comes, where the shell then is."""
    with tempfile.TemporaryDirectory(prefix="gpucap-shell-") as name:
        outputs = Path(name)
        lines = ["exec </dev/null"]
        for number, step in enumerate(wanted):
            (outputs / f"{number}.in").write_text(step.text, encoding="utf-8")
            given, out = shlex.quote(str(outputs / f"{number}.in")), shlex.quote(str(outputs / f"{number}.out"))
            if step.file:
                target = shlex.quote(step.file)
                action = f"mkdir -p $(dirname {target}) && cp {given} {target}"
            else:
                action = f"bash {given}" if step.script else f". {given}"
            done = shlex.quote(str(outputs / f"{number}.done"))
            lines += ["began=$EPOCHREALTIME advised=", f"{{ {action}; }} >{out} 2>&1", "code=$?"]
            said, advice = step.advice
            if said:
                again = outputs / f"{number}.again"
                again.write_text(advice, encoding="utf-8")
                lines += [f"if [ $code != 0 ] && grep -qF {shlex.quote(said)} {out}; then"]
                lines += [f"advised=yes; {{ . {shlex.quote(str(again))}; }} >{out} 2>&1; code=$?; fi"]
            lines += [f'echo "$code $began $EPOCHREALTIME $advised" >{done}']
        try:
            subprocess.run(["bash", "-c", "\n".join(lines)], cwd=folder, env=environment, timeout=PAGE_S, check=False)
        except subprocess.TimeoutExpired:
            print(f"stopped after {PAGE_S} s", file=sys.stderr)
        ran = []
        for number, step in enumerate(wanted):
            printed = outputs / f"{number}.out"
            output = printed.read_text(encoding="utf-8", errors="replace") if printed.exists() else ""
            try:
                code, began, ended, *advised = (outputs / f"{number}.done").read_text().split()
            except FileNotFoundError:  # the shell ended before, or within it
                ran.append(Ran(step, -1, 0.0, output or "it was not reached"))
            else:
                ran.append(Ran(step, int(code), float(ended) - float(began), output, bool(advised)))
        return ran


def _first_line(step: Step) -> str:
    first, more, _ = step.text.strip().partition("\n")
    return f"{first}{' ...' if more else ''}"


def _why_not(step: Step, given: argparse.Namespace) -> str:
    """Why a step is left out of this run; empty if it is run."""
    return step.left_out or ("--no-vllm: it needs vLLM" if given.no_vllm and step.needs_vllm else "")


def _list_left_out(names: Sequence[str], given: argparse.Namespace) -> None:
    by_reason = defaultdict(list)
    for page in names:
        for step in steps(page):
            if why := _why_not(step, given):
                by_reason[why].append(f"  {page}:{step.line}: {_first_line(step)}")
    for reason, those in by_reason.items():
        print(f"\nleft out: {reason}", *those, sep="\n")


def main() -> int:
    """Run and print; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, help="default: the one in dist")
    vllm = parser.add_mutually_exclusive_group()
    vllm.add_argument("--vllm", type=Path, help="an environment with the CPU build of vLLM")
    vllm.add_argument("--no-vllm", action="store_true", help="leave out what needs vLLM")
    parser.add_argument("--page", action="append", help="this page alone; repeatable")
    parser.add_argument("--list", action="store_true", help="say what would be run, and run nothing")
    given = parser.parse_args()
    names = given.page or pages()
    if given.list:
        for page in names:
            for step in steps(page):
                if not step.file and not _why_not(step, given):
                    print(f"{page}:{step.line}: {_first_line(step)}")
        _list_left_out(names, given)
        return 0
    (wheel,) = [given.wheel] if given.wheel else (ROOT / "dist").glob("*.whl")
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="gpucap-strangers-") as name:
        place = Place(Path(name), wheel.resolve(), given.vllm)
        for page in names:
            wanted = [step for step in steps(page) if not _why_not(step, given)]
            for each in place.run(page, wanted):
                if not each.step.file or each.failed:
                    word = "FAILED" if each.failed else "ok"
                    told = f"{page}:{each.step.line}: {_first_line(each.step)}"
                    again = f", then as the page advises: {each.step.advice[1]}" if each.advised else ""
                    print(f"{word:6} {each.seconds:7.1f} s  {told}{again}", flush=True)
                if each.failed:  # at once: a run takes long, and may be broken off
                    print(f"    exit {each.code}, not one of {sorted(each.step.exits)}")
                    print(*(f"    {line}" for line in each.output.splitlines()[-TOLD_LINES:]), sep="\n", flush=True)
                    failed.append(told)
    _list_left_out(names, given)
    print(f"\nfailed: {len(failed)}", *failed, sep="\n  ")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())

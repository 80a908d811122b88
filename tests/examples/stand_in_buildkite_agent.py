"""A stand-in for buildkite-agent: the few commands that the nightly example uses, on a folder in place of a build.

It takes what the agent's manual says of them and nothing else.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

BUILD = Path(os.environ["STAND_IN_BUILD"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="buildkite-agent", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    annotate = commands.add_parser("annotate", allow_abbrev=False)
    annotate.add_argument("--style", choices=["success", "info", "warning", "error"], required=True)
    annotate.add_argument("--context", required=True)
    data = commands.add_parser("meta-data", allow_abbrev=False).add_subparsers(dest="what", required=True)
    kept = data.add_parser("set", allow_abbrev=False)
    kept.add_argument("key")
    kept.add_argument("value")
    got = data.add_parser("get", allow_abbrev=False)
    got.add_argument("key")
    got.add_argument("--default")
    artifact = commands.add_parser("artifact", allow_abbrev=False).add_subparsers(dest="what", required=True)
    download = artifact.add_parser("download", allow_abbrev=False)
    download.add_argument("pattern")
    download.add_argument("folder", type=Path)
    given = parser.parse_args()
    if given.command == "annotate":
        (BUILD / f"annotation-{given.context}").write_text(f"{given.style}\n{sys.stdin.read()}")
    elif given.command == "artifact":
        fetch(given.pattern, given.folder)
    else:
        meta_data(given)


def meta_data(given: argparse.Namespace) -> None:
    place = BUILD / f"meta-data-{given.key}"
    if given.what == "set":
        if not given.value.strip():
            fail("value cannot be empty, or composed of only whitespace characters")
        place.write_text(given.value)
    elif place.exists():
        print(place.read_text())
    elif given.default is not None:
        print(given.default)
    else:
        fail(f'no meta-data value was found with key "{given.key}"', 100)


def fetch(pattern: str, folder: Path) -> None:
    artifacts = BUILD / "artifacts"
    found = [path for path in artifacts.glob(pattern) if path.is_file()]
    if not found:
        fail("No artifacts found for downloading")
    for path in found:
        target = folder / path.relative_to(artifacts)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


def fail(said: str, status: int = 1) -> None:
    sys.stderr.write(said + "\n")
    sys.exit(status)


if __name__ == "__main__":
    main()

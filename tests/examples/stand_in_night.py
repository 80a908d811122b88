"""A stand-in for pytest in a nightly job: what it measures is a result file that the test gives it.

It takes the options that the plugin has and no others, and ends with the exit code that the test names. How a real
session fills such a file is measured in `test_ci.py`, with the same command line.
"""

from __future__ import annotations

import argparse
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from pytest_gpucap.options.table import all_options
from pytest_gpucap.results import result_file


def main() -> int:
    """Write tonight's file; the exit code of its verdict."""
    with Path(os.environ["STAND_IN_CALLS"]).open("a") as calls:
        print(*sys.argv[1:], file=calls)
    parser = argparse.ArgumentParser(prog="pytest", allow_abbrev=False)
    parser.add_argument("folder")
    parser.add_argument("--junit-xml", type=Path)
    taken = {row.flag for row in all_options()}
    for word in sys.argv[1:]:
        flag = word.partition("=")[0]
        if flag in taken:
            taken.remove(flag)
            parser.add_argument(flag, action="store_true" if flag == "--gpucap-require" else "store")
    given = parser.parse_args()
    if not os.environ.get("STAND_IN_NIGHT"):
        print("ERROR: the model is still 'ORG/MODEL'")
        return 4
    night = result_file.read(Path(os.environ["STAND_IN_NIGHT"]))
    Path(given.gpucap_json).parent.mkdir(parents=True, exist_ok=True)
    result_file.write(Path(given.gpucap_json), msgspec.structs.replace(night, started=datetime.now(UTC)))
    if given.junit_xml:
        given.junit_xml.write_text("<testsuites/>")
    return int(os.environ["STAND_IN_VERDICT"])


if __name__ == "__main__":
    sys.exit(main())

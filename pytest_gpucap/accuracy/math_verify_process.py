"""``python -m pytest_gpucap.accuracy.math_verify_process``: the process in which ``math-verify`` grades; see `grading`.

Reads a JSON list of [answer, right result] from standard input. Writes a line for each: true, false, or null where it
cannot read one of them.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any, Final

TIMEOUT_S: Final = 5


def main() -> int:
    """Grade everything on standard input."""
    # It logs every answer that it cannot read; the null says so already.
    logging.disable(logging.CRITICAL)
    pairs: list[tuple[str, str]] = json.load(sys.stdin)
    for said, expected in pairs:
        print(json.dumps(_is_right(said, expected)), flush=True)  # noqa: T201 - a command
    return 0


def _is_right(said: str, expected: str) -> bool | None:
    from math_verify import parse, verify  # type: ignore[import-untyped]

    try:
        gold = _expected(expected)
        given = parse(said, parsing_timeout=TIMEOUT_S)
        if not gold:
            return None
        # An answer in which it finds no mathematics is wrong.
        return bool(given) and bool(verify(gold, given, timeout_seconds=TIMEOUT_S))
    except Exception:  # noqa: BLE001 - SymPy raises any kind of error on what a model writes
        return None


def _expected(expected: str) -> Any:
    from math_verify import parse

    plain = [] if "\\" in expected else parse(expected, parsing_timeout=TIMEOUT_S)
    return plain or parse(f"\\boxed{{{expected}}}", parsing_timeout=TIMEOUT_S)


if __name__ == "__main__":
    raise SystemExit(main())

"""The table of constants in docs/statistics.md, from the code: name, value, and the reason that stands below it.

    python benchmarks/constants.py            # writes the table between its markers
    python benchmarks/constants.py --check    # exit 1 if the table is not what it would write

A constant is a number, or a tuple of numbers, that a module assigns to a name in capitals.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs" / "statistics.md"
MODULES: Final = (
    "measure/constants",
    "measure/estimate",
    "measure/observed",
    "measure/alternation",
    "measure/equal_rate",
    "estimate/bins",
    "estimate/step_time",
    "estimate/paces",
    "estimate/traffic",
    "estimate/queue_model",
    "estimate/queue_simulation",
    "estimate/sustainable_rate",
    "estimate/forgetting",
    "estimate/samples",
    "decisions/paired",
    "decisions/regression",
    "decisions/pooling",
    "telemetry/host_health",
)
"""Those that decide what a measurement finds, below ``pytest_gpucap``."""
_MARKERS: Final = ("<!-- constants: begin -->\n", "<!-- constants: end -->\n")
_NAME: Final = re.compile(r"_?[A-Z][A-Z0-9_]+")


@dataclass(frozen=True, slots=True)
class Constant:
    """One constant: its name, its value as the source has it, and the text below it; empty where there is none."""

    module: str
    name: str
    value: str
    reason: str


def constants() -> Iterator[Constant]:
    """Every constant of `MODULES`, in the order of the source."""
    for module in MODULES:
        source = (ROOT / "pytest_gpucap" / f"{module}.py").read_text(encoding="utf-8")
        body = ast.parse(source).body
        for statement, below in zip(body, [*body[1:], None], strict=True):
            if (found := _assigned(statement)) is None:
                continue
            name, value = found
            reason = below.value if isinstance(below, ast.Expr) else None
            text = reason.value if isinstance(reason, ast.Constant) and isinstance(reason.value, str) else ""
            written = " ".join((ast.get_source_segment(source, value) or "").split())
            yield Constant(module, name, written.replace("( ", "(").replace(", )", ")"), " ".join(text.split()))


def _assigned(statement: ast.stmt) -> tuple[str, ast.expr] | None:
    """Name and value of a constant; None if the statement assigns none."""
    target: ast.expr
    value: ast.expr | None
    if isinstance(statement, ast.AnnAssign):
        target, value = statement.target, statement.value
    elif isinstance(statement, ast.Assign):
        target, value = statement.targets[0], statement.value
    else:
        return None
    named = isinstance(target, ast.Name) and _NAME.fullmatch(target.id)
    return (target.id, value) if named and isinstance(target, ast.Name) and value and _is_number(value) else None


def _is_number(value: ast.expr) -> bool:
    match value:
        case ast.Constant():
            return isinstance(value.value, (int, float))
        case ast.Tuple():
            return all(_is_number(each) for each in value.elts)
        case ast.BinOp():
            return _is_number(value.left) and _is_number(value.right)
    return False


def table() -> str:
    """The table in Markdown, one section per module."""
    lines = []
    module = ""
    for each in constants():
        if each.module != module:
            module = each.module
            lines += ["", f"### `{module}.py`", "", "| constant | value | why |", "|---|---|---|"]
        lines.append(f"| `{each.name}` | {each.value} | {each.reason.replace('|', '&#124;')} |")
    return "\n".join(lines[1:]) + "\n"


def page(text: str) -> str:
    """The page with today's table between its markers."""
    before, rest = text.split(_MARKERS[0])
    _, after = rest.split(_MARKERS[1])
    return f"{before}{_MARKERS[0]}{table()}{_MARKERS[1]}{after}"


def main() -> int:
    """Write the table, or say whether it is current."""
    old = PAGE.read_text(encoding="utf-8")
    new = page(old)
    if sys.argv[1:] == ["--check"]:
        return int(old != new)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

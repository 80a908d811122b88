"""Writes ``options.md`` from the rows of `pytest_gpucap.options.table`: ``python docs/make_options.py``."""

from __future__ import annotations

from pathlib import Path

from pytest_gpucap.options.table import all_options

HEAD = """\
# Options

Every option of the command line is also a key in pytest's ini file. The key is the option's name: `gpucap_`, then the
flag without `--` and `gpucap-`, with underscores. `--gpucap-max-time` is `gpucap_max_time`, and `--gpu-class` is
`gpucap_gpu_class`.

The most specific source wins: a marker, then the command line, then the ini file, then the default. A time is a number
with a unit (`500ms`, `20s`, `10m`, `1h`) or a plain number of seconds up to a minute.

Write `--option=VALUE`, with `=`. pytest takes the path in `--option PATH` for a test path while it looks for its root
folder. A run is refused if it found another root folder in this way.

A relative path on the command line (also in `addopts`) starts where pytest was started. In an ini file it starts in
the folder of that file. A default starts at pytest's root folder. `~` is the home folder. Missing folders are made. A
folder in place of a file, or a file in place of a folder, ends the session before anything starts.

| option | ini key | default | |
| --- | --- | --- | --- |
"""


def page() -> str:
    """The whole page."""
    lines = []
    for row in all_options():
        value = "|".join(row.choices) or row.metavar
        flag = f"{row.flag}={value}" if value else row.flag
        cells = (f"`{flag}`", f"`{row.ini}`", row.otherwise, row.about)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return HEAD + "".join(lines)


if __name__ == "__main__":
    Path(__file__).with_name("options.md").write_text(page(), encoding="utf-8")

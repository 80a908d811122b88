"""Where the estimate of a session's cost goes: its lines to the terminal, its document to a file."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest

from pytest_gpucap.foreign_text import harmless
from pytest_gpucap.options.table import Options
from pytest_gpucap.planning.session_cost import SessionCost
from pytest_gpucap.report.session_cost import cost_json, cost_lines
from pytest_gpucap.results.whole_file import write_text
from pytest_gpucap.session.screen import columns
from pytest_gpucap.session.workers import is_one_of_many, speaks
from pytest_gpucap.user_files import shown_path


def tell(cost: SessionCost, options: Options, config: pytest.Config) -> Sequence[str]:
    """Write the file that was asked for; of xdist's workers the first does, and tells the lines on standard error.

    Returns:
        The lines for the terminal of this process; none where nobody wants them.

    Raises:
        pytest.UsageError: one line, if the file cannot be written.
    """
    if not speaks(config):
        return []
    said = []
    if options.estimate_json is not None:
        try:
            write_text(options.estimate_json, cost_json(cost))
            said.append(f"estimate written to {shown_path(options.estimate_json)}")
        except OSError as error:
            failed = f"--gpucap-estimate-json: {shown_path(options.estimate_json)} could not be written: {error}"
            if not is_one_of_many(config):
                raise pytest.UsageError(failed) from None
            said.append(failed)
    lines = [harmless(line) for line in [*(cost_lines(cost, columns(config)) if options.estimate else []), *said]]
    if is_one_of_many(config):
        if lines and sys.__stderr__ is not None and config.get_verbosity() > -2:  # noqa: PLR2004 - quieter is -qq
            sys.__stderr__.write("\n".join(["", *lines, ""]))
            sys.__stderr__.flush()
        return []
    return lines

"""Whether a session whose time is limited (``--gpucap-max-total``) has time for a test."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_gpucap.errors import NotMeasured
from pytest_gpucap.markers.declaration import Declaration
from pytest_gpucap.planning.session_cost import Need, fits
from pytest_gpucap.session.server_manager import ServerManager


def refusal(need: Need, later: Sequence[Need], manager: ServerManager, declared: Declaration) -> NotMeasured | None:
    """Why a test is not begun; None if there is time for it.

    Args:
        need: what it needs.
        later: what the tests after it need.
        manager: knows the server that runs, and the time that is left.
        declared: by the test.
    """
    if fits(need, later, manager.time.left_s, manager.running):
        return None
    text = f"{declared.name} was not measured: {manager.time.told}"
    return NotMeasured(text, need.seconds({manager.running}))

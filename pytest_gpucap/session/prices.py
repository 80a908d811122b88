"""The prices of the session: the one place where the file of ``--gpucap-prices`` is read."""

from __future__ import annotations

from functools import lru_cache

import pytest

from pytest_gpucap.options.table import Options
from pytest_gpucap.planning.prices import Prices, PricesError, read_prices
from pytest_gpucap.session.placement import own_classes


@lru_cache(maxsize=1)
def session_prices(options: Options) -> Prices:
    """The prices of ``--gpucap-prices``; none without it.

    They are read once: what a session costs, and what its answers cost, go by the same prices, even if the file changes
    while the session runs.

    Args:
        options: the session's.

    Raises:
        pytest.UsageError: one line on the file that cannot be used.
    """
    if options.prices is None:
        return Prices()
    try:
        return read_prices(options.prices, own_classes(options))
    except PricesError as error:
        raise pytest.UsageError(f"--gpucap-prices: {error}") from None

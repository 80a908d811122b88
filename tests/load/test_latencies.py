"""What limits are set on, against a count by hand; and what a journal shows of requests in flight and failed ones."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from pytest_gpucap.load.latencies import Ended, good, limited, with_first_tokens
from pytest_gpucap.load.protocol import Journal, Status
from pytest_gpucap.measure.late import late_by
from pytest_gpucap.requirement import declared_limits

NAN = math.nan
GOODPUT = declared_limits({"goodput": "60%", "ttft": "1s", "tpot": "100ms", "e2e": "5s"})[0]

# due, first, last, output tokens, status; good or not, or not known at 20 s.
REQUESTS = [
    (0.0, 0.5, 1.25, 9, Status.OK, True),  # TPOT 0.09375, E2E 1.25
    (1.0, 2.5, 3.0, 9, Status.OK, False),  # TTFT 1.5
    (2.0, 2.5, 4.0, 9, Status.OK, False),  # TPOT 0.1875
    (3.0, 3.5, 8.5, 101, Status.OK, False),  # E2E 5.5
    (4.0, 4.2, 4.2, 1, Status.OK, True),  # one token has no TPOT
    (5.0, 5.1, 5.2, 9, Status.HTTP_5XX, False),  # failed, however fast
    (6.0, NAN, 6.1, 9, Status.TIMEOUT, False),
    (14.0, 16.5, NAN, 9, Status.IN_FLIGHT, False),  # its first token was late
    (10.0, 10.5, NAN, 900, Status.IN_FLIGHT, False),  # older than 5 s
    (18.0, 18.5, NAN, 9, Status.IN_FLIGHT, None),
    (19.5, NAN, NAN, 9, Status.IN_FLIGHT, None),
]
GOOD = [each[-1] for each in REQUESTS]


def journal() -> Journal:
    due, first, last, output, status, _ = (np.array(column) for column in zip(*REQUESTS, strict=True))
    tokens = output.astype(np.int32)
    in_flight = status == Status.IN_FLIGHT
    return Journal(
        due_s=due,
        sent_s=due,
        first_s=first,
        last_s=last,
        end_s=np.where(in_flight, NAN, last),
        prompt_tokens=np.ones_like(tokens),
        output_tokens=tokens,
        counted_prompt_tokens=np.ones_like(tokens),
        counted_output_tokens=tokens,
        status=status.astype(np.uint8),
        hot=np.zeros(due.size, np.bool_),
        bin_s=1.0,
        bins_start_s=0.0,
        tokens=np.zeros(1, np.int64),
    )


def test_the_joint_latency_is_the_largest_over_its_threshold() -> None:
    values = limited(journal(), GOODPUT)[:5]
    assert values == pytest.approx([0.9375, 1.5, 1.875, 1.1, 0.2])


def test_a_request_on_its_threshold_is_good() -> None:
    latencies = Ended(np.array([1.0, 1.0001]), np.array([0.1, 0.1]), np.array([NAN, NAN]))
    assert good(latencies, GOODPUT.thresholds).tolist() == [True, False]


def test_a_later_first_token_moves_all_that_follows_it() -> None:
    latencies = Ended(
        np.array([1.0, 2.0, math.inf, NAN]), np.array([0.1, NAN, math.inf, NAN]), np.array([1.9, 2.0, math.inf, NAN])
    )
    later = with_first_tokens(latencies, 1.5)
    assert later.ttft_s == pytest.approx([1.5, 3.0, math.inf, NAN], nan_ok=True)
    assert later.tpot_s is latencies.tpot_s
    assert later.e2e_s == pytest.approx([2.4, 3.0, math.inf, NAN], nan_ok=True)
    assert with_first_tokens(latencies, 0.5).e2e_s == pytest.approx([1.4, 1.0, math.inf, NAN], nan_ok=True)


def test_requests_in_flight_are_late_once_they_cannot_be_good_and_failed_ones_always() -> None:
    late, known = late_by(journal(), slice(None), 20.0, GOODPUT)
    assert known.tolist() == [each is not None for each in GOOD]
    assert [bool(is_late) for is_late, sure in zip(late, known, strict=True) if sure] == [
        not each for each in GOOD if each is not None
    ]


@pytest.mark.parametrize(
    ("limit", "late", "known"),
    [
        ({"ttft_p95": "1s"}, [1, 7], [0, 1, 2, 3, 4, 5, 7, 8, 9, 6]),
        ({"e2e_p95": "5s"}, [3, 7, 8], [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ({"tpot_p95": "100ms"}, [2], [0, 1, 2, 3, 4, 5, 6]),
        ({"goodput": "95%", "ttft": "1s"}, [1, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
    ],
)
def test_each_limit_knows_its_own(limit: dict[str, str], late: list[int], known: list[int]) -> None:
    (found,) = declared_limits(limit)
    if "ttft_p95" in limit:  # one that failed before its first token is late by its age
        late = [*late, 6]
    is_late, is_known = late_by(journal(), slice(None), 20.0, found)
    assert np.flatnonzero(is_late).tolist() == sorted(late)
    assert np.flatnonzero(is_known).tolist() == sorted(known)


@pytest.mark.parametrize("limit", [{"e2e_p95": "5s"}, {"goodput": "95%", "e2e": "5s"}, {"tpot_p95": "100ms"}])
def test_a_request_that_we_cancelled_did_not_keep_a_limit(limit: dict[str, str]) -> None:
    """Those in flight at 20 s are cancelled at 30 s: what is known of them at 20 s stays what it was."""
    (found,) = declared_limits(limit)
    before = journal()
    in_flight = before.status == Status.IN_FLIGHT
    after = replace(
        before,
        last_s=np.where(in_flight & ~np.isnan(before.first_s), before.first_s + 0.1, before.last_s),
        end_s=np.where(in_flight, 30.0, before.end_s),
        status=np.where(in_flight, np.uint8(Status.CANCELLED), before.status),
    )
    for was, now in zip(
        late_by(before, slice(None), 20.0, found), late_by(after, slice(None), 20.0, found), strict=True
    ):
        assert was.tolist() == now.tolist()


def test_a_limit_on_gaps_is_of_no_request() -> None:
    (gaps,) = declared_limits({"itl_p99": "50ms"})
    assert gaps.of_gaps
    with pytest.raises(ValueError, match="a request has many of ITL"):
        limited(journal(), gaps)

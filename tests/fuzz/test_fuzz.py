"""Hostile options, ini keys, markers, files and answers: one line each, in time, in little memory, and no file changes.

``make fuzz`` runs for an hour, or for the seconds of ``GPUCAP_FUZZ_SECONDS``. Half of them are Hypothesis's, who makes
inputs of every structure, and half are Atheris's, whom coverage guides through the readers of bytes.
``GPUCAP_FUZZ_INPUTS`` asks for so many inputs of each instead. ``GPUCAP_FUZZ_SEED`` repeats a run.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.fuzz.campaign import campaign, place_of
from tests.fuzz.guided import FAULT

pytestmark = pytest.mark.timeout(2 * 3600)

GUIDED = Path(__file__).with_name("guided.py")
GUIDES = find_spec("atheris") is not None
INPUTS, SECONDS = os.environ.get("GPUCAP_FUZZ_INPUTS"), float(os.environ.get("GPUCAP_FUZZ_SECONDS") or 0)
SEED = int(os.environ.get("GPUCAP_FUZZ_SEED") or random.randrange(1000, 2**31))

for_long = pytest.mark.skipif(not (INPUTS or SECONDS), reason="takes as long as GPUCAP_FUZZ_SECONDS says")
with_atheris = pytest.mark.skipif(
    not GUIDES, reason="Atheris is not installed: it comes for Linux on x86-64 and Python 3.11 to 3.13"
)


def guided(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A run of its own, because Atheris never returns."""
    command = [sys.executable, "-P", str(GUIDED), f"--folder={folder}", *words]
    ran = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    print("\n".join(ran.stderr.splitlines()[-10:]), ran.stdout[-10_000:], sep="\n")
    return ran


def test_some_hostile_inputs(pytester: pytest.Pytester) -> None:
    print(campaign(place_of(pytester), first_seed=1, inputs=400))


@with_atheris
def test_some_guided_inputs(tmp_path: Path) -> None:
    ran = guided(tmp_path / "run", "--runs=400")
    assert ran.returncode == 0
    assert "\n400 inputs in " in ran.stdout
    # Branches of our readers are counted, and some are reached that no input to begin from has reached.
    seen = re.findall(r"(?:INITED|NEW) +cov: (\d+) ft: (\d+) ", ran.stderr)
    assert int(seen[0][0]) > 1000
    assert int(seen[-1][0]) > int(seen[0][0])
    assert int(seen[-1][1]) > int(seen[0][1])


@with_atheris
def test_a_fault_is_found_and_shown_and_can_be_repeated(tmp_path: Path) -> None:
    """The reader fails for one input in sixteen millions: only guided ones get there so soon."""
    ran = guided(tmp_path / "run", "--planted", "--runs=300000")
    assert ran.returncode == FAULT
    assert re.search(r"^fault: .*KeyError: 'planted'\nreader: planted\ninput \(.*\): b'gpu", ran.stdout, re.MULTILINE)
    again = guided(tmp_path / "again", "--planted", f"--input={tmp_path / 'run' / 'fault'}")
    assert again.returncode == FAULT
    (tmp_path / "sound").write_bytes(b"\x00gpx")
    assert guided(tmp_path / "third", "--planted", f"--input={tmp_path / 'sound'}").returncode == 0


@pytest.mark.slow
@for_long
def test_many_hostile_inputs(pytester: pytest.Pytester) -> None:
    found = campaign(
        place_of(pytester),
        first_seed=SEED,
        inputs=int(INPUTS) if INPUTS else None,
        seconds=None if INPUTS else SECONDS / 2 if GUIDES else SECONDS,
    )
    print(f"{found} (seed {SEED})")


@pytest.mark.slow
@for_long
@with_atheris
def test_many_guided_inputs(tmp_path: Path) -> None:
    ran = guided(tmp_path / "run", f"--seed={SEED}", f"--runs={INPUTS}" if INPUTS else f"--seconds={SECONDS / 2}")
    assert ran.returncode == 0

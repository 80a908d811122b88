"""Known vulnerabilities of the pinned packages: ``make audit``.

pip-audit asks the package index for the advisories on each package. An index may be out of reach, and a mirror may have
none. pip-audit then ends with a traceback, or says "No known vulnerabilities found". Here a line says that nothing was
audited, and that is no failure. A vulnerability is one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

OPTIONS = ("--no-deps", "--disable-pip", "--progress-spinner=off", "--format=json")


def audited(lock: Path) -> list[dict[str, Any]] | None:
    """What pip-audit says of each package; None if it could not ask."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        command = [sys.executable, "-m", "pip_audit", "-r", str(lock), "-o", str(found), *OPTIONS]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.is_file() and found.stat().st_size:
            packages: list[dict[str, Any]] = json.loads(found.read_text())["dependencies"]
            return packages
    why = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    print(f"audit: {lock}: nothing was audited, since no advisories could be asked for: {why[:300]}")
    return None


def report(lock: Path) -> bool:
    """Print a line on a lock file, and one for each vulnerability; whether it has none that is known."""
    packages = audited(lock)
    if packages is None:
        return True
    unknown = sum("skip_reason" in package for package in packages)
    if unknown == len(packages):
        print(f"audit: {lock}: nothing was audited, since the package index here has no advisories")
        return True
    found = [(package, each) for package in packages for each in package.get("vulns", ())]
    for package, each in found:
        fixed = ", ".join(each["fix_versions"]) or "no version yet"
        print(f"{lock}: {package['name']} {package['version']}: {each['id']}, fixed in {fixed}")
    asked = f"{len(packages) - unknown} packages audited" + (f", {unknown} not known there" if unknown else "")
    print(f"audit: {lock}: {len(found) or 'no'} known vulnerabilities; {asked}")
    return not found


if __name__ == "__main__":
    clean = [report(Path(lock)) for lock in sys.argv[1:]]
    sys.exit(0 if all(clean) else 1)

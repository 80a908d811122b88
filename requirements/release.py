"""Builds a release and checks it, without publishing anything: ``python requirements/release.py check``.

The release workflow runs the same with the tag (``--tag v1.2.3``) and publishes what lies in the folder then. Without a
tag it is a dry run: everything is done but the comparison with a tag, and a changelog that is not finished is only
remarked on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
import zipfile
from collections.abc import Sequence
from email.parser import Parser
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

REPOSITORY = Path(__file__).parents[1]
NAME = "pytest-gpucap"
NOWHERE = "https://github.com/OWNER/pytest-gpucap"
"""Of a dry run that is told no address; the documents have it as a placeholder."""
VENDOR = "pytest_gpucap/report/html/vendor"


class ReleaseError(Exception):
    """The release cannot be made. The message is one line: what is wrong, and where to mend it."""


def version_of(repository: Path) -> str:
    """The version that the package has in its source."""
    text = (repository / "pytest_gpucap" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise ReleaseError("pytest_gpucap/__init__.py: there is no __version__")
    return found[1]


def published(repository: Path) -> bool:
    """Whether the documents say that the package index has the package."""
    text = (repository / "pytest_gpucap" / "installing.py").read_text(encoding="utf-8")
    return re.search(r"^PUBLISHED: Final = True$", text, re.MULTILINE) is not None


def changelog_of(repository: Path, version: str) -> str:
    """What the changelog says of a version: the notes of its release.

    Raises:
        ReleaseError: if it has no section with a date, an empty one, or one below an unfinished section.
    """
    text = (repository / "CHANGELOG.md").read_text(encoding="utf-8")
    parts = re.split(r"^## \[([^\]]+)\](.*)$", text, flags=re.MULTILINE)
    sections = {parts[at]: (parts[at + 1], parts[at + 2].strip()) for at in range(1, len(parts), 3)}
    if version not in sections:
        raise ReleaseError(f"CHANGELOG.md: there is no section [{version}]: rename [Unreleased]")
    dated, notes = sections[version]
    if not re.fullmatch(r" - \d{4}-\d{2}-\d{2}", dated):
        raise ReleaseError(f"CHANGELOG.md: write the date behind [{version}]: ## [{version}] - 2026-01-31")
    if not notes:
        raise ReleaseError(f"CHANGELOG.md: the section [{version}] is empty")
    if sections.get("Unreleased", ("", ""))[1]:
        raise ReleaseError(f"CHANGELOG.md: [Unreleased] is not empty: move it into [{version}]")
    return notes + "\n"


def check_version(repository: Path, tag: str | None) -> str:
    """The version, once the tag and the citation say the same."""
    version = version_of(repository)
    if tag is not None and tag != f"v{version}":
        raise ReleaseError(f"the tag is {tag}, and pytest_gpucap/__init__.py has {version}: the tag must be v{version}")
    cited = re.search(r"^version: (\S+)$", (repository / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    if cited is None or cited[1] != version:
        raise ReleaseError(f"CITATION.cff: version must be {version}")
    return version


def check_url(url: str, tag: str | None) -> None:
    """Check that links of the release will lead somewhere.

    Raises:
        ReleaseError: if the address is none, or if a release is made for the placeholder.
    """
    if not re.fullmatch(r"https?://[^\s/@?#]+(?:/[^\s/?#]+)+/?", url):
        raise ReleaseError(f"PROJECT_URL: {url!r} is no address of a project: write it as {NOWHERE}")
    if "OWNER" in url.split("/"):
        said = "PROJECT_URL is not set, and the links of the package would lead to the placeholder OWNER"
        if tag is not None:
            raise ReleaseError(f"{said}: say PROJECT_URL={NOWHERE} make release-check TAG={tag}, with your OWNER")
        print(f"dry run: {said}")


def build(repository: Path, folder: Path, url: str, epoch: int) -> dict[str, str]:
    """Build the sdist, and the wheel from it; returns the SHA-256 of each file by its name."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch), "PROJECT_URL": url}
    _run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(repository)], environment)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("pytest_gpucap-*"))}


def epoch_of(repository: Path) -> int:
    """When the newest commit was made, in seconds since 1970; 2020 began where there is no history."""
    command = ["git", "-C", str(repository), "log", "-1", "--format=%ct"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(ran.stdout) if ran.returncode == 0 and ran.stdout.strip() else 1577836800


def sbom_of(wheel: Path, digest: str) -> dict[str, Any]:
    """The software bill of materials of a wheel, in CycloneDX 1.6: what it contains and what it needs.

    What it needs has no version, since pip chooses one within the range that is named.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        said = archive.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()
        vendored = [
            _vendored(archive, name) for name in names if name.startswith(f"{VENDOR}/") and name.endswith(".js")
        ]
    metadata = Parser().parsestr(said)
    version = str(metadata["Version"])
    own = f"pkg:pypi/{NAME}@{version}"
    needed = [_needed(Requirement(line)) for line in metadata.get_all("Requires-Dist") or []]
    components = [*vendored, *{each["bom-ref"]: each for each in needed}.values()]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, digest)}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "library",
                "bom-ref": own,
                "name": NAME,
                "version": version,
                "purl": own,
                "licenses": [{"license": {"id": str(metadata["License-Expression"])}}],
                "hashes": [{"alg": "SHA-256", "content": digest}],
            }
        },
        "components": components,
        "dependencies": [{"ref": own, "dependsOn": [each["bom-ref"] for each in components]}],
    }


def _vendored(archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    content = archive.read(name)
    found = re.search(rb'(?:version|VERSION)[=:]\s?"(\d+\.\d+\.\d+)"', content)
    version = {} if found is None else {"version": found[1].decode()}
    purl = "pkg:npm/echarts" + (f"@{found[1].decode()}" if found else "")
    return {
        "type": "library",
        "bom-ref": purl,
        "name": "echarts",
        **version,
        "purl": purl,
        "licenses": [{"license": {"id": "Apache-2.0"}}],
        "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(content).hexdigest()}],
        "evidence": {"occurrences": [{"location": name}]},
    }


def _needed(requirement: Requirement) -> dict[str, Any]:
    purl = f"pkg:pypi/{requirement.name.lower().replace('_', '-')}"
    extra = requirement.marker is not None and "extra" in str(requirement.marker)
    return {
        "type": "library",
        "bom-ref": purl,
        "name": requirement.name,
        "purl": purl,
        "scope": "optional" if extra else "required",
        "properties": [{"name": "python:specifier", "value": str(requirement.specifier)}],
    }


def check_readme(wheel: Path) -> None:
    """Check that no link of the readme in a wheel leads into the project: the index's page has no files."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        said = Parser().parsestr(archive.read(name).decode()).get_payload()
    prose = re.sub(r"^```.*?^```$", "", str(said), flags=re.MULTILINE | re.DOTALL)
    inner = [link for link in re.findall(r"\]\(([^)\s]+)\)", prose) if not re.match(r"https?:|mailto:|#", link)]
    if inner:
        raise ReleaseError(f"README.md: {inner[0]} is still a relative link in the wheel: see hatch_build.py")


def check(tag: str | None, url: str, out: Path, repository: Path = REPOSITORY) -> None:
    """Build the release twice, check it, and leave it in a folder: sdist, wheel, bill of materials, sums and notes.

    Raises:
        ReleaseError: if anything is not as it must be.
    """
    version = check_version(repository, tag)
    check_url(url, tag)
    try:
        notes = changelog_of(repository, version)
    except ReleaseError as error:
        if tag is not None:
            raise
        print(f"dry run: {error}")
        notes = ""
    if tag is not None and not published(repository):
        raise ReleaseError("pytest_gpucap/installing.py: set PUBLISHED = True, and run python docs/make_installing.py")
    shutil.rmtree(out, ignore_errors=True)
    epoch = epoch_of(repository)
    sums = build(repository, out, url, epoch)
    with tempfile.TemporaryDirectory() as again:
        if (second := build(repository, Path(again), url, epoch)) != sums:
            raise ReleaseError(f"two builds differ: {min(set(sums.items()) ^ set(second.items()))[0]}")
    files = [str(out / name) for name in sums]
    (wheel,) = (out / name for name in sums if name.endswith(".whl"))
    if wheel.name != f"pytest_gpucap-{version}-py3-none-any.whl":
        raise ReleaseError(f"the wheel is {wheel.name}")
    _run([sys.executable, "-m", "twine", "check", "--strict", *files])
    _run([sys.executable, "-m", "check_wheel_contents", str(wheel)])
    _run([sys.executable, "-m", "validate_pyproject", str(repository / "pyproject.toml")])
    check_readme(wheel)
    beside = out.with_name(f"{out.name}-beside")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    bill = sbom_of(wheel, sums[wheel.name])
    (beside / f"{NAME}-{version}.cdx.json").write_text(json.dumps(bill, indent=2) + "\n", encoding="utf-8")
    lines = [f"{digest}  {name}" for name, digest in sums.items()]
    (beside / "SHA256SUMS").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (beside / "notes.md").write_text(notes, encoding="utf-8")
    print("\n".join([f"{NAME} {version}, the same in two builds", *lines]))


def _run(command: Sequence[str], environment: dict[str, str] | None = None) -> None:
    ran = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if ran.returncode:
        sys.stderr.write(ran.stdout)
        raise ReleaseError(f"{' '.join(command[1:4])} failed; its words stand above")


def main(words: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(required=True)
    own = commands.add_parser("check", help="build the release and check it; publish nothing")
    own.add_argument("--tag", help="that the release is made for, such as v1.2.3; without one it is a dry run")
    own.add_argument("--url", default=os.environ.get("PROJECT_URL") or NOWHERE, help="of the project, for its links")
    own.add_argument("--out", type=Path, default=REPOSITORY / "dist" / "release", help="folder for what is made")
    given = parser.parse_args(words)
    try:
        check(given.tag or None, given.url, given.out)
    except ReleaseError as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

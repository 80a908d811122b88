"""Which package brings the module ``pynvml``, and how to put nvidia-ml-py's in its place.

Other packages bring a module of that name: ``pynvml`` before 12, ``nvidia-ml-py3``, ``py3nvml``'s forks. They stand
before nvidia-ml-py's file on the path, or overwrote it.
"""

from __future__ import annotations

import importlib.util
from importlib import metadata
from pathlib import Path
from typing import Any, Final

OURS: Final = "nvidia-ml-py"
_LISTS: Final = ("RECORD", "installed-files.txt", "SOURCES.txt")
"""Where packages list their files."""


def complaint(pynvml: Any, fault: str) -> str:
    """What is wrong with the module, which package brings it, and what to do: one line.

    Args:
        pynvml: the module; None if it could not be imported.
        fault: what is wrong, as the rest of a sentence.
    """
    where = _file(pynvml)
    if where is None:
        return f"the module pynvml {fault}, and it comes from no file: let the program use {OURS}'s own"
    owners = _owners(where)
    others = {name: version for name, version in owners.items() if _normal(name) != OURS}
    ours = _version(OURS)
    if others:
        named = " and ".join(f"{name} {version}" for name, version in others.items())
        hides = f"hides {OURS} {ours}" if ours else f"is not {OURS}"
        return (
            f"the module pynvml ({where}) {fault}: it belongs to the package {named}, which {hides}; "
            f"pip uninstall -y {' '.join(others)} && pip install --force-reinstall {OURS}"
        )
    if owners:
        return (
            f"the module pynvml ({where}) {fault}: {OURS} {ours} is too old or damaged; "
            f"pip install --upgrade --force-reinstall {OURS}"
        )
    hides = f"hides {OURS} {ours}" if ours else f"is not {OURS}"
    return (
        f"the module pynvml ({where}) {fault}: it belongs to no installed package and {hides}; "
        f"rename or remove it" + ("" if ours else f", and pip install {OURS}")
    )


def _file(pynvml: Any) -> Path | None:
    found = getattr(pynvml, "__file__", None)
    if found is None:
        try:
            spec = importlib.util.find_spec("pynvml")
        except (ImportError, ValueError, AttributeError):
            return None
        found = None if spec is None or not spec.has_location else spec.origin
    return None if found is None else Path(str(found))


def _owners(file: Path) -> dict[str, str]:
    """Name -> version of every installed package that lists the file; of two, one has overwritten the other's."""
    wanted = _real(file)
    found = {}
    for distribution in metadata.distributions():
        try:
            if not any("pynvml" in (distribution.read_text(name) or "") for name in _LISTS):
                continue  # its files are many, and are not looked at one by one
            listed = distribution.files or ()
            if any(
                each.stem in {"pynvml", "__init__"} and _real(Path(str(each.locate()))) == wanted for each in listed
            ):
                found[str(distribution.metadata["Name"])] = distribution.version
        except Exception:  # noqa: BLE001, S112 - a package with damaged metadata may raise anything, and is not asked about
            continue
    return found


def _real(file: Path) -> Path:
    return file.resolve().with_suffix(".py")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")

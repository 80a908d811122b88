"""What the package's metadata takes from the project when it is built: the readme with whole links, and URLs.

A page of the package index shows the readme, where ``docs/options.md`` leads nowhere. The address of the project comes
from the environment (`PROJECT_URL`), as the release workflow sets it: a build elsewhere names no address, and its links
stay as they are.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

PROJECT_URL = "PROJECT_URL"
_CODE_OR_LINK = re.compile(
    r"```.*?^```|`[^`\n]*`|"
    r"(?P<picture>!?)\[(?P<words>(?:[^\[\]]|\[[^\]]*\]\([^)]*\))*)\]\((?!https?:|mailto:|#)(?P<target>[^)\s]+)\)",
    re.MULTILINE | re.DOTALL,
)


def whole_links(text: str, url: str, version: str) -> str:
    """The text with every link into the project leading to the file of this version.

    Args:
        text: Markdown.
        url: of the project, as GitHub has it.
        version: whose tag is ``v`` and itself.
    """

    def whole(found: re.Match[str]) -> str:
        if found["target"] is None:
            return found[0]  # code
        where = f"{url.rstrip('/')}/{'raw' if found['picture'] else 'blob'}/v{version}"
        words = _CODE_OR_LINK.sub(whole, found["words"])
        return f"{found['picture']}[{words}]({where}/{found['target'].removeprefix('./')})"

    return _CODE_OR_LINK.sub(whole, text)


class ProjectMetadata(MetadataHookInterface):
    """Fills in the readme and the URLs."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Called by hatchling with the metadata so far."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        url, version = os.environ.get(PROJECT_URL, "").rstrip("/"), metadata["version"]
        if url:
            text = whole_links(text, url, version)
            metadata["urls"] = {
                "Repository": url,
                "Documentation": f"{url}/blob/v{version}/docs",
                "Changelog": f"{url}/blob/v{version}/CHANGELOG.md",
                "Issues": f"{url}/issues",
            }
        metadata["readme"] = {"content-type": "text/markdown", "text": text}

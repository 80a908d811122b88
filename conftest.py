"""For this project's own tests and examples: nothing here is needed to use the plugin."""

from __future__ import annotations

pytest_plugins = ["pytester"]

"""MkDocs hook: the how-to guides that are there, in this order, and any other after them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

GUIDES = (
    "train-on-your-own-data",
    "measure",
    "pseudo-label",
    "export",
    "browser",
    "serve",
    "blur-and-crop",
    "video",
    "scale",
)


def on_config(config: Any) -> Any:
    """Fill the navigation's empty "How to" with the pages of ``docs/how-to``."""
    there = sorted(path.stem for path in (Path(config.docs_dir) / "how-to").glob("*.md"))
    ordered = [name for name in GUIDES if name in there]
    ordered += [name for name in there if name not in GUIDES]
    for entry in config.nav:
        if "How to" in entry:
            entry["How to"] = [f"how-to/{name}.md" for name in ordered]
    return config

"""Where the files shipped with the program are."""

from __future__ import annotations

from pathlib import Path


def templates() -> Path:
    """The folder of engine files, chat templates and manifests: inside an installed wheel, beside a checkout."""
    package = Path(__file__).parent
    installed = package / "templates"
    return installed if installed.is_dir() else package.parent / "templates"

"""OME's CRD files as objects; parsed once per machine, since they are large and YAML is slow."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
FOLDER_VARIABLE = "RAYTUNE_AUTOTUNER_OME_CRDS"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def ome_crds() -> Path | None:
    """The folder with OME's CRDs (from the environment, or beside the repository); None where there is none."""
    beside = Path(__file__).parents[4] / "shared" / "ome-crds"
    folder = Path(os.environ.get(FOLDER_VARIABLE) or beside)
    return folder if folder.is_dir() and any(folder.glob("*.yaml")) else None


@functools.cache
def load_crds(folder: Path) -> tuple[Object, ...]:
    """The CRDs in a folder's YAML files; shared, not to be changed."""
    return tuple(_parsed(path.read_bytes()) for path in sorted(folder.glob("*.yaml")))


def _parsed(text: bytes) -> Object:
    cached = _cache() / f"{hashlib.sha256(text).hexdigest()}.json"
    if not cached.exists():
        made = cached.with_suffix(f".{os.getpid()}")
        made.write_text(json.dumps(yaml.load(text, LOADER)))
        made.replace(cached)
    return json.loads(cached.read_text())  # type: ignore[no-any-return]


def _cache() -> Path:
    folder = Path(tempfile.gettempdir()) / f"raytune-autotuner-crds-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder

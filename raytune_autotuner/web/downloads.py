"""Everything of an experiment as one archive, made while it is sent: only a piece of a file is in memory."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pyarrow.fs as pafs

from raytune_autotuner import redaction
from raytune_autotuner.errors import StorageFault
from raytune_autotuner.folder import ExperimentFolder

MOST_BYTES = 4 * 1024**3
MOST_FILES = 200_000
PIECE_BYTES = 1024 * 1024
TEXTS = (".json", ".log", ".csv", ".txt", ".yaml", ".yml", "")
WHOLE = {".json": redaction.json_text, ".yaml": redaction.yaml_text, ".yml": redaction.yaml_text}
LEFT_OUT = "LEFT-OUT.txt"


class _Outlet(io.RawIOBase):
    """What was written since the last look."""

    def __init__(self) -> None:
        self._written = bytearray()
        self._at = 0

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        piece = bytes(data)  # type: ignore[call-overload]
        self._written += piece
        self._at += len(piece)
        return len(piece)

    def tell(self) -> int:
        return self._at

    def take(self) -> bytes:
        taken, self._written = bytes(self._written), bytearray()
        return taken


def archive(folder: ExperimentFolder) -> Iterator[bytes]:
    """The files of an experiment as a zip file, without secrets; says in a file of its own what was left out."""
    outlet = _Outlet()
    left_out: list[str] = []
    sent = 0
    with zipfile.ZipFile(outlet, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:
        for number, (path, size, written) in enumerate(_files(folder)):
            if sent + size > MOST_BYTES or number >= MOST_FILES:
                left_out.append(f"{path} ({size} bytes)")
                continue
            entry = zipfile.ZipInfo(f"{folder.name}/{path}", written)
            entry.compress_type = zipfile.ZIP_DEFLATED
            with target.open(entry, "w", force_zip64=True) as stream:
                for piece in _pieces(folder, path, size):
                    stream.write(piece)
                    sent += len(piece)
                    yield outlet.take()
        if left_out:
            target.writestr(f"{folder.name}/{LEFT_OUT}", "\n".join(left_out))
    yield outlet.take()


def _files(folder: ExperimentFolder) -> Iterator[tuple[str, int, tuple[int, int, int, int, int, int]]]:
    """Path, size and time of each; nothing that a link leads out of the folder to."""
    filesystem, root = folder.root.opened
    selector = pafs.FileSelector(root, recursive=True)
    try:
        found = filesystem.get_file_info(selector)
    except OSError as error:
        raise StorageFault(f"cannot list {folder.root.location()}: {error}") from error
    for info in sorted(found, key=lambda each: each.path):
        if info.type == pafs.FileType.File and not info.path.endswith(".tmp") and _is_within(info.path, folder):
            moment: datetime = info.mtime
            yield info.path[len(root) :].lstrip("/"), int(info.size), (*moment.timetuple()[:6],)


def _is_within(path: str, folder: ExperimentFolder) -> bool:
    return not folder.root.is_local or Path(path).resolve().is_relative_to(Path(folder.root.opened[1]).resolve())


def _pieces(folder: ExperimentFolder, path: str, size: int) -> Iterator[bytes]:
    name = path.rpartition("/")[2]
    suffix = name[name.rfind(".") :] if "." in name else ""
    if suffix in WHOLE and size <= PIECE_BYTES:
        yield WHOLE[suffix](folder.root.read(path) or "").encode()
        return
    rest = b""
    for start in range(0, size, PIECE_BYTES):
        piece = rest + folder.root.read_from(path, start, PIECE_BYTES)
        if suffix not in TEXTS:
            yield piece
            continue
        whole, mark, rest = piece.rpartition(b"\n") if start + PIECE_BYTES < size else (piece, b"", b"")
        yield redaction.text((whole + mark).decode(errors="replace")).encode()
    if rest:
        yield redaction.text(rest.decode(errors="replace")).encode()

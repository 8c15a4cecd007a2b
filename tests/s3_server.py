"""A real S3 server over HTTP for tests: moto's, as a process of its own, in memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from raytune_autotuner.loopback import free_port, get
from raytune_autotuner.processes import OwnedProcess
from tests.waiting import until

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test-key",
    "AWS_SECRET_ACCESS_KEY": "test-secret",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_REGION": "us-east-1",
}
BUCKET = "tuning"


@dataclass(frozen=True)
class S3Server:
    """A server with one empty bucket; ``end`` takes it away as a power cut would."""

    port: int
    process: OwnedProcess

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs so that plain ``s3://`` URIs are this server's."""
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}"}

    def uri(self, path: str = "") -> str:
        """A URI that names the server itself, so that it works without ``AWS_ENDPOINT_URL``."""
        return f"s3://{BUCKET}/{path}?endpoint_override=127.0.0.1:{self.port}&scheme=http"

    def files(self, path: str = "") -> dict[str, bytes]:
        """Every object below a path, by its name from there."""
        root = f"{BUCKET}/{path}".rstrip("/")
        client = _client(self.port)
        found = client.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True))
        files = [info.path for info in found if info.type == pafs.FileType.File]
        return {file.removeprefix(f"{root}/"): client.open_input_stream(file).read() for file in files}

    def end(self) -> None:
        self.process.stop(0)


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Start one; its log is in ``folder``. The environment of this process is left alone."""
    port = free_port()
    argv = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = OwnedProcess(argv, log=folder / "s3.log", env=dict(os.environ), owner="tests/s3")
    try:
        until(lambda: process.poll() is not None or get(f"http://127.0.0.1:{port}/moto-api/", 1.0), seconds=60)
        _client(port).create_dir(BUCKET)
        yield S3Server(port, process)
    finally:
        process.stop(0)


@pytest.fixture
def s3(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A server of the test's own; this process and what it starts find it under plain ``s3://tuning/…``."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


def _client(port: int) -> pafs.S3FileSystem:
    return pafs.S3FileSystem(
        access_key=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        secret_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        region=CREDENTIALS["AWS_REGION"],
        endpoint_override=f"127.0.0.1:{port}",
        scheme="http",
        allow_bucket_creation=True,
    )

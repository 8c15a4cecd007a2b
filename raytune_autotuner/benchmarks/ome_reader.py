"""Brings result files out of a PersistentVolumeClaim: a short-lived pod prints them into its log.

That needs no right beyond making pods and reading logs, and no storage but the claim. Each file is printed
compressed and in base64 between two marked lines, the first with its size and checksum, so that a log which was cut
off or rotated away (the kubelet does that at 10 MiB) is noticed and never taken for a short result.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from raytune_autotuner.anchor import MANAGED
from raytune_autotuner.deadline import Deadline
from raytune_autotuner.errors import EnvironmentFault, TransientError
from raytune_autotuner.kube import POD, Cluster

READER = "raytune-autotuner/reader"
CONTAINER = "reader"
MOUNT = "/results"
LIFETIME_S = 300
"""Kubernetes ends the pod after this long, also when nobody is left to delete it."""
NO_FOLDER = 3
LOG_LINES = 10_000_000
SCRIPT = f"""
cd "$1" || exit {NO_FOLDER}
for file in experiment_metadata.json *_time_*s.json debug_for_run_*.json; do
  [ -f "$file" ] || continue
  echo "$2 begin $(wc -c < "$file") $(sha256sum < "$file" | cut -d ' ' -f 1) $file"
  gzip -c "$file" | base64
  echo "$2 end"
done
echo "$2 done"
"""
"""For any image with a POSIX shell, gzip, base64 and sha256sum; genai-bench's own has them."""

IMAGE_REASONS = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
CONTAINER_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
CLAIM = re.compile(r"persistentvolumeclaim", re.IGNORECASE)

Pod = Mapping[str, Any]


@dataclass(frozen=True)
class Folder:
    """A folder in a claim, and what the pod that reads it is like."""

    namespace: str
    claim: str
    path: str
    image: str
    owner: Mapping[str, Any]
    labels: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()
    node: str | None = None
    """Preferred: where the claim is mounted and the image is already."""


def read_folder(cluster: Cluster, folder: Folder, deadline: Deadline) -> dict[str, bytes]:
    """genai-bench's result files by name; empty when there is no such folder.

    Raises:
        EnvironmentFault: the pod cannot start (image, claim).
        TransientError: it did not end in time, or what it printed is not whole.
    """
    marker = uuid.uuid4().hex
    with _pod(cluster, folder, marker) as name:
        pod = _ended(cluster, folder, name, deadline)
        if exit_code(pod) == NO_FOLDER:
            return {}
        log = cluster.logs(folder.namespace, name, container=CONTAINER, tail_lines=LOG_LINES)
    if pod["status"]["phase"] != "Succeeded":
        raise TransientError(f"the pod that reads {_place(folder)} failed ({exit_code(pod)}):\n{log[-500:]}")
    try:
        return dict(files_in(log, marker))
    except ValueError as error:
        raise TransientError(f"the files of {_place(folder)} did not come through whole: {error}") from error


def files_in(log: str, marker: str) -> Iterator[tuple[str, bytes]]:
    """The files that a reader printed.

    Raises:
        ValueError: one is not what its first line says, or the end is missing.
    """
    lines = (line.strip() for line in log.splitlines())
    for line in lines:
        if line == f"{marker} done":
            return
        start = re.fullmatch(rf"{marker} begin (\d+) ([0-9a-f]{{64}}) ([\w.,()-]+)", line)
        if start is None:
            raise ValueError(f"unexpected line {line[:80]!r}")
        yield start[3], _file(start[3], int(start[1]), start[2], _until(lines, f"{marker} end", start[3]))
    raise ValueError("the log ends too early")


def _until(lines: Iterator[str], end: str, name: str) -> str:
    taken: list[str] = []
    for line in lines:
        if line == end:
            return "".join(taken)
        taken.append(line)
    raise ValueError(f"{name} is cut off")


def _file(name: str, size: int, digest: str, text: str) -> bytes:
    try:
        content = zlib.decompress(base64.b64decode(text, validate=True), wbits=zlib.MAX_WBITS | 16)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"{name} is damaged: {error}") from error
    if len(content) != size or hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(f"{name} has {len(content)} bytes of {size}, or another checksum")
    return content


@contextmanager
def _pod(cluster: Cluster, folder: Folder, marker: str) -> Iterator[str]:
    name = f"raytune-autotuner-reader-{marker[:12]}"
    cluster.create(POD, _manifest(name, folder, marker))
    try:
        yield name
    finally:
        cluster.delete(POD, name, folder.namespace, grace_s=0)


def _ended(cluster: Cluster, folder: Folder, name: str, deadline: Deadline) -> Pod:
    """The pod once it has run."""
    with cluster.watch(POD, folder.namespace, {READER: name}) as changes:
        last = ""
        while (event := changes.wait(deadline)) is not None:
            if event.type == "DELETED":
                raise TransientError(f"somebody removed pod {name} while it read {_place(folder)}")
            if (event.object.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
                return event.object
            last = stuck(event.object) or last
            if reason := broken(event.object):
                raise EnvironmentFault(f"{_place(folder)} cannot be read: {reason}")
    waited = f"{deadline.seconds:.0f} s"
    raise TransientError(f"{_place(folder)} was not read within {waited}{': ' if last else ''}{last}")


def broken(pod: Pod) -> str:
    """Why a pod will never run, in words; empty when it may."""
    for waiting in _waiting(pod):
        if waiting.get("reason") in IMAGE_REASONS | CONTAINER_REASONS:
            return f"{waiting['reason']}: {waiting.get('message') or _images(pod)}"
    if CLAIM.search(reason := stuck(pod)) and "not found" in reason:
        return reason
    return ""


def stuck(pod: Pod) -> str:
    """Why a pod has no node yet, in the scheduler's words; empty when it has one."""
    for condition in (pod.get("status") or {}).get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message") or condition.get("reason") or "not scheduled")
    return ""


def exit_code(pod: Pod) -> int | None:
    """Of the pod's container, when it has ended."""
    for status in _containers(pod):
        if terminated := (status.get("state") or {}).get("terminated"):
            return int(terminated.get("exitCode", 0))
    return None


def _waiting(pod: Pod) -> Iterator[Mapping[str, Any]]:
    for status in _containers(pod):
        if waiting := (status.get("state") or {}).get("waiting"):
            yield waiting


def _containers(pod: Pod) -> Sequence[Mapping[str, Any]]:
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def _images(pod: Pod) -> str:
    return ", ".join(str(each.get("image")) for each in pod["spec"]["containers"])


def _place(folder: Folder) -> str:
    return f"{folder.path} of PersistentVolumeClaim {folder.namespace}/{folder.claim}"


def _manifest(name: str, folder: Folder, marker: str) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": LIFETIME_S,
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "tolerations": list(folder.tolerations),
        "containers": [
            {
                "name": CONTAINER,
                "image": folder.image,
                "command": ["sh", "-c", SCRIPT, "reader", f"{MOUNT}/{folder.path}", marker],
                "resources": {
                    "requests": {"cpu": "50m", "memory": "64Mi"},
                    "limits": {"cpu": "1", "memory": "256Mi"},
                },
                "volumeMounts": [{"name": "results", "mountPath": MOUNT, "readOnly": True}],
            }
        ],
        "volumes": [{"name": "results", "persistentVolumeClaim": {"claimName": folder.claim}}],
    }
    if folder.node is not None:
        spec["affinity"] = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [_prefer(folder.node)]}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": folder.namespace,
            "labels": {**MANAGED, **folder.labels, READER: name},
            "ownerReferences": [dict(folder.owner)],
        },
        "spec": spec,
    }


def _prefer(node: str) -> dict[str, Any]:
    host = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
    return {"weight": 100, "preference": {"matchExpressions": [host]}}

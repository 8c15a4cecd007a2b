"""A Kubernetes API over real HTTP, in memory: stateful, and with the refusals and words of the real server.

``ApiServer(crds)`` serves it; ``ApiServer.store`` is the same API without HTTP, for the controllers of an emulated
world; ``ApiServer.hooks`` are the doors to its pods; ``ApiServer.faults`` are its troubles.
"""

from __future__ import annotations

from tests.emulator.api.admission import Admission, Deletion
from tests.emulator.api.crds import load_crds, ome_crds
from tests.emulator.api.errors import ApiError, denied_by_webhook, webhook_unreachable
from tests.emulator.api.faults import Fault, Faults
from tests.emulator.api.kinds import Kind
from tests.emulator.api.objects import timestamp
from tests.emulator.api.pods import LogRequest, PodHooks, bind
from tests.emulator.api.server import ApiServer
from tests.emulator.api.store import Store
from tests.emulator.api.watch import Event, Watch

__all__ = [
    "Admission",
    "ApiError",
    "ApiServer",
    "Deletion",
    "Event",
    "Fault",
    "Faults",
    "Kind",
    "LogRequest",
    "PodHooks",
    "Store",
    "Watch",
    "bind",
    "denied_by_webhook",
    "load_crds",
    "ome_crds",
    "timestamp",
    "webhook_unreachable",
]

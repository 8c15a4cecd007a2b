"""Switches for what goes wrong in the cluster; they can be set at any time."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import Any

from tests.emulator.world.nodes import Node


@dataclass
class PodFaults:
    """What happens to the pods whose name matches; a fault that is not set leaves the next rule to decide.

    Times are cluster seconds.
    """

    pods: str = ""
    """Regular expression, found anywhere in the pod's name; empty: all pods with containers of an engine or not."""
    times: int | None = None
    """At most so many pods are hit."""
    node: str = ""
    """Only pods on this node."""

    pull_s: float | None = None
    pull_fails: str = ""
    """Message of the registry."""
    mount_fails: str = ""
    """Message of the kubelet, e.g. ``MountVolume.SetUp failed for volume ...``."""
    crash_at_start: str = ""
    """Last line of the engine's traceback."""
    exit_at_start: int | None = None
    """The container ends at once with this code and prints nothing."""
    oom_killed_at_start: bool = False
    """The kernel ends it when it has just started: reason OOMKilled."""
    hang_at_start: bool = False
    crash_after_requests: int | None = None
    hang_after_requests: int | None = None
    error_share: float = 0.0
    error_code: int = 500
    never_ready: bool = False
    """The readiness probe fails whatever the engine answers."""
    will_not_die: bool = False
    """Neither SIGTERM nor SIGKILL ends it; the pod stays Terminating."""
    slow_to_die: bool = False
    """SIGTERM is ignored, so that the grace period passes in full."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Engine parameters that it runs with whatever it was told."""

    _hit: set[str] = field(default_factory=set, repr=False)

    def applies(self, uid: str, name: str, node: str) -> bool:
        if self.node and self.node != node:
            return False
        if re.search(self.pods, name) is None:
            return False
        if self.times is not None and uid not in self._hit:
            if len(self._hit) >= self.times:
                return False
            self._hit.add(uid)
        return True


@dataclass
class Faults:
    """All switches of the world. Those of the API itself (errors, dropped watches, slow answers) are in ``api``."""

    pods: list[PodFaults] = field(default_factory=list)
    lost_nodes: set[str] = field(default_factory=set)
    """Nodes that are gone with all that ran there; taking one out brings it back, empty."""
    pod_quota: str = ""
    """Creating pods of workloads is refused with this message, e.g. ``exceeded quota: ...``."""
    controller_down: bool = False
    """OME's controller does nothing."""
    webhook_down: bool = False
    """Nobody answers OME's webhooks: its objects and its pods cannot be written."""
    webhook_s: float = 0.0
    """Real seconds that OME's webhooks take."""
    claims_pending: bool = False
    """Claims are not bound."""
    api: Any = None

    def add(self, **switches: Any) -> PodFaults:
        """A rule for pods, e.g. ``faults.add(pods="trial-1", pull_fails="not found")``."""
        rule = PodFaults(**switches)
        self.pods.append(rule)
        return rule

    def clear(self) -> None:
        """Nothing is at fault any more (the API's own switches are left alone)."""
        kept = self.api
        for each in fields(self):
            setattr(self, each.name, getattr(Faults(), each.name))
        self.api = kept

    def of_pod(self, uid: str, name: str, node: str) -> PodFaults:
        """What applies to one pod: of each switch the first rule that sets it."""
        found = PodFaults()
        for rule in reversed([rule for rule in list(self.pods) if rule.applies(uid, name, node)]):
            for each in fields(PodFaults):
                value = getattr(rule, each.name)
                if each.name[0] != "_" and value not in (None, "", False, 0.0, {}):
                    setattr(found, each.name, value)
        return found

    def lost(self, node: Node | str) -> bool:
        return (node if isinstance(node, str) else node.name) in self.lost_nodes

"""Who may do what: users by bearer token, and Roles and bindings as the store holds them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass

from tests.emulator.api.errors import ApiError, forbidden
from tests.emulator.api.kinds import Object
from tests.emulator.api.store import Store

GROUP = "rbac.authorization.k8s.io"
MASTERS = "system:masters"


@dataclass(frozen=True)
class User:
    name: str
    groups: tuple[str, ...]


ADMIN = User("kubernetes-admin", (MASTERS, "system:authenticated"))
ANONYMOUS = User("system:anonymous", ("system:unauthenticated",))


def service_account(namespace: str, name: str) -> User:
    groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated")
    return User(f"system:serviceaccount:{namespace}:{name}", groups)


@dataclass(frozen=True)
class Attempt:
    """What is asked: a verb on a resource, or on a path when ``path`` is set."""

    verb: str
    group: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""

    @property
    def full_resource(self) -> str:
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource


class Authenticator:
    """Bearer tokens of this server."""

    def __init__(self) -> None:
        self._users: dict[str, User] = {}
        self.admin_token = self.issue(ADMIN)

    def issue(self, user: User) -> str:
        token = secrets.token_urlsafe(24)
        self._users[token] = user
        return token

    def user(self, authorization: str) -> User:
        """The user of an Authorization header.

        Raises:
            ApiError: 401, a token that is not (or no longer) valid.
        """
        scheme, _, token = authorization.partition(" ")
        if not authorization:
            return ANONYMOUS
        user = self._users.get(token.strip())
        if scheme.lower() != "bearer" or not user:
            raise ApiError(401, "Unauthorized")
        return user

    def revoke(self, token: str) -> None:
        self._users.pop(token, None)


class Authorizer:
    """RBAC evaluated on the Roles, ClusterRoles and bindings in a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def reason(self, user: User, attempt: Attempt) -> str | None:
        """Why a user may; None when it may not."""
        if MASTERS in user.groups:
            return ""
        for rule, why in self._rules(user, attempt.namespace):
            if _allows(rule, attempt):
                return why
        return None

    def check(self, user: User, attempt: Attempt) -> None:
        """Raises ``ApiError`` 403, in the server's words, when a user may not."""
        if self.reason(user, attempt) is None:
            raise refusal(user, attempt)

    def rules(self, user: User, namespace: str) -> list[Object]:
        return [rule for rule, _ in self._rules(user, namespace)]

    def _rules(self, user: User, namespace: str) -> Iterator[tuple[Object, str]]:
        for record in self._store.records(f"clusterrolebindings.{GROUP}")[0]:
            yield from self._bound(user, record.value)
        if namespace:
            for record in self._store.records(f"rolebindings.{GROUP}", namespace)[0]:
                yield from self._bound(user, record.value)

    def _bound(self, user: User, binding: Object) -> Iterator[tuple[Object, str]]:
        namespace = binding["metadata"].get("namespace", "")
        subject = next((part for part in binding.get("subjects") or () if _is_subject(user, part, namespace)), None)
        if subject is None:
            return
        reference = binding["roleRef"]
        resource = "roles" if reference["kind"] == "Role" else "clusterroles"
        role = self._store.find(f"{resource}.{GROUP}", reference["name"], namespace or None)
        place = f"{binding['metadata']['name']}/{namespace}" if namespace else binding["metadata"]["name"]
        words = f'RBAC: allowed by {binding["kind"]} "{place}" of {reference["kind"]} "{reference["name"]}"'
        for rule in (role or {}).get("rules") or ():
            yield rule, f'{words} to {subject["kind"]} "{_shown(subject, namespace)}"'


def _shown(subject: Object, namespace: str) -> str:
    if subject["kind"] == "ServiceAccount":
        return f"{subject['name']}/{subject.get('namespace') or namespace}"
    return subject["name"]  # type: ignore[no-any-return]


def _is_subject(user: User, subject: Object, namespace: str) -> bool:
    if subject["kind"] == "ServiceAccount":
        return user.name == f"system:serviceaccount:{subject.get('namespace') or namespace}:{subject['name']}"
    if subject["kind"] == "Group":
        return subject["name"] in user.groups
    return subject["name"] == user.name  # type: ignore[no-any-return]


def _allows(rule: Object, attempt: Attempt) -> bool:
    verbs = rule.get("verbs") or ()
    if "*" not in verbs and attempt.verb not in verbs:
        return False
    if attempt.path:
        return any(_covers(pattern, attempt.path) for pattern in rule.get("nonResourceURLs") or ())
    groups, names = rule.get("apiGroups") or (), rule.get("resourceNames") or ()
    in_group = "*" in groups or attempt.group in groups
    return in_group and _has_resource(rule, attempt) and (not names or attempt.name in names)


def _covers(pattern: str, path: str) -> bool:
    return path.startswith(pattern[:-1]) if pattern.endswith("*") else path == pattern


def _has_resource(rule: Object, attempt: Attempt) -> bool:
    resources = rule.get("resources") or ()
    wanted = {"*", attempt.full_resource}
    if attempt.subresource:
        wanted.add(f"*/{attempt.subresource}")
    return bool(wanted.intersection(resources))


def refusal(user: User, attempt: Attempt) -> ApiError:
    if attempt.path:
        return ApiError(403, f'forbidden: User "{user.name}" cannot {attempt.verb} path "{attempt.path}"')
    place = f'in the namespace "{attempt.namespace}"' if attempt.namespace else "at the cluster scope"
    what = f'resource "{attempt.full_resource}" in API group "{attempt.group}"'
    why = f'User "{user.name}" cannot {attempt.verb} {what} {place}'
    resource = f"{attempt.resource}.{attempt.group}" if attempt.group else attempt.resource
    return forbidden(resource, attempt.name, why)


def _cluster_role(name: str, *rules: Object) -> Object:
    return {"metadata": {"name": name}, "rules": list(rules)}


def _paths(*paths: str) -> Object:
    return {"verbs": ["get"], "nonResourceURLs": list(paths)}


REVIEWS = {
    "apiGroups": ["authorization.k8s.io"],
    "resources": ["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
    "verbs": ["create"],
}
SELF = {"apiGroups": ["authentication.k8s.io"], "resources": ["selfsubjectreviews"], "verbs": ["create"]}
EVERYTHING = {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}
PUBLIC = ("/healthz", "/livez", "/readyz", "/version", "/version/")
DISCOVERY = ("/api", "/api/*", "/apis", "/apis/*", "/openapi", "/openapi/*")
BOOTSTRAP = (
    (_cluster_role("cluster-admin", EVERYTHING, {"verbs": ["*"], "nonResourceURLs": ["*"]}), (MASTERS,)),
    (_cluster_role("system:basic-user", REVIEWS, SELF), ("system:authenticated",)),
    (
        _cluster_role("system:discovery", _paths(*DISCOVERY, *PUBLIC)),
        ("system:authenticated",),
    ),
    (_cluster_role("system:public-info-viewer", _paths(*PUBLIC)), ("system:authenticated", "system:unauthenticated")),
)
"""The roles that every cluster has, with the groups that they are bound to."""


def bootstrap(store: Store) -> None:
    for role, groups in BOOTSTRAP:
        store.create(f"clusterroles.{GROUP}", role)
        binding = {
            "metadata": {"name": role["metadata"]["name"]},
            "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": role["metadata"]["name"]},
            "subjects": [{"apiGroup": GROUP, "kind": "Group", "name": group} for group in groups],
        }
        store.create(f"clusterrolebindings.{GROUP}", binding)

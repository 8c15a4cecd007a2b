"""Reviews: questions about the asker's own rights and identity."""

from __future__ import annotations

from tests.emulator.api.kinds import Object
from tests.emulator.api.rbac import Attempt, Authorizer, User

Asked = Object


def answer(authorizer: Authorizer, user: User, resource: str, body: Asked) -> Object | None:
    """The review with its status; None when the resource is no review."""
    spec = body.get("spec") or {}
    match resource:
        case "selfsubjectaccessreviews.authorization.k8s.io":
            return _review("SelfSubjectAccessReview", spec, _access(authorizer, user, spec))
        case "subjectaccessreviews.authorization.k8s.io":
            subject = User(spec.get("user", ""), tuple(spec.get("groups") or ()))
            return _review("SubjectAccessReview", spec, _access(authorizer, subject, spec))
        case "selfsubjectrulesreviews.authorization.k8s.io":
            return _review("SelfSubjectRulesReview", spec, _rules(authorizer, user, spec.get("namespace", "")))
        case "selfsubjectreviews.authentication.k8s.io":
            status = {"userInfo": {"username": user.name, "groups": list(user.groups)}}
            head = {"kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1", "metadata": {}}
            return head | {"status": status}
    return None


def _review(kind: str, spec: Object, status: Object) -> Object:
    return {"kind": kind, "apiVersion": "authorization.k8s.io/v1", "metadata": {}, "spec": spec, "status": status}


def _access(authorizer: Authorizer, user: User, spec: Object) -> Object:
    if "nonResourceAttributes" in spec:
        asked = spec["nonResourceAttributes"]
        attempt = Attempt(asked.get("verb", ""), path=asked.get("path", ""))
    else:
        asked = spec.get("resourceAttributes") or {}
        keys = ("verb", "group", "resource", "subresource", "namespace", "name")
        attempt = Attempt(**{key: asked.get(key, "") for key in keys})
    reason = authorizer.reason(user, attempt)
    return {"allowed": reason is not None} | ({"reason": reason} if reason else {})


def _rules(authorizer: Authorizer, user: User, namespace: str) -> Object:
    rules = authorizer.rules(user, namespace)
    return {
        "resourceRules": [rule for rule in rules if "nonResourceURLs" not in rule],
        "nonResourceRules": [rule for rule in rules if "nonResourceURLs" in rule],
        "incomplete": False,
    }

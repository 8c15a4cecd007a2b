"""Manifests from templates: values are data, a wrong name is an error, and the result is one object.

Every value that a template puts out is written as JSON, which YAML reads as that very value, so no value can change
the structure around it. To make one text out of several parts, join them inside: ``{{ name ~ "-suffix" }}``.
"""

from __future__ import annotations

import difflib
import json
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jinja2
import yaml
from jinja2 import meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from raytune_autotuner.errors import Problem, SpecError
from raytune_autotuner.kube.kinds import Kind
from raytune_autotuner.kube.watch import Manifest

Variables = Mapping[str, Any]
FILENAME = "<template>"
"""What jinja calls a template without a file."""
UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]")
"""What JSON may contain as it is, and YAML may not."""


def render(template: str, variables: Variables, *, source: str = "template", kind: Kind | None = None) -> Manifest:
    """The one object that a template and these variables make.

    Raises:
        SpecError: the template names a variable that there is not (with the line and those there are), or is
            malformed, or makes something else than one object (of this kind).
    """
    check(template, variables, source)
    try:
        text = _ENVIRONMENT.from_string(template).render(variables)
    except jinja2.TemplateError as error:
        raise _fault(error, source) from error
    except (TypeError, ValueError, ArithmeticError) as error:
        raise _problem(f"{type(error).__name__}: {error}", _line(error), source) from error
    manifest = _parse(text, source)
    if kind is not None and (manifest.get("apiVersion"), manifest.get("kind")) != (kind.api_version, kind.kind):
        made = f"{manifest.get('apiVersion')} {manifest.get('kind')}"
        raise _problem(f"makes a {made}, where a {kind.api_version} {kind.kind} is needed", None, source)
    return manifest


def check(template: str, names: Iterable[str], source: str = "template") -> None:
    """Whether a template is well-formed and uses these variables only, also where a condition leaves it out.

    Raises:
        SpecError: every name that is wrong, with its line.
    """
    valid = sorted(names)
    try:
        tree = _ENVIRONMENT.parse(template)
        unknown = meta.find_undeclared_variables(tree) - set(valid)
    except jinja2.TemplateError as error:
        raise _fault(error, source) from error
    used = {(node.lineno, node.name) for node in tree.find_all(nodes.Name) if node.name in unknown}
    if used:
        raise SpecError([Problem(f"line {line}", _unknown(name, valid)) for line, name in sorted(used)], source)


def to_yaml(manifest: Manifest) -> str:
    """The object as it can be applied by hand."""
    return yaml.safe_dump(manifest, sort_keys=False, width=120)


def _unknown(name: str, valid: list[str]) -> str:
    near = difflib.get_close_matches(name, valid, n=1)
    meant = f", did you mean {near[0]}?" if near else ";"
    return f"{name} is no variable{meant} There are: {', '.join(valid)}"


def _as_json(value: Any) -> str:
    """A value as JSON that YAML reads as the same value."""
    if isinstance(value, jinja2.Undefined):
        str(value)  # tells which one
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class _Loader(yaml.SafeLoader):
    """Reads 1e-05 as the number that it is in JSON and in YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"-?[0-9]+(\.[0-9]+)?[eE][-+]?[0-9]+$"), list("-0123456789")
)


def _parse(text: str, source: str) -> Manifest:
    try:
        documents = [document for document in yaml.load_all(text, _Loader) if document is not None]
        pasted = list(_pasted(text))
    except yaml.YAMLError as error:
        cure = 'put a value alone, not inside quotes; join texts inside: {{ name ~ "-suffix" }}'
        raise _problem(f"does not make YAML ({cure}): {error}", None, source) from error
    if pasted:
        joined = '{{ "a-" ~ b }}'
        raise _problem(f"a value is glued to other text: {pasted[0]}; join them inside: {joined}", None, source)
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise _problem(f"makes {len(documents)} documents, where one object is needed", None, source)
    return documents[0]


def _pasted(text: str) -> Iterator[str]:
    """Texts with a quotation mark in them that are no JSON: somebody wrote ``a-{{ b }}`` or ``'{{ b }}'``."""
    for token in yaml.scan(text):
        if not isinstance(token, yaml.ScalarToken) or token.style not in (None, "", "'"):
            continue
        if '"' in token.value and not token.value.lstrip().startswith(("{", "[")):
            yield token.value


def _fault(error: jinja2.TemplateError, source: str) -> SpecError:
    line = error.lineno if isinstance(error, jinja2.TemplateSyntaxError) else _line(error)
    return _problem(error.message or type(error).__name__, line, source)


def _line(error: BaseException) -> int | None:
    """The template's line that an error comes from."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == FILENAME]
    return lines[-1] if lines else None


def _problem(message: str, line: int | None, source: str) -> SpecError:
    return SpecError.single(f"line {line}" if line else "", message, source)


_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined,
    finalize=_as_json,
    trim_blocks=True,
    lstrip_blocks=True,
    loader=jinja2.DictLoader({}),
)

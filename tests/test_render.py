"""Strict rendering of manifests: values stay values, wrong names are errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from raytune_autotuner.errors import SpecError
from raytune_autotuner.kube import INFERENCE_SERVICE
from raytune_autotuner.render import check, render, to_yaml

NASTY = [
    "no",
    "1e3",
    "- a",
    "a: b",
    "# x",
    "{{ y }}",
    "{% raw %}",
    "'",
    '"',
    "\\",
    "",
    " ",
    "\n",
    "a\nb: c",
    "---",
    "&a",
    "*a",
    "!!python/object:os",
    "é",
    "\u2028",
    "\x85",
    "\x7f",
    "\x00",
    "\U0001f600",
    "\ufeff",
    "=",
    "~",
    "null",
    "0x10",
    "1_000",
]
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=50), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("value", [*NASTY, 1e-05, 1e22, 0.1, -3, True, None, [], {}, {"a": [1, {"b": None}]}])
def test_values_arrive_as_they_are(value: Any) -> None:
    """Whatever a value says, it cannot change what is around it, nor its type."""
    assert render("a: {{ value }}\nb: 1", {"value": value}) == {"a": value, "b": 1}


@given(VALUES)
def test_any_value_arrives(value: Any) -> None:
    """The same for any value that JSON knows."""
    assert render("a: [{{ value }}]", {"value": value}) == {"a": [value]}


@given(VALUES)
def test_written_out_it_is_the_same(value: Any) -> None:
    """The YAML that is kept for people reads back as what was rendered."""
    assert yaml.safe_load(to_yaml({"a": value})) == {"a": value}


def test_tuples_and_loops() -> None:
    """Sequences become lists, in one piece or item by item."""
    text = "a: {{ words }}\nb:\n{% for word in words %}\n  - {{ word }}\n{% endfor %}\n"
    assert render(text, {"words": ("x", "1")}) == {"a": ["x", "1"], "b": ["x", "1"]}


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a: 1\nb: {{ modle }}", "line 2: modle is no variable, did you mean model"),
        ("a: 1\n{% if false %}\nb: {{ tpyo }}\n{% endif %}", "line 3: tpyo is no variable; There are: model, part"),
        ("a: 1\nb: {{ part.nmae }}", "line 2: .*no attribute 'nmae'"),
        ("a: 1\nb: {{ model", "line 2: unexpected end of template"),
        ("a: {{ 1 // 0 }}", "ZeroDivisionError"),
        ("a: {{ model | nonsense }}", "No filter named 'nonsense'"),
        ("{% include 'other' %}", "other"),
        ("a: {{ model.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_faults_of_a_template(template: str, message: str) -> None:
    """The error names what is wrong, and where."""
    with pytest.raises(SpecError, match=message) as error:
        render(template, {"model": "m", "part": {"name": "p"}}, source="my.j2")
    assert error.value.source == "my.j2"


def test_every_wrong_name_is_told_at_once() -> None:
    """Several typos are several problems, each with its line."""
    with pytest.raises(SpecError) as error:
        check("{{ a1 }}\n{{ b1 }}\n{{ c }}", ["a", "b", "c"])
    assert [problem.place for problem in error.value.problems] == ["line 1", "line 2"]


@pytest.mark.parametrize("value", [math.nan, math.inf, object(), {1, 2}])
def test_what_is_no_json_is_refused(value: Any) -> None:
    """Neither not-a-number nor an object gets into a manifest."""
    with pytest.raises(SpecError, match="line 1"):
        render("a: {{ value }}", {"value": value})


@pytest.mark.parametrize(
    "template", ["a: b-{{ x }}", "a: '{{ x }}'", "a: 'b-{{ x }}'", 'a: "b-{{ x }}"', "a: {{ x }}-b"]
)
def test_value_glued_to_text(template: str) -> None:
    """A value that is not alone would carry its quotation marks along; the error says how to write it."""
    with pytest.raises(SpecError, match="join"):
        render(template, {"x": "q"})


def test_joined_inside() -> None:
    """That way it works; and JSON as a text of the template's own is left alone."""
    text = "a: {{ 'b-' ~ x }}\nc: '{\"d\": 1}'"
    assert render(text, {"x": "q"}) == {"a": "b-q", "c": '{"d": 1}'}


@pytest.mark.parametrize("template", ["", "- 1", "a: 1\n---\nb: 2", "just text"])
def test_exactly_one_object(template: str) -> None:
    """Nothing, a list or two documents are no object."""
    with pytest.raises(SpecError, match="one object"):
        render(template, {})


def test_of_the_kind_that_is_needed() -> None:
    """Another kind, or another version of it, is refused."""
    good = "apiVersion: ome.io/v1beta1\nkind: InferenceService"
    assert render(good, {}, kind=INFERENCE_SERVICE)["kind"] == "InferenceService"
    for bad in ("apiVersion: v1\nkind: Pod", good.replace("v1beta1", "v1"), "a: 1"):
        with pytest.raises(SpecError, match=r"ome.io/v1beta1 InferenceService is needed"):
            render(bad, {}, kind=INFERENCE_SERVICE)

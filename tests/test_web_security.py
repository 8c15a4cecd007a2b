"""Who may ask the server what: a table of what is refused, and what every answer carries."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from raytune_autotuner import redaction
from raytune_autotuner.errors import SpecError
from raytune_autotuner.storage import Storage
from raytune_autotuner.web.app import create_app
from raytune_autotuner.web.security import MAX_BODY_BYTES, SESSION_S, Sessions
from raytune_autotuner.web.settings import Settings, token_for

TOKEN = "correct-horse-battery-staple"
HERE = "http://127.0.0.1:8378"
HTML = {"accept": "text/html"}


def client(folder: Path, *, token: str | None = None, host: str = "127.0.0.1", base: str = HERE) -> TestClient:
    settings = Settings(Storage(str(folder)), host=host, token=token, allowed_hosts=frozenset({"tuner.example"}))
    return TestClient(create_app(settings), base_url=base, follow_redirects=False)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8378", 200),
        ("localhost:8378", 200),
        ("[::1]:8378", 200),
        ("tuner.example", 200),
        ("TUNER.example:80", 200),
        ("evil.example", 421),
        ("evil.example:8378", 421),
        ("192.0.2.7:8378", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost@evil.example", 421),
        ("[", 421),
        ("", 421),
    ],
)
def test_only_its_own_names_are_answered(tmp_path: Path, host: str, status: int) -> None:
    """A page of another name that is made to point here (DNS rebinding) gets nothing."""
    assert client(tmp_path).get("/experiments", headers={"host": host, **HTML}).status_code == status


def test_an_address_is_its_own_name_where_the_server_listens_on_all(tmp_path: Path) -> None:
    """No name service can make an address mean another machine."""
    everywhere = client(tmp_path, host="0.0.0.0", token=TOKEN)
    assert everywhere.get("/login", headers={"host": "192.0.2.7:8378"}).status_code == 200
    assert everywhere.get("/login", headers={"host": "evil.example"}).status_code == 421


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 303),
        ({"origin": HERE}, 303),
        ({"origin": HERE, "sec-fetch-site": "same-origin"}, 303),
        ({"sec-fetch-site": "none"}, 303),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site", "origin": HERE}, 403),
        ({"origin": "http://evil.example", "x-forwarded-host": "evil.example"}, 403),
        ({"origin": "http://evil.example", "x-http-method-override": "GET"}, 403),
    ],
)
def test_a_change_comes_from_a_page_of_the_server(tmp_path: Path, headers: dict[str, str], status: int) -> None:
    """Another site's page cannot make a browser change anything, on the loopback address neither."""
    assert client(tmp_path).post("/logout", headers=headers).status_code == status


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/experiments"),
        ("GET", "/experiments/some"),
        ("GET", "/live"),
        ("GET", "/openapi.json"),
        ("GET", "/api/v1/experiments"),
        ("POST", "/experiments/some/stop"),
        ("POST", "/logout"),
        ("GET", "/static/../experiments"),
        ("GET", "//experiments"),
    ],
)
def test_nothing_is_told_without_the_token(tmp_path: Path, method: str, path: str) -> None:
    """Of what there is, and of what there is not."""
    asked = client(tmp_path, token=TOKEN, base="http://127.0.0.1:8378")
    assert asked.request(method, path).status_code == 401


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Bearer ", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", "Bearer ünï"]
)
def test_a_wrong_token_is_none(tmp_path: Path, value: str) -> None:
    """Whatever is wrong with it."""
    asked = client(tmp_path, token=TOKEN)
    headers = {"authorization": value.encode()}
    assert asked.get("/experiments", headers=headers).status_code == 401  # type: ignore[arg-type]


def test_the_token_opens_by_header_and_by_form_and_never_by_address(tmp_path: Path) -> None:
    """The browser keeps something random in its place, out of the reach of scripts and of other sites."""
    asked = client(tmp_path, token=TOKEN)
    assert asked.get("/experiments", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert asked.get(f"/experiments?token={TOKEN}").status_code == 401
    assert asked.get("/experiments", headers=HTML).headers["location"] == "/login"
    assert asked.post("/login", data={"token": "wrong"}, headers={"origin": HERE}).status_code == 401
    answer = asked.post("/login", data={"token": TOKEN}, headers={"origin": HERE})
    assert answer.headers["location"] == "/experiments"
    kept = answer.headers["set-cookie"]
    assert TOKEN not in kept
    assert "HttpOnly" in kept
    assert "samesite=strict" in kept.lower()
    assert asked.get("/experiments").status_code == 200
    value = kept.partition(";")[0]
    asked.post("/logout", headers={"origin": HERE})
    asked.cookies.clear()
    assert asked.get("/experiments").status_code == 401
    assert asked.get("/experiments", headers={"cookie": value}).status_code == 401


def test_a_session_ends_by_time_and_by_signing_out() -> None:
    """Each by itself; what nobody was given is none."""
    sessions, now = Sessions(), time.time()
    one, other = sessions.begin(now), sessions.begin(now + 60)
    assert one != other
    assert sessions.fits(one, now + SESSION_S - 1)
    assert not sessions.fits(one, now + SESSION_S)
    sessions.end(other)
    assert not sessions.fits(other, now)
    assert sessions.fits(one, now)
    assert not sessions.fits("", now)


@pytest.mark.parametrize("behind_tls", [True, False])
def test_behind_tls_a_browser_sends_its_session_by_tls_alone(tmp_path: Path, behind_tls: bool) -> None:
    """The proxy speaks plain HTTP to the server, which cannot see it."""
    settings = Settings(Storage(str(tmp_path)), token=TOKEN, behind_tls=behind_tls)
    asked = TestClient(create_app(settings), base_url=HERE, follow_redirects=False)
    answer = asked.post("/login", data={"token": TOKEN}, headers={"origin": HERE})
    assert ("Secure" in answer.headers["set-cookie"]) == behind_tls


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "%2e%2e",
        "..%2f..%2fetc",
        "%2e%2e%2f",
        "..%5c..",
        "a%00b",
        "a%2fb",
        ".hidden",
        "-dash",
        "a" * 200,
        "a%0d%0aX-Evil:%201",
        "~root",
        "s3:%2f%2fbucket",
    ],
)
@pytest.mark.parametrize("below", ["", "/trials"])
def test_no_name_leads_out_of_the_storage(tmp_path: Path, name: str, below: str) -> None:
    """A folder beside the storage is not an experiment of it, however it is spelt."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "task.json").write_text("{}")
    inside = tmp_path / "storage"
    inside.mkdir()
    answer = client(inside).get(f"/experiments/{name}{below}", headers=HTML)
    assert answer.status_code in (303, 404)  # `..` alone leads home
    assert "x-evil" not in answer.headers


def test_too_much_is_not_read(tmp_path: Path) -> None:
    """Neither when it says how much it is, nor when it does not."""
    asked = client(tmp_path)
    said = asked.post("/login", content=b"t" * (MAX_BODY_BYTES + 1), headers={"origin": HERE})
    assert said.status_code == 413
    pieces = (b"token=" + b"t" * 65536 for _ in range(40))
    form = {"origin": HERE, "content-type": "application/x-www-form-urlencoded"}
    assert asked.post("/login", content=pieces, headers=form).status_code == 413
    assert asked.post("/login", headers={**form, "content-length": "-1"}).status_code == 413


@pytest.mark.parametrize("path", ["/experiments", "/login", "/static/style.css", "/no-such-page"])
def test_every_answer_says_what_a_browser_may_do_with_it(tmp_path: Path, path: str) -> None:
    """No script but ours, in nobody's frame, guessed as nothing else."""
    answer = client(tmp_path).get(path, headers=HTML)
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"


def test_other_addresses_than_loopback_need_a_token() -> None:
    """One is made where none is given; one that could be guessed is refused."""
    assert token_for("127.0.0.1", {}, "T") == (None, False)
    assert token_for("localhost", {"T": TOKEN}, "T") == (TOKEN, False)
    made, shown = token_for("0.0.0.0", {}, "T")
    assert shown
    assert made is not None
    assert len(made) >= 32
    assert token_for("::", {"T": TOKEN}, "T") == (TOKEN, False)
    with pytest.raises(SpecError, match="less than 16"):
        token_for("0.0.0.0", {"T": "short"}, "T")


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({"api_key": "abc123"}, {"api_key": "•••"}),
        ({"HF_TOKEN": "hf_x"}, {"HF_TOKEN": "•••"}),
        ({"apiKey": "x", "dbPassword": "y"}, {"apiKey": "•••", "dbPassword": "•••"}),
        ({"env": {"A": "b", "EMPTY": ""}}, {"env": {"A": "•••", "EMPTY": ""}}),
        ({"max_total_tokens": 5, "api_key_env": "KEY_NAME"}, {"max_total_tokens": 5, "api_key_env": "KEY_NAME"}),
        ({"model_tokenizer": "/models/x"}, {"model_tokenizer": "/models/x"}),
        (["--api-key", "abc", "--port", "1"], ["--api-key", "•••", "--port", "1"]),
        (["--api-key=abc"], ["--api-key=•••"]),
        ("Authorization: Bearer abcdefghijkl", "Authorization: •••"),
        ("api_key='sk-1', tokens=5", "api_key='•••', tokens=5"),
        ("ServerArgs(api_key=None, max_total_tokens=99)", "ServerArgs(api_key=None, max_total_tokens=99)"),
        ("http://me:pass@host/x", "http://•••@host/x"),
        ('{"token": "abc"}', '{"token": "•••"}'),
    ],
)
def test_secrets_are_hidden_and_nothing_else(given: object, shown: object) -> None:
    """By their names, wherever they turn up."""
    assert redaction.hidden(given) == shown


def test_a_secret_of_the_server_is_hidden_wherever_it_turns_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is called there."""
    monkeypatch.setenv("MY_API_KEY", "very-secret-value")
    redaction.own_secrets.cache_clear()
    try:
        assert redaction.text("failed with very-secret-value") == "failed with •••"
    finally:
        redaction.own_secrets.cache_clear()

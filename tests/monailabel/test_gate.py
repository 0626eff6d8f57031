"""Who may ask the label server, and how much: headers and bodies as they reach the web application."""

from __future__ import annotations

import asyncio
import json
from itertools import repeat

import pytest

pytest.importorskip("starlette")

from unicorn_monai.monailabel.gate import ADDRESS_BYTES, JSON_BYTES, UPLOAD_BYTES, Gate, names_of

SITE = "http://viewer.example:3000"
JSON = {"content-type": "application/json"}
UPLOAD = {"content-type": "multipart/form-data; boundary=x"}


def ask(method="GET", path="/info/", body=(), came_to="127.0.0.1", hosts=(), **headers):
    """Status, sentence and bytes that the application got of a request."""
    parts, got, answer = iter(body), bytearray(), {"status": 0, "body": b""}
    headers = {"host": "localhost:8000"} | {name.replace("_", "-"): text for name, text in headers.items()}

    async def receive():
        part = next(parts, b"")
        return {"type": "http.request", "body": part, "more_body": bool(part)}

    async def send(message):
        answer["status"] = message.get("status", answer["status"])
        answer["body"] += message.get("body", b"")

    async def application(scope, receive, send):
        while (message := await receive())["more_body"]:
            got.extend(message["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    address, _, query = path.partition("?")
    scope = {"type": "http", "method": method, "scheme": "http", "path": address, "raw_path": address.encode()}
    scope |= {"query_string": query.encode(), "server": (came_to, 8000)}
    scope["headers"] = [(name.encode(), one.encode()) for name, text in headers.items() for one in text.split("\n")]
    try:
        asyncio.run(Gate(application, hosts, [f"{SITE}/"])(scope, receive, send))
    except Exception as error:  # within the application, which answers it
        return getattr(error, "status_code", 500), str(getattr(error, "detail", error)), bytes(got)
    return answer["status"], json.loads(answer["body"]).get("detail", ""), bytes(got)


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8000", "localhost.", "127.0.0.1", "127.0.0.1:9000", "[::1]:8000", "[0:0:0:0:0:0:0:1]"],
)
def test_on_loopback_the_names_of_loopback_are_answered(host):
    assert ask(host=host)[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evil.example#localhost",
        "localhost@evil.example",
        "evil.example@localhost",
        "localhost/..",
        "localhost\nevil.example",
        "evil.example\nlocalhost",
        "localhost:99999",
        "localhost:a",
        "0.0.0.0",
        "192.0.2.1",
        "2130706433",
        "::1",
        "",
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS"])
def test_another_name_is_refused_with_those_there_are(host, method):
    status, sentence, _ = ask(method, host=host)
    assert status == 421
    assert "expected one of: 127.0.0.1, ::1, localhost." in sentence
    assert "--allow-host NAME" in sentence


def test_a_server_on_the_network_is_called_as_it_was_reached_as_it_was_told_and_as_it_is_named():
    assert ask(host="192.0.2.1:8000", came_to="192.0.2.1")[0] == 200
    assert ask(host="192.0.2.1:8000", came_to="::ffff:192.0.2.1")[0] == 200
    assert ask(host="[2001:DB8::0:1]", came_to="2001:db8::1")[0] == 200
    assert ask(host="LABEL.example.", came_to="192.0.2.1", hosts=["label.example"])[0] == 200
    for host in ("localhost", "192.0.2.2", "0.0.0.0", "evil.example"):
        assert ask(host=host, came_to="192.0.2.1", hosts=["label.example"])[0] == 421
    assert names_of("Label.Example.") == {"label.example"}
    assert not {"", "0.0.0.0", "::", "localhost"} & (names_of("0.0.0.0") | names_of("::"))


FOREIGN = {
    "a page of another site": {"origin": "http://evil.example"},
    "a page without a site": {"origin": "null"},
    "another port of this machine": {"origin": "http://localhost:3000"},
    "another name of this machine": {"origin": "http://127.0.0.1:8000"},
    "a name in front": {"origin": "http://localhost:8000@evil.example"},
    "two sites": {"origin": "http://localhost:8000\nhttp://evil.example"},
    "one that may and one that may not": {"origin": f"{SITE}\nhttp://evil.example"},
    "an old browser": {"referer": "http://evil.example/page"},
    "a browser that tells no site": {"sec_fetch_site": "cross-site"},
    "a site beside this one": {"sec_fetch_site": "same-site", "sec_fetch_mode": "no-cors"},
}


@pytest.mark.parametrize("who", FOREIGN)
@pytest.mark.parametrize("sent", [{}, JSON, UPLOAD], ids=["nothing", "json", "upload"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_pages_of_other_sites_change_nothing(method, who, sent):
    status, sentence, got = ask(method, "/train/", [b"{}"], **sent, **FOREIGN[who])
    assert (status, got) == (403, b"")
    assert "which may not use this server" in sentence


def test_own_pages_programs_links_and_named_sites_are_answered():
    own = {"origin": "http://localhost:8000", "sec_fetch_site": "same-origin"}
    for sent in ({}, own, {"origin": SITE, "sec_fetch_site": "cross-site"}, {"referer": "http://localhost:8000/"}):
        assert ask("POST", "/train/", [b"{}"], **JSON, **sent)[0] == 200
    assert ask("GET", sec_fetch_site="cross-site", sec_fetch_mode="navigate", referer="http://evil.example")[0] == 200
    assert ask("GET", sec_fetch_site="cross-site", sec_fetch_mode="no-cors")[0] == 403
    assert ask("OPTIONS", origin=SITE)[0] == 200
    assert ask("OPTIONS", origin="http://evil.example")[0] == 403


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "TEXT/plain;charset=application/json", "application/jsonx", "", "application/json\ntext/plain"],
)
def test_what_changes_anything_is_json_or_a_form(kind):
    for length in ({"content_length": "2"}, {"transfer_encoding": "chunked"}):
        status, sentence, got = ask("POST", "/train/", [b"{}"], content_type=kind, **length)
        assert (status, got) == (415, b"")
        assert "expected application/json, or multipart/form-data for files" in sentence
    assert ask("POST", content_length="2")[0] == 415  # without a type
    assert ask("POST", content_length="0")[0] == 200  # nothing to take for something else


@pytest.mark.parametrize(("kind", "most"), [(JSON, JSON_BYTES), (UPLOAD, UPLOAD_BYTES)], ids=["json", "upload"])
def test_a_body_has_an_end(kind, most):
    status, sentence, got = ask("POST", content_length=str(most + 1), **kind)
    assert (status, got) == (413, b"")
    assert f"expected at most {most} bytes of {'settings' if kind == JSON else 'a form with files'}" in sentence
    assert ask("POST", content_length=str(most), **kind)[0] == 200
    assert ask("POST", content_length="9" * 40, **kind)[0] == 413
    assert ask("POST", content_length="-1", **kind)[0] == 413
    part = bytes(most // 50)
    status, sentence, got = ask("POST", body=repeat(part, 51), transfer_encoding="chunked", **kind)
    assert status == 413
    assert len(got) <= most
    assert len(ask("POST", body=repeat(part, 50), transfer_encoding="chunked", **kind)[2]) == most


def test_a_body_without_end_is_not_read_to_its_end_and_no_reading_request_has_a_long_one():
    assert ask("POST", body=repeat(bytes(10_000_000)), transfer_encoding="chunked", **JSON)[0] == 413
    assert ask("GET", body=repeat(bytes(1_000_000), 2), transfer_encoding="chunked")[0] == 413


def test_an_address_has_an_end():
    assert ask(path=f"/info/?{'a&' * (ADDRESS_BYTES // 2)}")[0] == 414
    assert ask(path="/" + "a" * ADDRESS_BYTES)[0] == 414
    assert ask(path=f"/info/?{'a&' * (ADDRESS_BYTES // 2 - 10)}")[0] == 200


def test_a_connection_of_another_kind_is_closed():
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(Gate(None)({"type": "websocket", "headers": []}, None, send))  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]

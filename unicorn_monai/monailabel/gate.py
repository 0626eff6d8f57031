"""Who may ask the server, and how much: decided from a request's headers, before anything of its body is read.

The server has no passwords, so whatever runs in a browser on this machine could use it. Two ways are closed here:

    Host              another site's name that its owner lets point to this machine (DNS rebinding)    -> 421
    Origin, Referer,  a page of another site that posts here                                           -> 403
    Sec-Fetch-Site

What changes anything comes as JSON or as a form (415), and no body is longer than `JSON_BYTES`, as a form with files
`UPLOAD_BYTES` (413), whether its length is told beforehand or not. Programs send neither Origin nor Referer.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Collection, Sequence
from ipaddress import IPv6Address, ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

JSON_BYTES = 1_000_000
UPLOAD_BYTES = 256_000_000
ADDRESS_BYTES = 8_000  # path and query
READ_ONLY = ("GET", "HEAD", "OPTIONS")
JSON, FORM, UPLOAD = "application/json", "application/x-www-form-urlencoded", "multipart/form-data"
EVERY_ADDRESS = ("", "0.0.0.0", "::")
LOCAL = ("127.0.0.1", "::1", "localhost")
USUAL_PORTS = (80, 443)


class Gate:
    """Middleware that lets through what the module's text describes, and answers the rest in a sentence.

    ``hosts``: names of the server, beside the address that a connection came to; ``origins``: of other sites that may
    use the server (MONAI Label's setting MONAI_LABEL_CORS_ORIGINS).
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] = (), origins: Sequence[str] = ()) -> None:
        self.app, self.hosts = app, {plain(host) for host in hosts}
        self.origins = {origin.rstrip("/").lower() for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or hand it on with its body counted."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # the server has none
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        most = UPLOAD_BYTES if _kinds(headers) == [UPLOAD] else JSON_BYTES
        try:
            self._check_host(scope, headers)
            self._check_origin(scope, headers)
            _check_content(scope, headers)
            _check_lengths(scope, headers, most)
        except HTTPException as error:
            if _length(headers) <= UPLOAD_BYTES:
                await _read_away(receive)
            await JSONResponse({"detail": error.detail}, error.status_code)(scope, receive, send)
            return
        await self.app(scope, counted(receive, most), send)

    def _check_host(self, scope: Scope, headers: Headers) -> None:
        came_to = plain(str((scope.get("server") or ("",))[0]))
        names = self.hosts | {came_to} | (set(LOCAL) if came_to in LOCAL else set())
        told = headers.getlist("host")
        if len(told) != 1 or _name(told[0]) not in names:
            expected = ", ".join(sorted(names - set(EVERY_ADDRESS)))
            raise HTTPException(
                421,
                f"This server is not called {', '.join(told)[:80]!r}; expected one of: {expected}. Use one of these in "
                "the address, or start the server with --allow-host NAME.",
            )

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        origins = headers.getlist("origin")
        if origins and all(origin.rstrip("/").lower() in self.origins for origin in origins):
            return
        reads = scope["method"] in READ_ONLY
        sites = origins or ([] if reads else headers.getlist("referer"))
        own = _place(f"//{headers['host']}")
        clicked = reads and not origins and headers.get("sec-fetch-mode") == "navigate"  # a link of another page
        from_elsewhere = not clicked and headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if from_elsewhere or any(_place(site) != own for site in sites):
            site = sites[0] if sites else "another site"
            raise HTTPException(
                403,
                f"The request comes from a page of {site[:80]!r}, which may not use this server; expected its own "
                "pages or a program. MONAI_LABEL_CORS_ORIGINS names the sites that may.",
            )


def names_of(host: str) -> set[str]:
    """What a server that listens on ``host`` may be called, beside the address that a connection comes to."""
    if host in EVERY_ADDRESS:
        return {plain(name) for name in (socket.gethostname(), socket.getfqdn())} - set(LOCAL)
    return {plain(host)}


def plain(host: str) -> str:
    """A host's name or address in one spelling: lower case, no last dot, IPv6 in short, IPv4 within it as IPv4."""
    name = host.strip().lower().removeprefix("[").removesuffix("]").removesuffix(".")
    try:
        address = ip_address(name.partition("%")[0])
    except ValueError:
        return name
    return str((address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address)


def _name(host: str) -> str | None:
    """The name in ``NAME[:PORT]``, or None where that is not what it is."""
    try:
        parts = urlsplit(f"//{host}")
        known = parts.port is None or parts.port > 0
    except ValueError:
        return None
    return plain(parts.hostname) if known and parts.hostname and parts.netloc == host and "@" not in host else None


def _place(site: str) -> tuple[str | None, int | None]:
    """Name and port of a site; not its scheme, which a proxy before the server may change."""
    try:
        parts = urlsplit(site.strip().lower())
        return _name(parts.netloc), None if parts.port in USUAL_PORTS else parts.port
    except ValueError:
        return None, None


def _kinds(headers: Headers) -> list[str]:
    """Every content type, without its parameters."""
    return [kind.partition(";")[0].strip().lower() for kind in headers.getlist("content-type")]


def _check_content(scope: Scope, headers: Headers) -> None:
    """Texts and plain bodies, which a page of any site can send without asking first, are refused."""
    kinds, body = _kinds(headers), _length(headers) > 0 or "transfer-encoding" in headers
    if scope["method"] in READ_ONLY or (not kinds and not body):
        return
    if len(kinds) != 1 or kinds[0] not in (JSON, FORM, UPLOAD):
        raise HTTPException(
            415,
            f"The Content-Type is {', '.join(kinds)[:80] or 'not told'}; expected {JSON}, or {UPLOAD} for files.",
        )


def _check_lengths(scope: Scope, headers: Headers, most: int) -> None:
    address = len(scope.get("raw_path") or b"") + len(scope["query_string"])
    if address > ADDRESS_BYTES:
        raise HTTPException(414, f"The address has {address} characters; expected at most {ADDRESS_BYTES}.")
    if _length(headers) > most:
        raise _too_long(f"{_length(headers)} bytes", most)


def _length(headers: Headers) -> int:
    """How long the body is said to be; without end where that is no number."""
    text = headers.get("content-length", "0")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else sys.maxsize


def _too_long(found: str, most: int) -> HTTPException:
    what = "a form with files" if most == UPLOAD_BYTES else "settings"
    return HTTPException(413, f"The body has {found}; expected at most {most} bytes of {what}.")


def counted(receive: Receive, most: int) -> Receive:
    """The body of a request, refused (413) where it turns out to be longer than ``most`` bytes."""
    found = 0

    async def one() -> Message:
        nonlocal found
        message = await receive()
        found += len(message.get("body", b""))
        if found > most:
            if message.get("more_body"):
                await _read_away(receive)
            raise _too_long(f"more than {most} bytes", most)
        return message

    return one


async def _read_away(receive: Receive) -> None:
    """Let a client send its body to the end, unread, so that it gets to see the answer; not one without an end."""
    found, more = 0, True
    while more and found <= UPLOAD_BYTES:
        message = await receive()
        found += len(message.get("body", b""))
        more = message.get("more_body", False)

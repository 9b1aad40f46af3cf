"""The routes: the page, and the API that it uses itself."""

import asyncio
import ipaddress
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from retrieval.artifact import now
from retrieval.errors import Gone, UserError

from .question import Question, from_address, from_json
from .served import Served

STATIC = Path(__file__).parent / "static"
PAGE = {"/": "page.html", "/page.css": "page.css", "/page.js": "page.js"}
LARGEST_BODY = 32 << 20  # bytes
AS_PICTURE = "Content-Type: image/jpeg or the like"
NO_FORM = (
    "forms are not taken; send a picture as the body itself: curl --data-binary @a.png -H 'Content-Type: image/png'"
)
PATIENCE = 60.0  # seconds for a body to come
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def make_app(served: Served, host: str, as_line: Callable[[dict[str, Any]], str]) -> Starlette:
    """The application that a server runs. host: where it listens; on this machine alone, it answers to no other name, so that a page
    of elsewhere cannot have itself resolved to it and read the index. as_line: JSON of a result."""

    def told(result: dict[str, Any], status: int = 200) -> Response:
        # Names of files that are no UTF-8 have halves of characters for their bytes: JSON's escapes of these.
        body = as_line(result).encode("utf-8", "backslashreplace")
        return Response(body, status, media_type="application/json")

    async def about(request: Request) -> Response:
        return told(await run_in_threadpool(served.about))

    async def search(request: Request) -> Response:
        question = await _question(request)
        return told(await run_in_threadpool(served.ask, question))

    async def picture(request: Request) -> Response:
        found = await run_in_threadpool(served.picture, request.query_params.get("id", ""))
        if found is None:
            raise HTTPException(404, "no picture of this item is here")
        return Response(found, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=300"})

    async def health(request: Request) -> Response:
        index, why = served.index(), served.stale()
        which = {"generation": index.manifest["generation"], "manifest": index.mark}
        if served.gone:
            return told({"status": "gone", **which}, 503)
        return told({"status": "ok", **which} if why is None else {"status": "stale", **which, "reason": why})

    def file(name: str) -> Callable[[Request], Response]:
        return lambda request: FileResponse(STATIC / name, headers=HEADERS)

    def refused(request: Request, error: Exception) -> Response:
        return told({"error": str(error).removeprefix("--")}, 400)

    def gone(request: Request, error: Exception) -> Response:
        return told(
            {
                "error": "the index was removed, or replaced by what cannot be served; it is tried again every few seconds"
            },
            503,
        )

    def failed(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return told({"error": error.detail}, error.status_code)

    def broken(request: Request, error: Exception) -> Response:
        return told({"error": "this should not happen; the server's own output says more"}, 500)

    return Starlette(
        routes=[
            *(Route(path, file(name)) for path, name in PAGE.items()),
            Route("/health", health),
            Route("/api/about", about),
            Route("/api/search", search, methods=["GET", "POST"]),
            Route("/api/picture", picture),
        ],
        middleware=[
            Middleware(
                OwnName,
                refused=told(
                    {"error": "this server answers to the name localhost only; a proxy sends Host: localhost"}, 400
                ),
            )
        ]
        if is_local(host)
        else [],
        exception_handlers={Gone: gone, UserError: refused, HTTPException: failed, Exception: broken},
    )


async def _question(request: Request) -> Question:
    parameters = request.query_params.multi_items()
    if request.method != "POST":  # GET, or HEAD of the same
        return from_address(parameters)
    body = await _body(request)
    kind = request.headers.get("content-type", "").lower()
    if kind.startswith("image/"):
        return from_address(parameters, body)
    if kind.startswith("multipart/"):
        raise UserError(NO_FORM)
    if parameters:
        raise UserError(
            f"{parameters[0][0]}: goes into the JSON of a POST, not into its address; a picture is sent with {AS_PICTURE}"
        )
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        raise UserError(f"the body is no JSON; a picture is sent with {AS_PICTURE}") from None
    return from_json(told)


async def _body(request: Request) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(PATIENCE):
            async for chunk in request.stream():
                body += chunk
                if len(body) > LARGEST_BODY:
                    raise HTTPException(413, f"the body is larger than {LARGEST_BODY >> 20} MiB; send less at a time")
    except (TimeoutError, ClientDisconnect):
        raise HTTPException(408, "the body did not come") from None
    return bytes(body)


def logged(app: ASGIApp, say: Callable[[str], None]) -> ASGIApp:
    """The application, which tells a line of each request: when it came, method and path, the status and milliseconds of its answer.
    What was asked is not in it."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        came, began, status = now(), time.perf_counter(), "unanswered"

        async def passed(message: Message) -> None:
            nonlocal status
            status = str(message["status"]) if message["type"] == "http.response.start" else status
            await send(message)

        try:
            await app(scope, receive, passed)
        finally:
            path = scope["raw_path"].decode("ascii", "backslashreplace")
            say(f"{came} {scope['method']} {path} {status} {1e3 * (time.perf_counter() - began):.1f} ms")

    return answer


def is_local(host: str) -> bool:
    """Whether it is a name of this machine that no other can reach."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class OwnName:
    """Refuses requests that call the server by another name than one of this machine's."""

    def __init__(self, app: ASGIApp, refused: Response) -> None:
        self.app, self.refused = app, refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        named = dict(scope.get("headers", ())).get(b"host", b"").decode("latin-1")
        try:
            local = is_local(urlsplit(f"//{named}").hostname or "")
        except ValueError:
            local = False
        await (self.app if local or scope["type"] != "http" else self.refused)(scope, receive, send)

"""The routes: the page, and the API that it uses itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from retrieval.errors import UserError

from .question import Question, from_address, from_json
from .served import Served

STATIC = Path(__file__).parent / "static"
PAGE = {"/": "page.html", "/page.css": "page.css", "/page.js": "page.js"}
LARGEST_BODY = 32 << 20  # bytes
LOOPBACK = ("127.0.0.1", "localhost")
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def make_app(served: Served, host: str, as_line: Callable[[dict[str, Any]], str]) -> Starlette:
    """The application that a server runs. host: where it listens; on this machine alone, it answers to no other name, so that a page
    of elsewhere cannot have itself resolved to it and read the index. as_line: JSON of a result."""

    def told(result: dict[str, Any], status: int = 200) -> Response:
        return Response(as_line(result), status, media_type="application/json")

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
        return told({"status": "ok", "generation": served.index().manifest["generation"]})

    def file(name: str) -> Callable[[Request], Response]:
        return lambda request: FileResponse(STATIC / name, headers=HEADERS)

    def refused(request: Request, error: Exception) -> Response:
        return told({"error": str(error).removeprefix("--")}, 400)

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
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK))] if host in LOOPBACK else [],
        exception_handlers={UserError: refused, HTTPException: failed, Exception: broken},
    )


async def _question(request: Request) -> Question:
    parameters = request.query_params.multi_items()
    if request.method == "GET":
        return from_address(parameters)
    body = await _body(request)
    if request.headers.get("content-type", "").startswith("image/"):
        return from_address(parameters, body)
    if parameters:
        raise UserError(f"{parameters[0][0]}: goes into the JSON of a POST, not into its address")
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        raise UserError("the body is no JSON; a picture is sent with Content-Type: image/jpeg or the like") from None
    return from_json(told)


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_BODY:
            raise HTTPException(413, f"the body is larger than {LARGEST_BODY >> 20} MiB; send less at a time")
    return bytes(body)

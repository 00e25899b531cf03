"""The route through which the command line reaches the process that owns the database.

Its token lies in a file next to the database, and only the owner's account can read that file: whoever may read it
could read the database as well.
"""

from __future__ import annotations

import hmac
import os
import secrets
from contextlib import suppress
from pathlib import Path

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.errors import BadRequest, NotAuthenticated, UnknownPath
from gateway.run.admin.operations import Operations
from gateway.web.middleware import trace_of

ADMIN_PREFIX = "/admin/"
MAX_BYTES = 128 << 20  # one line of an import may be a whole request, and JSON within JSON grows


class AdminFile:
    """The file that names pid, address and token of the process that serves, readable by its account alone."""

    def __init__(self, database: str) -> None:
        self.path = Path(os.path.realpath(database) + ".admin")
        self.token = secrets.token_urlsafe(32)
        self._is_written = False

    def write(self, address: str) -> None:
        # A file of a process that was killed may still lie here, perhaps with other rights: it is never written into.
        self._unlink()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(orjson.dumps({"pid": os.getpid(), "address": address, "token": self.token}))
        self._is_written = True

    def remove(self) -> None:
        """Removes the file, if this process has written it. One that has to stay does no harm: nobody answers there."""
        if self._is_written:
            with suppress(OSError):
                self._unlink()

    def _unlink(self) -> None:
        with suppress(FileNotFoundError):
            self.path.unlink()


def admin_routes(operations: Operations, token: str) -> list[Route]:
    async def perform(request: Request) -> Response:
        trace_of(request.scope).route = "admin"
        given = request.headers.get("x-mnemogate-admin", "")
        if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), token.encode()):
            raise NotAuthenticated("This route is for the command line of the account that runs the gateway.")
        name = request.path_params["operation"]
        if name not in operations:
            raise UnknownPath(f"There is no operation {name!r}.")
        # This route stands apart from the limits of a chat's body: it is the operator's own.
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > MAX_BYTES:
                raise BadRequest("The arguments are too long.")
        try:
            arguments = orjson.loads(bytes(body))
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            raise BadRequest("The arguments must be a JSON object.")
        result = await operations.perform(name, arguments)
        return Response(orjson.dumps(result, default=str), media_type="application/json")

    return [Route(ADMIN_PREFIX + "{operation}", perform, methods=["POST"])]

"""How the command line has the process that serves a database perform an operation: over HTTP, on this machine.

The process leaves its address and a token in a file next to the database. Only the owner's account can read this file,
as it alone can read the database.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

from gateway.errors import GatewayError
from storage.database_path import resolve_path
from storage.errors import StoreError
from storage.sidecar import ADMIN, open_sidecar, remove_sidecar, replace_sidecar

# The header with the token of a caller.
ADMIN_HEADER = "x-mnemogate-admin"
# The most seconds that the answer of an operation may take. A long operation answers earlier, and is called again.
ANSWER_S = 30.0
# The same for an operation that reads a whole file first. An idle gateway reads the largest, 4 GiB, in two minutes.
FILE_ANSWER_S = 1_200.0
# The file has some 150 bytes; a larger one was not written by a gateway.
_FILE_BYTES = 4096


class AdminFile:
    """The file that names pid, address and token of the process that serves."""

    def __init__(self, database: str) -> None:
        """Writes nothing. database: the path of its file. Raises: StoreFailed: as `resolve_path`."""
        self._database = resolve_path(database)
        self.path = Path(f"{self._database}{ADMIN}")
        self.token = secrets.token_urlsafe(32)
        self._is_written = False

    def write(self, address: str) -> None:
        """Replaces the file, since an old one may have other permissions. Raises: OSError, StoreError."""
        values = {"pid": os.getpid(), "address": address, "token": self.token}
        replace_sidecar(self._database, ADMIN, json.dumps(values).encode())
        self._is_written = True

    def remove(self) -> None:
        """Removes the file, if this process has written it.

        A file that cannot be removed does no harm: no process answers at its address.
        """
        if self._is_written:
            with suppress(OSError):
                remove_sidecar(self._database, ADMIN)


class ProcessGone(Exception):
    """The process is gone, and another program may listen at its address."""


class ServingProcess(NamedTuple):
    """The process that serves a database."""

    # The base URL of its operations.
    address: str
    # The token that its operations demand of a caller.
    token: str

    @classmethod
    def find(cls, database: str) -> Self | None:
        """Returns the process that left its file next to a database, or None without a readable file."""
        try:
            with os.fdopen(open_sidecar(resolve_path(database), ADMIN, os.O_RDONLY), "rb") as file:
                values = json.loads(file.read(_FILE_BYTES))
            return cls(values["address"], values["token"])
        except (OSError, ValueError, LookupError, TypeError, StoreError):
            return None

    def ask(self, operation: str, body: bytes, answer_s: float | None = None) -> Any:
        """Returns the answer of an operation.

        body: the operation's arguments, as JSON.
        answer_s: the most seconds that the answer may take; None: `ANSWER_S`.

        Raises:
            GatewayError: the error of the process, or an error that the process does not answer.
            ProcessGone.
        """
        request = urllib.request.Request(
            f"{self.address}/admin/{operation}",
            body,
            {ADMIN_HEADER: self.token, "content-type": "application/json"},
        )
        # Without the proxies of the environment: the process is on this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        answer_s = answer_s or ANSWER_S
        try:
            with opener.open(request, timeout=answer_s) as reply:
                return json.loads(reply.read())
        except urllib.error.HTTPError as error:
            with error:
                answer = error.read()
            if error.code == 401:
                # Another program listens there now.
                raise ProcessGone from error
            try:
                message = json.loads(answer)["error"]["message"]
            except (ValueError, KeyError, TypeError):
                message = f"the gateway at {self.address} answered {error.code}"
            raise GatewayError(message) from error
        except TimeoutError as error:
            raise GatewayError(
                f"The gateway at {self.address} has not answered within {answer_s:g} seconds. "
                "What it was asked for may be done all the same; look before you ask again."
            ) from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ProcessGone from error

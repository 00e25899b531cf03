"""The process that serves a database, as the command line asks it for an operation: over HTTP, on this machine."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from typing import Any, NamedTuple

from gateway.errors import GatewayError

# Within so many seconds an operation is answered; long ones are asked for in parts.
ANSWER_S = 30.0


class ProcessGone(Exception):
    """The process is gone, and another program may listen where it did."""


class ServingProcess(NamedTuple):
    """The process that serves. address: its base URL. token: opens its operations."""

    address: str
    token: str

    def ask(self, operation: str, body: bytes) -> Any:
        """Returns the answer of an operation. body: its arguments, JSON.

        Raises: GatewayError: what the process said, or that it says nothing; ProcessGone.
        """
        request = urllib.request.Request(
            f"{self.address}/admin/{operation}",
            body,
            {"x-mnemogate-admin": self.token, "content-type": "application/json"},
        )
        # Without the proxies of the environment: the process is on this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=ANSWER_S) as reply:
                return json.loads(reply.read())
        except urllib.error.HTTPError as error:
            with error:
                said = error.read()
            if error.code == 401:
                # Another program listens there now.
                raise ProcessGone from error
            try:
                message = json.loads(said)["error"]["message"]
            except (ValueError, KeyError, TypeError):
                message = f"the gateway at {self.address} answered {error.code}"
            raise GatewayError(message) from error
        except TimeoutError as error:
            raise GatewayError(
                f"The gateway at {self.address} has not answered within {ANSWER_S:g} seconds. "
                "What it was asked for may be done all the same; look before you ask again."
            ) from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ProcessGone from error

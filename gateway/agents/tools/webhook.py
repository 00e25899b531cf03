"""Webhook tools: each call is a POST to the URL that the tool's author has set, signed as Standard Webhooks specifies.

The signature is over id, time and body (github.com/standard-webhooks/standard-webhooks, spec, "Signature scheme"), so
that a receiver can distinguish the gateway's calls from others, and a replay from a call. No call is retried.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
from collections.abc import Callable
from hashlib import sha256

from gateway.agents.tools.hosts import HostError, ReplyFault, ToolHosts
from gateway.core import exact_json
from gateway.run.tools.toolbox import ForeignCall, ToolAnswer
from gateway.settings import SECRET_PREFIX

# The most seconds of a call with its reply. Not measured: the model and its user wait for as long.
TIMEOUT_S = 30.0
# The most bytes of a reply. Not measured: it bounds the memory that a faulty server can take.
MAX_REPLY_BYTES = 1_000_000
# The most characters of an error reply that the model reads: enough for its message.
_MAX_ERROR_CHARS = 500


class Webhooks:
    """Calls webhook tools, and posts other signed messages."""

    def __init__(self, hosts: ToolHosts, secret: str | None, now: Callable[[], float]) -> None:
        """Decodes the key of signatures.

        secret: the key of signatures, as `whsec_` and base64; None: requests are not signed.
        now: the clock, in seconds since the epoch.
        """
        self._hosts = hosts
        self._key = None if secret is None else base64.b64decode(secret.removeprefix(SECRET_PREFIX))
        self._now = now

    async def run(self, url: str, call: ForeignCall) -> ToolAnswer:
        """Calls a tool. Returns the body of its reply as text; an error reply is a failed answer."""
        body = exact_json.dumps(
            {
                "tool": call.tool,
                "arguments": call.arguments,
                "agent_id": call.agent,
                "run_id": call.run,
                "call_id": call.call_id,
            }
        )
        try:
            status, content = await self._send(url, call.key, body)
        except TimeoutError:
            return ToolAnswer.failed(
                f"Error: {call.tool} did not answer within {TIMEOUT_S:.0f} s. It may have been done."
            )
        except ReplyFault as error:
            return ToolAnswer.lost(call.tool, error)
        except HostError as error:
            return ToolAnswer.unsent(call.tool, error)
        text = content.decode("utf-8", "replace")
        if not 200 <= status < 300:
            return ToolAnswer.failed(
                f"Error: {call.tool} answered with status {status}: {text[:_MAX_ERROR_CHARS]}"
            )
        return ToolAnswer(text)

    async def post(self, url: str, key: str, body: bytes) -> int:
        """Posts JSON, signed like a call. Returns the status of the reply.

        key: the id of the message, by which a receiver recognises a message that is sent twice.

        Raises: HostError, TimeoutError.
        """
        status, _ = await self._send(url, key, body)
        return status

    async def _send(self, url: str, key: str, body: bytes) -> tuple[int, bytes]:
        async with asyncio.timeout(TIMEOUT_S):
            async with self._hosts.open("POST", url, self._make_headers(key, body), body) as reply:
                return reply.status, await reply.read(MAX_REPLY_BYTES)

    def _make_headers(self, key: str, body: bytes) -> dict[str, str]:
        """Returns the headers of a request, with its signature if there is a key. key: the id of the message."""
        timestamp = str(int(self._now()))
        headers = {
            "Content-Type": "application/json",
            "Accept": "*/*",
            "Idempotency-Key": key,
            "webhook-id": key,
            "webhook-timestamp": timestamp,
        }
        if self._key is not None:
            digest = hmac.digest(self._key, f"{key}.{timestamp}.".encode() + body, sha256)
            headers["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
        return headers

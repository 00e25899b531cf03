"""The request of a background run, as it is stored until the run has ended.

Its messages are dropped once they are in the conversation; the other fields are needed to continue the run. Headers and
keys of the caller are held in memory alone. A run that continues after a restart uses the gateway's own keys, and asks
for no model that the caller's key may not ask for; its usage is counted for the caller's key.
"""

from __future__ import annotations

import msgspec
from msgspec import field
from msgspec.structs import replace

from adapters.types import Json
from gateway.agents.registry.resolved_agents import ResolvedAgent
from gateway.agents.runs.run import RunRequest, SendFields
from gateway.core.conversation.canonical import MessageHasher
from gateway.run.call import Forwarded
from storage.records import Agent


def hash_send(agent: Agent, run_request: RunRequest) -> bytes:
    """Returns a digest of the messages and decisions of a send."""
    content = msgspec.json.encode((run_request.messages, run_request.decisions))
    return MessageHasher(agent.secret).digest(content)


class StoredRequest(SendFields, frozen=True):
    """The request of a background run as it is stored."""

    # Options of the dialect for its events; None: no events are logged.
    event_options: Json | None = field(name="shown", default=None)
    # The URL that is posted to when the run has ended; None: no URL is posted to.
    callback: str | None = None
    # Patterns of the models that the key of the caller may ask for; None: all models.
    models: tuple[str, ...] | None = None
    # The id of the caller's key.
    key_id: int = field(name="key", default=0)
    # The result of `hash_send` in hexadecimal digits. It stays when the messages are dropped.
    digest: str = ""
    # The row of an ended run of the same send, or 0.
    replaces: int = 0

    @staticmethod
    def of(
        request: RunRequest,
        digest: bytes,
        event_options: Json | None,
        callback: str | None,
        replaces: int | None,
    ) -> StoredRequest:
        """Returns the part of a request that is stored.

        digest: the result of `hash_send` for the request.
        event_options: the options of the dialect for its events; None: no events are logged.
        callback: the URL that is posted to when the run has ended; None: no URL is posted to.
        replaces: the row of an ended run of the same send; None: there is none.
        """
        return StoredRequest(
            **request.copy_send_fields(),
            event_options=event_options,
            callback=callback,
            models=request.forwarded.models,
            key_id=request.forwarded.key_id,
            digest=digest.hex(),
            replaces=replaces or 0,
        )

    @staticmethod
    def decode(data: bytes) -> StoredRequest:
        """Decodes a stored request. Empty data, as of a run that has ended, gives a request without messages."""
        return msgspec.json.decode(data or b"{}", type=StoredRequest)

    def encode(self, *, includes_messages: bool = True) -> bytes:
        """Encodes a request for the store. includes_messages: True if the messages and decisions are encoded, too."""
        return msgspec.json.encode(self if includes_messages else replace(self, messages=(), decisions=()))

    def make_run_request(
        self, resolved: ResolvedAgent, conversation_name: str, forwarded: Forwarded
    ) -> RunRequest:
        """Returns the request as it was accepted.

        resolved: the agent, with the model and prompt of the request.
        forwarded: the headers and fields that the process has in memory; empty after a restart.
        """
        forwarded = replace(forwarded, models=self.models, key_id=self.key_id)
        fields = self.copy_send_fields()
        return RunRequest(resolved.spec, resolved.scope, conversation_name, forwarded=forwarded, **fields)

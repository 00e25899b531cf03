"""A response as it grows, without its output: its id, its fields, and its events, which begin with `response.created`.

(platform.openai.com/docs/api-reference/responses-streaming)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from adapters.types import Json
from gateway.core.lenient import as_text
from gateway.core.turn_name import TurnName
from gateway.dialects.event_stream import EventBuffer
from gateway.dialects.responses.call_form import NO_FORMS, CallForm
from gateway.dialects.responses.response_ids import make_tag
from gateway.dialects.responses.stored_response import StoredResponse


def _ignore_usage(text: str) -> Json | None:
    """Counts nothing: the usage of a reply that an upstream does not report stays unknown."""
    return None


class ResponseTerms(Struct, frozen=True):
    """The facts about a request that its response needs."""

    # The fields of the request that the response repeats.
    echo: Json
    # Returns the name of the turn, once the upstream was called; None: the turn is not stored.
    turn_name: Callable[[], TurnName | None]
    # Returns the usage for a reply's text, in the form of a chat completion. Called if the upstream reports none.
    count_usage: Callable[[str], Json | None] = _ignore_usage
    # Returns the model that answers, under the name with which its turn is stored. Called for sealed thoughts.
    answering_model: Callable[[], str] = str
    # The forms of calls, by the names that their tools have upstream.
    forms: Mapping[str, CallForm] = NO_FORMS
    # True if thoughts are shown with `encrypted_content`, in which they can be sent back.
    shows_sealed_thoughts: bool = False
    # The messages of the request's input that belong to this turn alone.
    messages: Sequence[Json] = ()
    # The part that all ids of the response share; "": the part is made of the turn's name.
    tag: str = ""
    # The time of the response, in seconds since the epoch; None: the time of its reply.
    created_at: int | None = None
    # The `sequence_number` of the first event.
    first_number: int = 0
    # True if an attempt that was broken off has sent `response.created` already.
    has_sent_created: bool = False


class GrowingResponse:
    """One response. It begins with its first item; a response without items begins at its end."""

    def __init__(self, terms: ResponseTerms, *, is_holding: bool = False) -> None:
        """Makes a response that has not begun. is_holding: True if bytes are held, as in `EventBuffer`."""
        self.terms = terms
        self.events = EventBuffer(is_holding=is_holding)
        # The `sequence_number` of the next event.
        self._next_number = terms.first_number
        # False if the response is one JSON body.
        self.sends_events = True
        # True if `begin` was called.
        self._has_begun = False
        # True if `assign_id` was called.
        self._has_id = False
        # The part that all ids of the response share; "": the response has no id yet.
        self._tag = ""
        # True if the response can be retrieved by its id. Decided in `assign_id`.
        self.is_stored = False
        # The upstream's chunk with the model, the time and the service tier.
        self.first_chunk: Json = {}
        # The time of the response, in seconds since the epoch; None: not decided yet.
        self._created_at = terms.created_at
        # The time of completion, in seconds since the epoch; None: the response is not complete.
        self.completed_at: int | None = None
        # The error with which the response has failed; None: the response has not failed.
        self.error: Json | None = None

    def begin(self) -> str:
        """Begins the response, once, so that events may be sent. Returns the part that all its ids share."""
        self.events.release()
        if not self._has_begun:
            self.assign_id()
            self._has_begun = True
            if self.sends_events:
                if not self.terms.has_sent_created:
                    self.emit("response.created", response=self.render("in_progress"))
                self.emit("response.in_progress", response=self.render("in_progress"))
        return self._tag

    def emit(self, event_type: str, **fields: Any) -> None:
        """Sends an event. fields: the fields of the event besides its type and its number."""
        self.events.emit(event_type, **fields, sequence_number=self._next_number)
        self._next_number += 1

    def assign_id(self) -> None:
        """Gives the response its id, once, and decides whether the response is stored, on which the id depends."""
        if self._has_id:
            return
        self._has_id = True
        turn = self.terms.turn_name()
        self.is_stored = self.terms.echo.get("store") is not False and turn is not None
        self._tag = self.terms.tag or make_tag(turn if self.is_stored else None)

    def complete(self) -> None:
        """Records the time at which the response is completed, once."""
        self.completed_at = self.completed_at or int(time.time())

    def restore(self, stored_response: StoredResponse) -> None:
        """Restores the response from its stored fields, as one JSON body."""
        self.sends_events = False
        self.first_chunk = {
            "created": stored_response.created_at,
            "model": stored_response.model,
            "service_tier": stored_response.service_tier,
        }
        self.completed_at = stored_response.completed_at
        self.error = stored_response.error
        self.assign_id()

    def render(
        self,
        status: str,
        incomplete_reason: str | None = None,
        *,
        output: Sequence[Json] = (),
        usage: Json | None = None,
    ) -> Json:
        """Returns the response as it is now.

        incomplete_reason: the reason for which the response is incomplete; None: the response is complete or goes on.
        usage: the usage with the names of the Responses API.
        """
        response = {
            **self.terms.echo,
            "id": f"resp_{self._tag}",
            "object": "response",
            "created_at": self.created_at,
            "completed_at": self.completed_at if status == "completed" else None,
            "status": status,
            "error": self.error,
            "incomplete_details": {"reason": incomplete_reason} if incomplete_reason is not None else None,
            "model": self.model,
            "output": [*output],
            "usage": usage,
        }
        response["store"] = self.is_stored
        if self.service_tier is not None:
            response["service_tier"] = self.service_tier
        return response

    def choose_sealing_model(self) -> str | None:
        """Returns the model that makes the thoughts; None: the thoughts are shown without `encrypted_content`."""
        if self.terms.shows_sealed_thoughts or not self.is_stored:
            return self.terms.answering_model()
        return None

    @property
    def model(self) -> str:
        return as_text(self.first_chunk.get("model")) or self.terms.echo["model"]

    @property
    def created_at(self) -> int:
        """The time of the response, in seconds since the epoch: the same each time."""
        if self._created_at is None:
            created = self.first_chunk.get("created")
            self._created_at = created if isinstance(created, int) else int(time.time())
        return self._created_at

    @property
    def service_tier(self) -> str | None:
        tier = self.first_chunk.get("service_tier")
        return tier if isinstance(tier, str) else None

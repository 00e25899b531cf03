"""Compaction: the settings of an agent's summaries, and a summary that a client asks for now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta

from gateway.agents.api._route import ApiRequest
from gateway.agents.api.dependencies import AgentsApi
from gateway.agents.runs.compact_conversation import compact_conversation
from gateway.agents.runs.run import RunRequest
from gateway.agents.wire.struct_fields import Body, Maybe, NoEffect
from gateway.core.prompt.summary import SummaryTerms
from gateway.errors import BadRequest
from gateway.web.middleware import info_of


class CompactionBody(Body):
    """The way in which what leaves the window is summarised."""

    mode: Maybe[Literal["all", "sliding_window", "self_compact_all", "self_compact_sliding_window"]] = UNSET
    model: Maybe[str] = UNSET
    prompt: Maybe[str] = UNSET
    sliding_window_percentage: Maybe[Annotated[float, Meta(gt=0, le=1)]] = UNSET
    clip_chars: Maybe[Annotated[int, Meta(ge=1)]] = UNSET
    model_settings: NoEffect[dict[str, Any]] = UNSET
    prompt_acknowledgement: NoEffect[bool] = UNSET


class Compact(Body):
    """A summary that is wanted now. compaction_settings: in place of the agent's, as far as they are given."""

    compaction_settings: Maybe[CompactionBody] = UNSET


def merge_compaction(stored: Mapping[str, Any], settings: Maybe[CompactionBody]) -> dict[str, Any]:
    """Returns the stored summary settings after a change. A null that is sent removes the stored value.

    Raises: BadRequest for a mode in which the conversation writes its own summary.
    """
    sent = msgspec.to_builtins(settings) if isinstance(settings, CompactionBody) else {}
    merged = {name: value for name, value in {**stored, **sent}.items() if value is not None}
    if str(merged.get("mode")).startswith("self_compact"):
        raise BadRequest(
            "compaction_settings.mode: A call of its own makes the summary, never the conversation's; use 'all' or "
            "'sliding_window'.",
            param="mode",
        )
    return merged


async def compact_as_asked(
    api: AgentsApi, request: ApiRequest, compact: Compact, agent_uid: str, run_request: RunRequest
) -> dict[str, Any]:
    """Summarises a conversation with the settings of a request before those of its agent. Returns the reply's body.

    run_request: names the agent and its conversation.

    Raises: as `compact_conversation` does; UnknownModel; NotAllowed if the caller's key may not ask for the model.
    """
    spec = run_request.spec
    # Merged with nothing, a null is left out: for one summary it means the agent's own setting.
    asked = merge_compaction({}, compact.compaction_settings)
    terms = SummaryTerms.of({**spec.definition.compaction, **asked})
    api.registry.resolver.check_model(terms.model)
    # Without a model for summaries the agent's own writes it.
    api.check_models(request, [terms.model or (None if api.compactor.default_model else spec.model)])
    receipt = info_of(request.http.scope).begin_receipt()
    done = await compact_conversation(api.runs, api.compactor, agent_uid, run_request, terms, receipt)
    return {
        "summary": done.summary,
        "num_messages_before": done.messages_before,
        "num_messages_after": done.messages_after,
    }

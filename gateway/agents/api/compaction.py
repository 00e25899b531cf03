"""Compaction: the settings of an agent's summaries, and a summary that a client asks for now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta

from gateway.agents.api._route import ApiRequest
from gateway.agents.api.dependencies import AgentsApi
from gateway.agents.registry.agent_models import check_model
from gateway.agents.runs.compact_conversation import compact_conversation
from gateway.agents.runs.run import RunRequest
from gateway.agents.wire.struct_fields import Body, Maybe, NoEffect
from gateway.core.json_object import without_none
from gateway.core.prompt.summary_options import SummaryOptions
from gateway.errors import BadRequest
from gateway.web.request_info import get_request_info


class CompactionBody(Body):
    """The settings of the summaries of an agent."""

    mode: Maybe[Literal["all", "sliding_window", "self_compact_all", "self_compact_sliding_window"]] = UNSET
    model: Maybe[str] = UNSET
    prompt: Maybe[str] = UNSET
    sliding_window_percentage: Maybe[Annotated[float, Meta(gt=0, le=1)]] = UNSET
    clip_chars: Maybe[Annotated[int, Meta(ge=1)]] = UNSET
    model_settings: NoEffect[dict[str, Any]] = UNSET
    prompt_acknowledgement: NoEffect[bool] = UNSET


class Compact(Body):
    """A request for a summary. The settings that it has override those of the agent."""

    compaction_settings: Maybe[CompactionBody] = UNSET


def merge_compaction(stored: Mapping[str, Any], settings: Maybe[CompactionBody]) -> dict[str, Any]:
    """Returns the stored settings of summaries after a change. A null that is sent removes the stored value.

    Raises: BadRequest for a mode in which the conversation writes its own summary.
    """
    sent_settings = msgspec.to_builtins(settings) if isinstance(settings, CompactionBody) else {}
    merged_settings = without_none({**stored, **sent_settings})
    if str(merged_settings.get("mode")).startswith("self_compact"):
        raise BadRequest(
            "compaction_settings.mode: A call of its own makes the summary, never the conversation's; use 'all' or "
            "'sliding_window'.",
            param="mode",
        )
    return merged_settings


async def compact_on_request(
    api: AgentsApi, request: ApiRequest, compact: Compact, agent_uid: str, run_request: RunRequest
) -> dict[str, Any]:
    """Summarises a conversation. The settings of the request override those of the agent. Returns the reply's body.

    run_request: a send without messages to the conversation.

    Raises: the errors of `compact_conversation`; UnknownModel; NotAllowed if the caller's key may not use the model.
    """
    runs, compactor, spec = api.agent_runs, api.compactor, run_request.spec
    # A null is left out, so that the agent's own setting holds for this summary.
    overrides = merge_compaction({}, compact.compaction_settings)
    options = SummaryOptions.of({**spec.definition.compaction, **overrides})
    check_model(api.settings, options.model)
    # Without a model for summaries the agent's own writes it.
    api.check_models(request, [options.model or (None if compactor.default_model else spec.model)])
    receipt = get_request_info(request.http.scope).begin_receipt()
    result = await compact_conversation(runs, compactor, agent_uid, run_request, options, receipt)
    return {
        "summary": result.summary,
        "num_messages_before": result.message_count_before,
        "num_messages_after": result.message_count_after,
    }

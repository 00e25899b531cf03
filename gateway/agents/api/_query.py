"""The parameters of queries, as the agents API takes them. Their names and values are Letta's.

A field that is `refused` is a 400 where it is sent; one that is `NoEffect` is named in `x-mnemogate-kept`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from gateway.agents.wire.faults import Unprocessable
from gateway.agents.wire.send import MessageType
from gateway.agents.wire.sent_values import find_sent, get_sent_or
from gateway.agents.wire.struct_fields import NO_TEMPLATES, Maybe, NoEffect, Repeated, UrlQuery, refused
from gateway.validation import Fault
from storage.listing import LAST_NUMBER, AgentSorting

Order = Literal["asc", "desc"]
_AgentOrder = Literal["created_at", "updated_at", "last_run_completion"]
# The store's names of the times by which agents are sorted, by the values of `order_by` and `sort_by`.
_AGENT_SORTINGS: Mapping[str, AgentSorting] = {
    "created_at": "created",
    "updated_at": "updated",
    "last_run_completion": "completed",
}
Limit = Annotated[int, Meta(ge=1, le=1_000)]
# A text that a list is searched for. A database may compare it at each offset of a stored text, so its length is
# limited; chosen, not measured: names and sentences are far shorter.
Fragment = Annotated[str, Meta(max_length=10_000)]
_ShortList = Annotated[list[str], Meta(max_length=64)]  # each item is a parameter of one statement
_Count = Annotated[int, Meta(ge=0, le=1_000_000_000)]
_PROJECT = refused("A key opens one project, and lists show that project.")
_NO_IDENTITIES = refused("An identity has agents alone; blocks have tags.")
_NO_GROUPS = refused("A group's messages are those of its agents; list them there.")
_NO_DATES = refused("Steps are not listed by date; go from page to page.")
_NO_TRACES = refused("Requests are not stored, so there are no traces.")


class PageQuery(UrlQuery):
    """A page of a list."""

    # The id before which the page ends, in the requested order.
    before: Maybe[str] = UNSET
    # The id after which the page begins.
    after: Maybe[str] = UNSET
    limit: Maybe[Limit] = UNSET
    order: Maybe[Order] = UNSET
    order_by: Maybe[Literal["created_at"]] = UNSET
    ascending: Maybe[bool] = UNSET

    def is_newest_first(self, default: bool = True) -> bool:
        """Returns whether the newest come first. `order` counts before `ascending`."""
        if order := find_sent(self.order):
            return order == "desc"
        return not get_sent_or(self.ascending, not default)

    def get_size(self, default: int = 50) -> int:
        """Returns the most rows of the page."""
        return get_sent_or(self.limit, default)


class AgentsQuery(PageQuery):
    """A page of the agents of a project."""

    order_by: Maybe[_AgentOrder] = UNSET  # type: ignore[assignment]
    sort_by: Maybe[str] = UNSET
    name: Maybe[str] = UNSET
    query_text: Maybe[Fragment] = UNSET
    tags: _ShortList | UnsetType = UNSET
    match_all_tags: bool = False
    last_stop_reason: Maybe[str] = UNSET
    show_hidden_agents: Maybe[bool] = UNSET
    include: Repeated[str] = UNSET
    include_relationships: Repeated[str] = UNSET
    project_id: Annotated[str | None, _PROJECT] | UnsetType = UNSET
    template_id: Annotated[str | None, NO_TEMPLATES] | UnsetType = UNSET
    base_template_id: Annotated[str | None, NO_TEMPLATES] | UnsetType = UNSET
    identity_id: Maybe[str] = UNSET
    identifier_keys: _ShortList | UnsetType = UNSET
    created_by_id: Annotated[str | None, refused("Agents have no authors.")] | UnsetType = UNSET

    @property
    def sorting(self) -> AgentSorting:
        """The time by which agents are sorted. Raises: Unprocessable."""
        order = get_sent_or(self.order_by, get_sent_or(self.sort_by, "created_at"))
        if order not in _AGENT_SORTINGS:
            message = "Expected created_at, updated_at or last_run_completion"
            raise Unprocessable(Fault(("query", "sort_by"), message, "literal_error", order))
        return _AGENT_SORTINGS[order]


class AgentQuery(UrlQuery):
    """One agent. All its parts are shown, whatever `include` names."""

    include: Repeated[str] = UNSET
    include_relationships: Repeated[str] = UNSET


class AgentsOfQuery(PageQuery):
    """A page of the agents that have a block, an archive, a folder or an identity."""

    include: Repeated[str] = UNSET
    include_relationships: Repeated[str] = UNSET


class BlocksQuery(PageQuery):
    """A page of the blocks of a project."""

    label: Maybe[str] = UNSET
    label_search: Maybe[Fragment] = UNSET
    description_search: Maybe[Fragment] = UNSET
    value_search: Maybe[Fragment] = UNSET
    name: Maybe[str] = UNSET
    tags: Repeated[str] = UNSET
    match_all_tags: bool = False
    connected_to_agents_count_eq: Repeated[_Count] = UNSET
    connected_to_agents_count_gt: Maybe[_Count] = UNSET
    connected_to_agents_count_lt: Maybe[_Count] = UNSET
    show_hidden_blocks: Maybe[bool] = UNSET
    templates_only: Annotated[bool | None, NO_TEMPLATES] | UnsetType = UNSET
    project_id: Annotated[str | None, _PROJECT] | UnsetType = UNSET
    identity_id: Annotated[str | None, _NO_IDENTITIES] | UnsetType = UNSET
    identifier_keys: Annotated[list[str] | None, _NO_IDENTITIES] | UnsetType = UNSET


class HistoryQuery(UrlQuery):
    """A page of the values that a block had, newest first."""

    # The version after the first version of the page.
    before: Annotated[int, Meta(ge=1, le=LAST_NUMBER)] = LAST_NUMBER
    limit: Limit = 100


class ToolsQuery(PageQuery):
    """A page of the tools of a project."""

    name: Maybe[str] = UNSET
    names: Repeated[str] = UNSET
    tool_ids: Repeated[str] = UNSET
    search: Maybe[Fragment] = UNSET
    tool_types: Repeated[str] = UNSET
    exclude_tool_types: Repeated[str] = UNSET
    return_only_letta_tools: Maybe[bool] = UNSET


class TagsQuery(PageQuery):
    """A page of the tags of agents."""

    order_by: Maybe[Literal["name"]] = UNSET  # type: ignore[assignment]
    name: Maybe[Fragment] = UNSET
    query_text: Maybe[Fragment] = UNSET


class ModelsQuery(UrlQuery):
    """The models of some providers."""

    provider_category: Repeated[str] = UNSET
    provider_name: Maybe[str] = UNSET
    provider_type: Maybe[str] = UNSET


class PassagesQuery(PageQuery):
    """A page of passages."""

    search: Maybe[Fragment] = UNSET


class PassageSearchQuery(UrlQuery):
    """A search of an agent's passages."""

    query: str
    tags: Repeated[str] = UNSET
    tag_match_mode: Literal["any", "all"] = "any"
    top_k: Maybe[Annotated[int, Meta(ge=1, le=100)]] = UNSET
    start_datetime: Maybe[str] = UNSET
    end_datetime: Maybe[str] = UNSET


class ShownMessagesQuery(PageQuery):
    """A page of messages, and the form in which they are shown."""

    include_return_message_types: Repeated[MessageType] = UNSET
    include_err: NoEffect[bool] = UNSET
    include_compaction_messages: bool = False
    msg_object: bool = False
    use_assistant_message: bool = True
    assistant_message_tool_name: str = "send_message"
    assistant_message_tool_kwarg: str = "message"
    group_id: Annotated[str | None, _NO_GROUPS] | UnsetType = UNSET


class MessagesQuery(ShownMessagesQuery):
    """A page of an agent's messages."""

    conversation_id: Maybe[str] = UNSET


class RunsQuery(PageQuery):
    """A page of runs."""

    agent_id: Maybe[str] = UNSET
    agent_ids: Repeated[str] = UNSET
    active: bool = False
    background: Maybe[bool] = UNSET
    conversation_id: Maybe[str] = UNSET
    statuses: Repeated[Literal["created", "running", "completed", "failed", "cancelled"]] = UNSET
    stop_reason: Maybe[str] = UNSET


class TraceQuery(UrlQuery):
    """The trace of a run."""

    limit: Maybe[Limit] = UNSET


class StepsQuery(PageQuery):
    """A page of steps."""

    agent_id: Maybe[str] = UNSET
    feedback: Maybe[Literal["positive", "negative"]] = UNSET
    has_feedback: Maybe[bool] = UNSET
    model: Annotated[str | None, refused("Steps are not listed by model.")] | UnsetType = UNSET
    start_date: Annotated[str | None, _NO_DATES] | UnsetType = UNSET
    end_date: Annotated[str | None, _NO_DATES] | UnsetType = UNSET
    tags: Annotated[list[str] | None, refused("Steps have no tags.")] | UnsetType = UNSET
    trace_ids: Annotated[list[str] | None, _NO_TRACES] | UnsetType = UNSET
    project_id: Annotated[str | None, _PROJECT] | UnsetType = UNSET


class RecompileQuery(UrlQuery):
    """A new system prompt for an agent."""

    dry_run: bool = False
    update_timestamp: NoEffect[bool] = UNSET


class ResetQuery(UrlQuery):
    """A reset of an agent's messages. Clients before 1.0 send in the query what later clients send in the body."""

    add_default_initial_messages: NoEffect[bool] = UNSET


class ApprovalQuery(UrlQuery):
    """The need of approval, which the client sends in the body as well."""

    requires_approval: Maybe[bool] = UNSET

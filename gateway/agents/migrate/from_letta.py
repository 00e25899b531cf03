"""Moves the agents of a Letta server to a gateway: reads them there over REST, and imports them here over REST.

An agent keeps its id, so that programs find it; so do its blocks, folders, conversations and shared archive. One that
is here already is passed over, so that a move that was broken off is simply begun again. Nothing changes there.
"""

from __future__ import annotations

import http.client
import json
import re
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode
from uuid import uuid4

from msgspec import Struct

from gateway.agents.migrate.moved import (
    MovedAgent,
    MovedConversation,
    count_messages,
    mcp_servers_of,
    moved_file,
    newer_state,
    readers_of,
)
from gateway.core import ids
from gateway.errors import GatewayError

_PAGE = 100
_WAIT_S = 120.0
_MAX_BYTES = 1 << 29  # of an answer
_PARTS = ("blocks", "tools", "sources", "managed_group", "identities", "tags", "secrets")
_INCLUDED = tuple(f"agent.{part}" for part in _PARTS)
# A tool that came, and that the gateway cannot run as it is.
_IDLE = re.compile(r"tools\.(.+)\.(python|typescript|webhook)")
# Errors that reading a reply of an unexpected form raises.
_WRONG = (KeyError, TypeError, ValueError, AttributeError)

_Json = dict[str, Any]


class NotMoved(GatewayError):
    """A refusal of a server, or an answer that cannot be read. answered: its status; 0: it did not answer."""

    def __init__(self, message: str, answered: int = 0) -> None:
        super().__init__(message)
        self.answered = answered


class Server(Struct, frozen=True):
    """A server with the agents API."""

    # Without a path.
    url: str
    # None: it asks for none.
    key: str | None = None

    def get(self, path: str, query: Mapping[str, Any] | None = None) -> Any:
        """Returns what a path answers, as JSON. Raises: NotMoved."""
        sent = "?" + urlencode(query, doseq=True) if query else ""
        return self._ask(urllib.request.Request(f"{self._base}{path}{sent}"))

    def pages_if_served(self, path: str, query: Mapping[str, Any]) -> Iterator[_Json]:
        """Yields all of a list; nothing where an older server lacks it (0.11.7 has no archives). Raises: NotMoved."""
        try:
            yield from self.pages(path, query)
        except NotMoved as error:
            if error.answered != 404:
                raise

    def pages(self, path: str, query: Mapping[str, Any]) -> Iterator[_Json]:
        """Yields all of a list, page after page. Raises: NotMoved."""
        after: _Json = {}
        ends = set[str]()
        # The limit counts messages as they are stored: of one several may be listed, or none.
        while page := _listed(self.get(path, {**query, "limit": _PAGE, **after})):
            end = page[-1]["id"]
            if end in ends:
                raise NotMoved(
                    f"{self.url} answers {path} with pages that have no end: {end} ends two of them."
                )
            ends.add(end)
            yield from page
            after = {"after": end}

    def change(self, path: str, fields: Mapping[str, Any]) -> None:
        """Changes what lies at a path. Raises: NotMoved."""
        headers = {"content-type": "application/json"}
        url = f"{self._base}{path}"
        self._ask(urllib.request.Request(url, json.dumps(fields).encode(), headers, method="PATCH"))

    def send_file(self, path: str, name: str, data: bytes, fields: Mapping[str, str]) -> Any:
        """Sends a form with a file in `file`. Returns what is answered, as JSON. Raises: NotMoved."""
        end = uuid4().hex
        parts = [f'name="{key}"\r\n\r\n{value}'.encode() for key, value in fields.items()]
        parts.append(
            f'name="file"; filename="{name}"\r\ncontent-type: application/json\r\n\r\n'.encode() + data
        )
        head = f"--{end}\r\ncontent-disposition: form-data; ".encode()
        body = b"".join(head + part + b"\r\n" for part in parts) + f"--{end}--\r\n".encode()
        headers = {"content-type": f"multipart/form-data; boundary={end}"}
        return self._ask(urllib.request.Request(f"{self._base}{path}", body, headers))

    @property
    def _base(self) -> str:
        return self.url.rstrip("/")

    def _ask(self, request: urllib.request.Request) -> Any:
        if self.key is not None:
            # Not sent on to where a redirect leads.
            request.add_unredirected_header("authorization", f"Bearer {self.key}")
        path = request.selector.partition("?")[0]
        try:
            with _opened(request) as reply:
                status, data = reply.status, reply.read(_MAX_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            raise NotMoved(f"{self.url} did not answer: {getattr(error, 'reason', None) or error}") from error
        except ValueError:
            # Its words quote the key.
            raise NotMoved(
                f"{self.url} cannot be asked: its key or the path {path} has characters that HTTP does not carry."
            ) from None
        if status >= 300:
            text = data[:2000].decode("utf-8", "replace")
            raise NotMoved(f"{self.url} answered {path} with {status}: {text}", status)
        if len(data) > _MAX_BYTES:
            raise NotMoved(f"{self.url} answered {path} with more than {_MAX_BYTES >> 20} MiB.")
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise NotMoved(f"{self.url} did not answer {path} with JSON.") from error


def _listed(page: Any) -> list[_Json]:
    if isinstance(page, list) and all(
        isinstance(each, dict) and isinstance(each["id"], str) for each in page
    ):
        return page
    raise TypeError("expected a list of what has an id")


def _opened(request: urllib.request.Request) -> Any:
    try:
        return urllib.request.urlopen(request, timeout=_WAIT_S)
    except urllib.error.HTTPError as error:
        return error


@dataclass(slots=True)
class Arrivals:
    """The outcome of a move, in numbers of agents. models: those that the moved ones name."""

    moved: int = 0
    already_there: int = 0
    failed: int = 0
    models: Counter[str] = field(default_factory=Counter)


def move_agents(
    source: Server,
    target: Server,
    wanted: Sequence[str],
    report: Callable[[str], None],
    progress: Callable[[int, int], None],
    *,
    model: str | None = None,
) -> Arrivals:
    """Moves agents one after the other.

    wanted: their ids; none: all.
    report: is called with a line of what became of each.
    progress: is called with how many are done, and how many there are.
    model: that they have here; None: the one that they had there.

    Raises: NotMoved: a server cannot be reached, or lists no agents.
    """
    try:
        agents = list(_agents(source))
        readers = {id for each in agents for id in readers_of(each)}
        archives = {each["id"]: list(_archives(source, each["id"])) for each in agents}
    except _WRONG as error:
        raise NotMoved(_other_form(source, error)) from error
    missing = {*wanted} - {each["id"] for each in agents}
    if missing:
        raise NotMoved(f"{source.url} has no agent {', '.join(sorted(missing))}.", 404)
    sharing = Counter(archive["id"] for each in archives.values() for archive in each)
    done = Arrivals()
    # A sleeptime agent is made with the agent for which it reads.
    moving = [each for each in agents if (each["id"] in wanted if wanted else each["id"] not in readers)]
    for number, state in enumerate(moving):
        progress(number, len(moving))
        name = f"{state['id']} {state.get('name')!r:.200}"
        # Where this is not answered, nothing can be moved.
        here = _here(target, state["id"])
        try:
            if here is not None:
                line = f"is here already{_mended(target, here)}"
                done.already_there += 1
            else:
                shared = next((each for each in archives[state["id"]] if sharing[each["id"]] > 1), None)
                line, models = _move_agent(source, target, state, shared, model)
                done.moved += 1
                done.models.update(models)
        except NotMoved as error:
            done.failed += 1
            outcome = "not moved" if here is None else "is here already, without its sleeptime agent"
            line = f"{outcome}. {error.message}"
        report(f"{name}: {line}")
    return done


def _move_agent(
    source: Server, target: Server, state: _Json, shared: _Json | None, model: str | None
) -> tuple[str, set[str]]:
    """Moves an agent. Returns a line of what was moved and what was not, and the models that it names.

    shared: as for `_read`. model: as for `move_agents`. Raises: NotMoved.
    """
    try:
        moved = _read(source, state, shared)
        line, models = _summary(moved), {model} if model else _models(moved)
        left_out, idle = _write(target, moved, model)
    except _WRONG as error:
        raise NotMoved(_other_form(source, error)) from error
    line += f"; cannot run here: {', '.join(idle)}" if idle else ""
    line += f"; left out: {', '.join(left_out)}" if left_out else ""
    return line, models


def _agents(source: Server) -> Iterator[_Json]:
    """Yields the agents of a server, the oldest first."""
    order = {
        "order": "asc", "order_by": "created_at", "include": _INCLUDED, "show_hidden_agents": "true",
    }  # fmt: skip
    return map(newer_state, source.pages("/v1/agents/", order))


def _archives(source: Server, agent: str) -> Iterator[_Json]:
    return source.pages_if_served("/v1/archives/", {"agent_id": agent})


def _other_form(source: Server, error: Exception) -> str:
    return f"{source.url} has answered in another form than Letta 0.16: {error!r:.300}"


def _here(target: Server, agent: str) -> Any:
    """Returns an agent as the gateway shows it; None: it is not there."""
    try:
        return target.get(f"/v1/agents/{quote(agent, safe='')}")
    except NotMoved as error:
        if error.answered == 404:
            return None
        raise


def _mended(target: Server, here: Mapping[str, Any]) -> str:
    """Has a sleeptime agent made where a killed gateway made none. Returns what there is to say of it."""
    group = here.get("managed_group")
    if group is None or group["agent_ids"]:
        return ""
    target.change(f"/v1/agents/{here['id']}", {"enable_sleeptime": True})
    return ", and has its sleeptime agent now"


def _read(source: Server, state: _Json, shared: _Json | None) -> MovedAgent:
    """Reads all that belongs to an agent. shared: its archive, where others have it too. Raises: NotMoved."""
    path = f"/v1/agents/{state['id']}"
    listed = {"order": "asc", "use_assistant_message": "false"}
    conversations = [
        MovedConversation(each, list(source.pages(f"/v1/conversations/{each['id']}/messages", listed)))
        for each in source.pages_if_served("/v1/conversations/", {"agent_id": state["id"]})
    ]
    # An agent's list has the messages of all of its conversations.
    elsewhere = {message["id"] for each in conversations for message in each.messages}
    messages = [m for m in source.pages(f"{path}/messages", listed) if m["id"] not in elsewhere]
    passages = list(source.pages(f"{path}/archival-memory", {"ascending": "true"}))
    files = [
        file
        for folder in state.get("sources") or ()
        for file in source.pages(f"/v1/sources/{folder['id']}/files", {"include_content": "true"})
    ]
    return MovedAgent(state, messages, conversations, passages, files, shared)


def _write(target: Server, moved: MovedAgent, model: str | None) -> tuple[list[str], list[str]]:
    """Imports an agent. Returns the names of what was left out, and of tools that cannot run. Raises: NotMoved."""
    # What is here already stays, as with blocks: it may have been corrected.
    fields = {"append_copy_suffix": "false", "override_existing_tools": "false"}
    if model is not None:
        fields["model"] = model
    answer = target.send_file("/v1/agents/import", "agent.af", moved_file(moved), fields)
    left_out = list((answer.get("mnemogate") or {}).get("left_out") or ())
    if answer["agent_ids"] != [ids.id_of("agent", ids.uid_of("agent", moved.state["id"]) or "")]:
        raise NotMoved(f"{target.url} is no gateway that keeps ids: it made {answer['agent_ids']}.")
    if any(each.record.get("isolated_block_ids") for each in moved.conversations):
        left_out.append("isolated blocks of conversations")
    idle = [found for each in left_out if (found := _IDLE.fullmatch(each))]
    servers = mcp_servers_of(moved.state)
    missing = [
        f"{each} (of the MCP server {servers[each]!r})" if each in servers else each
        for each in left_out
        if not _IDLE.fullmatch(each)
    ]
    return missing, [f"{each[1]} ({each[2]})" for each in idle]


def _models(moved: MovedAgent) -> set[str]:
    state, config = moved.state, moved.state.get("llm_config") or {}
    own = state.get("model") or config.get("handle") or config.get("model") or "none"
    return {str(own), *(each.record["model"] for each in moved.conversations if each.record.get("model"))}


def _summary(moved: MovedAgent) -> str:
    counts = (
        (count_messages(moved.messages), "message"),
        (len(moved.conversations), "further conversation"),
        (len(moved.passages), "passage"),
        (len(moved.state.get("blocks") or ()), "block"),
        (len(moved.state.get("sources") or ()), "folder"),
    )
    text = [f"{n} {what}{'' if n == 1 else 's'}" for n, what in counts if n]
    return ", ".join(text) or "nothing was said to it"

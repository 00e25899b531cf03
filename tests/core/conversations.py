"""Clients that talk to the pure core, without a store: a clock moved by hand, records in a dict.

A `World` has one memory for each user. A request is planned, composed and ended there as in a gateway; after each
end every stored column is compared with its value, computed again from the whole tree. `tree` draws
what is stored, `Request.lines` what went upstream, and a client's own messages are checked to be there unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from textwrap import dedent
from typing import Any, TypeVar

import orjson
from msgspec.structs import replace

from gateway.core.conversation import settle
from gateway.core.conversation.active import find_mergeable
from gateway.core.conversation.canonical import MessageHasher, is_user
from gateway.core.conversation.exchange import is_tombstone
from gateway.core.conversation.hashed_list import HashedList
from gateway.core.conversation.kind import ConversationKind
from gateway.core.conversation.match_query import MemoryUse, Query
from gateway.core.conversation.plan import Plan, plan_turn
from gateway.core.conversation.portable_message import NO_REPLY, is_empty_reply
from gateway.core.conversation.request_end import RequestEnd
from gateway.core.conversation.tree import PathElement, Tree
from gateway.core.conversation.wire_message import (
    WireMessage,
    is_system,
    make_shown_reply,
    read_text,
    without_space,
)
from gateway.core.memory import edits
from gateway.core.memory.visibility import list_visible_messages
from gateway.core.message_text import with_text_before
from gateway.core.prompt.compose import compose, find_known_note
from gateway.core.prompt.composition import Composition
from storage.commands import MAX_RULE_CALLS, MissingContents, StoredContent
from storage.records import Atom, Block, Exchange, MemoryEdit, State

T = TypeVar("T")

IDLE_S = 120.0
OUR_TOOLS = frozenset({"memory_insert"})
SECRET = b"k" * 16


# -- messages


def system(text: str) -> WireMessage:
    return {"role": "system", "content": text}


def user(text: str, **more: Any) -> WireMessage:
    return {"role": "user", "content": text, **more}


def assistant(text: str | None, *calls: WireMessage) -> WireMessage:
    said: WireMessage = {"role": "assistant", "content": text}
    return {**said, "tool_calls": list(calls)} if calls else said


def call(id: str, name: str = "get_weather", arguments: str = '{"city":"Paris"}') -> WireMessage:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def result(id: str, text: str) -> WireMessage:
    return {"role": "tool", "tool_call_id": id, "content": text}


def picture(text: str, url: str) -> WireMessage:
    parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]
    return {"role": "user", "content": parts}


# -- a request


@dataclass
class Request:
    """A request under way.

    plan: None where nothing is remembered. sent: the messages that went upstream, each with its origin.
    """

    messages: list[WireMessage]
    who: str | None
    key: str | None
    plan: Plan | None = None
    composition: Composition = field(default_factory=Composition)
    notes: dict[int, str] = field(default_factory=dict)
    sent: list[tuple[str, WireMessage]] = field(default_factory=list)
    exchange_row: int = 0

    @property
    def lines(self) -> list[str]:
        """What went upstream: `+` put before the list, `~` part of a hidden round, else the client's own."""
        return [kind + _line(m) for kind, m in self.sent]

    @property
    def texts(self) -> list[str]:
        """The text of each message that went upstream."""
        return [read_text(m) for _, m in self.sent]

    @property
    def is_untouched(self) -> bool:
        return [m for _, m in self.sent] == self.messages

    def assemble(self) -> None:
        made, is_filled = self.composition, False
        for i, message in enumerate(self.messages):
            if not is_system(message) and not is_filled:
                self.sent += [("+ ", each.message) for each in made.inserted]
                is_filled = True
            if i in made.replacements:
                self.sent += [("~ ", m) for m in made.replacements[i]]
            else:
                self.sent.append(("", with_text_before(message, made.notes.get(i, ""))))
        self._check_that_the_client_is_quoted()

    def _check_that_the_client_is_quoted(self) -> None:
        made, at = self.composition, 0
        sent = [m for kind, m in self.sent if kind != "+ "]
        filled = [m for kind, m in self.sent if kind == "+ "]
        for i, message in enumerate(self.messages):
            if made.replacements.get(i) == []:
                # What was heard, before what failed after it; its hidden rounds may be within. Or a result of a call.
                texts = (read_text(m) for m in filled if m["role"] == message["role"])
                assert without_space(read_text(message)) in without_space("".join(texts))
            elif i in made.replacements:
                span = sent[at : at + len(made.replacements[i])]
                ours = {c["id"] for m in span for c in m.get("tool_calls") or [] if call_name(c) in OUR_TOOLS}
                says = make_shown_reply(span, ours)
                assert says["content"] == read_text(message)
                assert says.get("tool_calls") == message.get("tool_calls")
                at += len(span)
            else:
                note = made.notes.get(i, "")
                assert message["role"] == "user" or not note
                assert sent[at] == with_text_before(message, note)
                assert read_text(sent[at]) == note + read_text(message)
                at += 1
        assert at == len(sent)


def check_fill(request: Request, tree: Tree, listing: HashedList) -> None:
    """What was put before a list is the path's own front, message by message, up to where the list begins.

    Turns that have lost a part to forgetting, or are off the record, are not in it; with hidden rounds it is more than
    the path says.
    """
    plan, fill = request.plan, [m for kind, m in request.sent if kind == "+ "]
    assert fill == [each.message for each in request.composition.inserted]
    assert plan is not None
    if not fill or any(e.has_full_reply for e in tree.list_path(plan.match.match_point)):
        return
    elements = tree.list_path_elements(plan.match.match_point)
    path = [_sent_before(tree, element) for element in elements]
    if plan.follows_head:
        # The last reply as it was heard may come with the list.
        moved = [i for i, at in enumerate(listing.positions) if at in request.composition.replacements]
        heard = [listing.messages[i] for i in moved if i < plan.heard_count]
        new = [listing.messages[i] for i in moved if i in plan.new_indices]
        path = [m for m in path if m is not None][: -1 if plan.heard_count else None]
        assert _talk_of(fill) == _talk_of([*path, *heard, *plan.pending, *new])
        return
    listed = listing.atoms[: plan.match.last + 1 if plan.match.altered else listing.answered_count]
    # The last replies came back altered, or for the first time.
    spans = {a.exchange_row: slice(*a.reply) for a in plan.amendments if a.reply}
    forms = {id: [atom for atoms in listing.atoms[span] for atom in atoms] for id, span in spans.items()}
    elements = [
        PathElement(x, i, tuple(atoms), 0)  # no check asks for its offset
        for x in tree.list_path(plan.match.match_point)
        for i, atoms in [*enumerate(x.inputs), (-1, forms.get(x.id, x.reply))]
        if atoms is not None
    ]
    path = [_sent_before(tree, element) for element in elements]
    begins = [p for p, element in enumerate(elements) if element.atoms == listed[0]]
    (end,) = [p for p in begins if _talk(el.atoms for el in elements[p:]) == _talk(listed)] or [0]
    assert end, "the list begins nowhere on the path"
    turns: list[list[WireMessage | None]] = []
    for p in range(end):
        if not turns or (is_user(elements[p].atoms) and not is_user(elements[p - 1].atoms)):
            turns.append([])
        turns[-1].append(path[p])
    if None in turns[-1] and not is_user(listing.atoms[0]):
        turns = []  # the list begins in the middle of it
    assert fill == [m for turn in turns if None not in turn for m in turn]


def _sent_before(tree: Tree, element: PathElement) -> WireMessage | None:
    """Returns a message of a path as it went upstream, None where it is off the record or forgotten."""
    e, content = element.exchange, tree.contents.get(element.exchange)
    if content.messages is None or element.message_index in e.redactions:
        return None
    if element.message_index < 0:
        reply = content.shown_reply
        return {**reply, "content": NO_REPLY} if reply is not None and is_empty_reply(reply) else reply
    return with_text_before(content.messages[element.message_index], e.notes.get(element.message_index, ""))


def _talk_of(messages: Iterable[WireMessage]) -> list[tuple[str, str]]:
    """Returns what was said. Results of tools are put after their calls, and late ones bring a call along."""
    return [(m["role"], read_text(m)) for m in messages if m["role"] != "tool"]


def _talk(messages: Iterable[Sequence[Atom]]) -> list[bytes]:
    """Returns the roles that spoke, tool rounds aside."""
    return [atoms[0][:1] for atoms in messages if atoms and atoms[0][:1] in b"ua"]


def goes_on_from(later: Request, earlier: Request) -> bool:
    """Returns whether the later prompt begins with the bytes of the earlier one."""
    a, b = ([orjson.dumps(m) for _, m in r.sent if not is_system(m)] for r in (earlier, later))
    return b[: len(a)] == a


# -- a memory


@dataclass
class Memory:
    """The records of one user. keys: the client's conversation ids."""

    hasher: MessageHasher
    records: dict[int, Exchange] = field(default_factory=dict)
    keys: dict[str, int] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=lambda: [Block(1, "human", "The user", "", 1000)])
    ops: list[MemoryEdit] = field(default_factory=list)
    verified: dict[int, Verified] = field(default_factory=dict, repr=False)

    def is_named(self, e: Exchange) -> bool:
        return e.conversation_row in self.keys.values()

    def found(self, key: str | None) -> list[Exchange]:
        """Returns the records of a named conversation, else all that are found by the messages."""
        if key is not None:
            return [e for e in self.records.values() if e.conversation_row == self.keys.get(key)]
        return [e for e in self.records.values() if not self.is_named(e)]

    def ask(self, key: str | None, rules: Callable[[Tree], T]) -> tuple[Tree, T]:
        """The rules' answer, of a tree with as much content as they ask for, and no more. It takes few calls."""
        skeletons = [replace(e, input=None, shown_reply=None, full_reply=None) for e in self.found(key)]
        contents: dict[int, StoredContent] = {}
        for _ in range(MAX_RULE_CALLS):
            tree = Tree(skeletons, contents)
            try:
                return tree, rules(tree)
            except MissingContents as missing:
                if not missing.ids or not contents.keys().isdisjoint(missing.ids):
                    raise
                contents |= {i: content_of(self.records[i]) for i in missing.ids}
        raise AssertionError("the rules ask for contents again and again")

    def write(self, request: Request, tree: Tree, e: Exchange, new_edits: Sequence[str], now: float) -> None:
        if request.key is not None:
            self.keys.setdefault(request.key, e.conversation_row)
        is_repeated = e.id in self.records
        for x in list(tree.changed):
            self.records[x] = self._with_content(tree.by_id[x])
        if is_repeated:
            self.ops = [o for o in self.ops if o.exchange_row != e.id or o.state != "pending"]
        if not (is_repeated and e.merged):
            self.ops += [memory_insert(e.id, f"{now}-{i}", text) for i, text in enumerate(new_edits)]
        self.settle(request.key, now)
        check_columns(self.records.values(), self.hasher, self.keys.values(), self.verified)

    def _with_content(self, e: Exchange) -> Exchange:
        """Returns a record as the store writes it: content that was not loaded stays."""
        old = self.records.get(e.id)
        if old is None:
            return e
        full_reply = (e.full_reply or old.full_reply) if e.has_full_reply else None
        return replace(
            e, input=e.input or old.input, shown_reply=e.shown_reply or old.shown_reply, full_reply=full_reply
        )

    def settle(self, key: str | None, now: float) -> None:
        """Applies the edits of confirmed turns to the blocks."""
        tree = Tree(self.found(key))
        for x, why in find_mergeable(tree, now, IDLE_S, is_named=key is not None):
            self.records[x.id] = replace(x, merged=why)
            mine = [o for o in self.ops if o.exchange_row == x.id and o.state == "pending"]
            for block, value, _ in edits.make_block_merge(self.blocks, mine).writes:
                self.blocks = [replace(b, value=value) if b.id == block else b for b in self.blocks]
            self.ops = [replace(o, state="merged") if o in mine else o for o in self.ops]

    def seen_on(self, path: Iterable[int]) -> list[str]:
        """Returns the block's value for a request that continues this path."""
        pending = [o for o in self.ops if o.state == "pending"]
        return edits.list_blocks_on_path(self.blocks, pending, set(path))[0].value.split()


def content_of(e: Exchange) -> StoredContent:
    return StoredContent(e.input, e.shown_reply, e.full_reply)


def memory_insert(exchange_row: int, id: str, text: str) -> MemoryEdit:
    arguments = orjson.dumps({"label": "human", "new_string": text})
    return MemoryEdit(0, exchange_row, id, "insert", "human", arguments)


class Verified:
    """A record with what is above it, whose columns were found right. Equal ones need no second look."""

    def __init__(self, record: Exchange, above: Verified | None) -> None:
        self.record = record
        self.above = above


def check_columns(
    records: Iterable[Exchange],
    hasher: MessageHasher,
    named: Iterable[int],
    verified: dict[int, Verified] | None = None,
) -> None:
    """Checks every stored column against its value, computed from the whole tree.

    verified: by id the records of earlier checks; a column that depends on a record and those above it alone is
        computed again when one of these is another one. Records are frozen.
    """
    tree, names = Tree(records), set(named)
    verified = {} if verified is None else verified
    continued: dict[int, bool] = {}

    for e in sorted(tree, key=lambda e: -e.depth):
        later = [k for k in tree.list_children(e) if k.ended is not None]
        continued[e.id] = any(not tree.is_mid_turn(k) or continued[k.id] for k in later)

    for e in sorted(tree, key=lambda e: e.depth):
        is_told = any(k.ends_with_user and k.ended is not None for k in tree.list_children(e))
        assert e.continued == continued[e.id] or (is_told and not e.continued), f"continued of {e.id}"
        assert e.active == tree.is_active(e, is_named=e.conversation_row in names), f"active of {e.id}"
        parent = tree.find_parent(e)
        before, above = verified.get(e.id), None if parent is None else verified[parent.id]
        if before is None or before.record is not e or before.above is not above:
            _check_path(e, tree, hasher)
            verified[e.id] = Verified(e, above)


def _check_path(e: Exchange, tree: Tree, hasher: MessageHasher) -> None:
    """Checks the columns that follow from a record and those above it."""
    parent, elements = tree.find_parent(e), tree.list_path_elements(tree.find_parent(e))
    assert parent is None or parent.conversation_row == e.conversation_row
    assert e.depth == (parent.depth + 1 if parent else 0)
    assert e.offset == sum(len(el.atoms) for el in elements), f"offset of {e.id}"
    assert e.length == len(e.inputs) + 1 + (parent.length if parent else 0), f"length of {e.id}"
    above = [x.id for x in tree.list_path(parent) if x.has_additions]
    assert e.prior == (above[-1] if above else None), f"prior of {e.id}"
    if e.reply is not None:
        assert e.path_hash == hasher.hash_path(a for el in tree.list_path_elements(e) for a in el.atoms), (
            f"path of {e.id}"
        )
        assert e.reply_key == hasher.make_reply_key(e.reply), f"reply key of {e.id}"


def without_numbers(e: Exchange) -> dict[str, object]:
    """Returns a record without what the store decides: its id and its place in the agent's order."""
    return {name: getattr(e, name) for name in e.__struct_fields__ if name not in ("seq", "gapless_from")}


# -- the world


class World:
    """Several users and a clock.

    recall: makes the note for a question; "" means that nothing was found.
    adds_nothing: every request has to go upstream as it was sent.
    """

    def __init__(
        self,
        secret: bytes = SECRET,
        recall: Callable[[str], str] = lambda question: "",
        *,
        adds_nothing: bool = False,
    ) -> None:
        self.now = 0.0
        self.adds_nothing = adds_nothing
        self.recall = recall
        self._secret = secret
        self._memories: dict[str, Memory] = {}

    def memory(self, who: str | None = "alice", key: str | None = None) -> Memory:
        """Returns a user's memory; an unnamed user has one for each conversation they name."""
        name = who or f"conversation {key}"
        hasher = MessageHasher(self._secret if name == "alice" else name.encode())
        return self._memories.setdefault(name, Memory(hasher))

    def wait(self, seconds: float) -> None:
        self.now += seconds
        for memory in self._memories.values():
            for key in (None, *memory.keys):
                memory.settle(key, self.now)

    def begin(
        self,
        messages: Sequence[WireMessage],
        key: str | None = None,
        *,
        who: str | None = "alice",
        mode: MemoryUse = MemoryUse.ON,
        append: bool = False,
        retry: bool = False,
        tools: Iterable[str] = OUR_TOOLS,
    ) -> Request:
        self.now += 1
        request = Request(list(messages), who, key)
        if who is None and key is None:
            request.assemble()
            return request
        memory = self.memory(who, key)
        listing = HashedList(memory.hasher, request.messages)
        known = memory.keys.get(key) if key is not None else None
        kind = ConversationKind.APPENDED if append else ConversationKind.CLIENT
        query = Query(listing, key is not None, mode, self.now, IDLE_S, kind, retry, known)
        tree, plan = memory.ask(key, lambda tree: plan_turn(tree, query))
        request.plan = plan
        fresh = {} if mode is MemoryUse.OFF else self._notes(tree, plan)
        request.notes = {} if plan.is_off_record else fresh
        tree.contents.add({e.id: content_of(e) for e in memory.records.values()})
        request.composition = compose(tree, plan, set(tools), fresh)
        request.assemble()
        check_fill(request, tree, listing)
        assert request.is_untouched or not self.adds_nothing, request.lines
        if plan.follows_head:
            # As a gateway does before it asks the model.
            draft = RequestEnd(len(memory.records) + 1, (), assistant(""), self.now, dict(request.notes))
            self._write(request, draft, (), settle.write_draft)
        return request

    def _notes(self, tree: Tree, plan: Plan) -> dict[int, str]:
        new = plan.messages
        asked = [i for i, m in enumerate(new) if m["role"] == "user"]
        found = {i: note for i in asked if (note := find_known_note(tree, plan, i)) is not None}
        if asked and asked[-1] == len(new) - 1 and asked[-1] not in found:
            found[asked[-1]] = self.recall(read_text(new[-1]))
        return found

    def finish(
        self, request: Request, reply: str | WireMessage | list[WireMessage], edits: Sequence[str] = ()
    ) -> Request:
        """Ends a request. reply: its text, its message, or all its messages as the upstream saw them."""
        self.now += 1
        full_reply = (
            [assistant(reply)] if isinstance(reply, str) else [reply] if isinstance(reply, dict) else reply
        )
        return self._end(request, full_reply, edits, settle.finish)

    def cancel(self, request: Request, got: Sequence[WireMessage] = (), edits: Sequence[str] = ()) -> Request:
        """Lets the client leave. got: the text that it had received by then."""
        self.now += 1
        return self._end(request, list(got), edits, settle.cancel)

    def _end(
        self,
        request: Request,
        full_reply: list[WireMessage],
        new_edits: Sequence[str],
        how: Callable[[Tree, Plan, RequestEnd], Exchange],
    ) -> Request:
        plan = request.plan
        if plan is None:
            return request
        memory = self.memory(request.who, request.key)
        if request.key is not None and plan.match.match_point is None:
            plan = request.plan = replace(plan, conversation_row=memory.keys.get(request.key))
        ours = frozenset(
            c["id"] for m in full_reply for c in m.get("tool_calls") or [] if call_name(c) in OUR_TOOLS
        )
        ended = RequestEnd(
            id=request.exchange_row if plan.follows_head else len(memory.records) + 1,
            full_reply=full_reply,
            shown_reply=make_shown_reply(full_reply, ours),
            now=self.now,
            notes=dict(request.notes),
            gateway_call_ids=ours,
            edits=bool(new_edits),
        )
        self._write(request, ended, new_edits, how)
        return request

    def _write(
        self,
        request: Request,
        ended: RequestEnd,
        new_edits: Sequence[str],
        how: Callable[[Tree, Plan, RequestEnd], Exchange],
    ) -> None:
        plan, memory = request.plan, self.memory(request.who, request.key)
        assert plan is not None
        tree, e = memory.ask(request.key, lambda tree: how(tree, plan, ended))
        request.exchange_row = e.id
        memory.write(request, tree, e, new_edits, self.now)

    def say(
        self,
        messages: Sequence[WireMessage],
        reply: str | WireMessage | list[WireMessage],
        key: str | None = None,
        *,
        edits: Sequence[str] = (),
        **how: Any,
    ) -> Request:
        return self.finish(self.begin(messages, key, **how), reply, edits)

    def chat(
        self,
        *turns: tuple[str, str],
        key: str | None = None,
        start: Sequence[WireMessage] = (),
        who: str | None = "alice",
    ) -> list[WireMessage]:
        """Makes turns of a client that resends everything. Returns its list afterwards."""
        messages = list(start)
        for question, answer in turns:
            messages.append(user(question))
            self.say(messages, answer, key, who=who)
            messages.append(assistant(answer))
        return messages

    def forget(self, exchange_row: int, who: str | None = "alice") -> None:
        memory = self.memory(who)
        e = memory.records[exchange_row]
        gone: dict[str, Any] = {
            "input": None,
            "shown_reply": None,
            "full_reply": None,
            "has_full_reply": False,
            "notes": {},
        }
        memory.records[exchange_row] = replace(e, state=State.FORGOTTEN, edits=False, **gone)
        tree = Tree(memory.records.values())
        for x in tree:
            memory.records[x.id] = tree.change(x.id, prior=tree.find_prior(x))

    # -- what became of it

    def tree(self, who: str | None = "alice", key: str | None = None) -> str:
        """Returns a line for each exchange, deeper ones indented; `--` between conversations.

        The states are those of docs/conversations.md: continued, active, superseded, cancelled, detached (finished,
        but not active until it is continued), open, forgotten, and off (the record).
        """
        tree = Tree(self.memory(who, key).records.values())

        def draw(e: Exchange, indent: str) -> list[str]:
            line = f"{indent}{_state(tree, e)}: {_content(tree, e)}"
            return [line] + [below for kid in tree.list_children(e) for below in draw(kid, indent + "  ")]

        seen = dict.fromkeys(e.conversation_row for e in tree)
        drawn = [[line for e in tree.list_roots(c) for line in draw(e, "")] for c in seen]
        return "\n--\n".join("\n".join(lines) for lines in drawn)

    def active(self, who: str | None = "alice", key: str | None = None) -> list[str]:
        """Returns what other conversations may know."""
        memory = self.memory(who, key)
        tree = Tree(memory.records.values())
        return [text for e in tree if e.active for text in self._shown(tree, e)]

    def confirmed(self, who: str | None = "alice", key: str | None = None) -> list[str]:
        """Returns what may be learned from."""
        memory = self.memory(who, key)
        tree = Tree(memory.records.values())
        return [
            text
            for e in tree
            if e.active and (tree.is_continued(e) or self.now - (e.ended or self.now) > IDLE_S)
            for text in self._shown(tree, e)
        ]

    def _shown(self, tree: Tree, e: Exchange) -> list[str]:
        prefix = e.inputs[: e.prefix_length]
        is_shared = any(
            x.conversation_row != e.conversation_row
            and x.parent is None
            and x.prefix_length
            and x.inputs[: e.prefix_length] == prefix
            for x in tree
        )
        spoken = list_visible_messages(e, prefix_is_shared=is_shared)
        return [text for _, m in spoken if (text := read_text(m))]

    def learned(self, who: str | None = "alice") -> list[str]:
        """Returns the block's value after all edits."""
        return self.memory(who).blocks[0].value.split()


def drawn(text: str) -> str:
    return dedent(text).strip()


def _state(tree: Tree, e: Exchange) -> str:
    if is_tombstone(e):
        return "off" if e.state is State.OFF else "forgotten"
    if e.active:
        return "continued" if tree.is_continued(e) else "active"
    if e.ended is None:
        return "open" if e.state is State.OPEN else "cancelled"
    return "superseded" if e.superseded else "detached"


def _content(tree: Tree, e: Exchange) -> str:
    content = tree.contents.get(e)
    asked = " / ".join(map(_brief, content.messages)) if content.messages else "..."
    if e.ended is None:
        return asked
    return f"{asked} > {_brief(content.shown_reply) if content.shown_reply else '...'}"


def call_name(call: WireMessage) -> str:
    return str(call["function"]["name"])


def _brief(message: WireMessage) -> str:
    calls = [f"{call_name(c)}()" for c in message.get("tool_calls") or []]
    sign = "=" if message["role"] == "tool" else ""
    return " ".join([*([sign + read_text(message)] if read_text(message) else []), *calls])


def _line(message: WireMessage) -> str:
    return f"{message['role']}: {_brief(message)}"

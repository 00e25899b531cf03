"""Clients that chat with the pure core, without a store: records are in a dict, and a test moves the clock.

A `World` has one memory for each user. It plans, composes and ends a request as a gateway does. After each end it
compares each stored column with the value that follows from the whole tree. `World.tree` shows the stored exchanges,
and `Request.lines` the messages that went upstream; the client's own messages must be among these unchanged.

    history = world.chat(("My cat is Tom.", "Nice cat."))
    request = world.say([*history, user("Bye.")], "Bye.")
    assert request.is_untouched
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from textwrap import dedent
from typing import Any, NamedTuple, TypeVar

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
from storage.records import Atom, Block, Exchange, ExchangeState, MemoryEdit

T = TypeVar("T")

# Seconds after which a turn is confirmed without another turn.
IDLE_S = 120.0
GATEWAY_TOOLS = frozenset({"memory_insert"})
SECRET = b"k" * 16


# -- messages


def system(text: str) -> WireMessage:
    return {"role": "system", "content": text}


def user(text: str, **more: Any) -> WireMessage:
    return {"role": "user", "content": text, **more}


def assistant(text: str | None, *calls: WireMessage) -> WireMessage:
    message: WireMessage = {"role": "assistant", "content": text}
    return {**message, "tool_calls": list(calls)} if calls else message


def call(id: str, name: str = "get_weather", arguments: str = '{"city":"Paris"}') -> WireMessage:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def result(id: str, text: str) -> WireMessage:
    return {"role": "tool", "tool_call_id": id, "content": text}


def picture(text: str, url: str) -> WireMessage:
    parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]
    return {"role": "user", "content": parts}


# -- a request


class SentMessage(NamedTuple):
    """A message that went upstream."""

    # "+ ": inserted before the client's list. "~ ": part of a hidden round that replaces a message. "": the client's.
    origin: str
    message: WireMessage


@dataclass
class Request:
    """A client's request, from its begin to its end."""

    messages: list[WireMessage]
    user_id: str | None
    # The client's id of the conversation.
    key: str | None
    # None: a request without memory.
    plan: Plan | None = None
    composition: Composition = field(default_factory=Composition)
    # The notes of recalled messages by the indices of the new messages that they stand before.
    notes: dict[int, str] = field(default_factory=dict)
    sent: list[SentMessage] = field(default_factory=list)
    exchange_row: int = 0

    @property
    def lines(self) -> list[str]:
        """The messages that went upstream, one a line, with their origin: "+ user: Hello."."""
        return [origin + _line(message) for origin, message in self.sent]

    @property
    def texts(self) -> list[str]:
        """The text of each message that went upstream."""
        return [read_text(message) for _, message in self.sent]

    @property
    def is_untouched(self) -> bool:
        """Whether the client's messages went upstream as they were sent."""
        return [message for _, message in self.sent] == self.messages

    def assemble(self) -> None:
        """Makes the messages that go upstream, and checks that the client's are among them."""
        composition = self.composition
        is_filled = False
        for i, message in enumerate(self.messages):
            if not is_system(message) and not is_filled:
                self.sent += [SentMessage("+ ", each.message) for each in composition.inserted]
                is_filled = True
            if i in composition.replacements:
                self.sent += [SentMessage("~ ", m) for m in composition.replacements[i]]
            else:
                self.sent.append(SentMessage("", with_text_before(message, composition.notes.get(i, ""))))
        self._check_client_messages()

    def _check_client_messages(self) -> None:
        """Checks that each of the client's messages went upstream, in the form that the composition gives it."""
        composition = self.composition
        sent = [message for origin, message in self.sent if origin != "+ "]
        inserted = [message for origin, message in self.sent if origin == "+ "]
        position = 0
        for i, message in enumerate(self.messages):
            if composition.replacements.get(i) == []:
                # A part of a reply that was heard, with its hidden rounds, or a call's result: among the inserted ones.
                texts = (read_text(m) for m in inserted if m["role"] == message["role"])
                assert without_space(read_text(message)) in without_space("".join(texts))
            elif i in composition.replacements:
                span = sent[position : position + len(composition.replacements[i])]
                shown = make_shown_reply(span, gateway_call_ids(span))
                assert shown["content"] == read_text(message)
                assert shown.get("tool_calls") == message.get("tool_calls")
                position += len(span)
            else:
                note = composition.notes.get(i, "")
                assert message["role"] == "user" or not note
                assert sent[position] == with_text_before(message, note)
                assert read_text(sent[position]) == note + read_text(message)
                position += 1
        assert position == len(sent)


def check_fill(request: Request, tree: Tree, listing: HashedList) -> None:
    """Checks the messages that were inserted before a list: those of the path before the first message of the list.

    Turns that are off the record or have lost a part by a forgetting are not inserted. A path with hidden rounds is not
    checked, because its inserted messages also have those rounds.
    """
    plan = request.plan
    inserted = [message for origin, message in request.sent if origin == "+ "]
    assert inserted == [each.message for each in request.composition.inserted]
    assert plan is not None
    if not inserted or any(exchange.has_full_reply for exchange in tree.list_path(plan.match.match_point)):
        return
    elements = tree.list_path_elements(plan.match.match_point)
    path = [_restore_sent(tree, element) for element in elements]
    if plan.follows_head:
        # The list may have the heard part of the last reply.
        replacements = request.composition.replacements
        replaced = [i for i, position in enumerate(listing.positions) if position in replacements]
        heard_messages = [listing.messages[i] for i in replaced if i < plan.heard_count]
        new_messages = [listing.messages[i] for i in replaced if i in plan.new_indices]
        path = [message for message in path if message is not None][: -1 if plan.heard_count else None]
        assert _spoken_texts(inserted) == _spoken_texts(
            [*path, *heard_messages, *plan.pending, *new_messages]
        )
        return
    listed_atoms = listing.atoms[: plan.match.last + 1 if plan.match.altered else listing.answered_count]
    # The atoms of replies that the list has in another form than the tree, or for the first time.
    spans = {a.exchange_row: slice(*a.reply) for a in plan.amendments if a.reply}
    replies = {row: [atom for atoms in listing.atoms[span] for atom in atoms] for row, span in spans.items()}
    elements = [
        PathElement(exchange, i, tuple(atoms), 0)  # no check asks for its offset
        for exchange in tree.list_path(plan.match.match_point)
        for i, atoms in [*enumerate(exchange.inputs), (-1, replies.get(exchange.id, exchange.reply))]
        if atoms is not None
    ]
    path = [_restore_sent(tree, element) for element in elements]
    starts = [start for start, element in enumerate(elements) if element.atoms == listed_atoms[0]]
    (end,) = [
        start
        for start in starts
        if _spoken_roles(element.atoms for element in elements[start:]) == _spoken_roles(listed_atoms)
    ] or [0]
    assert end, "no message of the path is the first one of the list"
    turns: list[list[WireMessage | None]] = []
    for i in range(end):
        if not turns or (is_user(elements[i].atoms) and not is_user(elements[i - 1].atoms)):
            turns.append([])
        turns[-1].append(path[i])
    if None in turns[-1] and not is_user(listing.atoms[0]):
        turns = []  # the list begins within a turn that is not inserted
    assert inserted == [message for turn in turns if None not in turn for message in turn]


def _restore_sent(tree: Tree, element: PathElement) -> WireMessage | None:
    """Returns a message of a path as it went upstream, or None if it is off the record or forgotten."""
    exchange = element.exchange
    content = tree.contents.get(exchange)
    if content.messages is None or element.message_index in exchange.redactions:
        return None
    if element.message_index < 0:
        reply = content.shown_reply
        return {**reply, "content": NO_REPLY} if reply is not None and is_empty_reply(reply) else reply
    return with_text_before(
        content.messages[element.message_index], exchange.notes.get(element.message_index, "")
    )


def _spoken_texts(messages: Iterable[WireMessage]) -> list[tuple[str, str]]:
    """Returns roles and texts without the results of tools, whose order may differ."""
    return [(m["role"], read_text(m)) for m in messages if m["role"] != "tool"]


def _spoken_roles(messages: Iterable[Sequence[Atom]]) -> list[bytes]:
    """Returns the first letter of each role but that of tools."""
    return [atoms[0][:1] for atoms in messages if atoms and atoms[0][:1] in b"ua"]


def extends_prompt(later: Request, earlier: Request) -> bool:
    """Returns whether the later prompt begins with the bytes of the earlier one, without their system messages."""
    prefix, prompt = ([orjson.dumps(m) for _, m in r.sent if not is_system(m)] for r in (earlier, later))
    return prompt[: len(prefix)] == prefix


# -- a memory


@dataclass
class Memory:
    """The records of one user."""

    hasher: MessageHasher
    # The exchanges by their rows.
    records: dict[int, Exchange] = field(default_factory=dict)
    # The rows of the conversations by the client's ids of them.
    keys: dict[str, int] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=lambda: [Block(1, "human", "The user", "", 1000)])
    edits: list[MemoryEdit] = field(default_factory=list)
    # The exchanges as `check_columns` last found them right, by their rows.
    verified: dict[int, Verified] = field(default_factory=dict, repr=False)

    def is_named(self, exchange: Exchange) -> bool:
        return exchange.conversation_row in self.keys.values()

    def list_candidates(self, key: str | None) -> list[Exchange]:
        """Returns the records of a named conversation, or without a key those of all conversations without one."""
        if key is not None:
            return [
                exchange
                for exchange in self.records.values()
                if exchange.conversation_row == self.keys.get(key)
            ]
        return [exchange for exchange in self.records.values() if not self.is_named(exchange)]

    def decide(self, key: str | None, rules: Callable[[Tree], T]) -> tuple[Tree, T]:
        """Calls rules with a tree that has only the contents they ask for. Returns the tree and their result.

        Raises AssertionError if they need more than `MAX_RULE_CALLS` calls.
        """
        skeletons = [
            replace(exchange, input=None, shown_reply=None, full_reply=None)
            for exchange in self.list_candidates(key)
        ]
        contents: dict[int, StoredContent] = {}
        for _ in range(MAX_RULE_CALLS):
            tree = Tree(skeletons, contents)
            try:
                return tree, rules(tree)
            except MissingContents as missing:
                if not missing.ids or not contents.keys().isdisjoint(missing.ids):
                    raise
                contents |= {i: content_of(self.records[i]) for i in missing.ids}
        raise AssertionError("the rules ask for contents too often")

    def write(
        self, request: Request, tree: Tree, exchange: Exchange, new_edits: Sequence[str], now: float
    ) -> None:
        if request.key is not None:
            self.keys.setdefault(request.key, exchange.conversation_row)
        is_repeated = exchange.id in self.records
        for row in list(tree.changed_ids):
            self.records[row] = self._with_content(tree.by_id[row])
        if is_repeated:
            self.edits = [
                edit for edit in self.edits if edit.exchange_row != exchange.id or edit.state != "pending"
            ]
        if not (is_repeated and exchange.merged):
            self.edits += [memory_insert(exchange.id, f"{now}-{i}", text) for i, text in enumerate(new_edits)]
        self.settle(request.key, now)
        check_columns(self.records.values(), self.hasher, self.keys.values(), self.verified)

    def _with_content(self, exchange: Exchange) -> Exchange:
        """Returns a record as the store writes it: content that was not loaded stays."""
        old = self.records.get(exchange.id)
        if old is None:
            return exchange
        full_reply = (exchange.full_reply or old.full_reply) if exchange.has_full_reply else None
        return replace(
            exchange,
            input=exchange.input or old.input,
            shown_reply=exchange.shown_reply or old.shown_reply,
            full_reply=full_reply,
        )

    def settle(self, key: str | None, now: float) -> None:
        """Applies the edits of confirmed turns to the blocks."""
        tree = Tree(self.list_candidates(key))
        for exchange, reason in find_mergeable(tree, now, IDLE_S, is_named=key is not None):
            self.records[exchange.id] = replace(exchange, merged=reason)
            due_edits = [
                edit for edit in self.edits if edit.exchange_row == exchange.id and edit.state == "pending"
            ]
            for block_row, value, _ in edits.make_block_merge(self.blocks, due_edits).writes:
                self.blocks = [
                    replace(block, value=value) if block.id == block_row else block for block in self.blocks
                ]
            self.edits = [replace(edit, state="merged") if edit in due_edits else edit for edit in self.edits]

    def list_block_lines(self, path: Iterable[int]) -> list[str]:
        """Returns the lines of the block as a request that continues a path gets them. path: the exchanges' rows."""
        pending = [edit for edit in self.edits if edit.state == "pending"]
        return edits.list_blocks_on_path(self.blocks, pending, set(path))[0].value.split()


def content_of(exchange: Exchange) -> StoredContent:
    return StoredContent(exchange.input, exchange.shown_reply, exchange.full_reply)


def memory_insert(exchange_row: int, id: str, text: str) -> MemoryEdit:
    arguments = orjson.dumps({"label": "human", "new_string": text})
    return MemoryEdit(0, exchange_row, id, "insert", "human", arguments)


class Verified:
    """A record whose columns were found right, with its verified parent. Equal ones are not checked again."""

    def __init__(self, record: Exchange, parent: Verified | None) -> None:
        self.record = record
        # None: the record has no parent.
        self.parent = parent


def check_columns(
    records: Iterable[Exchange],
    hasher: MessageHasher,
    named_rows: Iterable[int],
    verified: dict[int, Verified] | None = None,
) -> None:
    """Checks every stored column against its value, computed from the whole tree.

    named_rows: the rows of the conversations that the client named.
    verified: the records of earlier checks by their rows. A record is checked again if it or one of its ancestors has
        changed.
    """
    tree, named = Tree(records), set(named_rows)
    verified = {} if verified is None else verified
    continued: dict[int, bool] = {}

    for exchange in sorted(tree, key=lambda exchange: -exchange.depth):
        ended_children = [child for child in tree.list_children(exchange) if child.ended is not None]
        continued[exchange.id] = any(
            not tree.is_mid_turn(child) or continued[child.id] for child in ended_children
        )

    for exchange in sorted(tree, key=lambda exchange: exchange.depth):
        has_user_child = any(
            child.ends_with_user and child.ended is not None for child in tree.list_children(exchange)
        )
        assert exchange.continued == continued[exchange.id] or (has_user_child and not exchange.continued), (
            f"continued of {exchange.id}"
        )
        assert exchange.active == tree.is_active(exchange, is_named=exchange.conversation_row in named), (
            f"active of {exchange.id}"
        )
        parent = tree.find_parent(exchange)
        verified_parent = None if parent is None else verified[parent.id]
        earlier = verified.get(exchange.id)
        if earlier is None or earlier.record is not exchange or earlier.parent is not verified_parent:
            _check_path(exchange, tree, hasher)
            verified[exchange.id] = Verified(exchange, verified_parent)


def _check_path(exchange: Exchange, tree: Tree, hasher: MessageHasher) -> None:
    """Checks the columns that follow from a record and its ancestors."""
    parent = tree.find_parent(exchange)
    elements = tree.list_path_elements(parent)
    assert parent is None or parent.conversation_row == exchange.conversation_row
    assert exchange.depth == (parent.depth + 1 if parent else 0)
    assert exchange.offset == sum(len(element.atoms) for element in elements), f"offset of {exchange.id}"
    assert exchange.length == len(exchange.inputs) + 1 + (parent.length if parent else 0), (
        f"length of {exchange.id}"
    )
    rows_with_additions = [ancestor.id for ancestor in tree.list_path(parent) if ancestor.has_additions]
    assert exchange.prior == (rows_with_additions[-1] if rows_with_additions else None), (
        f"prior of {exchange.id}"
    )
    if exchange.reply is not None:
        path_atoms = (atom for element in tree.list_path_elements(exchange) for atom in element.atoms)
        assert exchange.path_hash == hasher.hash_path(path_atoms), f"path of {exchange.id}"
        assert exchange.reply_key == hasher.make_reply_key(exchange.reply), f"reply key of {exchange.id}"


def without_numbers(exchange: Exchange) -> dict[str, object]:
    """Returns the fields of a record but its number and the start of its gapless run, which the store sets."""
    return {
        name: getattr(exchange, name)
        for name in exchange.__struct_fields__
        if name not in ("seq", "gapless_from")
    }


# -- the world


class World:
    """Several users, each with a memory, and a clock."""

    def __init__(
        self,
        secret: bytes = SECRET,
        recall: Callable[[str], str] = lambda question: "",
        *,
        adds_nothing: bool = False,
    ) -> None:
        """Makes a world without memories.

        secret: the secret of alice's memory.
        recall: returns the note of recalled messages for a question, or "" if there is none.
        adds_nothing: whether each request must go upstream as the client sent it.
        """
        # Seconds.
        self.now = 0.0
        self.adds_nothing = adds_nothing
        self.recall = recall
        self._secret = secret
        self._memories: dict[str, Memory] = {}

    def memory(self, user_id: str | None = "alice", key: str | None = None) -> Memory:
        """Returns a user's memory. A client without a user has one for each conversation that it names."""
        name = user_id or f"conversation {key}"
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
        user_id: str | None = "alice",
        mode: MemoryUse = MemoryUse.ON,
        append: bool = False,
        retry: bool = False,
        tools: Iterable[str] = GATEWAY_TOOLS,
    ) -> Request:
        self.now += 1
        request = Request(list(messages), user_id, key)
        if user_id is None and key is None:
            request.assemble()
            return request
        memory = self.memory(user_id, key)
        listing = HashedList(memory.hasher, request.messages)
        conversation_row = memory.keys.get(key) if key is not None else None
        kind = ConversationKind.APPENDED if append else ConversationKind.CLIENT
        query = Query(listing, key is not None, mode, self.now, IDLE_S, kind, retry, conversation_row)
        tree, plan = memory.decide(key, lambda tree: plan_turn(tree, query))
        request.plan = plan
        notes = {} if mode is MemoryUse.OFF else self._make_notes(tree, plan)
        request.notes = {} if plan.is_off_record else notes
        tree.contents.add({exchange.id: content_of(exchange) for exchange in memory.records.values()})
        request.composition = compose(tree, plan, set(tools), notes)
        request.assemble()
        check_fill(request, tree, listing)
        assert request.is_untouched or not self.adds_nothing, request.lines
        if plan.follows_head:
            # A gateway also writes the draft before it calls the model.
            draft = RequestEnd(len(memory.records) + 1, (), assistant(""), self.now, dict(request.notes))
            self._write(request, draft, (), settle.write_draft)
        return request

    def _make_notes(self, tree: Tree, plan: Plan) -> dict[int, str]:
        """Returns the notes before the new messages: the stored ones, and a new one for a question at the end."""
        messages = plan.messages
        questions = [i for i, message in enumerate(messages) if message["role"] == "user"]
        notes = {i: note for i in questions if (note := find_known_note(tree, plan, i)) is not None}
        if questions and questions[-1] == len(messages) - 1 and questions[-1] not in notes:
            notes[questions[-1]] = self.recall(read_text(messages[-1]))
        return notes

    def finish(
        self, request: Request, reply: str | WireMessage | list[WireMessage], edits: Sequence[str] = ()
    ) -> Request:
        """Ends a request.

        reply: the text of the reply, its message, or all of its messages with the hidden rounds.
        edits: the texts that the turn's calls of `memory_insert` insert.
        """
        self.now += 1
        full_reply = (
            [assistant(reply)] if isinstance(reply, str) else [reply] if isinstance(reply, dict) else reply
        )
        return self._end(request, full_reply, edits, settle.finish)

    def cancel(
        self, request: Request, partial: Sequence[WireMessage] = (), edits: Sequence[str] = ()
    ) -> Request:
        """Ends a request whose client has left. partial: the messages of the reply that the client has got."""
        self.now += 1
        return self._end(request, list(partial), edits, settle.cancel)

    def _end(
        self,
        request: Request,
        full_reply: list[WireMessage],
        new_edits: Sequence[str],
        rule: settle.SettleRule,
    ) -> Request:
        plan = request.plan
        if plan is None:
            return request
        memory = self.memory(request.user_id, request.key)
        if request.key is not None and plan.match.match_point is None:
            plan = request.plan = replace(plan, conversation_row=memory.keys.get(request.key))
        gateway_ids = gateway_call_ids(full_reply)
        request_end = RequestEnd(
            id=request.exchange_row if plan.follows_head else len(memory.records) + 1,
            full_reply=full_reply,
            shown_reply=make_shown_reply(full_reply, gateway_ids),
            now=self.now,
            notes=dict(request.notes),
            gateway_call_ids=gateway_ids,
            has_edits=bool(new_edits),
        )
        self._write(request, request_end, new_edits, rule)
        return request

    def _write(
        self,
        request: Request,
        request_end: RequestEnd,
        new_edits: Sequence[str],
        rule: settle.SettleRule,
    ) -> None:
        plan, memory = request.plan, self.memory(request.user_id, request.key)
        assert plan is not None
        tree, exchange = memory.decide(request.key, lambda tree: rule(tree, plan, request_end))
        request.exchange_row = exchange.id
        memory.write(request, tree, exchange, new_edits, self.now)

    def say(
        self,
        messages: Sequence[WireMessage],
        reply: str | WireMessage | list[WireMessage],
        key: str | None = None,
        *,
        edits: Sequence[str] = (),
        **options: Any,
    ) -> Request:
        """Begins and finishes a request. options: further parameters of `begin`."""
        return self.finish(self.begin(messages, key, **options), reply, edits)

    def chat(
        self,
        *turns: tuple[str, str],
        key: str | None = None,
        start: Sequence[WireMessage] = (),
        user_id: str | None = "alice",
    ) -> list[WireMessage]:
        """Takes turns of a client that resends its history. Returns its list of messages afterwards."""
        messages = list(start)
        for question, answer in turns:
            messages.append(user(question))
            self.say(messages, answer, key, user_id=user_id)
            messages.append(assistant(answer))
        return messages

    def forget(self, exchange_row: int, user_id: str | None = "alice") -> None:
        memory = self.memory(user_id)
        memory.records[exchange_row] = replace(
            memory.records[exchange_row],
            state=ExchangeState.FORGOTTEN,
            input=None,
            shown_reply=None,
            full_reply=None,
            has_full_reply=False,
            notes={},
            edits=False,
        )
        tree = Tree(memory.records.values())
        for exchange in tree:
            memory.records[exchange.id] = tree.change(exchange.id, prior=tree.find_prior(exchange))

    # -- the stored memory

    def tree(self, user_id: str | None = "alice", key: str | None = None) -> str:
        """Returns a line for each exchange, indented by its depth, and a line `--` between conversations.

        The states are those of docs/conversations.md: continued, active, superseded, cancelled, detached (finished,
        but not active until it is continued), open, forgotten, and off (the record).
        """
        tree = Tree(self.memory(user_id, key).records.values())

        def draw(exchange: Exchange, indent: str) -> list[str]:
            line = f"{indent}{_state(tree, exchange)}: {_content(tree, exchange)}"
            subtrees = [draw(child, indent + "  ") for child in tree.list_children(exchange)]
            return [line, *chain.from_iterable(subtrees)]

        rows = dict.fromkeys(exchange.conversation_row for exchange in tree)
        trees = [[line for exchange in tree.list_roots(row) for line in draw(exchange, "")] for row in rows]
        return "\n--\n".join("\n".join(lines) for lines in trees)

    def active(self, user_id: str | None = "alice", key: str | None = None) -> list[str]:
        """Returns the texts of active exchanges, which other conversations may recall."""
        memory = self.memory(user_id, key)
        tree = Tree(memory.records.values())
        return [
            text for exchange in tree if exchange.active for text in self._list_visible_texts(tree, exchange)
        ]

    def confirmed(self, user_id: str | None = "alice", key: str | None = None) -> list[str]:
        """Returns the texts of confirmed exchanges, from which learning may take facts."""
        memory = self.memory(user_id, key)
        tree = Tree(memory.records.values())
        return [
            text
            for exchange in tree
            if exchange.active
            and (tree.is_continued(exchange) or self.now - (exchange.ended or self.now) > IDLE_S)
            for text in self._list_visible_texts(tree, exchange)
        ]

    def _list_visible_texts(self, tree: Tree, exchange: Exchange) -> list[str]:
        prefix = exchange.inputs[: exchange.prefix_length]
        is_shared = any(
            other.conversation_row != exchange.conversation_row
            and other.parent is None
            and other.prefix_length
            and other.inputs[: exchange.prefix_length] == prefix
            for other in tree
        )
        visible = list_visible_messages(exchange, prefix_is_shared=is_shared)
        return [text for _, message in visible if (text := read_text(message))]

    def list_learned(self, user_id: str | None = "alice") -> list[str]:
        """Returns the lines of the block, with the edits of confirmed turns."""
        return self.memory(user_id).blocks[0].value.split()


def outline(text: str) -> str:
    """Returns an indented text as `World.tree` returns it."""
    return dedent(text).strip()


def _state(tree: Tree, exchange: Exchange) -> str:
    if is_tombstone(exchange):
        return "off" if exchange.state is ExchangeState.OFF else "forgotten"
    if exchange.active:
        return "continued" if tree.is_continued(exchange) else "active"
    if exchange.ended is None:
        return "open" if exchange.state is ExchangeState.OPEN else "cancelled"
    return "superseded" if exchange.superseded else "detached"


def _content(tree: Tree, exchange: Exchange) -> str:
    content = tree.contents.get(exchange)
    messages = " / ".join(map(_brief, content.messages)) if content.messages else "..."
    if exchange.ended is None:
        return messages
    return f"{messages} > {_brief(content.shown_reply) if content.shown_reply else '...'}"


def call_name(call: WireMessage) -> str:
    return str(call["function"]["name"])


def gateway_call_ids(messages: Iterable[WireMessage]) -> frozenset[str]:
    """Returns the ids of the calls of gateway tools."""
    return frozenset(
        call["id"]
        for message in messages
        for call in message.get("tool_calls") or []
        if call_name(call) in GATEWAY_TOOLS
    )


def _brief(message: WireMessage) -> str:
    calls = [f"{call_name(call)}()" for call in message.get("tool_calls") or []]
    sign = "=" if message["role"] == "tool" else ""
    return " ".join([*([sign + read_text(message)] if read_text(message) else []), *calls])


def _line(message: WireMessage) -> str:
    return f"{message['role']}: {_brief(message)}"

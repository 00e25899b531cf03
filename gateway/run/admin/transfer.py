"""`mnemogate memory export` and `import`: a memory as JSON lines, a page at a time.

The lines hold everything that was kept and nothing that belongs to a database: no ids, no secret, no hashes. A line
has one key that says what it is. Exchanges are known by their numbers, conversations by their uids; what refers to
something comes after it. Hashes are made anew under the secret of the new memory; what was forgotten keeps its place,
and since nobody knows its words any more, it matches nothing there.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from gateway.core.conversation.canonical import Canon, WireMessage
from gateway.core.conversation.tree import is_tombstone
from gateway.core.memory.learn import fact_key
from gateway.errors import BadRequest
from gateway.run.admin.forget import scope_of
from gateway.run.admin.operations import Operation
from storage.base import Store
from storage.commands import TransferRecord
from storage.errors import NotFound, WriteConflict
from storage.records import Agent, Atom, Exchange, Scope, State

__all__ = ["carry_operations"]

FORMAT = 1
PARTS = ("conversation", "exchange", "block", "version", "passage", "fact", "ended", "learned", "edit")
END: dict[str, Any] = {"end": {}}  # the last line: without it something is missing
PAGE = 100  # lines of an answer
WRITTEN = 8  # lines a transaction; a line may be a whole request
KEPT_PATHS = 4096  # whose hash goes on, within one call

# What of an exchange is told as it is; words, hashes and places in the tree are told apart.
_PLAIN = (
    "seq", "run", "begun", "touched", "ended", "stopped", "superseded", "carried", "standing", "edits", "opaque",
    "model", "merged", "size", "head",
)  # fmt: skip


def carry_operations(store: Store, then: Sequence[str] = ()) -> dict[str, Operation]:
    """memory-export: project, profile, user or conversation; from: the answer's `next`. Answers {"lines", "next"}.

    memory-import: the same scope; lines; at: what the call before answered, None at first; end: there are no more.
    Answers {"at"}.

    then: kinds of the jobs that a memory is due for when it has come in, to make anew what is not carried.
    """

    async def export(arguments: Mapping[str, Any]) -> Any:
        scope = _scope(arguments)
        agent = store.agents.find(scope)
        if agent is None:
            raise BadRequest(
                f"Nothing is remembered for {scope.subject} in profile {scope.profile!r}.", param="user"
            )
        place = arguments.get("from")
        if place is None:
            edge = store.carry.edge(agent)
            head = {
                "memory": {"format": FORMAT, "next_seq": edge["seq"] + 1, "created": agent.created},
            }
            return {"lines": [_line(head)], "next": [agent.uid, PARTS[0], 0, edge]}
        uid, part, after, edge = place
        if uid != agent.uid or part not in PARTS:
            raise BadRequest("This memory was forgotten while it was exported.", param="from")
        found = await store.carry.page(agent, part, after, PAGE, edge)
        if found:
            return {
                "lines": [_line({part: _told(each)}) for _, each in found],
                "next": [uid, part, found[-1][0], edge],
            }
        following = PARTS.index(part) + 1
        if following == len(PARTS):
            return {"lines": [_line(END)], "next": None}
        return {"lines": [], "next": [uid, PARTS[following], 0, edge]}

    async def fill(arguments: Mapping[str, Any]) -> Any:
        scope, at = _scope(arguments), arguments.get("at")
        lines = arguments.get("lines")
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            raise BadRequest("lines must be a list of texts.", param="lines")
        try:
            return await _fill(scope, at, lines, is_end=bool(arguments.get("end")))
        except (WriteConflict, NotFound) as error:
            raise BadRequest(f"This cannot be imported: {error.message}.", param="lines") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadRequest(f"This is no exported memory: {error!r}.", param="lines") from error

    async def _fill(scope: Scope, at: Any, lines: list[str], *, is_end: bool) -> Any:
        if at is None:
            if not lines:
                raise BadRequest("There is nothing to import.", param="lines")
            head = orjson.loads(lines[0]).get("memory")
            if not isinstance(head, dict) or head.get("format") != FORMAT:
                raise BadRequest(f"The first line must name the format, which is {FORMAT}.", param="lines")
            draft = Agent(
                0, secrets.token_hex(16), scope, secrets.token_bytes(16), 0, created=float(head["created"])
            )
            agent = await store.carry.begin(draft)
            at, lines = [agent.uid, int(head["next_seq"]), False], lines[1:]
        found = store.carry.under_way(scope)
        if found is None or found.uid != at[0]:
            raise BadRequest("This import is not under way any more.", param="at")
        reader = _LineReader(store, found)
        records: list[tuple[str, TransferRecord]] = []
        uid, next_seq, is_whole = at
        for told in (orjson.loads(line) for line in lines if line.strip()):
            if told == END:
                is_whole = True
                continue
            records.append(reader.read(told))
            if len(records) == WRITTEN:
                await store.carry.write(found, records)
                records = []
        if records:
            await store.carry.write(found, records)
        if is_end:
            if not is_whole:
                raise BadRequest("This export was cut off: its last line is missing.", param="lines")
            await store.carry.end(found, next_seq)
            for kind in then:
                await store.jobs.enqueue(kind, found.id, kind)
        return {"at": [uid, next_seq, is_whole]}

    return {"memory-export": export, "memory-import": fill}


def _scope(arguments: Mapping[str, Any]) -> Scope:
    project, profile, subject = scope_of(arguments)
    if subject is None:
        raise BadRequest("Say whose memory: user or conversation.", param="user")
    return Scope(project, profile or "default", subject)


def _line(value: dict[str, Any]) -> str:
    return orjson.dumps(value).decode()


# -- away


def _told(record: TransferRecord) -> dict[str, Any]:
    e = record.exchange
    if e is None:
        return record.values
    told = {**record.values, **{name: getattr(e, name) for name in _PLAIN}, "state": e.state.value}
    if is_tombstone(e):
        return {
            **told,
            "kinds": [_kinds(a) for a in e.inputs],
            "reply": None if e.reply is None else _kinds(e.reply),
        }
    told |= {
        "input": _json(e.input),
        "said": _json(e.said),
        "full": _json(e.full),
        "had": e.reply is not None,
    }
    told["notes"] = {str(i): note for i, note in e.notes.items()}
    told["hush"] = {str(i): _kinds((e.reply or ()) if i < 0 else e.inputs[i]) for i in sorted(e.hush)}
    return told


def _kinds(atoms: tuple[Atom, ...]) -> str:
    return b"".join(a[:1] for a in atoms).decode()


def _json(data: bytes | None) -> Any:
    return None if data is None else orjson.loads(data)


# -- in


class _LineReader:
    """Lines to records, within one call. Hashes of paths go on from exchange to exchange."""

    def __init__(self, store: Store, agent: Agent) -> None:
        self._store = store
        self._agent = agent
        self._canon = Canon(agent.secret)
        self._paths: dict[int, tuple[bytes, int, int, int]] = {}  # seq -> its path, depth, atoms, messages

    def read(self, line: dict[str, Any]) -> tuple[str, TransferRecord]:
        ((part, values),) = line.items()
        if part not in PARTS:
            raise ValueError(f"unknown line {part!r}")
        if part == "fact":
            return part, TransferRecord({**values, "key": fact_key(values["text"])})
        return part, self._exchange(values) if part == "exchange" else TransferRecord(values)

    def _exchange(self, v: dict[str, Any]) -> TransferRecord:
        state = State(v["state"])
        if state in (State.OFF, State.FORGOTTEN):
            inputs = tuple(_blank(kinds) for kinds in v["kinds"])
            media = (b"",) * len(inputs)
            reply = None if v["reply"] is None else _blank(v["reply"])
            content: dict[str, Any] = {}
        else:
            messages: list[WireMessage] = v["input"] or []
            hush = {int(i): _blank(kinds) for i, kinds in v["hush"].items()}
            inputs = tuple(hush.get(i) or self._canon.atoms(m) for i, m in enumerate(messages))
            media = tuple(self._canon.media(m) for m in messages)
            said = self._canon.atoms(v["said"]) if v["said"] is not None else ()
            reply = (hush.get(-1) or tuple(sorted(said, key=lambda a: a[:1]))) if v["had"] else None
            content = {
                "input": None if v["input"] is None else orjson.dumps(messages),
                "said": None if v["said"] is None else orjson.dumps(v["said"]),
                "full": None if v["full"] is None else orjson.dumps(v["full"]),
                "hidden": v["full"] is not None,
                "notes": {int(i): note for i, note in v["notes"].items()},
                "hush": frozenset(hush),
            }
        path, depth, offset, length = self._after(v["parent"])
        flat = [a for atoms in inputs for a in atoms]
        path = self._canon.path((*flat, *(reply or ())), path)
        e = Exchange(
            id=0,
            conversation=0,
            parent=None,
            depth=depth,
            offset=offset,
            length=length + len(inputs) + 1,
            inputs=inputs,
            media=media,
            reply=reply,
            path=path if reply is not None else b"",
            reply_key=None if reply is None else self._canon.reply_key(reply),
            state=state,
            **{name: v[name] for name in _PLAIN},
            **content,
        )
        if len(self._paths) >= KEPT_PATHS:
            self._paths.pop(next(iter(self._paths)))
        self._paths[e.seq] = (path, depth + 1, offset + len(flat) + len(reply or ()), e.length)
        heads = self._heads(inputs) if v["parent"] is None else []
        return TransferRecord(
            {**{name: v[name] for name in ("conversation", "parent", "prior")}, "heads": heads}, e
        )

    def _after(self, seq: int | None) -> tuple[bytes, int, int, int]:
        """The path up to an exchange and its reply, and the depth, atoms and messages of what follows it."""
        if seq is None:
            return b"", 0, 0, 0
        if seq not in self._paths:
            path, atoms = b"", 0
            chain = self._store.carry.chain(self._agent, seq)
            for x in chain:
                flat = [*(a for each in x.inputs for a in each), *(x.reply or ())]
                path = self._canon.path(flat, path)
                atoms += len(flat)
            self._paths[seq] = (path, chain[-1].depth + 1, atoms, chain[-1].length)
        return self._paths[seq]

    def _heads(self, inputs: tuple[tuple[Atom, ...], ...]) -> list[bytes]:
        found, path = [], b""
        for atoms in inputs:
            path = self._canon.path(atoms, path)
            if atoms and atoms[0][:1] in b"ac":
                found.append(path)
        return found


def _blank(kinds: str) -> tuple[Atom, ...]:
    """Atoms of words that nobody knows any more."""
    return tuple(kind.encode() + secrets.token_bytes(11) for kind in kinds)

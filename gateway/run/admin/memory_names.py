"""The names by which operators address memories: project, profile and user, or the id that the agents API gave."""

from __future__ import annotations

import re
from collections.abc import Iterable

from msgspec import Struct

from gateway.core import ids
from gateway.core.memory.fact_words import DESIGNATIONS
from gateway.errors import BadRequest
from gateway.settings import DEFAULT_PROFILE
from storage.operator_records import FoundMemory, NamedScope
from storage.records import API_PROFILE, DEFAULT_PROJECT, Scope

# The kinds of subjects by the kinds of ids, for memories of the agents API.
_SUBJECT_KINDS = {"agent": "agent", "archive": "archive", "source": "folder"}

# A line of a memory block with the name of a person.
_NAME_LINE = re.compile(
    r"^[^\w\n]{0,8}((?:full |first )?name[ \t]{0,8}:[ \t]{0,8}(?P<name>\w.{0,79}))", re.I | re.M
)
# A sentence that names the user, and not the user's sister or cat.
_NAME_SENTENCE = re.compile(
    r"(?:^|[.!?;][ \t])[^\w\n]{0,8}"
    rf"((?:the )?(?:user|{'|'.join(sorted(DESIGNATIONS))})"
    r"(?:['’]s (?:full |first |real )?name is|,? (?:is|wants to be|prefers to be) (?:called|named)) "
    r"(?!not |unknown)(?P<name>\w[^.;!?\n]{0,60}))",
    re.I | re.M,
)
_NAME_WORD = re.compile(r"[^\W_]+")


class MemoryOwner(Struct, frozen=True):
    """The memories that an operation is for: those of a project, or of a profile or subject in it."""

    # The project of the memories.
    project: str
    # The profile of the memories; None: any profile.
    profile: str | None = None
    # The subject of the memories, such as "user:alice"; None: any subject.
    subject: str | None = None

    @property
    def scope(self) -> Scope:
        """The scope of one memory, that of the subject. Raises: BadRequest: no subject is named."""
        if self.subject is None:
            raise BadRequest("Say whose memory: --user, --conversation or --agent.", param="user")
        return Scope(self.project, self.profile or DEFAULT_PROFILE, self.subject)


def get_memory_name(scope: Scope) -> str:
    """Returns the name of a memory: the user's, the conversation's, or the agent's id."""
    if scope.profile == API_PROFILE:
        return _make_rest_id(scope.subject)
    return scope.subject.partition(":")[2]


def make_memory_label(memory: FoundMemory | NamedScope) -> str:
    """Returns the name of a memory as operators read it: for an agent with a name, the name and the id."""
    name = get_memory_name(memory.scope)
    return f"{memory.agent_name} ({name})" if memory.agent_name else name


def find_name_line(blocks: Iterable[tuple[str, str]]) -> str | None:
    """Returns the line or sentence of a memory's blocks that names its person, or None.

    Such as "Name: Maria" or "The user's name is Maria".

    blocks: (label, value) of the blocks that no other memory sees. `persona` is about the assistant, so it is left out.
    """
    values = [value for label, value in blocks if label != "persona"]
    matches = (pattern.search(value) for pattern in (_NAME_LINE, _NAME_SENTENCE) for value in values)
    return next((match[1].strip() for match in matches if match), None)


def find_name_sentence(texts: Iterable[str]) -> str | None:
    """Returns the first sentence of some facts that names their person, or None."""
    matches = map(_NAME_SENTENCE.search, texts)
    return next((match[1].strip() for match in matches if match), None)


def choose_searched_name(scope: Scope, name_line: str | None) -> str:
    """Returns the words by which others may call a person: the first of the name in their memory, else of their id.

    An id with a number is returned whole: of "customer-0003" the first word is in the id of every customer. Returns ""
    for a memory that is no person's.

    name_line: the line or sentence that names the person, such as "Name: Maria Keller"; None: there is none.
    """
    if not scope.is_person:
        return ""
    id = get_memory_name(scope)
    match = _NAME_LINE.search(name_line or "") or _NAME_SENTENCE.search(name_line or "")
    words = _list_name_words(match["name"]) if match else []
    if not words and not any(map(str.isdecimal, _NAME_WORD.findall(id))):
        words = _list_name_words(id)
    return words[0] if words else id


def _list_name_words(text: str) -> list[str]:
    """Returns the words of a text that may be a name. One or two Latin letters are none, as in "k.keller"."""
    # In bytes, since a name of two Chinese characters is whole.
    return [word for word in _NAME_WORD.findall(text) if len(word.encode()) > 2]


def name_user_role(scope: Scope) -> str:
    """Returns what to call the user's role where no speaker is named: the memory's user, or "user" if it has none."""
    kind, _, name = scope.subject.partition(":")
    return name if kind == "user" else "user"


def make_subject(id: str) -> str:
    """Returns the subject of a memory of the agents API, by its id. Raises: BadRequest."""
    for kind, subject in _SUBJECT_KINDS.items():
        uid = ids.parse_uid(kind, id)
        if uid is not None:
            return f"{subject}:{uid}"
    raise BadRequest(f"{id!r} is no id of an agent, an archive or a folder (agent-…).", param="agent")


def _make_rest_id(subject: str) -> str:
    """Returns the id of a memory of the agents API, by its subject."""
    kind, _, uid = subject.partition(":")
    return ids.make_id("source" if kind == "folder" else kind, uid)


def make_owner_fields(scope: Scope) -> dict[str, str]:
    """Returns the options of `memory forget` that name a memory, and their values."""
    if scope.profile == API_PROFILE:
        return {"project": scope.project, "agent": _make_rest_id(scope.subject)}
    kind, _, name = scope.subject.partition(":")
    return {"project": scope.project, "profile": scope.profile, kind: name}


def make_memory_flags(scope: Scope) -> list[str]:
    """Returns the arguments that name a memory. A name may begin with a dash, so each is one word with its option."""
    return [
        f"--{option}={name}"
        for option, name in make_owner_fields(scope).items()
        if (option, name) != ("project", DEFAULT_PROJECT)
    ]


def make_nothing_found_error(owner: Scope | MemoryOwner) -> BadRequest:
    """Returns the error that an owner has no memory. It names project and profile, which may be misspelt."""
    subject = owner.subject or "anybody"
    if owner.profile == API_PROFILE:
        message = f"There is no {_make_rest_id(subject)} in project {owner.project!r}."
    else:
        profile = "any profile" if owner.profile is None else f"profile {owner.profile!r}"
        message = f"Nothing is remembered for {subject} in project {owner.project!r}, {profile}."
    return BadRequest(message, param="user")

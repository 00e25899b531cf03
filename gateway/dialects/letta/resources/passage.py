"""Passages of archival memory and archives, as the agents API takes and shows them."""

from __future__ import annotations

from datetime import UTC, datetime, time
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta

from gateway.core import ids
from gateway.dialects.letta.body import Body, Kept, Maybe
from gateway.dialects.letta.error import Fault, Unprocessable
from gateway.dialects.letta.query import PageQuery
from gateway.dialects.letta.shown import time_of
from storage.records import Definition, Passage, StoredFile

_Name = Annotated[str, Meta(min_length=1, max_length=200)]
_Tags = list[Annotated[str, Meta(min_length=1, max_length=200)]]


class CreatePassage(Body):
    """A text to be saved; a long one becomes several passages."""

    text: Annotated[str, Meta(min_length=1)]
    tags: Maybe[_Tags] = UNSET
    created_at: Maybe[str] = UNSET


class SearchPassages(Body):
    """A search of the passages of an agent and the archives that it has attached."""

    query: Maybe[str] = UNSET
    agent_id: Maybe[str] = UNSET
    archive_id: Maybe[str] = UNSET
    tags: Maybe[_Tags] = UNSET
    tag_match_mode: Literal["any", "all"] = "any"
    limit: Annotated[int, Meta(ge=1, le=100)] = 50
    start_date: Maybe[str] = UNSET
    end_date: Maybe[str] = UNSET


def passage_json(uid: str, passage: Passage, file: StoredFile | None) -> dict[str, Any]:
    """Returns a passage. uid: of the memory in which it lies. file: it is a part of."""
    return {
        "id": ids.placed("passage", uid, passage.seq),
        "text": passage.text,
        "tags": list(passage.tags),
        "archive_id": ids.named("archive", uid) if file is None else None,
        "created_at": time_of(passage.at),
        "updated_at": None,
        "source_id": None if file is None else ids.named("source", uid),
        "file_id": None if file is None else ids.named("file", file.uid),
        "file_name": None if file is None else file.name,
        "metadata": passage.metadata,
        "embedding": None,
        "embedding_config": None,
        "is_deleted": False,
        "created_by_id": None,
        "last_updated_by_id": None,
    }


def hit_json(uid: str, passage: Passage) -> dict[str, Any]:
    """Returns a passage as a search of one agent shows it."""
    return {
        "id": ids.placed("passage", uid, passage.seq),
        "content": passage.text,
        "timestamp": time_of(passage.at),
        "tags": list(passage.tags),
    }


def check_text(text: str, at: tuple[str | int, ...]) -> None:
    """Raises: Unprocessable: there is nothing in a text."""
    if not text.strip():
        raise Unprocessable([Fault(at, "Expected a text that is not blank")])


def moment_of(text: Maybe[str], at: tuple[str | int, ...], *, is_end: bool = False) -> float | None:
    """Returns a time as epoch seconds, None where it was not sent; one without a zone is UTC.

    Of a day alone it is the beginning, or its end. Raises: Unprocessable.
    """
    if not isinstance(text, str):
        return None
    words = text.strip()
    try:
        # A `+` of an offset that was not escaped in a query arrives as a blank.
        moment = datetime.fromisoformat(words.replace(" ", "+") if "T" in words else words)
        if is_end and len(words) <= len("2026-03-01"):
            moment = datetime.combine(moment, time.max)
        return (moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment).timestamp()
    except (ValueError, OverflowError):
        words = "Expected a date or time of ISO 8601"
        raise Unprocessable([Fault(at, words, "datetime_from_date_parsing", text[:100])]) from None


class CreateArchive(Body):
    """A new archive."""

    name: _Name
    description: Maybe[str] = UNSET
    embedding: Kept[str] = UNSET
    embedding_config: Kept[dict[str, Any]] = UNSET


class UpdateArchive(Body):
    """A change of an archive; what is left out stays."""

    name: Maybe[_Name] = UNSET
    description: Maybe[str] = UNSET


class CreateArchivePassage(CreatePassage):
    """A text to be saved in an archive."""

    metadata: Maybe[dict[str, Any]] = UNSET


class CreateArchivePassages(Body):
    """Texts to be saved in an archive, in this order."""

    passages: Annotated[list[CreateArchivePassage], Meta(min_length=1, max_length=1000)]


class ArchivesQuery(PageQuery):
    """A page of archives. agent_id: only those that it has attached. name: exactly."""

    agent_id: Maybe[str] = UNSET
    name: Maybe[str] = UNSET


def archive_json(archive: Definition) -> dict[str, Any]:
    """Returns an archive."""
    return {
        "id": ids.named("archive", archive.uid),
        "name": archive.name,
        "description": archive.body.get("description"),
        "embedding": archive.body.get("embedding"),
        "embedding_config": archive.body.get("embedding_config"),
        "vector_db_provider": "native",
        "metadata": {},
        "created_at": time_of(archive.created),
        "updated_at": time_of(archive.updated),
        "created_by_id": None,
        "last_updated_by_id": None,
    }

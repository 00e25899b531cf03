"""The file of an import as it is read, in a thread: its id, its survey, and its content page by page."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import IO, Final, NamedTuple

from gateway.core.conversation.canonical import MessageHasher
from gateway.core.imports.exchanges import ImportDraft, draft_import
from gateway.core.imports.records import SourceConversation, SourceFact, Unreadable
from gateway.errors import BadRequest
from gateway.run.admin.imports.import_file import FACT_FORMATS, Source, detect_format, read_file
from gateway.run.admin.imports.import_progress import ImportCounts, ImportProgress
from storage.records import Scope

# The messages on a page of the import.
_PAGE_MESSAGES: Final = 32
# The conversations and facts on a page of the import, if these are reached first.
_PAGE_ITEMS: Final = 16
# The messages or facts on a page of the survey. A page takes 2.5 ms.
_SURVEY_MESSAGES: Final = 128
# The bytes of the file that are read and hashed at a time.
_HASHED_BYTES: Final = 1 << 20
# The hexadecimal digits of a digest that an id has: 128 bits.
_ID_DIGITS: Final = 32


class PreparedItem(NamedTuple):
    """An item of the file."""

    item: Source
    # The exchanges that are made of it; None: the item is no conversation.
    draft: ImportDraft | None


class Survey(NamedTuple):
    """The content of a file, counted before anything of it is written."""

    format: str
    progress: ImportProgress


def read_pages(
    file: IO[bytes],
    format: str,
    source_user: str | None,
    position: int,
    hasher: MessageHasher,
    now: float,
    oldest: float,
) -> Iterator[list[PreparedItem]]:
    """Yields the items of a file that are not done yet, page by page.

    source_user: the only user in the file with facts that are read; None: the facts of all users are read.
    position: the number of the file's items that are done.
    now: the present time in seconds since the epoch.
    oldest: the end of the retention in seconds since the epoch; exchanges that ended earlier are left out.

    Raises: BadRequest.
    """
    page: list[PreparedItem] = []
    page_message_count = 0
    for item in islice(_read_items(file, format, source_user), position, None):
        if isinstance(item, SourceConversation):
            page_message_count += len(item.messages)
            draft = draft_import(item, format, hasher, now, oldest)
            page.append(
                PreparedItem(draft, None) if isinstance(draft, Unreadable) else PreparedItem(item, draft)
            )
        else:
            page.append(PreparedItem(item, None))
        if len(page) >= _PAGE_ITEMS or page_message_count >= _PAGE_MESSAGES:
            yield page
            page = []
            page_message_count = 0
    yield page


def make_import_uid(file: IO[bytes], scope: Scope, source_user: str | None) -> str:
    """Returns the id of an import: the same for the same file, memory and user of the source."""
    file.seek(0)
    digest = hashlib.sha256()
    while piece := file.read(_HASHED_BYTES):
        digest.update(piece)
    names = "\0".join((*scope, source_user or ""))
    return f"import-{hashlib.sha256(digest.digest() + names.encode()).hexdigest()[:_ID_DIGITS]}"


def survey_file(
    file: IO[bytes], format: str | None, source_user: str | None, now: float
) -> Iterator[Survey | None]:
    """Counts the content of a whole file. Yields None after each page, and at the end the survey.

    format: the name of the file's format; None: the content shows the format.
    now: the present time in seconds since the epoch; a later time in the file counts as now.

    Raises: BadRequest.
    """
    counts = _SurveyCounts(format or detect_format(file), source_user, now)
    page_message_count = 0
    for item in _read_items(file, counts.format, source_user):
        page_message_count += counts.add(item)
        if page_message_count >= _SURVEY_MESSAGES:
            page_message_count = 0
            yield None
    yield counts.make_survey()


class _SurveyCounts:
    """Counts the content of a file, item by item."""

    def __init__(self, format: str, source_user: str | None, now: float) -> None:
        """Begins with nothing counted.

        source_user: the only user whose facts are counted; None: the facts of all users are counted.
        now: the present time in seconds since the epoch; a later time counts as now.
        """
        self.format = format
        self._source_user = source_user
        self._now = now
        self._conversation_count = 0
        self._message_count = 0
        self._fact_count = 0
        # The users that facts name. A fact without a user is no other user's.
        self._users: set[str] = set()
        # The first and the last time in the file; None: the file has no time.
        self._first_at: float | None = None
        self._last_at: float | None = None

    def add(self, item: Source) -> int:
        """Counts an item. Returns by how much it fills a page: the number of its messages, or 1."""
        if isinstance(item, SourceFact):
            self._fact_count += 1
            if item.user is not None:
                self._users.add(item.user)
            self._add_times([item.at])
            return 1
        if isinstance(item, SourceConversation):
            self._conversation_count += 1
            self._message_count += len(item.messages) + item.skipped_count
            self._add_times(
                [item.begun_at if message.at is None else message.at for message in item.messages]
            )
            return max(1, len(item.messages))
        if self.format in FACT_FORMATS:
            self._fact_count += 1
        else:
            self._conversation_count += 1
        self._message_count += item.message_count
        return 1

    def _add_times(self, times: Iterable[float | None]) -> None:
        known_times = [min(at, self._now) for at in (self._first_at, self._last_at, *times) if at is not None]
        if known_times:
            self._first_at = min(known_times)
            self._last_at = max(known_times)

    def make_survey(self) -> Survey:
        """Returns the counts. Raises: BadRequest: the file cannot be imported."""
        if len(self._users) > 1:
            raise BadRequest(
                "The file has facts of several users; name one by source_user.", param="source_user"
            )
        if not self._conversation_count and not self._fact_count:
            if self._source_user is not None:
                raise BadRequest("The file has no facts of this user.", param="source_user")
            raise BadRequest("This file cannot be imported: there is nothing in it.", param="file")
        progress = ImportProgress(
            conversations=ImportCounts(self._conversation_count),
            messages=ImportCounts(self._message_count),
            facts=ImportCounts(self._fact_count),
            first_at=self._first_at,
            last_at=self._last_at,
        )
        return Survey(self.format, progress)


def _read_items(file: IO[bytes], format: str, source_user: str | None) -> Iterator[Source]:
    """Yields the items of a file, without the facts of other users."""
    for item in read_file(file, format):
        if not (isinstance(item, SourceFact) and source_user is not None and item.user != source_user):
            yield item

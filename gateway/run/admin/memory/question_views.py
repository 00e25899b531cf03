"""Views of questions: the first words of conversations, of requests, and of the last turns of a memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from gateway.core.conversation.canonical import is_result
from gateway.core.memory.visibility import list_user_messages
from gateway.run.admin.memory.exchange_messages import shorten
from gateway.run.admin.memory_by_uid import get_memory
from gateway.run.admin.recall_retention import RecallRetention
from gateway.run.request_log import LoggedRequest
from storage.records import Exchange
from storage.sql.store import Store

# Characters of the first words of a conversation, and of a question, in a list.
_OPENING_CHARS = 80
# No opening words, and no question, are looked for in an exchange that is stored in more bytes than these.
_OPENING_BYTES = 100_000
# The last exchanges among which questions are looked for: the same one may have been asked several times.
_LAST_EXCHANGES = 10


class Question(Struct, frozen=True):
    """The question of a request."""

    # The first words; None: the request has a tool's result, and no words.
    text: str | None
    # True: the same question was asked before.
    is_again: bool = False
    # True: the words were forgotten.
    is_forgotten: bool = False


class QuestionViews(Struct, frozen=True):
    """Reads the first words of questions. The methods that name a memory raise UnknownId: there is no such memory."""

    store: Store
    retention: RecallRetention

    async def load_openings(
        self, project: str | None, uid: str, conversations: Sequence[str]
    ) -> dict[str, str]:
        """Returns the user's first words in conversations, by the conversations' ids, where the words may be seen."""
        memory = await get_memory(self.store, project, uid)
        return await self.load_openings_by_row(memory.id, conversations)

    async def load_openings_by_row(self, agent_row: int, conversations: Sequence[str]) -> dict[str, str]:
        """Returns the same as `load_openings`, for the row of a memory."""
        openings = await self.store.memory_pages.load_openings(agent_row, conversations, _OPENING_BYTES)
        texts: dict[str, str] = {}
        for conversation_uid, opening in openings.items():
            user_messages = list_user_messages(opening.exchange, opening.prefix_is_shared)
            if user_messages and (words := _cut_first_words(user_messages[0].text)):
                texts[conversation_uid] = words
        return texts

    async def load_questions(
        self, project: str | None, uid: str, requests: Sequence[str], logged: Iterable[LoggedRequest]
    ) -> dict[str, Question]:
        """Returns the questions of requests by the requests' ids, as far as a question is noted and may be seen.

        requests: the ids of the requests.
        logged: the requests that the log has. The recalls of all others name the exchanges of their turns.
        """
        memory = await get_memory(self.store, project, uid)
        recalled_exchanges = await self.store.recalls.load_exchanges(
            memory.id, requests, self.retention.since, _OPENING_BYTES
        )
        questions = {
            request: _find_question(shown.exchange, shown.prefix_is_shared)
            for request, shown in recalled_exchanges.items()
        }
        without_recall = [each for each in logged if each.exchange_row and each.id not in recalled_exchanges]
        if without_recall:
            rows = sorted({each.exchange_row for each in without_recall})
            exchanges = await self.store.memory_pages.load_short_exchanges(memory.id, rows, _OPENING_BYTES)
            for each in without_recall:
                if (shown := exchanges.get(each.exchange_row)) is not None:
                    questions[each.id] = _find_question(
                        shown.exchange, shown.prefix_is_shared, is_again=_is_asked_again(each)
                    )
        return {request: question for request, question in questions.items() if question is not None}

    async def load_questions_of_all(self, logged: Sequence[LoggedRequest]) -> dict[str, Question]:
        """Returns the questions of requests of several memories by the requests' ids, as far as they may be seen.

        logged: requests of the log. The caller may see their memories.
        """
        rows = sorted({each.exchange_row for each in logged if each.exchange_row})
        pages = self.store.memory_pages
        exchanges = await pages.load_short_exchanges_of_all(rows, _OPENING_BYTES) if rows else {}
        questions: dict[str, Question] = {}
        for each in logged:
            found = exchanges.get(each.exchange_row)
            if found is None or found.memory_uid != each.memory_uid:
                continue
            shown = found.shown
            question = _find_question(shown.exchange, shown.prefix_is_shared, is_again=_is_asked_again(each))
            if question is not None:
                questions[each.id] = question
        return questions

    async def list_last_questions(self, project: str | None, uid: str, max_count: int) -> list[str]:
        """Returns the first words of the last questions, the newest first."""
        memory = await get_memory(self.store, project, uid)
        rows = await self.store.memory_pages.list_newest_exchanges(memory.id, limit=_LAST_EXCHANGES)
        if not rows:
            return []
        exchanges = await self.store.memory_pages.load_short_exchanges(memory.id, rows, _OPENING_BYTES)
        shown_exchanges = (exchanges[row] for row in rows if row in exchanges)
        questions = [_find_question(shown.exchange, shown.prefix_is_shared) for shown in shown_exchanges]
        return [*dict.fromkeys(each.text for each in questions if each and each.text)][:max_count]


def _is_asked_again(logged: LoggedRequest) -> bool:
    """Returns whether a request with a turn repeated a question: only a new question searches the memory."""
    return not logged.has_recall_record


def _find_question(exchange: Exchange, prefix_is_shared: bool, *, is_again: bool = False) -> Question | None:
    """Returns the question of an exchange; None: its words may not be seen. is_again: True if it was asked before."""
    if exchange.inputs and is_result(exchange.inputs[-1]):
        return Question(None)
    user_messages = list_user_messages(exchange, prefix_is_shared)
    words = _cut_first_words(user_messages[-1].text) if user_messages else ""
    if words:
        return Question(words, is_again)
    is_forgotten = exchange.is_forgotten or bool(exchange.redactions)
    return Question("", is_again, is_forgotten=True) if is_forgotten else None


def _cut_first_words(text: str) -> str:
    """Returns the beginning of a text in one line; "": the text has no words."""
    return shorten(" ".join(text[: 4 * _OPENING_CHARS].split()), _OPENING_CHARS)

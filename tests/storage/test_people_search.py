"""A person is found by words that stand in their memory alone, on both databases."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from storage.forget_commands import ForgetTarget
from storage.listing import FIRST_PAGE, PassageDraft
from storage.records import Scope
from storage.search.document import CountedDocument, Indexable
from storage.search.index import Index
from storage.sql import people_search, recall
from storage.sql.people_search import _Candidate, _LoadedMemory
from storage.sql.store import Store
from tests.core.conversations import assistant, user
from tests.storage.conftest import OpenStore
from tests.storage.test_page import fact, learn
from tests.stored import Clock, Speaker, forget, rows


@pytest.fixture
async def store(open_store: OpenStore) -> Store:
    return await open_store(now=Clock(step_s=60))


def speaker(store: Store, name: str, project: str = "default", kind: str = "user") -> Speaker:
    return Speaker(store, Scope(project, "default", f"{kind}:{name}"), now=Clock(step_s=60))


async def index(store: Store, *speakers: Speaker) -> None:
    for each in speakers:
        while await store.search_index.advance(each.agent.id):
            pass


async def find(store: Store, query: str, project: str | None = None) -> dict[str, str]:
    """Returns the text found of each person, by their names."""
    found = await store.people_search.search(project, query)
    assert (found.next, found.is_complete) == (None, True)
    return {each.memory.scope.subject: each.message.text for each in found.people}


async def speak(store: Store) -> tuple[Speaker, Speaker]:
    """Has Nadia and Tomas speak, an agent of that name, and somebody of another project."""
    nadia, tomas = speaker(store, "n-1"), speaker(store, "t-2")
    for each, text in ((nadia, "Nadia Ferri here."), (tomas, "My name is Tomas Novak, hello.")):
        await each.say([user(text)], assistant("Good morning."))
        await each.say([user("When do you open?")], assistant("At nine."))
    for other in (speaker(store, "f-3", project="shop"), speaker(store, "f-4", kind="conversation")):
        await other.say([user("Ferri again.")], assistant("Good morning."))
    return nadia, tomas


@pytest.mark.parametrize("is_indexed", [False, True])
@pytest.mark.parametrize("is_long", [False, True])
async def test_a_person_is_found_by_what_they_wrote(
    store: Store, monkeypatch: pytest.MonkeyPatch, is_indexed: bool, is_long: bool
) -> None:
    if is_long:
        monkeypatch.setattr(people_search, "_LONG_BLOBS", 0)
        monkeypatch.setattr(people_search, "_LONG_READS", 1)  # a page has room for both
    nadia, tomas = await speak(store)
    await learn(store, tomas.agent, 0, fact("Plays the viola."))
    if is_indexed:
        await index(store, nadia, tomas)
    ferri = {"user:n-1": "Nadia Ferri here."}
    assert await find(store, "Ferri", "default") == ferri
    assert await find(store, "ferri NADIA") == ferri
    assert set(await find(store, "ferri")) == {"user:n-1", "user:f-3"}
    assert await find(store, "violas") == {"user:t-2": "Plays the viola."}
    assert [*await find(store, "opening", "default")] == ["user:t-2", "user:n-1"]
    # The index has the words of dates, which are in no text; a part of a word is none; "the" is not looked for.
    for query in ("January", "Fer", "Ferri Novak", "the", ""):
        assert await find(store, query) == {}, query
    await forget(store, nadia.agent, ForgetTarget(message_seqs=[1]))
    assert await find(store, "Ferri", "default") == {}


async def test_a_person_is_found_by_a_long_message(store: Store) -> None:
    """Messages that no index has are read together for many people, but for long ones."""
    nadia, _ = await speak(store)
    text = "This is Nadia Lindqvist. " + "Once more. " * 2_000
    await nadia.say([user(text)], assistant("Good morning."))
    assert await find(store, "Lindqvist", "default") == {"user:n-1": text}


@pytest.mark.parametrize("kind", ["reply", "passage"])
async def test_a_long_text_is_read_by_itself(
    store: Store, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Replies and passages were read whole for all people of a page, however long they were."""
    nadia, tomas = await speak(store)
    text = f"This is Nadia Lindqvist. {'Once more. ' * 2_000}"
    if kind == "reply":
        await nadia.say([user("And?")], assistant(text))
    else:
        await store.passages.add(nadia.agent.id, [PassageDraft(text, 1.0)])
    read_chars: dict[str, int] = {}
    find_candidates = people_search._find_candidates

    def note(
        read: _LoadedMemory, terms: Sequence[str], get_own_text: Callable[[str, str], str]
    ) -> Sequence[_Candidate] | None:
        read_chars[read.agent.uid] = sum(len(each.text) for each in read.unindexed)
        return find_candidates(read, terms, get_own_text)

    monkeypatch.setattr(people_search, "_find_candidates", note)
    assert await find(store, "Lindqvist", "default") == {"user:n-1": text}
    assert read_chars[nadia.agent.uid] <= 16_000
    assert read_chars[tomas.agent.uid] > 0


async def test_people_are_looked_through_in_pages(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    people = [speaker(store, f"p-{n}") for n in range(5)]
    for n, each in enumerate(people):
        await each.say([user(f"Peanut {n}.")], assistant("Noted."))
        await each.say([user("Else?")], assistant("No."))
    await index(store, people[0])

    async def read_pages(query: str, limit: int = 20) -> list[tuple[str, int]]:
        """Returns the names and the number of people looked through, page by page."""
        pages, before = list[tuple[str, int]](), FIRST_PAGE
        while True:
            found = await store.people_search.search(None, query, before=before, limit=limit)
            names = " ".join(each.memory.scope.subject[5:] for each in found.people)
            pages.append((names, found.looked_through))
            if found.next is None:
                return pages
            before = found.next

    newest_first = "p-4 p-3 p-2 p-1 p-0"
    assert await read_pages("peanut") == [(newest_first, 5)]
    assert await read_pages("peanut", 2) == [("p-4 p-3", 2), ("p-2 p-1", 2), ("p-0", 1)]
    monkeypatch.setattr(people_search, "_PAGE_MEMORIES", 2)
    assert await read_pages("1") == [("", 2), ("p-1", 2), ("", 1)]
    # A page has at least one memory, however much there is to read of it.
    monkeypatch.setattr(people_search, "_MAX_READS", 0)
    assert [names for names, _ in await read_pages("peanut")] == newest_first.split()
    # However large the blobs of the indexes are.
    await index(store, *people)
    monkeypatch.setattr(people_search, "_MAX_READS", 1_000)
    monkeypatch.setattr(people_search, "_MAX_INDEX_BYTES", 0)
    assert [names for names, _ in await read_pages("peanut")] == newest_first.split()


async def test_texts_that_are_not_indexed_are_checked_without_an_index_of_them(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most of the time of a search went into indexes of texts that were searched once."""
    nadia, _ = await speak(store)
    await nadia.say([user("And when do you close?")], assistant("At six, Ms Ferri."))
    await index(store, nadia)
    # Its exchange is not in the index as it is now.
    await forget(store, nadia.agent, ForgetTarget(message_seqs=[5]))

    def count(document: Indexable) -> CountedDocument:
        raise AssertionError(f"counted for an index: {document.text}")

    monkeypatch.setattr("storage.search.tail.count_terms", count)
    assert await find(store, "Ferri", "default") == {"user:n-1": "At six, Ms Ferri."}
    assert await find(store, "close", "default") == {}
    assert await find(store, "Novak", "default") == {"user:t-2": "My name is Tomas Novak, hello."}


async def test_only_indexes_that_have_all_words_are_opened(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nearly all people have none of the words."""
    nadia, tomas = await speak(store)
    await index(store, nadia, tomas)
    opened: list[int] = []

    def open_index(blobs: Sequence[tuple[int, bytes]]) -> Index:
        opened.append(len(blobs))
        return Index(blobs)

    monkeypatch.setattr(people_search, "Index", open_index)
    assert await find(store, "Nadia Ferri", "default") == {"user:n-1": "Nadia Ferri here."}
    assert opened == [1]
    assert await find(store, "Ferri Novak", "default") == {}
    assert opened == [1]
    # The words are in several messages: the index has them all.
    assert await find(store, "Ferri nine", "default") == {}
    assert opened == [1, 1]


async def test_a_search_that_checked_too_few_texts_is_incomplete(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Facts have "said" before a user's sentence, which is none of the person's words."""
    nadia = speaker(store, "n-1")
    await nadia.say([user("My aunt said hello.")], assistant("Good morning."))
    await learn(store, nadia.agent, 0, *(fact(f"User said: Plays instrument {n}.") for n in range(5)))
    await index(store, nadia)
    monkeypatch.setattr(people_search, "_LONG_BLOBS", 0)
    assert await find(store, "said", "default") == {"user:n-1": "My aunt said hello."}
    monkeypatch.setattr(recall, "_MAX_CHECKED_HITS", 3)
    found = await store.people_search.search("default", "said")
    assert (list(found.people), found.is_complete) == ([], False)


async def test_a_damaged_index_is_said_and_made_again(store: Store) -> None:
    nadia, tomas = await speak(store)
    await index(store, nadia, tomas)
    await rows(store, "UPDATE terms SET data = ? WHERE agent = ?", (b"damaged", nadia.agent.id))
    found = await store.people_search.search("default", "Ferri")
    assert (list(found.people), found.looked_through, found.is_complete) == ([], 2, False)
    await index(store, nadia)
    assert await find(store, "Ferri", "default") == {"user:n-1": "Nadia Ferri here."}


async def test_a_page_of_people_who_were_forgotten_meanwhile_does_not_end_the_search(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await speak(store)
    monkeypatch.setattr(people_search, "_PAGE_MEMORIES", 1)
    with monkeypatch.context() as meanwhile:

        async def read_nothing(*about: object) -> Sequence[_LoadedMemory]:
            return ()

        meanwhile.setattr(people_search.PeopleSearch, "_load_memories", read_nothing)
        first = await store.people_search.search("default", "Ferri")
    assert (first.people, first.next is None) == ([], False)
    rest = await store.people_search.search("default", "Ferri", before=first.next)
    assert [each.memory.scope.subject for each in rest.people] == ["user:n-1"]

"""What says most of a memory as a whole: for a text that names nothing to look for."""

from __future__ import annotations

from typing import Any

import pytest

from storage.forget_commands import ForgetTarget
from storage.records import Scope
from storage.search.blob import encode
from storage.search.common_words import names_nothing
from storage.search.document import Document
from storage.search.index import Index, open_blob
from storage.search.rank import select_messages
from storage.search.tail import Tail
from storage.search.whole import asks_for_whole
from storage.sql.facts import LearnedChanges
from storage.sql.store import Store
from tests.core.conversations import assistant, user
from tests.rows import each_row
from tests.storage.test_facts import fact, learn
from tests.stored import ALICE, Clock, Speaker, forget, save_passage

SECRET = b"s" * 32
WHO = "Who am I?"
OSLO = "I moved to Oslo with my two cats in May."
BOAT = "We bought an old wooden boat in Bergen and paint it blue."


ABOUT_ONESELF = (
    "What do you know about me?", "who am i", "Do you remember me?", "What did we talk about last time?",
    "Tell me everything you know about me", "What were we discussing yesterday?", "What have I told you so far?",
    "Was weißt du über mich?", "Wer bin ich?", "Erinnerst du dich an mich?", "Kennst du mich noch?",
    "Worüber haben wir letztes Mal gesprochen?", "Was habe ich dir erzählt?",
    "Que sais-tu de moi ?", "Qui suis-je ?", "Tu te souviens de moi ?",
    "De quoi avons-nous parlé la dernière fois ?",
    "¿Qué sabes de mí?", "¿Quién soy?", "¿Te acuerdas de mí?", "¿De qué hablamos la última vez?",
    "Cosa sai di me?", "Ti ricordi di me?", "Di cosa abbiamo parlato l'ultima volta?",
    "O que você sabe sobre mim?", "Você se lembra de mim?", "Sobre o que falamos da última vez?",
    "Wat weet je over mij?", "Wie ben ik?", "Waar hadden we het de vorige keer over?",
    "Vad vet du om mig?", "Kommer du ihåg mig?", "Co o mnie wiesz?", "Pamiętasz mnie?",
    "Что ты знаешь обо мне?", "Ты меня помнишь?", "О чём мы говорили в прошлый раз?",
    "Що ти знаєш про мене?", "Хто я?", "Co o mně víš?", "Pamatuješ si mě?",
    "Benim hakkımda ne biliyorsun?", "Beni hatırlıyor musun?", "Ben kimim?",
    "ماذا تعرف عني؟", "هل تتذكرني؟", "من أنا؟",
    "तुम मेरे बारे में क्या जानते हो?", "मैं कौन हूँ?",
    "你知道我什么？", "你还记得我吗？", "我们上次聊了什么？", "我是谁", "你記得我嗎？",
    "私のことを覚えていますか？", "前回何を話しましたか？", "私は誰ですか？",
    "나를 기억해?", "우리 지난번에 무슨 얘기 했지?",
)  # fmt: skip
GREETINGS = (
    "Hi!", "hello there", "Good morning", "Hey, how are you?", "I'm back", "Hallo", "Guten Morgen, wie geht's?",
    "Bonjour !", "Salut, ça va ?", "¡Hola! ¿Qué tal?", "Buenos días", "Ciao", "Oi, tudo bem?", "Hoi", "Hej", "Cześć",
    "Добрый день", "Привіт", "Dobrý den", "Merhaba", "مرحبا", "नमस्ते", "你好", "早上好，今天怎么样", "こんにちは",
    "おはようございます、元気ですか", "안녕하세요",
)  # fmt: skip
SMALL_TALK = (
    "Thanks.", "How is it there?", "Can you help me?", "Good night", "Haha, nice", "Ok, go on", "Continue", "Yes.",
    "Tell me something", "What can you do?", "Who are you?", "Danke dir", "Wer bist du?", "Kannst du mir helfen?",
    "Merci", "Qui es-tu ?", "¿Puedes ayudarme?", "Grazie", "谢谢你", "你是谁？", "你能做什么？", "帮我写一个",
    "ありがとう", "あなたは誰ですか？", "고마워요", "너는 누구야?",
)  # fmt: skip


@each_row("text", ABOUT_ONESELF)
def test_questions_about_oneself_name_nothing_and_ask_for_the_whole_memory(text: str) -> None:
    assert names_nothing(text)
    assert asks_for_whole(text, is_opening=True)
    is_question = text[-1] in "?？؟"
    assert asks_for_whole(text, is_opening=False) == is_question


@each_row("text", GREETINGS)
def test_a_greeting_asks_for_the_whole_memory_where_it_opens_a_conversation(text: str) -> None:
    assert asks_for_whole(text, is_opening=True)
    assert not asks_for_whole(text, is_opening=False)


@each_row("text", SMALL_TALK)
def test_other_small_talk_does_not(text: str) -> None:
    assert not asks_for_whole(text, is_opening=True)


@each_row(
    "text",
    [
        "", "👍", "?!", "Kiki?", "Tell me a joke", "What is the capital of France?", "Do you remember my dog?",
        "What did I tell you about the boat?", "Which book did I finish a week ago?", "Write a haiku",
        "Was weißt du über Wale?", "Erzähl mir einen Witz", "Que sais-tu de Lyon ?", "¿Qué sabes de Sevilla?",
        "你还记得我的狗吗？", "你知道绿茶吗？", "私の犬を覚えていますか？", "내 강아지 이름이 뭐야?",
        "Köpeğimin adı ne?", "ما اسم كلبي؟",
    ],
)  # fmt: skip
def test_texts_that_name_something_or_have_no_words(text: str) -> None:
    assert not names_nothing(text)


def said(seq: int, text: str, role: str = "user", previous: int | None = None) -> Document:
    return Document(seq, role, text, 1.79e9 + seq, None, previous)


TALK = [
    said(1, "Hello!"),
    said(2, "Hi, how can I help?", "assistant", 1),
    said(3, "My cat is called Miso.", previous=2),
    said(4, "A fine name for a cat, and one that is seldom heard in Norway.", "assistant", 3),
    said(5, OSLO, previous=4),
    said(6, BOAT),
    said(7, "What a project!", "assistant", 6),
    said(8, "Thanks.", previous=7),
    said(9, "Does the paint for wooden boats smell as strongly as they say?", previous=8),
]


def select(*documents: Document, indexed: int = 0, **options: Any) -> list[int]:
    """Returns what says most. indexed: so many of them are, the others are not yet."""
    blobs = encode(documents[:indexed], SECRET).values()
    index = Index((open_blob(data).chunk, data) for data in blobs)
    return select_messages(index, tail=Tail(documents[indexed:]), **options)


@pytest.mark.parametrize("indexed", range(0, len(TALK) + 1, 3))
def test_the_messages_with_most_terms_of_each_conversation_come_newest_first(indexed: int) -> None:
    """Small talk and replies do not come at all, and questions last."""
    assert select(*TALK, indexed=indexed) == [6, 5, 3, 9]
    assert select(*TALK, indexed=indexed, limit=2) == [6, 5]


def test_the_earlier_of_equal_messages_comes_first() -> None:
    assert select(said(1, "Figs grow."), said(2, "Owls hoot.", previous=1)) == [1, 2]


def test_the_newest_conversation_has_one_line_even_if_it_only_asked() -> None:
    asked = said(10, "How do I mend a dripping tap?"), said(11, "Which tap?", previous=10)
    assert select(*TALK, *asked) == [10, 6, 5, 3, 9, 11]


@pytest.mark.parametrize("indexed", [0, 5, 9])
def test_messages_in_the_window_are_not_found(indexed: int) -> None:
    assert select(*TALK, indexed=indexed, skip=range(5, 6)) == [6, 3, 9]


def test_a_long_memory_is_asked_for_its_newest_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.search.rank._SEARCHED_ROWS", 4)
    assert select(*TALK) == [6, 9]


# -- in a store


@pytest.fixture
async def alice(store: Store) -> Speaker:
    return Speaker(store, ALICE, Clock())


async def told(store: Store, speaker: Speaker, query: str = WHO) -> list[str]:
    hits = await store.recall.select_messages(speaker.agent, query, is_opening=True)
    return [m.text for m in hits]


@pytest.mark.parametrize("is_indexed", [False, True])
async def test_a_memory_finds_its_own_and_no_others(store: Store, alice: Speaker, is_indexed: bool) -> None:
    bob = Speaker(store, Scope("default", "default", "user:bob"), Clock())
    assert await told(store, alice) == []
    for speaker, text in ((alice, OSLO), (bob, BOAT)):
        await speaker.say([user(text)], assistant("Nice."))
        while is_indexed and await store.search_index.advance(speaker.agent.id):
            pass
    assert await told(store, alice) == [OSLO]
    assert await told(store, bob) == [BOAT]
    assert await told(store, alice, "Tell me a joke") == []


async def test_forgotten_messages_and_ended_facts_are_not_found(store: Store, alice: Speaker) -> None:
    await alice.say([user(OSLO)], assistant("Nice."), "c1")
    await alice.say([user(BOAT)], assistant("Nice."), "c2")
    await learn(store, alice.agent, 0, 2, LearnedChanges(facts=[fact("Works as a nurse.", sources=[2])]))
    (nurse,) = await store.facts.list_page(alice.agent.id)
    assert await told(store, alice) == ["Works as a nurse.", BOAT, OSLO]
    await learn(
        store,
        alice.agent,
        2,
        3,
        LearnedChanges(facts=[fact("Works as a baker.", replaces=[nurse.id], sources=[2])]),
    )
    gone = next(e for e in await alice.rows() if b"Oslo" in (e.input or b""))
    await forget(store, alice.agent, ForgetTarget(exchange_rows=[gone.id]))
    assert await told(store, alice) == ["Works as a baker.", BOAT]


async def test_documents_of_an_archive_are_no_statements_of_the_user(store: Store, alice: Speaker) -> None:
    await alice.say([user(OSLO)], assistant("Nice."))
    await save_passage(store, alice.agent.id, "The manual of the lawn mower, chapter nine.", at=1.0)
    assert await told(store, alice) == [OSLO]

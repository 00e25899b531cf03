"""Common words weigh little in small memories too: pairs of a memory and a message, in six languages."""

from __future__ import annotations

import pytest

from storage.search.blob import encode
from storage.search.common_words import list_general_shares
from storage.search.document import Document, count_terms
from storage.search.language import _measure_likelihood, clear_words, detect_language
from storage.search.tokens import _list_compound_terms, list_terms, split_words
from tests.rows import each_row
from tests.stored import ranked

SECRET = b"s" * 32
NOW = 1.79e9

ENGLISH = [
    "I am going to quit my job",
    "Write a function that reverses a list",
    "And now?",
    "My dog is called Rex",
    "I work as a nurse in Oslo",
    "I live in a small flat near the harbour",
    "My sister is coming to visit in June",
]
WHALES = "We saw two humpback whales near Bergen last summer"
GERMAN = [
    "Ich werde meinen Job kündigen",
    "Schreib eine Funktion, die eine Liste umdreht",
    "Und jetzt?",
    "Mein Hund heißt Rex",
    "Ich arbeite als Krankenpfleger in Graz",
    "Wir haben letzten Sommer zwei Wale vor Bergen gesehen",
    "Meine Schwester kommt im Juni zu Besuch",
]
FRENCH = [
    "Je vais quitter mon travail",
    "Écris une fonction qui inverse une liste",
    "Et maintenant ?",
    "Mon chien s'appelle Rex",
    "Je travaille comme infirmière à Lyon",
    "Ma sœur vient nous voir en juin",
    "Nous avons vu deux baleines près de Bergen",
]
SPANISH = [
    "Voy a dejar mi trabajo",
    "Escribe una función que invierta una lista",
    "¿Y ahora?",
    "Mi perro se llama Rex",
    "Trabajo como enfermera en Sevilla",
    "Mi hermana viene de visita en junio",
    "Vimos dos ballenas cerca de Bergen",
]

CHINESE = [
    "我打算辞职",
    "写一个反转列表的函数",
    "现在呢？",
    "我的狗叫小白",
    "我在医院当护士",
    "我妹妹六月要来看我们",
]
KOREAN = ["직장을 그만두려고 해요", "우리 강아지 이름은 보리예요", "저는 간호사예요", "여동생이 유월에 와요"]


def recalled(memory: list[str], message: str) -> list[str]:
    """What the user said, of all that a message recalls; each was answered with a word that nobody asks for."""
    documents: list[Document] = []
    for text in memory:
        seq = len(documents) + 1
        documents += [
            Document(seq, "user", text, NOW + seq),
            Document(seq + 1, "assistant", "Understood.", NOW + seq, previous=seq),
        ]
    hits = ranked(encode(documents, SECRET).values(), message, SECRET, only_strong=True)
    return [documents[seq - 1].text for seq in hits if documents[seq - 1].role == "user"]


@each_row(
    ("memory", "message"),
    [
        (ENGLISH, "Go on, what about the whales?"),
        (ENGLISH, "Write a haiku"),
        (ENGLISH, "And now?"),
        (ENGLISH, "Go on"),
        (ENGLISH, "Now tell me a joke"),
        (ENGLISH, "Can you show me how to do that again?"),
        (ENGLISH, "I am going to the cinema tonight, what should I see?"),
        (GERMAN, "Weiter, was ist mit den Pinguinen?"),
        (GERMAN, "Schreib ein Haiku"),
        (GERMAN, "Und jetzt?"),
        (GERMAN, "Danke!"),
        (FRENCH, "Continue, et les pingouins ?"),
        (FRENCH, "Écris un haïku"),
        (FRENCH, "Et maintenant ?"),
        (SPANISH, "Sigue, ¿y los pingüinos?"),
        (SPANISH, "Escribe un haiku"),
        (SPANISH, "¿Y ahora?"),
        ([*GERMAN, "Je vais au marché acheter du fromage"], "Was kannst du?"),
        (["Wie du mir, so ich dir, sagt mein Chef"], "Wie geht es dir?"),
        (["Ça va mal au travail, et toi ?"], "Et toi, ça va ?"),
        (["¿Qué tal la casa nueva?"], "¿Qué tal?"),
        (CHINESE, "写一首俳句"),
        (CHINESE, "你还记得我吗？"),
        (CHINESE, "我们上次聊了什么？"),
        (KOREAN, "나에 대해 뭘 알고 있어?"),
        (["I had a good time", "Last time the train to Porto was late"], "What did we talk about last time?"),
        (["Das Fest hat mich gefreut, vor allem über die Torte wurde geredet"], "Was weißt du über mich?"),
    ],
)
def test_common_words_alone_recall_nothing(memory: list[str], message: str) -> None:
    assert recalled(memory, message) == []


@each_row(
    ("memory", "message", "expected"),
    [
        ([*ENGLISH, WHALES], "Go on, what about the whales?", WHALES),
        ([*ENGLISH, WHALES], "What did I say about whales?", WHALES),
        (ENGLISH, "What is my dog called?", "My dog is called Rex"),
        (ENGLISH, "Where do I work?", "I work as a nurse in Oslo"),
        (ENGLISH, "Where do I live?", "I live in a small flat near the harbour"),
        (ENGLISH, "Write a poem about my dog", "My dog is called Rex"),
        (["I like jazz", "I moved to Porto"], "What do I like?", "I like jazz"),
        (["Ich bin Lena", "Der Zug war spät"], "Wer bin ich?", "Ich bin Lena"),
        (["We rent a van in May", "I moved to Porto"], "Van?", "We rent a van in May"),  # Dutch for "of"
        (GERMAN, "Wie heißt mein Hund?", "Mein Hund heißt Rex"),
        (GERMAN, "Was habe ich über Wale erzählt?", "Wir haben letzten Sommer zwei Wale vor Bergen gesehen"),
        (GERMAN, "Wo arbeite ich?", "Ich arbeite als Krankenpfleger in Graz"),
        (FRENCH, "Comment s'appelle mon chien ?", "Mon chien s'appelle Rex"),
        (FRENCH, "Qu'est-ce que j'ai dit sur les baleines ?", "Nous avons vu deux baleines près de Bergen"),
        (FRENCH, "Où est-ce que je travaille ?", "Je travaille comme infirmière à Lyon"),
        (SPANISH, "¿Cómo se llama mi perro?", "Mi perro se llama Rex"),
        (SPANISH, "¿Qué dije de las ballenas?", "Vimos dos ballenas cerca de Bergen"),
        (SPANISH, "¿Dónde trabajo?", "Trabajo como enfermera en Sevilla"),
        (CHINESE, "你还记得我的狗叫什么吗？", "我的狗叫小白"),
        (CHINESE, "我妹妹什么时候来？", "我妹妹六月要来看我们"),
        (KOREAN, "강아지 이름이 뭐였지?", "우리 강아지 이름은 보리예요"),
        (KOREAN, "여동생이 언제 와?", "여동생이 유월에 와요"),
    ],
)
def test_telling_words_still_recall(memory: list[str], message: str, expected: str) -> None:
    assert expected in recalled(memory, message)


@pytest.mark.parametrize(
    ("text", "word", "is_common"),
    [
        ("When did the war begin?", "war", False),
        ("Wo war ich gestern?", "war", True),  # German for "was"
        ("What did my van cost?", "van", False),
        ("De naam van mijn hond", "van", True),
        ("Он был там", "был", True),
        ("我们继续", "我们", True),
        ("我们继续", "绿茶", False),
    ],
)
def test_a_word_is_as_common_as_in_the_language_of_its_message(text: str, word: str, is_common: bool) -> None:
    [term, *_] = list_terms(word)
    [share] = list_general_shares(split_words(text), [term])
    assert (share > 0.1) == is_common


# Short texts with hardly a word that is common in their language, or with words that are common in English as well.
SHORT = {
    "en": "Van?|Where is my van?|Haiku|My cat is called Plum|Did the gardener come?|Rain in the spring",
    "de": """Meine Katze heißt Pflaume|Was arbeitet meine Schwester?|Gute Nacht|Welche Operation bekommt Vater?|
        Wann kommt der Klempner?|Haselnüsse vertrage ich nicht|Hast du den Wetterbericht gehört?""",
    "fr": "Ma voisine cultive des courgettes|Où habite ma grand-mère ?|Quel vélo ai-je acheté ?|Bonne nuit",
    "es": "Escribe un haiku|Mi gato se llama Ciruela|¿Dónde vive mi abuela?|¿Cuándo viene el fontanero?",
    "it": "Il mio gatto si chiama Prugna|Dove abita mia nonna?|Quale bicicletta ho comprato?",
    "nl": "Mijn kat heet Pruim|Waar woont mijn oma?|Welke fiets heb ik gekocht?",
    "ja": "コーヒーを飲むと眠れません|インコの名前は何でしたか",
    "ko": "결혼기념일이 언제예요|아들이 몇 학년이에요|재미있네요",
    "th": "แมวของฉันชื่ออะไร|พี่สาวทำงานอะไร",
    "zh": "我的猫叫什么名字|我对什么食物过敏",
}


@pytest.mark.parametrize("language", SHORT)
def test_the_language_of_a_short_text_is_known(language: str) -> None:
    texts = [text.strip() for text in SHORT[language].split("|")]
    assert [(text, detect_language(split_words(text))) for text in texts] == [
        (text, language) for text in texts
    ]


def test_words_are_forgotten() -> None:
    detect_language(["geheimwort"])
    count_terms(Document(1, "user", "Zahnarzttermin", NOW))
    assert _list_compound_terms.cache_info().currsize > 0
    clear_words()
    assert _measure_likelihood.cache_info().currsize == _list_compound_terms.cache_info().currsize == 0


def test_a_text_may_have_long_words_and_be_long() -> None:
    for text in (
        "a" * 100_000,
        "的 " * 100_000,
        "是的我们在" * 10_000,
        " ".join(f"wörd{n}" for n in range(10_000)),
    ):
        detect_language(split_words(text))


@pytest.mark.parametrize(
    "text",
    [
        "the people and their work", "und das ist nicht die", "c'est pas une bonne", "pero está todo muy bien",
        "questo è sempre così", "não estou muito bem", "het is een goede dag", "nie jest tak", "det är inte så bra",
        "это не так", "我们 是 什么", "これ です", "není to tak",
        "แล้วก็ไม่ได้เป็น",
    ],
)  # fmt: skip
def test_the_shares_are_of_common_words_of_many_languages(text: str) -> None:
    words = split_words(text)
    assert max(list_general_shares(words, [*list_terms(text), "whale"])[:-1]) > 0.1
    assert list_general_shares(words, ["whale"]) == [0.0]

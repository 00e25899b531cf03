"""Short facts within chatty messages in languages without spaces, with particles, and with compounds.

A question about one is answered, a wordy one as well; one about something else is not, nor is small talk.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

from storage.search.blob import encode
from storage.search.document import Document
from tests.stored import ranked

SECRET = b"s" * 32
NOW = 1.76e9


class Chat(NamedTuple):
    """What a person said, each sentence with a fact in it, and what is asked later."""

    said: tuple[str, ...]
    # A question, and which of the messages answers it.
    asked: tuple[tuple[str, int], ...]
    # What none of the messages answers.
    foreign: tuple[str, ...]
    small_talk: tuple[str, ...]


CHATS = {
    "Chinese": Chat(
        (
            "今天下雨了真烦。我的鹦鹉叫豆豆。晚上打算早点睡。",
            "周末跟朋友去爬山了。我妈妈下周要做白内障手术。反正慢慢来吧。",
            "这个月花了不少钱。我在学吹萨克斯。感觉时间过得真快。",
        ),
        (
            ("我的鹦鹉叫什么", 0),
            ("不好意思我一下子想不起来了，我妈妈要做什么手术来着，麻烦你帮我回忆一下好吗？", 1),
            ("我在学吹什么乐器", 2),
        ),
        ("我的护照什么时候到期", "我哥哥在哪里上大学"),
        ("谢谢你", "晚安"),
    ),
    "Japanese": Chat(
        (
            "今日は雨で困りました。うちのインコの名前はまめです。早く寝るつもりです。",
            "週末は友達と山に登りました。母は来月白内障の手術を受けます。ゆっくりやります。",
            "今月は出費が多いです。サックスを習い始めました。時間が早いですね。",
        ),
        (
            ("インコの名前は何でしたか", 0),
            ("すみません、ちょっと思い出せないのですが、母はどんな手術を受けますか、教えてください", 1),
            ("サックスはいつ習い始めましたか", 2),
        ),
        ("パスポートの期限はいつですか", "兄の大学はどこですか"),
        ("ありがとう", "なるほど", "そうなんだ", "またね"),
    ),
    "Korean": Chat(
        (
            "오늘은 비가 와서 힘들었어요. 우리 앵무새 이름은 콩이에요. 일찍 잘 거예요.",
            "주말에 친구하고 산에 갔어요. 어머니는 다음 달에 백내장 수술을 받으세요. 천천히 하면 되죠.",
            "이번 달은 돈을 많이 썼어요. 색소폰을 배우기 시작했어요. 시간이 빠르네요.",
        ),
        (
            ("앵무새 이름이 뭐였지", 0),
            ("미안한데 갑자기 생각이 안 나서 그러는데, 어머니가 무슨 수술을 받으시죠?", 1),
            ("색소폰을 언제 배우기 시작했나요", 2),
        ),
        ("여권은 언제 만료되나요", "형은 어느 대학교에 다녀요"),
        ("고마워요", "그렇군요", "잘했어요", "이해했어요"),
    ),
    "Thai": Chat(
        (
            "วันนี้ฝนตกทั้งวัน นกแก้วของฉันชื่อถั่ว คืนนี้จะนอนเร็ว",
            "วันหยุดไปปีนเขากับเพื่อน แม่จะผ่าตัดต้อกระจกเดือนหน้า ค่อยๆ ทำไป",
            "เดือนนี้ใช้เงินเยอะ ฉันเริ่มเรียนแซกโซโฟน เวลาผ่านไปเร็วจัง",
        ),
        (
            ("นกแก้วของฉันชื่ออะไร", 0),
            ("ขอโทษนะ นึกไม่ออกจริงๆ แม่จะผ่าตัดต้ออะไร ถ้าจำได้ช่วยบอกหน่อยได้ไหม", 1),
            ("ฉันเรียนแซกโซโฟนเมื่อไร", 2),
            ("รบกวนหน่อยนะ ลืมไปสนิทเลย นกแก้วชื่ออะไร พอจะนึกออกไหม", 0),
        ),
        (
            "หนังสือเดินทางหมดอายุวันไหน",
            "พี่ชายเรียนมหาวิทยาลัยที่ไหน",
            "รบกวนหน่อยนะ ลืมไปสนิทเลย พี่สาวทำงานอะไร พอจะนึกออกไหม",
            "เหมือนเคยเล่าไปแล้ว จักรยานของฉันหายที่ไหน ตอนนี้จำไม่ค่อยได้",
        ),
        ("ขอบคุณ", "ราตรีสวัสดิ์"),
    ),
    "German": Chat(
        (
            "Heute hat es nur geregnet. Unser Wellensittich heißt Erbse. Ich gehe früh ins Bett.",
            "Am Wochenende waren wir wandern. Meine Mutter hat eine Augenoperation vor sich. Immer mit der Ruhe.",
            "Der Monat war teuer. Seit Kurzem habe ich Saxophonunterricht. Die Zeit vergeht.",
        ),
        (
            ("Wie heißt der Wellensittich?", 0),
            (
                "Entschuldige, mir fällt es gerade nicht ein, wer hat die Augenoperation vor sich? Hilf mir mal.",
                1,
            ),
            ("Wann ist mein Saxophonunterricht?", 2),
        ),
        ("Wo habe ich mein Auto geparkt?", "Wo ist die Garantie für den Kühlschrank?"),
        ("Danke dir!", "Alles klar."),
    ),
}


def recalled(chat: Chat, question: str) -> list[int]:
    """Returns which of the messages a question recalls, best first."""
    documents: list[Document] = []
    for text in chat.said:
        seq = len(documents) + 1
        documents.append(Document(seq, "user", text, NOW + seq))
        documents.append(Document(seq + 1, "assistant", "OK.", NOW + seq, previous=seq))
    hits = ranked(encode(documents, SECRET).values(), question, SECRET, only_strong=True)
    return [(seq - 1) // 2 for seq in hits if seq % 2]


@pytest.mark.parametrize("language", CHATS)
def test_a_question_finds_its_fact_first(language: str) -> None:
    chat = CHATS[language]
    assert [recalled(chat, question)[:1] for question, _ in chat.asked] == [
        [place] for _, place in chat.asked
    ]


@pytest.mark.parametrize(
    ("language", "said", "question"),
    [
        ("Chinese", "我对花生过敏", "打扰一下，我之前好像提过，我对什么食物过敏？现在突然记不清了。"),
        ("Japanese", "姉は札幌で薬剤師をしています", "ごめん、ど忘れしちゃって、姉の仕事は何ですか？教えて。"),
        ("Korean", "언니는 부산에서 간호사로 일해요", "자꾸 깜빡해서 죄송한데요, 언니는 무슨 일을 하나요?"),
    ],
)  # fmt: skip
def test_pairs_that_were_never_heard_do_not_outweigh_what_was(
    language: str, said: str, question: str
) -> None:
    chat = CHATS[language]
    assert recalled(chat._replace(said=(*chat.said, said)), question)[:1] == [len(chat.said)]


@pytest.mark.parametrize("language", CHATS)
def test_foreign_questions_and_small_talk_find_nothing(language: str) -> None:
    chat = CHATS[language]
    assert [text for text in (*chat.foreign, *chat.small_talk) if recalled(chat, text)] == []


@pytest.mark.parametrize(
    ("said", "question"),
    [
        ("Mein Zahnarzttermin ist am Dienstag um drei.", "Wann muss ich zum Zahnarzt?"),
        ("Mein Zahnarzttermin ist am Dienstag um drei.", "Wann ist der Termin?"),
        ("Die Geburtstagsfeier steigt bei uns im Garten.", "Wo ist die Feier zum Geburtstag?"),
        # Words that are stemmed otherwise at the end of a compound than by themselves.
        ("Neue Wanderschuhe habe ich in Garmisch gekauft.", "Woher sind meine Schuhe?"),
        ("Am Küchenfenster ist eine Scheibe gesprungen.", "Was ist am Fenster kaputt?"),
        ("Wir haben eine Stehlampe in Senfgelb bestellt.", "Welche Lampe soll kommen?"),
        ("De belastingaangifte ligt op de keukentafel.", "Waar is de aangifte?"),
        ("Nyckeln ligger bakom badrumsskåpet.", "Vem har köpt skåpet?"),
    ],
)
def test_a_compound_is_found_by_the_word_at_its_beginning_or_end(said: str, question: str) -> None:
    said = f"Heute hat es nur geregnet. {said} Die Zeit vergeht."
    chat = CHATS["German"]
    assert recalled(chat._replace(said=(*chat.said, said)), question) == [len(chat.said)]


@pytest.mark.parametrize(
    "question", ["Wer hat die Versammlung geleitet?", "Was macht der Zahn?", "Wo ist die Mine?", "Gute Nacht"]
)
def test_a_compound_is_not_found_by_what_is_no_word_in_it(question: str) -> None:
    said = "Mein Zahnarzttermin ist wegen der Versicherung verschoben. Zum Nachtisch gibt es Eis."
    chat = CHATS["German"]
    assert recalled(chat._replace(said=(*chat.said, said)), question) == []


@pytest.mark.parametrize(
    ("question", "found"),
    [("Wann ist mein Saxophonunterricht?", [2]), ("Wo ist die Garantie für den Kühlschrank?", [])],
)
def test_a_question_is_found_among_sentences_of_which_nothing_was_ever_said(
    question: str, found: list[int]
) -> None:
    before = "Verzeihung, ich habe schon wieder alles durcheinandergebracht."
    text = f"{before} {question} Bitte frische mein Gedächtnis auf."
    assert recalled(CHATS["German"], text) == found


@pytest.mark.parametrize(
    ("question", "found"),
    [("Wann ist mein Saxophonunterricht?", [2]), ("Wo ist die Garantie für den Kühlschrank?", [])],
)
def test_a_question_is_found_among_sentences_of_which_no_word_that_names_something_was_said(
    question: str, found: list[int]
) -> None:
    # "heute" and "ins" were said, which name nothing.
    text = f"Mein Kopf ist heute wie leergefegt, ich muss gleich ins Meeting. {question} Tausend Dank vorab!"
    assert recalled(CHATS["German"], text) == found


def test_long_words_of_english_are_found_whole() -> None:
    chat = CHATS["German"]._replace(said=("My grandmother has bought a house by the river.",))
    assert recalled(chat, "Where does my grandmother live?") == [0]
    assert recalled(chat, "Where does my mother live?") == []

"""A user of each language: what was said once is found, other questions bring nothing, and wishes are in sight."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.doubles.upstream import StrictUpstream
from tests.gateway.background.learner import Learner, serve_learner
from tests.gateway.memory.test_standing import section

DAY_S = 86_400


class Talk(NamedTuple):
    """What a person said, a conversation each; what they ask later, and which of it answers."""

    said: tuple[str, ...]
    asked: tuple[tuple[str, int], ...]
    # Nothing that was said is about these.
    foreign: tuple[str, ...]
    small_talk: tuple[str, ...]
    # A request that does not name the wish that it should heed.
    request: str
    wish: str


TALKS = {
    "German": Talk(
        (
            "Heute war viel los im Büro. Mein Zahnarzttermin ist am 4. Dezember. Sonst nichts Neues.",
            "Mein Neffe Jonas spielt Fagott im Schulorchester.",
            "Wir haben den Garten umgegraben, es war furchtbar heiß.",
            "Ich esse nie Fleisch.",
            "Der Keller steht unter Wasser, die Pumpe ist kaputt.",
            "Meine Chefin heißt Frau Ilgner.",
        ),
        (
            ("Wann ist mein Zahnarzttermin?", 0),
            ("Welches Instrument spielt Jonas?", 1),
            ("Was ist mit der Pumpe?", 4),
            ("Wie heißt eigentlich meine Chefin?", 5),
            ("Entschuldige, ich komme gerade nicht drauf: was spielt mein Neffe noch mal?", 1),
        ),
        (
            "Wo habe ich mein Auto geparkt?",
            "Wer hat Amerika entdeckt?",
            "Wie weit ist es von Kiel nach Flensburg?",
            "Welche Farbe hat unser Sofa?",
        ),
        (
            "Danke!",
            "Alles klar.",
            "Gute Nacht",
            "Und jetzt?",
            "Haha, sehr gut",
        ),
        "Welche Restaurants gibt es in Rom?",
        "Ich esse nie Fleisch",
    ),
    "Chinese": Talk(
        (
            "今天公司很忙。我十二月四号要去看牙医。别的没什么。",
            "我侄子小杰在学校乐队吹单簧管。",
            "我们周末翻了花园的土，热死了。",
            "我从来不吃肉。",
            "地下室进水了，水泵坏了。",
            "我的上司姓司徒。",
        ),
        (
            ("我什么时候去看牙医", 0),
            ("小杰吹什么乐器", 1),
            ("水泵怎么了", 4),
            ("我上司姓什么", 5),
            ("不好意思我忘了，我侄子在乐队吹的是什么来着", 1),
        ),
        (
            "我的车停在哪里了",
            "谁发现了美洲",
            "从上海到苏州有多远",
            "我家沙发是什么颜色",
        ),
        (
            "谢谢",
            "好的",
            "晚安",
            "然后呢",
            "哈哈真好",
        ),
        "罗马有什么好餐厅推荐",
        "我从来不吃肉",
    ),
    "Japanese": Talk(
        (
            "今日は会社が忙しかったです。十二月四日に歯医者の予約があります。ほかは特にありません。",
            "甥の健太は学校の楽団でファゴットを吹いています。",
            "週末に庭を掘り返しました。とても暑かったです。",
            "肉は絶対に食べません。",
            "地下室が水浸しで、ポンプが壊れました。",
            "上司は五十嵐さんといいます。",
        ),
        (
            ("歯医者の予約はいつですか", 0),
            ("健太は何の楽器を吹いていますか", 1),
            ("ポンプはどうなりましたか", 4),
            ("上司の名前は何でしたっけ", 5),
            ("すみません、忘れてしまったのですが、甥は何を吹いていましたか", 1),
        ),
        (
            "車をどこに停めましたか",
            "アメリカを発見したのは誰ですか",
            "京都から大阪までどのくらいですか",
            "うちのソファは何色ですか",
        ),
        (
            "ありがとう",
            "わかりました",
            "おやすみなさい",
            "それで",
            "はは、いいですね",
        ),
        "ローマのレストランを教えてください",
        "肉は絶対に食べません",
    ),
    "Thai": Talk(
        (
            "วันนี้ที่ทำงานยุ่งมาก ฉันนัดหมอฟันวันที่สี่ธันวาคม นอกนั้นไม่มีอะไร",
            "หลานชายชื่อต้นเป่าฟลุตในวงโรงเรียน",
            "วันหยุดเราขุดดินในสวน ร้อนมาก",
            "ฉันไม่กินเนื้อสัตว์เลย",
            "ห้องใต้ดินน้ำท่วม ปั๊มน้ำเสีย",
            "หัวหน้าของฉันชื่อคุณวิไล",
        ),
        (
            ("ฉันนัดหมอฟันวันไหน", 0),
            ("ต้นเป่าเครื่องดนตรีอะไร", 1),
            ("ปั๊มน้ำเป็นอะไร", 4),
            ("หัวหน้าของฉันชื่ออะไร", 5),
            ("ขอโทษนะ ลืมไปแล้ว หลานชายเป่าอะไรนะ", 1),
        ),
        (
            "ฉันจอดรถไว้ที่ไหน",
            "ใครค้นพบอเมริกา",
            "จากกรุงเทพไปอยุธยาไกลแค่ไหน",
            "โซฟาบ้านเราสีอะไร",
        ),
        (
            "ขอบคุณ",
            "โอเค",
            "ราตรีสวัสดิ์",
            "แล้วไงต่อ",
            "ฮ่าๆ ดีมาก",
        ),
        "แนะนำร้านอาหารในโรมหน่อย",
        "ฉันไม่กินเนื้อสัตว์เลย",
    ),
    "English": Talk(
        (
            "Work was busy today. My dentist appointment is on 4 December. Nothing else is new.",
            "My nephew Jonas plays the bassoon in the school orchestra.",
            "We dug up the garden, it was terribly hot.",
            "I never eat meat.",
            "The cellar is flooded and the pump is broken.",
            "My boss is called Mrs Ilgner.",
        ),
        (
            ("When do I have to see the dentist?", 0),
            ("Which instrument does Jonas play?", 1),
            ("What happened to the pump?", 4),
            ("What is my boss called?", 5),
            ("Sorry, I cannot think of it: what does my nephew play again?", 1),
        ),
        (
            "Where did I park my car?",
            "Who discovered America?",
            "How far is it from Leeds to York?",
            "Which colour is our sofa?",
        ),
        (
            "Thanks!",
            "All right.",
            "Good night",
            "And now?",
            "Haha, very good",
        ),
        "Which restaurants are there in Rome?",
        "I never eat meat",
    ),
}


@pytest.fixture(params=TALKS)
def talk(request: pytest.FixtureRequest) -> Talk:
    return TALKS[request.param]


@pytest.fixture
def learner(upstream: StrictUpstream, tmp_path: Path, talk: Talk) -> Iterator[Learner]:
    with serve_learner(upstream, tmp_path, background_model=None) as made:
        for text in talk.said:
            made.world.chat(user="alice").say(text)
            made.world.clock.now += DAY_S
        made.pass_idle_time()
        yield made


def note_for(learner: Learner, question: str) -> str:
    """Returns the note of a question in a new conversation."""
    learner.world.chat(user="alice").say(question)
    return str(learner.world.upstream.last.messages[-1]["content"]).removesuffix(question)


def test_the_message_with_the_answer_is_found_and_no_other(learner: Learner, talk: Talk) -> None:
    for question, place in talk.asked:
        note = note_for(learner, question)
        assert talk.said[place] in note, question
    for text in (*talk.foreign, *talk.small_talk):
        assert note_for(learner, text) == "", text


def test_a_wish_is_in_sight_of_a_request_that_does_not_name_it(learner: Learner, talk: Talk) -> None:
    assert talk.wish in section(learner, talk.request)
    assert note_for(learner, talk.request) == ""


@pytest.mark.parametrize(
    ("said", "asked", "foreign"),
    [
        ("Die Fenster kommen im Mai.", "Wann kommen die Fenster?", "Wann heiratet Frieda?"),
        ("호텔은 신라호텔을 예약했어요.", "호텔은 어디예요?", "페루의 수도는 어디예요?"),
        ("موعد طبيب الأسنان يوم الثلاثاء", "متى موعد طبيب الأسنان؟", "متى تتزوج ليلى؟"),
        ("मेरी बैठक मंगलवार को है", "बैठक कब है?", "राधा की शादी कब है?"),
        ("Toplantı salı günü.", "Toplantı nereye alındı?", "Leyla nereye taşındı?"),
    ],
)
def test_a_question_is_not_found_by_the_word_that_asks(
    upstream: StrictUpstream, tmp_path: Path, said: str, asked: str, foreign: str
) -> None:
    with serve_learner(upstream, tmp_path, background_model=None) as learner:
        learner.world.chat(user="alice").say(said)
        assert said in note_for(learner, asked)
        assert note_for(learner, foreign) == ""

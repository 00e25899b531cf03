"""Facts that are asked for by their kind ("pets": a Rottweiler), and wishes in other languages than English.

A question and what it needs share no word that matters. Next to them stand requests that nothing said before is about,
which need no note. English wishes are in scripts/talk/wishes.py. All of it was written for this.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from gateway.core.dates import DAY_S
from scripts.talk.dialogue import ASSISTANT, BEGUN, USER, Turn
from scripts.talk.languages import CHATTY, REPLIES
from scripts.talk.memories import AskedMessage, MemoryCase, history_of

_MEMORIES = 16
# Turns without a wish for each with one.
_OTHERS = 3

# Language -> a wish and the request that it should shape, a line each.
WISHES = {
    "German": """
Ich esse kein Fleisch und keinen Fisch|Welche Lokale empfiehlst du mir in Rom?
Ich habe furchtbare Höhenangst|Was soll ich mir in Paris ansehen?
Ich trinke keinen Alkohol|Was bestelle ich in einer Tapasbar?
Ich sitze im Rollstuhl|Welches Museum in Wien lohnt sich?
Ich fliege nicht mehr|Wie kommen wir nach Athen?
Ich reise nur mit meinem Hund|Such mir eine Unterkunft an der Ostsee.
Ich vertrage kein Gluten|Was backe ich zum Geburtstag?
Ich stehe nie vor zehn auf|Wann legen wir den Termin mit dem Vermieter hin?
Antworte mir bitte immer in höchstens fünf Zeilen|Wie funktioniert eine Wärmepumpe?
Laute Orte machen mir Kopfschmerzen|Wo treffe ich mich mit meiner Freundin?
Ich kaufe nichts Neues mehr|Woher bekomme ich einen Schreibtisch?
Ich habe zwei kleine Kinder dabei|Was machen wir in Berlin bei Regen?
""",
    "Chinese": """
我从来不吃肉|周末在罗马有什么餐厅推荐
我特别恐高|去巴黎应该看些什么
我不喝酒|在酒吧我可以点什么
我坐轮椅出行|维也纳哪个博物馆值得去
我再也不坐飞机了|我们怎么去雅典比较好
我出门总带着我的狗|帮我在海边找个住处
我对花生严重过敏|帮我安排一顿泰国菜晚饭
我上夜班早上起不来|和房东的电话约在几点
请你每次回答不要超过五行|热泵是怎么工作的
人多的地方我受不了|什么时候去威尼斯好
我只看女作家写的书|飞机上读什么小说好
我膝盖坏了不能跳|帮我排一下这周的锻炼
""",
    "Japanese": """
肉も魚も食べません|ローマでおすすめのレストランはありますか
高い所がとても怖いです|パリでは何を見ればいいですか
お酒は飲みません|バルで何を注文すればいいですか
車椅子を使っています|ウィーンでおすすめの美術館はどこですか
もう飛行機には乗りません|アテネまでどう行けばいいですか
いつも犬と一緒に旅行します|海の近くで泊まる所を探してください
ピーナッツは命に関わります|タイ料理の夕食を考えてください
夜勤なので朝は起きられません|大家さんとの電話は何時がいいですか
返事はいつも五行以内にしてください|ヒートポンプの仕組みを教えてください
人混みが苦手です|ベネチアにはいつ行くのがいいですか
""",
}
# A fact, and a question that names its kind.
KINDS = """
Our Rottweiler chewed up another cushion last night|What pets do I have?
I spent the whole weekend repotting my orchids|What hobbies do I have?
I finally traded the Golf in for a used Kangoo|What kind of vehicle do I drive?
The cello lesson was moved to Thursday|Which instrument do I play?
My shift on the maternity ward starts at six|What is my profession?
We sang Bach all evening and my voice is gone|What music am I into?
The doctor put me on insulin|Do I have any illnesses?
I scored twice against the team from the next village|What sports do I do?
Our little one lost her first tooth today|Do I have children?
The wedding rings arrived, mine is a bit tight|Am I single?
My flat on the fifth floor has no lift|Where do I live, a house or an apartment?
Mum's funeral is on Monday|Which relatives have I lost?
I translate manuals from Finnish all day|Which languages do I speak?
The bank turned down our mortgage again|How are my finances?
We buried the time capsule under the apple tree|What trees are in my garden?
I start every day with a bowl of congee|What do I have for breakfast?
I passed the bar exam at last|What did I study?
My goldfish outlived the castle in its bowl|Which animals live with me?
I grew up among sheep on the Faroes|Where was I raised?
I quit smoking on New Year's Eve|Which habits did I give up?
I repaired my neighbour's toaster and his radio|What am I good at?
My sister's twins come to us every summer|Do I have nieces or nephews?
I do my errands on a cargo bike, even in the snow|How do I get around?
I voted by mail this time because of the trip|Did I take part in the election?
"""
# Nothing that a person said of themselves is needed for these.
ERRANDS = {
    "English": """
What is 30 degrees Celsius in Fahrenheit?|Who wrote The Magic Flute?|Sort these numbers: 7, 3, 9
What is the plural of ox?|How many days has February in 2028?|What does HTTP stand for?
""",
    "German": "Was sind 30 Grad Celsius in Fahrenheit?|Wer schrieb die Zauberflöte?|Wie heißt die Mehrzahl von Kaktus?",
    "Chinese": "三十摄氏度是多少华氏度|魔笛是谁写的|二零二八年二月有多少天",
    "Japanese": "摂氏三十度は華氏で何度ですか|魔笛は誰が作曲しましたか|二〇二八年の二月は何日ありますか",
}
_THANKS = "Got it.|Thanks for telling me.|I see.|Understood.|Makes sense."


def _split_parts(text: str) -> list[str]:
    return [part.strip() for line in text.strip().splitlines() for part in line.split("|")]


def make_wish_memories(language: str, half: int) -> Iterator[MemoryCase]:
    """Returns memories of wishes; each half has its own."""
    lines = [line.split("|") for line in WISHES[language].strip().splitlines()]
    chatty, replies = _split_parts(CHATTY[language]), REPLIES[language].split("|")
    return _make_memories(
        f"wishes {language}",
        half,
        lines,
        "wish",
        chatty=chatty,
        replies=replies,
        errands=_split_parts(ERRANDS[language]),
    )


def make_kind_memories(half: int, sentences: Sequence[str]) -> Iterator[MemoryCase]:
    """Returns memories of facts that are asked for by their kind."""
    lines = [line.split("|") for line in KINDS.strip().splitlines()]
    replies, errands = _THANKS.split("|"), _split_parts(ERRANDS["English"])
    return _make_memories(
        "kinds", half, lines, "kind", chatty=list(sentences), replies=replies, errands=errands
    )


def _make_memories(
    name: str,
    half: int,
    lines: Sequence[Sequence[str]],
    kind: str,
    *,
    chatty: Sequence[str],
    replies: Sequence[str],
    errands: Sequence[str],
) -> Iterator[MemoryCase]:
    pairs, stop = lines[half::2], "." if chatty[0].isascii() else "。"
    for number in range(_MEMORIES):
        pick = random.Random(f"{name} {half} {number}")
        statements = [*enumerate(text for text, _ in pairs), *[(-1, "")] * (_OTHERS * len(pairs))]
        pick.shuffle(statements)
        sessions = []
        for day, start in enumerate(range(0, len(statements), 4)):
            turns = []
            for mark, text in statements[start : start + 4]:
                around = pick.sample(list(chatty), 2)
                sentences = [around[0], text, around[1]] if text else around
                turns.append(Turn(USER, _join(sentences, stop), {mark} if text else set()))
                turns.append(Turn(ASSISTANT, pick.choice(replies)))
            sessions.append((BEGUN + day * DAY_S, turns))
        history, marked = history_of(sessions)
        questions = [AskedMessage(kind, ask, frozenset(marked[mark])) for mark, (_, ask) in enumerate(pairs)]
        questions += [AskedMessage("errand", text, frozenset()) for text in errands]
        yield MemoryCase(history, questions, BEGUN + 60 * DAY_S)


def _join(sentences: Sequence[str], stop: str) -> str:
    """Returns sentences as one text; each ends with a sign of its own or with this one."""
    return " ".join(
        sentence if sentence.endswith((".", "!", "?")) else sentence + stop for sentence in sentences
    )

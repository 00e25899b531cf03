"""Long chats of two people in short turns, made from a seed, with facts planted on both sides and questions about them.

Between the facts stand greetings, reactions that repeat their words, and sentences that other people really said, so
that what is asked for has to be distinguished from what only sounds like it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from scripts.talk import vocabulary as v
from scripts.talk.facts import ANSWERS, FACTS, MANY, Fact

DAY_S = 86_400.0
# When the first session is, and how many there are.
BEGUN = 1_740_000_000.0
SESSIONS = 29
USER, ASSISTANT = "user", "assistant"
_OTHER = {USER: ASSISTANT, ASSISTANT: USER}


@dataclass
class Turn:
    """A turn. marks: the facts that it says."""

    role: str
    text: str
    marks: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Question:
    """A question and the facts that its answer needs."""

    kind: str
    text: str
    marks: frozenset[int]


@dataclass(frozen=True)
class Dialogue:
    """The sessions of two people, and the questions about them."""

    # Each with its time.
    sessions: list[tuple[float, list[Turn]]]
    questions: list[Question]
    # Questions that might have been asked before.
    others: list[str]
    # By role.
    names: dict[str, str]


@dataclass(frozen=True)
class _Planted:
    """One telling of a fact."""

    # Its place in the chat, from 0 to 1.
    at: float
    mark: int
    role: str
    text: str
    beside: tuple[str, ...]
    # The question of the other side that it answers; "": none.
    question: str = ""


class _Maker:
    def __init__(self, seed: str, half: int, sentences: Sequence[str], *, by_name: bool) -> None:
        self.random = random.Random(seed)
        self.half = half
        self.sentences = sentences
        people = self.random.sample(v.NAMES, 2)
        self.names = {USER: people[0], ASSISTANT: people[1]}
        # Some people ask about "me" and "you", others by name.
        self.by_name = self.random.random() < 0.5 or by_name
        self.planted: list[_Planted] = []
        self.questions: list[Question] = []
        self.others: list[str] = []

    def asked(self, frame: str, role: str, values: dict[str, str]) -> str:
        """Returns the question about one side, as the user asks it."""
        if self.by_name:
            name = self.names[role]
            about = {"S": name, "P": f"{name}'s", "do": "does", "be": "is", "have": "has", "own": "their"}
        elif role == USER:
            about = {"S": "I", "P": "my", "do": "do", "be": "am", "have": "have", "own": "my"}
        else:
            about = {"S": "you", "P": "your", "do": "do", "be": "are", "have": "have", "own": "your"}
        return frame.format(**values, **about)

    def plant(self, role: str, text: str, at: float, beside: Sequence[str] = (), question: str = "") -> int:
        mark = len(self.planted)
        self.planted.append(_Planted(at, mark, role, text[0].upper() + text[1:], tuple(beside), question))
        return len(self.planted) - 1

    def ask(
        self, is_ours: bool, kind: str, frames: Sequence[str], role: str, values: dict[str, str], *marks: int
    ) -> None:
        """Adds a question in one wording; the other wordings may have been asked before."""
        texts = [self.asked(frame, role, values) for frame in frames]
        self.random.shuffle(texts)
        if is_ours:
            self.questions.append(Question(kind, texts.pop(), frozenset(marks)))
        self.others += texts

    def fact(self, fact: Fact, role: str, is_ours: bool) -> tuple[str, int, dict[str, str]]:
        values = {slot: self.random.choice(of) for slot, of in fact.slots.items()}
        while "old" in values and values["old"] == values["new"]:
            values["new"] = self.random.choice(fact.slots["new"])
        early = self.random.uniform(0, 0.6)
        late = early + self.random.uniform(0.08, 0.35)
        first = self.plant(
            role,
            self.random.choice(fact.said).format(**values),
            early,
            [t.format(**values) for t in fact.told],
        )
        if fact.later:
            second = self.plant(role, self.random.choice(fact.later).format(**values), late)
            if fact.changes:
                self.ask(is_ours, "changed", fact.asked, role, values, second)
                return fact.asked[0], second, values
            self.ask(is_ours, "chain", fact.asked_both, role, values, first, second)
        self.ask(is_ours, "single", fact.asked, role, values, first)
        return fact.asked[0], first, values

    def make(self) -> Dialogue:
        for role in (USER, ASSISTANT):
            singles = list[tuple[str, int, dict[str, str]]]()
            for number, fact in enumerate(FACTS):
                is_ours = number % 2 == self.half
                single = self.fact(fact, role, is_ours)
                if is_ours and not fact.changes:
                    singles.append(single)
            for number, fact in enumerate(MANY):
                ones = self.random.sample(fact.slots["one"], self.random.randint(2, 4))
                frames = self.random.sample(fact.said, min(len(ones), len(fact.said)))
                said = [
                    self.plant(role, frames[i % len(frames)].format(one=one), self.random.random(), fact.told)
                    for i, one in enumerate(ones)
                ]
                self.ask(number % 2 == self.half, "several", fact.asked, role, {}, *said)
            for number, answer in enumerate(ANSWERS):
                values = {slot: self.random.choice(of) for slot, of in answer.slots.items()}
                text, question = answer.said.format(**values), answer.question.format(**values)
                mark = self.plant(role, text, self.random.random(), (), question)
                self.ask(number % 2 == self.half, "answered", answer.asked, role, values, mark)
            ours = [event for number, event in enumerate(v.EVENTS) if number % 2 == self.half]
            others = [event for event in v.EVENTS if event not in ours]
            for number, (said, about) in enumerate(
                (*self.random.sample(ours, 9), *self.random.sample(others, 5))
            ):
                when, _ = self.random.choice(v.WHENS)
                text = self.random.choice(
                    (f"{when}, {said}.", f"{said} {when}.", f"so, {said}, that was {when}.")
                )
                mark = self.plant(role, text, self.random.random())
                frames = (f"When did {{S}} {about}?", f"On which day did {{S}} {about}?")
                self.ask(number < 9, "date", frames, role, {}, mark)
            # Two things in one question, which stand far apart.
            for _ in range(4):
                (one, first, its), (two, second, of_it) = self.random.sample(singles, 2)
                text = f"{self.asked(one, role, its)[:-1]}, and {_low(self.asked(two, role, of_it))}"
                self.questions.append(Question("two parts", text, frozenset((first, second))))
        return Dialogue(self.sessions(), self.questions, self.others, self.names)

    def sessions(self) -> list[tuple[float, list[Turn]]]:
        sessions = []
        at = BEGUN
        left = sorted(self.planted, key=lambda one: one.at)
        for number in range(SESSIONS):
            at += self.random.uniform(2, 14) * DAY_S + self.random.uniform(-4, 4) * 3600
            until = (number + 1) / SESSIONS
            mine = [one for one in left if one.at < until or number == SESSIONS - 1]
            left = left[len(mine) :]
            sessions.append((at, self.session(mine)))
        return sessions

    def session(self, planted: Sequence[_Planted]) -> list[Turn]:
        turns: list[Turn] = []

        def say(role: str, *parts: str, mark: int | None = None) -> None:
            text = " ".join(
                part.format(other=self.names[_OTHER[role]]) if "{other}" in part else part
                for part in parts
                if part
            )
            if turns and turns[-1].role == role:
                turns[-1].text += " " + text
            else:
                turns.append(Turn(role, text))
            if mark is not None:
                turns[-1].marks.add(mark)

        pick, chance = self.random.choice, self.random.random
        say(USER, pick(v.OPENINGS))
        say(ASSISTANT, pick(v.REPLIES))
        segments: list[_Planted | None] = [*planted, *[None] * self.random.randint(2, 4)]
        self.random.shuffle(segments)
        for segment in segments:
            if segment is None:
                self.chatter(say, turns)
                continue
            role = segment.role
            other = _OTHER[role]
            if segment.question:
                say(other, pick((pick(v.ACKS), "")), segment.question)
                say(role, segment.text, mark=segment.mark)
                say(other, pick(v.REACTIONS), pick((pick(self.sentences), "")))
                continue
            if turns[-1].role == role:
                say(other, pick(v.REACTIONS) if chance() < 0.5 else pick(v.PROMPTS))
            lead = pick(v.ACKS) if chance() < 0.25 else ""
            first = pick(self.sentences) if chance() < 0.2 else ""
            tail = pick((pick(v.DETAILS), pick(self.sentences), ""))
            say(role, lead, first, segment.text, tail, pick((pick(v.PROMPTS), "")), mark=segment.mark)
            kind = chance()
            if segment.beside and kind < 0.5:
                say(other, pick(v.REACTIONS), pick(segment.beside))
            elif kind < 0.62:
                # A person who repeats what was just said.
                say(other, f"{segment.text.rstrip('.!')}? {pick(v.REACTIONS)}")
            else:
                say(
                    other, pick(v.REACTIONS), pick((pick(self.sentences), "")), pick((pick(v.FOLLOW_UPS), ""))
                )
            if chance() < 0.7:
                more = (
                    (pick(v.DETAILS), pick((pick(self.sentences), ""))) if chance() < 0.6 else (pick(v.ACKS),)
                )
                say(role, *more)
        one, two = pick(v.CLOSINGS)
        say(USER, one)
        say(ASSISTANT, two)
        return turns

    def chatter(self, say, turns) -> None:  # type: ignore[no-untyped-def]
        pick = self.random.choice
        for _ in range(self.random.randint(1, 3)):
            role = _OTHER[turns[-1].role]
            say(role, pick(self.sentences), pick((pick(self.sentences), pick(v.PROMPTS), "")))
            say(_OTHER[role], pick(v.REACTIONS), pick((pick(self.sentences), pick(v.FOLLOW_UPS), "")))


def _low(text: str) -> str:
    return text[0].lower() + text[1:]


def make_dialogue(seed: str, half: int, sentences: Sequence[str], *, by_name: bool = False) -> Dialogue:
    """Returns a dialogue. half: 0 or 1: which of the kinds of facts are asked for. sentences: what else is said.

    by_name: questions name both people.
    """
    return _Maker(seed, half, sentences, by_name=by_name).make()


def asked_before(
    dialogue: Dialogue, seed: str, number: int, shown: Sequence[str]
) -> list[tuple[float, list[Turn]]]:
    """Returns sessions in which so many questions were asked already, each with a reply that does not answer it.

    shown: notes as a reply may quote them.
    """
    pick = random.Random(seed)
    at = dialogue.sessions[-1][0]
    own = [question.text for question in dialogue.questions]
    found: list[tuple[float, list[Turn]]] = []
    asked = 0
    while asked < number:
        at += pick.uniform(0.2, 1.5) * DAY_S
        turns: list[Turn] = []
        for _ in range(pick.randint(1, 8)):
            text = pick.choice(dialogue.others)
            while text in own:
                text = pick.choice(dialogue.others)
            turns += [Turn(USER, text), Turn(ASSISTANT, _reply(pick, text, shown))]
            asked += 1
        found.append((at, turns))
    return found


def _reply(pick: random.Random, question: str, shown: Sequence[str]) -> str:
    kind = pick.random()
    if kind < 0.5:
        return pick.choice(v.NO_ANSWERS)
    if kind < 0.75:
        return pick.choice(
            (
                f"You asked: {question}",
                f"{question} {pick.choice(v.NO_ANSWERS)}",
                f"You want to know {_low(question)}",
            )
        )
    quoted = pick.choice(shown)
    if kind < 0.83:
        return f"You said:\n{quoted}{question}"
    if kind < 0.91:
        return "You said:\n" + "\n".join(f"> {line}" for line in f"{quoted}{question}".splitlines())
    return f'{{"content": {json.dumps(quoted + question)}}}'

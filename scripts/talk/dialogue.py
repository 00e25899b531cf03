"""Makes long chats of two people from a seed, in short turns, with facts of both people and questions about the facts.

Between the facts are greetings, reactions that repeat their words, and real sentences of other people. A search has to
distinguish the facts from text that only resembles them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from gateway.core.dates import DAY_S
from scripts.talk import vocabulary as v
from scripts.talk.facts import ANSWERS, FACTS, MANY, Fact

# The time of the first session, and the number of sessions.
BEGUN = 1_740_000_000.0
SESSIONS = 29
USER, ASSISTANT = "user", "assistant"
_OTHER = {USER: ASSISTANT, ASSISTANT: USER}


@dataclass
class Turn:
    """A message of one person."""

    role: str
    text: str
    # The numbers of the facts that it states.
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

    # Each with its time, in seconds since the epoch.
    sessions: list[tuple[float, list[Turn]]]
    questions: list[Question]
    # Questions that `make_later_sessions` asks.
    other_questions: list[str]
    # The people by their roles.
    names: dict[str, str]


@dataclass(frozen=True)
class _Planted:
    """A sentence that states a fact."""

    # Its position in the chat, from 0 to 1.
    at: float
    # The number of the fact.
    mark: int
    role: str
    text: str
    # What the other person may say to it.
    comments: tuple[str, ...]
    # The other person's question that it answers; "": none.
    question: str = ""


class AskedFact(NamedTuple):
    """A fact that was stated, with a question about it."""

    # The question, with places for the values and for the person.
    frame: str
    mark: int
    values: dict[str, str]


class _Session:
    """The turns of one session so far."""

    def __init__(self, names: dict[str, str]) -> None:
        """Begins a session without turns. names: the people by their roles."""
        self.names = names
        self.turns: list[Turn] = []

    @property
    def last_role(self) -> str:
        return self.turns[-1].role

    def say(self, role: str, *parts: str, mark: int | None = None) -> None:
        """Adds a text of a person, to the last turn if that is theirs.

        parts: may name the other person by `{other}`; empty ones are left out.
        mark: the number of the fact that the text states.
        """
        text = " ".join(
            part.format(other=self.names[_OTHER[role]]) if "{other}" in part else part
            for part in parts
            if part
        )
        if self.turns and self.last_role == role:
            self.turns[-1].text += " " + text
        else:
            self.turns.append(Turn(role, text))
        if mark is not None:
            self.turns[-1].marks.add(mark)


class _DialogueMaker:
    """Makes one dialogue: first its facts and the questions about them, then the turns around the facts."""

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
        self.other_questions: list[str] = []

    def make_question(self, frame: str, role: str, values: dict[str, str]) -> str:
        """Returns the question about one side, as the user asks it."""
        if self.by_name:
            name = self.names[role]
            about = {"S": name, "P": f"{name}'s", "do": "does", "be": "is", "have": "has", "own": "their"}
        elif role == USER:
            about = {"S": "I", "P": "my", "do": "do", "be": "am", "have": "have", "own": "my"}
        else:
            about = {"S": "you", "P": "your", "do": "do", "be": "are", "have": "have", "own": "your"}
        return frame.format(**values, **about)

    def plant(self, role: str, text: str, at: float, comments: Sequence[str] = (), question: str = "") -> int:
        """Adds a sentence that states a fact. Returns its mark."""
        mark = len(self.planted)
        self.planted.append(_Planted(at, mark, role, text[0].upper() + text[1:], tuple(comments), question))
        return mark

    def ask(
        self,
        is_of_half: bool,
        kind: str,
        frames: Sequence[str],
        role: str,
        values: dict[str, str],
        marks: Sequence[int],
    ) -> None:
        """Adds a question in one wording; `make_later_sessions` uses its other wordings, and all of the other half's.

        is_of_half: the fact is of the half of the kinds of facts about which the dialogue asks.
        """
        texts = [self.make_question(frame, role, values) for frame in frames]
        self.random.shuffle(texts)
        if is_of_half:
            self.questions.append(Question(kind, texts.pop(), frozenset(marks)))
        self.other_questions += texts

    def plant_fact(self, fact: Fact, role: str, is_of_half: bool) -> AskedFact:
        """States a fact, perhaps with what came of it later, and adds the questions about it."""
        values = {slot: self.random.choice(choices) for slot, choices in fact.slots.items()}
        while "old" in values and values["old"] == values["new"]:
            values["new"] = self.random.choice(fact.slots["new"])
        first_at = self.random.uniform(0, 0.6)
        second_at = first_at + self.random.uniform(0.08, 0.35)
        first_mark = self.plant(
            role,
            self.random.choice(fact.statements).format(**values),
            first_at,
            [comment.format(**values) for comment in fact.comments],
        )
        if fact.second_statements:
            second_mark = self.plant(
                role, self.random.choice(fact.second_statements).format(**values), second_at
            )
            if fact.is_replaced:
                self.ask(is_of_half, "changed", fact.questions, role, values, [second_mark])
                return AskedFact(fact.questions[0], second_mark, values)
            self.ask(is_of_half, "chain", fact.two_turn_questions, role, values, [first_mark, second_mark])
        self.ask(is_of_half, "single", fact.questions, role, values, [first_mark])
        return AskedFact(fact.questions[0], first_mark, values)

    def make_dialogue(self) -> Dialogue:
        for role in (USER, ASSISTANT):
            asked_facts = self.plant_facts(role)
            self.plant_lists(role)
            self.plant_answers(role)
            self.plant_events(role)
            self.ask_about_pairs(role, asked_facts)
        return Dialogue(self.make_sessions(), self.questions, self.other_questions, self.names)

    def plant_facts(self, role: str) -> list[AskedFact]:
        """States facts of one person. Returns those that are asked about, and do not change later."""
        asked_facts = []
        for number, fact in enumerate(FACTS):
            is_of_half = number % 2 == self.half
            asked_fact = self.plant_fact(fact, role, is_of_half)
            if is_of_half and not fact.is_replaced:
                asked_facts.append(asked_fact)
        return asked_facts

    def plant_lists(self, role: str) -> None:
        """States facts that have several values, such as all pets, each in another place."""
        for number, fact in enumerate(MANY):
            values = self.random.sample(fact.slots["one"], self.random.randint(2, 4))
            frames = self.random.sample(fact.statements, min(len(values), len(fact.statements)))
            marks = [
                self.plant(
                    role, frames[index % len(frames)].format(one=value), self.random.random(), fact.comments
                )
                for index, value in enumerate(values)
            ]
            self.ask(number % 2 == self.half, "several", fact.questions, role, {}, marks)

    def plant_answers(self, role: str) -> None:
        """States facts that only make sense with the question that they answer."""
        for number, answer in enumerate(ANSWERS):
            values = {slot: self.random.choice(choices) for slot, choices in answer.slots.items()}
            text, question = answer.reply.format(**values), answer.question.format(**values)
            mark = self.plant(role, text, self.random.random(), (), question)
            self.ask(number % 2 == self.half, "answered", answer.later_questions, role, values, [mark])

    def plant_events(self, role: str) -> None:
        """States when something happened."""
        own_events = [event for number, event in enumerate(v.EVENTS) if number % 2 == self.half]
        other_events = [event for event in v.EVENTS if event not in own_events]
        events = (*self.random.sample(own_events, 9), *self.random.sample(other_events, 5))
        for number, (event, about) in enumerate(events):
            make_date_words, _ = self.random.choice(v.WHENS)
            text = self.random.choice(
                (
                    f"{make_date_words}, {event}.",
                    f"{event} {make_date_words}.",
                    f"so, {event}, that was {make_date_words}.",
                )
            )
            mark = self.plant(role, text, self.random.random())
            frames = (f"When did {{S}} {about}?", f"On which day did {{S}} {about}?")
            self.ask(number < 9, "date", frames, role, {}, [mark])

    def ask_about_pairs(self, role: str, asked_facts: Sequence[AskedFact]) -> None:
        """Adds questions about two facts each, from two places of the chat."""
        for _ in range(4):
            pair = self.random.sample(asked_facts, 2)
            first, second = (self.make_question(fact.frame, role, fact.values) for fact in pair)
            marks = frozenset(fact.mark for fact in pair)
            self.questions.append(Question("two parts", f"{first[:-1]}, and {_lower_first(second)}", marks))

    def make_sessions(self) -> list[tuple[float, list[Turn]]]:
        sessions = []
        at = BEGUN
        remaining = sorted(self.planted, key=lambda planted: planted.at)
        for number in range(SESSIONS):
            at += self.random.uniform(2, 14) * DAY_S + self.random.uniform(-4, 4) * 3600
            until = (number + 1) / SESSIONS
            in_session = [planted for planted in remaining if planted.at < until or number == SESSIONS - 1]
            remaining = remaining[len(in_session) :]
            sessions.append((at, self.make_session(in_session)))
        return sessions

    def make_session(self, planted: Sequence[_Planted]) -> list[Turn]:
        """Returns the turns of a session in which these facts are stated."""
        session = _Session(self.names)
        pick = self.random.choice
        session.say(USER, pick(v.OPENINGS))
        session.say(ASSISTANT, pick(v.REPLIES))
        segments: list[_Planted | None] = [*planted, *[None] * self.random.randint(2, 4)]
        self.random.shuffle(segments)
        for segment in segments:
            if segment is None:
                self.add_chatter(session)
            elif segment.question:
                self.add_asked_fact(session, segment)
            else:
                self.add_fact(session, segment)
        user_closing, assistant_closing = pick(v.CLOSINGS)
        session.say(USER, user_closing)
        session.say(ASSISTANT, assistant_closing)
        return session.turns

    def add_asked_fact(self, session: _Session, fact: _Planted) -> None:
        """Adds a question of the other person, and the fact as the reply to it."""
        pick, other = self.random.choice, _OTHER[fact.role]
        session.say(other, pick((pick(v.ACKS), "")), fact.question)
        session.say(fact.role, fact.text, mark=fact.mark)
        session.say(other, pick(v.REACTIONS), pick((pick(self.sentences), "")))

    def add_fact(self, session: _Session, fact: _Planted) -> None:
        """Adds a fact among other sentences of the same person, and what the other person says to it."""
        pick, chance, other = self.random.choice, self.random.random, _OTHER[fact.role]
        if session.last_role == fact.role:
            session.say(other, pick(v.REACTIONS) if chance() < 0.5 else pick(v.PROMPTS))
        lead = pick(v.ACKS) if chance() < 0.25 else ""
        opening = pick(self.sentences) if chance() < 0.2 else ""
        tail = pick((pick(v.DETAILS), pick(self.sentences), ""))
        session.say(fact.role, lead, opening, fact.text, tail, pick((pick(v.PROMPTS), "")), mark=fact.mark)
        reaction = chance()
        if fact.comments and reaction < 0.5:
            session.say(other, pick(v.REACTIONS), pick(fact.comments))
        elif reaction < 0.62:
            # The other person repeats the sentence.
            session.say(other, f"{fact.text.rstrip('.!')}? {pick(v.REACTIONS)}")
        else:
            session.say(
                other, pick(v.REACTIONS), pick((pick(self.sentences), "")), pick((pick(v.FOLLOW_UPS), ""))
            )
        if chance() < 0.7:
            closing_parts = (
                (pick(v.DETAILS), pick((pick(self.sentences), ""))) if chance() < 0.6 else (pick(v.ACKS),)
            )
            session.say(fact.role, *closing_parts)

    def add_chatter(self, session: _Session) -> None:
        """Adds turns without a fact."""
        pick = self.random.choice
        for _ in range(self.random.randint(1, 3)):
            role = _OTHER[session.last_role]
            session.say(role, pick(self.sentences), pick((pick(self.sentences), pick(v.PROMPTS), "")))
            session.say(_OTHER[role], pick(v.REACTIONS), pick((pick(self.sentences), pick(v.FOLLOW_UPS), "")))


def _lower_first(text: str) -> str:
    return text[0].lower() + text[1:]


def make_dialogue(seed: str, half: int, sentences: Sequence[str], *, by_name: bool = False) -> Dialogue:
    """Returns a dialogue.

    half: 0 or 1: the half of the kinds of facts to which the questions belong.
    sentences: sentences between the facts.
    by_name: questions name both people.
    """
    return _DialogueMaker(seed, half, sentences, by_name=by_name).make_dialogue()


def make_later_sessions(
    dialogue: Dialogue, seed: str, least: int, notes: Sequence[str]
) -> list[tuple[float, list[Turn]]]:
    """Returns later sessions with at least `least` questions, each with a reply that does not answer it.

    notes: notes that a reply may quote.
    """
    pick = random.Random(seed)
    at = dialogue.sessions[-1][0]
    own_questions = [question.text for question in dialogue.questions]
    sessions: list[tuple[float, list[Turn]]] = []
    count = 0
    while count < least:
        at += pick.uniform(0.2, 1.5) * DAY_S
        turns: list[Turn] = []
        for _ in range(pick.randint(1, 8)):
            text = pick.choice(dialogue.other_questions)
            while text in own_questions:
                text = pick.choice(dialogue.other_questions)
            turns += [Turn(USER, text), Turn(ASSISTANT, _make_reply(pick, text, notes))]
            count += 1
        sessions.append((at, turns))
    return sessions


def _make_reply(pick: random.Random, question: str, notes: Sequence[str]) -> str:
    chance = pick.random()
    if chance < 0.5:
        return pick.choice(v.NO_ANSWERS)
    if chance < 0.75:
        return pick.choice(
            (
                f"You asked: {question}",
                f"{question} {pick.choice(v.NO_ANSWERS)}",
                f"You want to know {_lower_first(question)}",
            )
        )
    note = pick.choice(notes)
    if chance < 0.83:
        return f"You said:\n{note}{question}"
    if chance < 0.91:
        return "You said:\n" + "\n".join(f"> {line}" for line in f"{note}{question}".splitlines())
    return f'{{"content": {json.dumps(note + question)}}}'

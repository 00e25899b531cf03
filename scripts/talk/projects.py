"""Long chats about projects with an assistant: steps in long turns over weeks, details, and the order of what happened.

A turn has a step somewhere between other sentences; the replies are long ones of LongMemEval. The projects and their
steps were written for this.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from gateway.core.dates import DAY_S
from scripts.talk.dialogue import ASSISTANT, BEGUN, USER, Turn
from scripts.talk.memories import AskedMessage, MemoryCase, Session, history_of

_MEMORIES = 3
# Sentences around a step: in long turns, and in short ones.
_BEFORE, _AFTER = (2, 6), (1, 5)
_BEFORE_SHORT, _AFTER_SHORT = (0, 1), (0, 1)
# Replies to short turns.
_REPLIES = (
    "Good to hear.",
    "I see.",
    "That sounds like progress.",
    "And how do you feel about it?",
    "Noted.",
)
# Sessions about other things for each session about a project.
_OTHERS = 1

# What each project is called in a question about all of it.
_NAMES = ("the recipe site", "our new kitchen", "my thesis", "our wedding", "my allotment", "my company")
# Questions about the order of all steps of a project; each project is asked about in another way.
_ALL_STEPS = (
    "Can you walk me through the order in which I brought up the different aspects of {}?",
    "List in order what happened with {}.",
    "How did {} develop from the beginning, step by step?",
)

# Questions about the step after one or before one, without and with what the project is called, and about which of two
# came first.
_NEXT = (
    "What came next after I had to {}?",
    "First I had to {} - and then what?",
    "With {1}, what did I do right after I had to {0}?",
    "After I had to {0}, what happened then with {1}?",
)
_PREVIOUS = ("What happened just before I had to {}?", "With {1}, what was the step before I had to {0}?")
_FIRST = ("Which came first, to {} or to {}?", "Did I first {} and then {}, or the other way round?")

# The projects, each with its steps in order; the fields of a line are those of `Step`.
PROJECTS = """
I picked Flask for the recipe site because I know it|Which framework does the site run on?|choose the framework
The login works now, with magic links, no passwords|How do people sign in on my recipe site?|get the login to work
I moved the recipe photos to a bucket at Hetzner|Where do the pictures of my recipes lie?|move the photos
Search on the site uses trigrams now, typos are fine|How does the site cope with misspelled words?|build the search
The first testers came from my choir|Who tried out the recipe site first?|find the testers
The site's tests are in pytest now and take nine seconds|How long do the tests of my site take?|switch the tests
The recipe site runs on a Raspberry Pi in my hallway|What machine serves the site?|go live
I was offered two thousand for the recipe domain and declined|How much is my domain worth?|turn down the offer

The architect drew an island and no upper cupboards|How did the architect plan the kitchen?|get the plan drawn
We found dry rot behind the old kitchen wall, 40 cm of it|What was wrong behind the wall?|find the rot
The joiner takes eleven weeks for the kitchen fronts|How long does the joiner need?|hire the joiner
I chose limestone for the kitchen floor, it was 62 a square metre|What did the floor cost me?|choose the floor
The kitchen got a fuse box of its own|What did the electrician change?|have the wiring done
The wrong sink was delivered, enamel instead of steel|What was the matter with the sink?|receive the sink
We cooked in the garage on a camping stove for weeks|Where did we make our meals then?|cook in the garage
The kitchen was finished three days before Christmas|When was our kitchen ready?|finish the kitchen

My thesis compares river names in two dialects of Ladin|What is my thesis about?|find the subject
Professor Alvera agreed to supervise me if I cut the corpus by half|What did my supervisor demand?|find the supervisor
I recorded fourteen speakers in the valley, the oldest was 91|How many people did I record?|record the speakers
My recorder died and two interviews are gone|What happened to my interviews?|lose the interviews
The transcription took seven weeks in ELAN|Which program did I transcribe with?|transcribe
Statistics showed nothing for vowels but a lot for suffixes|What was the outcome of my study?|run the statistics
The second reader wants the chapter on method rewritten|What does the second reader want?|get the reader's comments
I handed the thesis in with 214 pages|How long did the thesis get?|hand it in

We booked the old mill for the wedding, it holds ninety people|Where do we get married?|book the place
Grandma sewed the wedding dress out of a parachute|What is the dress made of?|have the dress made
The vegan caterer cancelled on us in May|Who let us down in May?|lose the caterer
My uncle's klezmer band plays at the wedding for petrol money|Who makes the music at the party?|find the band
The invitations went out with a wrong postcode|What was the error in the invitations?|send the invitations
We chose rings of recycled silver from a smith in Porto|Where do our rings come from?|choose the rings
The registry office wanted my birth certificate translated|Which document had to be translated?|sort out the papers
We decided on a night train to Trieste for the honeymoon|Where does our honeymoon lead?|plan the honeymoon

I applied for plot 17 of the allotments behind the station|Which allotment did I get?|get the plot
The soil test showed far too much zinc|What did the test of the soil show?|test the soil
I built three raised beds out of larch planks|What wood did I build with?|build the beds
The slugs ate every single lettuce in one night|Who destroyed my salad?|lose the lettuce
I dug a pond of four square metres with a rented digger|How big is my pond?|dig the pond
My neighbour on the plot gave me a hive with a gentle queen|What did the neighbour give me?|get the bees
The shed got a roof of sedum in the end|What grows on my shed?|roof the shed
We harvested thirty-one kilos of potatoes|How much did the potatoes yield?|harvest

The start-up begins as a repair service for hearing aids|What does my company do?|have the idea
My cousin Dilek joined the company as its technician|Who is my partner in the firm?|find the partner
The bank gave us 35,000 over six years|How much did we borrow?|get the loan
We rented a workshop above the fish shop|Where is the workshop?|rent the workshop
The first hearing aid we repaired belonged to a retired judge|Who was the first customer?|serve the first customer
A supplier in Odense sells us the batteries without a minimum order|Who supplies our batteries?|find the supplier
The tax office put us into quarterly reports|How often do we report to the tax office?|register for tax
In the tenth month the company made its first profit, 412 euros|How large was our first profit?|make a profit
"""


class Step(NamedTuple):
    """A step of a project: a line of `PROJECTS`."""

    text: str
    # A question about a detail.
    question: str
    # What questions about several steps call it.
    name: str


class Project(NamedTuple):
    """A project, and its steps in order."""

    name: str
    steps: list[Step]


def make_project_memories(
    half: int, sentences: Sequence[str], other_sessions: Sequence[Session], *, is_short: bool = False
) -> Iterator[MemoryCase]:
    """Returns memories of three projects each. The two halves have different projects.

    sentences: sentences around the steps.
    other_sessions: sessions about other subjects, with long replies, which the projects' sessions use as well.
    is_short: all turns and replies are short instead.
    """
    blocks = PROJECTS.strip().split("\n\n")
    all_projects = [
        Project(name, [Step(*line.split("|")) for line in block.splitlines()])
        for name, block in zip(_NAMES, blocks, strict=True)
    ]
    projects_of_half = all_projects[half::2]
    for number in range(_MEMORIES):
        pick = random.Random(f"projects {half} {number}")
        maker = _SessionMaker(pick, list(sentences), list(other_sessions), is_short=is_short)
        sessions = maker.make_sessions(projects_of_half)
        history, seqs_by_mark = history_of(sorted(sessions, key=lambda session: session[0]))
        questions: list[AskedMessage] = []
        for index, project in enumerate(projects_of_half):
            all_steps = _ALL_STEPS[(number + index) % len(_ALL_STEPS)]
            seqs = [seqs_by_mark[_mark(project, index, step)] for step in range(len(project.steps))]
            questions += _make_questions(pick, project, seqs, all_steps)
        yield MemoryCase(history, questions, BEGUN + 70 * DAY_S)


def _mark(project: Project, index: int, step: int) -> int:
    """Returns the mark of a turn with a step. index: the index of the project."""
    return index * len(project.steps) + step


class _SessionMaker:
    """Makes the sessions of one memory."""

    def __init__(
        self, pick: random.Random, sentences: list[str], other_sessions: list[Session], *, is_short: bool
    ) -> None:
        self._pick, self._sentences, self._other_sessions = pick, sentences, other_sessions
        self._is_short = is_short
        self._before, self._after = (_BEFORE_SHORT, _AFTER_SHORT) if is_short else (_BEFORE, _AFTER)
        long_replies = [turn.text for _, turns in other_sessions for turn in turns if turn.role == ASSISTANT]
        self._replies: Sequence[str] = _REPLIES if is_short else long_replies

    def make_sessions(self, projects: Sequence[Project]) -> list[Session]:
        """Returns a session for each step, and sessions about other subjects."""
        pick = self._pick
        days = [sorted(pick.sample(range(60), len(project.steps))) for project in projects]
        sessions: list[Session] = []
        for index, project in enumerate(projects):
            for number, step in enumerate(project.steps):
                turns = self._make_turns(step, _mark(project, index, number))
                sessions.append((BEGUN + days[index][number] * DAY_S + 60 * index, turns))
        for _, turns in pick.sample(self._other_sessions, _OTHERS * len(sessions)):
            other_turns = [Turn(turn.role, turn.text) for turn in turns]
            if self._is_short:
                other_turns = self._make_short_talk(len(other_turns))
            sessions.append((BEGUN + pick.uniform(0, 60) * DAY_S, other_turns))
        return sessions

    def _make_turns(self, step: Step, mark: int) -> list[Turn]:
        pick = self._pick
        text = " ".join(
            [
                *pick.sample(self._sentences, pick.randint(*self._before)),
                step.text + ".",
                *pick.sample(self._sentences, pick.randint(*self._after)),
            ]
        )
        return [
            Turn(USER, text, {mark}),
            Turn(ASSISTANT, pick.choice(self._replies)),
            Turn(USER, " ".join(pick.sample(self._sentences, 1 if self._is_short else 2))),
            Turn(ASSISTANT, pick.choice(self._replies)),
        ]

    def _make_short_talk(self, turns: int) -> list[Turn]:
        questions = [Turn(USER, text) for text in self._pick.sample(self._sentences, turns // 2)]
        return [
            turn
            for question in questions
            for turn in (question, Turn(ASSISTANT, self._pick.choice(self._replies)))
        ]


def _make_questions(
    pick: random.Random, project: Project, seqs: Sequence[set[int]], all_steps: str
) -> Iterator[AskedMessage]:
    """Yields the questions about a project.

    seqs: the numbers of the turns that have each step.
    all_steps: the template of the question about the order of all steps.
    """
    steps, numbers = project.steps, range(len(project.steps))
    ask = partial(_make_question, project, seqs)
    for number, step in enumerate(steps):
        yield ask("detail", step.question, [number])
    for _ in range(3):
        three = sorted(pick.sample(numbers, 3))
        names = [steps[number].name for number in three]
        pick.shuffle(names)
        text = f"In which order did I {names[0]}, {names[1]} and {names[2]}?"
        yield ask("order of three", text, three)
    pairs = [*pairwise(numbers)]
    for template, (number, following) in zip(_NEXT, pick.sample(pairs, len(_NEXT)), strict=True):
        text = template.format(steps[number].name, project.name)
        yield ask("what came next", text, [number, following])
    for template, (number, following) in zip(_PREVIOUS, pick.sample(pairs, len(_PREVIOUS)), strict=True):
        text = template.format(steps[following].name, project.name)
        yield ask("what came before", text, [number, following])
    for template in _FIRST:
        two = pick.sample(numbers, 2)
        text = template.format(*(steps[number].name for number in two))
        yield ask("which came first", text, two)
    yield ask("order of all", all_steps.format(project.name), numbers)


def _make_question(
    project: Project, seqs: Sequence[set[int]], kind: str, text: str, steps: Iterable[int]
) -> AskedMessage:
    """Returns a question about some steps of a project. seqs: the numbers of the turns that have each step."""
    numbers = [*steps]
    turns = frozenset[int]().union(*(seqs[number] for number in numbers))
    return AskedMessage(kind, text, turns, tuple(project.steps[number].text for number in numbers))

"""Long chats about projects with an assistant: steps in long turns over weeks, details, and the order of what happened.

A turn has a step somewhere between other sentences; the replies are long ones of LongMemEval. The projects and their
steps were written for this.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise

from scripts.talk.dialogue import ASSISTANT, BEGUN, DAY_S, USER, Turn
from scripts.talk.memories import Asked, Memory, Session, history_of

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

# Of each project the steps in their order: what is said | a question about a detail | the step's short name.
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


def projects(
    half: int, sentences: Sequence[str], other_sessions: Sequence[Session], *, is_short: bool = False
) -> Iterator[Memory]:
    """Returns memories of three projects each. The two halves have different projects.

    sentences: sentences around the steps.
    other_sessions: sessions about other subjects, with long replies, which the projects' sessions use as well.
    is_short: all turns and replies are short instead.
    """
    around = (_BEFORE_SHORT, _AFTER_SHORT) if is_short else (_BEFORE, _AFTER)
    blocks = [[line.split("|") for line in block.splitlines()] for block in PROJECTS.strip().split("\n\n")]
    blocks, names_of_blocks = blocks[half::2], _NAMES[half::2]
    replies = [turn.text for _, turns in other_sessions for turn in turns if turn.role == ASSISTANT]
    if is_short:
        replies = [*_REPLIES]
    for number in range(_MEMORIES):
        pick = random.Random(f"projects {half} {number}")
        days = [sorted(pick.sample(range(60), len(block))) for block in blocks]
        sessions: list[Session] = []
        for project, block in enumerate(blocks):
            for step, (text, _, _) in enumerate(block):
                sentences_of_turn = [
                    *pick.sample(list(sentences), pick.randint(*around[0])),
                    text + ".",
                    *pick.sample(list(sentences), pick.randint(*around[1])),
                ]
                turns = [
                    Turn(USER, " ".join(sentences_of_turn), {project * len(block) + step}),
                    Turn(ASSISTANT, pick.choice(replies)),
                    Turn(USER, " ".join(pick.sample(list(sentences), 1 if is_short else 2))),
                    Turn(ASSISTANT, pick.choice(replies)),
                ]
                sessions.append((BEGUN + days[project][step] * DAY_S + 60 * project, turns))
        for _, turns in pick.sample(list(other_sessions), _OTHERS * len(sessions)):
            plain = [Turn(turn.role, turn.text) for turn in turns]
            if is_short:
                talk = [Turn(USER, each) for each in pick.sample(list(sentences), len(plain) // 2)]
                plain = [turn for each in talk for turn in (each, Turn(ASSISTANT, pick.choice(replies)))]
            sessions.append((BEGUN + pick.uniform(0, 60) * DAY_S, plain))
        history, marked = history_of(sorted(sessions, key=lambda one: one[0]))
        questions = []
        for project, block in enumerate(blocks):
            make_question = partial(
                _asked, block, [marked[project * len(block) + step] for step in range(len(block))]
            )
            questions += [make_question("detail", ask, [step]) for step, (_, ask, _) in enumerate(block)]
            for _ in range(3):
                three = sorted(pick.sample(range(len(block)), 3))
                names = [block[step][2] for step in three]
                pick.shuffle(names)
                text = f"In which order did I {names[0]}, {names[1]} and {names[2]}?"
                questions.append(make_question("order of three", text, three))
            steps = [*pairwise(range(len(block)))]
            for template, (step, after) in zip(_NEXT, pick.sample(steps, len(_NEXT)), strict=True):
                text = template.format(block[step][2], names_of_blocks[project])
                questions.append(make_question("what came next", text, [step, after]))
            for template, (step, after) in zip(_PREVIOUS, pick.sample(steps, len(_PREVIOUS)), strict=True):
                text = template.format(block[after][2], names_of_blocks[project])
                questions.append(make_question("what came before", text, [step, after]))
            for template in _FIRST:
                two = pick.sample(range(len(block)), 2)
                text = template.format(*(block[step][2] for step in two))
                questions.append(make_question("which came first", text, two))
            text = _ALL_STEPS[(number + project) % len(_ALL_STEPS)].format(names_of_blocks[project])
            questions.append(make_question("order of all", text, range(len(block))))
        yield Memory(history, questions, BEGUN + 70 * DAY_S)


def _asked(
    block: Sequence[Sequence[str]], seqs: Sequence[set[int]], kind: str, text: str, steps: Iterable[int]
) -> Asked:
    """Returns a question about some steps of a project. seqs: of each step the turns that have it."""
    evidence = [(seqs[step], block[step][0]) for step in steps]
    turns = frozenset[int]().union(*(turns for turns, _ in evidence))
    return Asked(kind, text, turns, tuple(sentence for _, sentence in evidence))

"""Wishes and preferences that a person says once among other things, and later requests that do not name them.

What a request is about and what its wish says share no word that matters: "Find me a restaurant in Rome" wants to know
of "I never eat meat". All of it was written for this, before there was any rule that looks for wishes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from gateway.core.dates import DAY_S
from scripts.talk.dialogue import ASSISTANT, BEGUN, USER, Turn
from scripts.talk.memories import AskedMessage, MemoryCase, history_of

_MEMORIES = 16
# Messages without a wish for each with one.
_OTHERS = 3

# A wish as it was said, and a request that should follow it, a line each.
WISHES = """
I never eat meat, by the way.|Find us a restaurant in Rome for Saturday night.
Please always give dates as day, month and year.|When do the clocks change this spring?
I'm allergic to penicillin, so be careful with that.|My throat is red and swollen, what could help?
Call me Bo, nobody calls me Roberta.|Write a short birthday greeting from me to my aunt.
I prefer trains to planes whenever there is a choice.|How do I best get from Vienna to Zurich?
I can't stand emojis in texts.|Draft a reply to my landlord about the heating.
We keep a kosher kitchen at home.|Plan a dinner for six on Friday.
Keep your answers short, I read them on my watch.|What is the difference between a virus and a bacterium?
I don't drink alcohol any more.|What should I bring to the housewarming?
I'm colour blind, red and green look the same to me.|Which colours would you take for the chart in my slides?
I hate cilantro, it tastes of soap.|Give me a recipe for a fresh salsa.
Prices in euros please, I never remember the exchange rate.|What does a used piano cost?
I always fly with hand luggage only.|Make a packing list for ten days in Lisbon.
My knees are shot, so no stairs for me.|Look for a flat near the park.
I'd rather have code in Rust than in anything else.|Write a program that renames all my photos.
I'm a night owl, don't expect me to be awake before ten.|Find a slot for a call with the team in Madrid.
We don't have a car, and we don't want one.|Where could we go for a day out with the kids?
Please answer in British spelling.|Write two sentences about the harbour for the brochure.
I never watch horror films, they ruin my sleep.|What should we see at the cinema tonight?
I'm vegan since last year.|What can I cook with lentils?
My daughter is scared of dogs.|Suggest a playground for the afternoon.
Don't use the word leverage, our boss has banned it.|Summarise the strategy meeting in one paragraph.
I can only work on a Linux machine.|Which program should I take for editing videos?
I prefer window seats.|Book the flight to Oslo for me.
I'm left-handed.|Recommend a pair of scissors for the garden.
I get seasick within minutes.|How do we reach the islands from Split?
Always show me the sources when you claim something.|How many people live in Lagos?
I want everything in metric units.|How tall is the Eiffel Tower?
I'm on a low salt diet because of my blood pressure.|What is a quick soup for tonight?
We never buy anything from that big online shop.|Where can I order a bicycle pump?
Use my full name, Marguerite, in letters.|Write the cover letter for the library position.
I'm deaf in my left ear.|Pick seats for us at the concert hall.
No phone calls, I only answer e-mails.|How should the plumber reach me?
I love spicy food, the hotter the better.|Choose something from the Thai menu for me.
Our budget for a holiday is never more than a thousand.|Where should we spend a week in June?
I go jogging every morning at six.|Which hotel in Hamburg would suit me?
My wife doesn't eat fish.|Cook something nice for our anniversary, what could it be?
I like bullet points better than long paragraphs.|Explain how a mortgage works.
I have a latex intolerance.|What gloves are good for cleaning the oven?
We speak only Catalan with our children.|Find a picture book for my son.
I'm afraid of flying.|How would you travel to Athens?
I won't use anything tested on animals.|Which shampoo is good for dry hair?
From now on address me formally, please.|Say good night to me.
I always keep the Sabbath, nothing on Saturdays.|When could we meet to move the furniture?
Don't suggest seafood to me, shellfish could kill me.|What are the best dishes in Brittany?
I'm a complete beginner at the guitar.|Which song should I learn next?
I only read paper books, no screens in bed.|Recommend a novel for the weekend.
Remember that I'm on the pill when you talk about medicine.|Can I take Saint John's wort?
My flat has no oven, just two hobs.|What could I bake or make for the party?
I prefer to pay cash.|How do tourists pay in Berlin taxis?
"""
SMALL_TALK = (
    "Thanks!", "Haha, nice one.", "Good night.", "How is it going?", "Can you help me with something?",
    "Are you there?", "Let's start.", "I'm bored.", "What can you do?", "Test.",
)  # fmt: skip
GREETINGS = ("Hi!", "Hello there", "Good morning", "Hey, how are you?")
ABOUT_ONESELF = ("What do you know about me?", "Who am I?")
# What belongs to nothing in any of these memories.
FOREIGN = (
    "What is the capital of Mongolia?", "Prove that the square root of two is irrational.", "Who painted Guernica?",
    "Translate 'the ship sails at dawn' into Latin.", "Why is the sky blue?", "Explain recursion.",
    "How does a diesel engine work?", "What rhymes with orange?", "Name the planets.", "What is a haiku?",
)  # fmt: skip
REPLIES = (
    "I see.", "Got it.", "All right.", "Thank you for telling me.", "That makes sense.", "Sure, tell me more.",
    "Interesting!", "Noted. Anything else?",
)  # fmt: skip


def make_english_wishes(sentences: Sequence[str], half: int) -> Iterator[MemoryCase]:
    """Returns memories with all wishes of a half. sentences: what else people say."""
    pairs = [line.split("|") for line in WISHES.strip().splitlines()][half::2]
    for number in range(_MEMORIES):
        pick = random.Random(f"wishes {half} {number}")
        statements: list[tuple[int | None, str]] = []
        for index, (wish, _) in enumerate(pairs):
            # A wish stands alone, or within what else is said.
            before, after = pick.choice(((0, 0), (0, 1), (1, 0), (1, 1)))
            parts = [*pick.sample(sentences, before), wish, *pick.sample(sentences, after)]
            statements.append((index, " ".join(parts)))
        statements += [
            (None, " ".join(pick.sample(sentences, pick.randint(1, 2)))) for _ in range(_OTHERS * len(pairs))
        ]
        pick.shuffle(statements)
        sessions = []
        for day, start in enumerate(range(0, len(statements), 4)):
            turns = []
            for mark, text in statements[start : start + 4]:
                turns.append(Turn(USER, text, set() if mark is None else {mark}))
                turns.append(Turn(ASSISTANT, pick.choice(REPLIES)))
            sessions.append((BEGUN + day * DAY_S, turns))
        history, marked = history_of(sessions)
        questions = [
            AskedMessage("a request with a wish", ask, frozenset(marked[n]))
            for n, (_, ask) in enumerate(pairs)
        ]
        for kind, texts in (
            ("foreign request", FOREIGN),
            ("greeting", GREETINGS),
            ("small talk", SMALL_TALK),
            ("about oneself", ABOUT_ONESELF),
        ):
            questions += [AskedMessage(kind, text, frozenset()) for text in texts]
        yield MemoryCase(history, questions, sessions[-1][0] + DAY_S)

"""The facts of the generated chats: sentences that state each fact, and later questions for it in other words.

A frame is a sentence with slots for values. In a question {S} is the person ("I", "you", a name) and {P} the possessive
("my", "your"); {do}, {be} and {have} agree with {S}.
"""

from __future__ import annotations

from dataclasses import dataclass

from scripts.talk import vocabulary as v


@dataclass(frozen=True)
class Fact:
    """One kind of fact."""

    name: str
    # The values of each slot in the frames. A dialogue draws one of them.
    slots: dict[str, tuple[str, ...]]
    # Frames of the turn that states the fact.
    statements: tuple[str, ...]
    # Frames of the questions for it.
    questions: tuple[str, ...]
    # What the other person may reply to the statement.
    comments: tuple[str, ...] = ()
    # Frames of a second turn about the fact, some sessions later.
    second_statements: tuple[str, ...] = ()
    # Frames of questions that need both turns.
    two_turn_questions: tuple[str, ...] = ()
    # The second turn replaces the fact.
    is_replaced: bool = False


FACTS = (
    Fact(
        "pet",
        {"animal": v.ANIMALS, "pet": v.PET_NAMES},
        (
            "We finally brought a {animal} home, and after a long debate we settled on {pet}.",
            "My {animal} {pet} kept me up half the night again.",
            "Did I mention that the {animal} from the shelter goes by {pet} now?",
            "{pet} knocked over the plant pots, you know, the {animal}.",
        ),
        (
            "What is {P} {animal} called?",
            "What name did {S} give the {animal}?",
            "How did {P} {animal} get its name?",
        ),
        comments=("A {animal} needs a lot of attention, I hear.", "Are {animal}s easy to look after?"),
        second_statements=(
            "The vet says {pet} has to lose some weight before winter.",
            "{pet} had to go to the vet because of a swallowed sock.",
        ),
        two_turn_questions=("What did the vet say about {P} {animal}?", "Why did {P} {animal} need the vet?"),
    ),
    Fact(
        "allergy",
        {"food": v.FOODS},
        (
            "I broke out in hives after {food} again, so the doctor says no more of it.",
            "Turns out {food} makes my throat swell up. So that's off the menu.",
            "I had to send the plate back, there was {food} in it and I'd have ended up in hospital.",
        ),
        (
            "Which food makes {S} break out or swell up?",
            "What should {S} not eat, according to {own} doctor?",
            "What would put {S} in hospital if it was on the plate?",
        ),
        comments=("{food}? I could live on {food}.",),
    ),
    Fact(
        "job",
        {"company": v.COMPANIES, "job": v.JOBS},
        (
            "I signed the contract with {company} this morning, so I start work as a {job} next month!",
            "It's official, {company} took me on as a {job}.",
            "{company} called back about the position. They want me as their new {job}, can you believe it?",
        ),
        (
            "Which company took {S} on?",
            "What position did {S} get at {company}?",
            "Where {do} {S} work as a {job}?",
        ),
        comments=("I hear {company} is a decent place.", "A {job}! I couldn't do that, too much pressure."),
    ),
    Fact(
        "lessons",
        {"instrument": v.INSTRUMENTS, "teacher": v.NAMES, "city": v.CITIES},
        (
            "I've been taking {instrument} lessons with a retired player called {teacher}.",
            "{teacher} showed me how to hold the {instrument} properly, best teacher I ever had.",
            "My {instrument} teacher {teacher} is strict but funny.",
        ),
        (
            "Who teaches {S} the {instrument}?",
            "Which instrument {be} {S} taking lessons in?",
            "What's the name of {P} music teacher?",
        ),
        comments=("The {instrument} is harder than it looks, isn't it?",),
        second_statements=(
            "{teacher} is giving up the studio and going back to {city} for good.",
            "{teacher} grew up in {city}, which explains the accent.",
        ),
        two_turn_questions=(
            "Which city is the person from who teaches {S} the {instrument}?",
            "Where does {P} {instrument} teacher come from?",
        ),
    ),
    Fact(
        "sibling",
        {
            "relative": ("sister", "brother", "cousin", "uncle", "niece"),
            "kin": v.NAMES,
            "city": v.CITIES,
            "prize": v.PRIZES,
        },
        (
            "My {relative} {kin} just moved to {city} with the kids.",
            "I'm flying to {city} to see my {relative} {kin}, who has settled there.",
            "{kin}, my {relative}, bought a flat in {city} of all places.",
        ),
        (
            "Where does {P} {relative} live?",
            "What's the name of {P} {relative}?",
            "Which city did {P} {relative} move to?",
        ),
        comments=("I have never been to {city}.", "Are you close to your {relative}?"),
        second_statements=(
            "Big news, {kin} won {prize}! We're all so proud.",
            "{kin} rang, in tears of joy: {prize}, first try.",
        ),
        two_turn_questions=("What did {P} {relative} win?", "Which success did {P} {relative} have?"),
    ),
    Fact(
        "injury",
        {"body": v.BODY, "sport": v.SPORTS, "weeks": ("two", "three", "five", "six", "eight")},
        (
            "I hurt my {body} at {sport}, and the physio wants me to rest for {weeks} weeks.",
            "No {sport} for {weeks} weeks, I did something stupid to my {body}.",
        ),
        (
            "How did {S} injure {own} {body}?",
            "How long {do} {S} have to rest because of the {body}?",
            "For how many weeks can {S} not do {sport}?",
        ),
        comments=("{sport} always looked dangerous to me.", "A sore {body} is no joke."),
    ),
    Fact(
        "flat",
        {"street": v.STREETS, "floor": ("second", "third", "fourth", "fifth", "sixth", "top")},
        (
            "The new flat is on the {floor} floor in {street}, no lift sadly.",
            "If you ever want to drop by: {street}, {floor} floor, ring twice.",
        ),
        (
            "What is the address of {P} new flat?",
            "On which floor is {P} flat?",
            "Where should people ring to drop by at {P} place?",
        ),
        comments=("I like that part of town.",),
    ),
    Fact(
        "purchase",
        {
            "item": v.ITEMS,
            "price": ("40", "85", "120", "230", "310", "475", "640", "1,150"),
            "seller": v.NAMES,
        },
        (
            "I ended up paying {price} euros for the {item}, secondhand, from somebody called {seller}.",
            "{seller} let me have the {item} for {price} euros in the end.",
        ),
        (
            "How much did {S} spend on the {item}?",
            "Who sold {S} the {item}?",
            "What was the price of {P} {item}?",
        ),
        comments=("A {item} is on my list too.", "Do you use the {item} a lot?"),
    ),
    Fact(
        "car",
        {"car": v.CARS, "part": v.PARTS},
        (
            "The garage called: the {car} needs a new {part}.",
            "The {part} went just as I was leaving the motorway, so the {car} got towed.",
        ),
        (
            "What was wrong with {P} {car}?",
            "Which part of {P} {car} had to be replaced?",
            "Why did the garage have to look at {P} {car}?",
        ),
        comments=("I'd sell the {car}, honestly.",),
    ),
    Fact(
        "booking",
        {"trip": v.TRIPS, "code": v.CODES, "city": v.CITIES},
        (
            "Got the {trip} for {city} sorted, the confirmation code is {code}.",
            "Can you note this for me: {code}, that's for the {trip} in {city}.",
        ),
        (
            "What is the reference of {P} {trip} booking?",
            "Which code {do} {S} need for the {trip}?",
        ),
        comments=("The {trip} sounds like fun.",),
    ),
    Fact(
        "childhood",
        {"city": v.CITIES, "thing": v.SPORTS},
        (
            "Growing up in {city}, I spent every free minute at {thing}.",
            "I was a kid in {city}, and all we had there was {thing}.",
        ),
        (
            "Where did {S} grow up?",
            "What did {S} do as a kid?",
            "In which town did {S} spend {own} free time when growing up?",
        ),
        comments=("Childhood memories are the best.",),
    ),
    Fact(
        "dinner",
        {"restaurant": v.RESTAURANTS, "dish": v.DISHES, "friend": v.NAMES},
        (
            "{friend} took me to {restaurant} and the {dish} there was unreal.",
            "You have to try the {dish} at {restaurant}, I went with {friend}.",
        ),
        (
            "Where did {S} have the {dish}?",
            "Who did {S} go to {restaurant} with?",
            "Which place has the {dish} that {S} told about?",
        ),
        comments=("I've been craving {dish} lately.",),
    ),
    Fact(
        "birthday",
        {
            "relative": ("daughter", "son", "mother", "father", "grandfather", "wife's sister"),
            "month": v.MONTHS,
            "day": tuple(str(n) for n in range(1, 29)),
        },
        (
            "My {relative} was born on the {day} of {month}, so we always have two parties.",
            "Don't let me forget the {day} of {month}, that's when my {relative} gets another candle.",
        ),
        ("When is the birthday of {P} {relative}?", "On which date does {P} {relative} celebrate?"),
        comments=("I never know what to give people.",),
    ),
    Fact(
        "course",
        {"subject": v.SUBJECTS, "teacher": v.NAMES, "month": v.MONTHS},
        (
            "I enrolled in an evening course in {subject}; {teacher} from work talked me into it.",
            "{teacher} and I are doing {subject} on Tuesdays, with an exam in {month}.",
        ),
        (
            "What {be} {S} studying in the evenings?",
            "Who got {S} into {subject}?",
            "Which evening class did {S} enrol in?",
        ),
        comments=("{subject}? That is ambitious.",),
    ),
    Fact(
        "damage",
        {
            "cause": v.CAUSES,
            "place": ("office", "basement", "cottage", "kitchen", "studio", "workshop", "school"),
        },
        (
            "The {place} had to be closed because of {cause}. What a mess.",
            "You won't believe it: {cause}, and the whole {place} is out of use.",
        ),
        ("Why was {P} {place} closed?", "What went wrong in {P} {place}?"),
        comments=("Hope the insurance pays for the {place}.",),
    ),
    Fact(
        "neighbour",
        {"neighbour": v.NAMES, "job": v.JOBS, "prize": v.PRIZES},
        (
            "Our new neighbour {neighbour} is a {job} and bakes at midnight.",
            "I met the neighbour from across the hall, {neighbour}, she's a {job}.",
        ),
        ("What {do} {P} neighbour do for a living?", "What is {P} neighbour called?"),
        comments=("Good neighbours are worth a lot.",),
        second_statements=(
            "Guess what, {neighbour} won {prize}!",
            "{neighbour} came home with {prize} and half the building celebrated.",
        ),
        two_turn_questions=("What did {P} neighbour win?", "Which award did the {job} next to {S} get?"),
    ),
    Fact(
        "drink",
        {"old": v.DRINKS, "new": v.DRINKS},
        ("I can't start a day without {old}.", "{old} first thing in the morning, or I'm useless."),
        ("What {do} {S} have at breakfast these days?", "What {do} {S} drink now when getting up?"),
        comments=("Mornings are not my thing.",),
        second_statements=(
            "I've gone off {old} completely, it's {new} for me now when I get up.",
            "New habit: {new} at breakfast instead of {old}.",
        ),
        is_replaced=True,
    ),
    Fact(
        "music",
        {"old": v.GENRES, "new": v.GENRES},
        ("I've had {old} on repeat all week.", "Nothing beats {old} when I'm cooking."),
        ("What kind of music {do} {S} play these days?", "Which records {do} {S} play now?"),
        comments=("My speakers are broken at the moment.",),
        second_statements=(
            "Funny, I can't stand {old} any more. These days it's all {new}.",
            "I sold my {old} records and only play {new} now.",
        ),
        is_replaced=True,
    ),
    Fact(
        "commute",
        {"old": v.COMMUTES, "new": v.COMMUTES},
        (
            "I take {old} to work, it gives me time to think.",
            "Getting to the office by {old} is the best part of my day.",
        ),
        ("How {do} {S} get to the office nowadays?", "How {do} {S} get to {own} desk now?"),
        comments=("Traffic here is a nightmare.",),
        second_statements=(
            "I've given up on {old}. It's {new} to the office from now on.",
            "Since the roadworks I use {new} instead of {old} to get to my desk.",
        ),
        is_replaced=True,
    ),
    Fact(
        "garden",
        {"plant": v.FLOWERS, "helper": v.NAMES},
        (
            "The {plant} on my balcony are taking over, thanks to the fertiliser {helper} mixed.",
            "{helper} helped me put the {plant} in, and now they're everywhere.",
        ),
        ("What {do} {S} grow on the balcony?", "Who helped {S} with the {plant}?"),
        comments=("I kill every plant I touch.",),
    ),
)
# Several turns, each with one of them; the question wants all.
MANY = (
    Fact(
        "books",
        {"one": v.BOOKS},
        (
            "I couldn't put {one} down, finished it at two in the morning.",
            "Just finished {one}. The ending, wow.",
            "My book club picked {one} and for once I read to the last page.",
            "That novel you lent me, {one}, made me cry on the train.",
        ),
        ("Which books or novels {have} {S} read to the end?", "What novels did {S} finish?"),
        comments=("I read too little these days.",),
    ),
    Fact(
        "cities",
        {"one": v.CITIES},
        (
            "Three days in {one} on a city trip and my feet are still sore.",
            "I'm just back from {one}, the light there is something else.",
            "Work sent me to {one} for a conference, I saw the hotel and nothing else.",
            "The trip to {one} was the best idea I had all year.",
        ),
        ("Which cities did {S} see on trips, for work or for fun?", "Where {have} {S} been on a trip?"),
        comments=("I need a holiday.",),
    ),
    Fact(
        "sports",
        {"one": v.SPORTS},
        (
            "I tried a new sport, {one}, with some colleagues, and I was terrible at it.",
            "Tuesday is {one} night now. It clears my head.",
            "I bought shoes for {one}, so there's no way back.",
            "{one} with the neighbours' kids, and they beat me.",
        ),
        ("Which sports {have} {S} tried?", "What sports {do} {S} do with colleagues or neighbours?"),
        comments=("I should move more.",),
    ),
    Fact(
        "volunteering",
        {"one": v.PLACES},
        (
            "I spent Saturday helping out at {one}, so rewarding.",
            "They were short of hands at {one}, so I stayed all day.",
            "I put my name down as a volunteer for {one}.",
        ),
        ("Where {have} {S} volunteered?", "Where did {S} help out as a volunteer?"),
        comments=("We all could do more for others.",),
    ),
    Fact(
        "films",
        {"one": v.FILMS},
        (
            "We saw {one} at the open-air cinema, in the rain.",
            "The film last night was {one}, and I stayed up for it.",
            "Have you seen {one}? I laughed all the way through.",
        ),
        ("Which films {have} {S} seen at the cinema or at home?", "What films did {S} stay up for?"),
        comments=("I fall asleep in front of every film.",),
    ),
    Fact(
        "cooking",
        {"one": v.DISHES},
        (
            "I made {one} from scratch, and the kitchen looks like a battlefield.",
            "Tonight's kitchen experiment was {one}, and nobody died.",
            "My first {one} came out a bit salty, but they ate it.",
        ),
        ("What dishes {have} {S} made in the kitchen?", "Which recipes did {S} make from scratch?"),
        comments=("Cooking relaxes me.",),
    ),
)


@dataclass(frozen=True)
class Answer:
    """A fact that only makes sense as the reply to a question."""

    question: str
    reply: str
    slots: dict[str, tuple[str, ...]]
    # Frames of the later questions for the fact.
    later_questions: tuple[str, ...]


ANSWERS = (
    Answer(
        "How old is your father now?",
        "{n} in May, and still climbing ladders.",
        {"n": ("61", "64", "68", "72", "77", "80")},
        ("How old is {P} father?", "What is the age of {P} father?"),
    ),
    Answer(
        "Which team do you support?",
        "{city} United, always have.",
        {"city": v.CITIES},
        ("Which team {do} {S} support?", "What is {P} team?"),
    ),
    Answer(
        "What colour did you paint the hallway?",
        "A kind of {colour}. It looks better than it sounds.",
        {"colour": ("mustard", "teal", "lilac", "rust", "sage green", "plum", "salmon")},
        ("What colour is {P} hallway?", "Which colour did {S} choose for the hallway?"),
    ),
    Answer(
        "Where did you two meet, you and {kin}?",
        "On a {trip}, of all places.",
        {"kin": v.NAMES, "trip": v.TRIPS},
        ("Where did {S} meet {kin}?", "How {do} {S} know {kin}?"),
    ),
    Answer(
        "Who is looking after the {animal} while you're away?",
        "{kin}, from downstairs.",
        {"animal": v.ANIMALS, "kin": v.NAMES},
        ("Who looks after {P} {animal} during the holidays?", "Who takes the {animal} when {S} {be} away?"),
    ),
    Answer(
        "What did you order at {restaurant}?",
        "The {dish}. Twice.",
        {"restaurant": v.RESTAURANTS, "dish": v.DISHES},
        ("What did {S} eat at {restaurant}?", "Which order did {S} place at {restaurant}?"),
    ),
    Answer(
        "What was the name of that {job} you liked so much?",
        "{kin}. Lovely person.",
        {"job": v.JOBS, "kin": v.NAMES},
        ("What is the {job} called that {S} liked?", "Which {job} did {S} get on with so well?"),
    ),
    Answer(
        "What size do you take in {sport} shoes?",
        "{n}, and wide.",
        {"sport": v.SPORTS, "n": ("37", "39", "41", "43", "45")},
        ("What is {P} shoe size?", "Which size of shoes {do} {S} wear for {sport}?"),
    ),
    Answer(
        "When is the deadline for the {subject} thing?",
        "The {day} of {month}.",
        {"subject": v.SUBJECTS, "day": ("3", "9", "12", "17", "21", "26"), "month": v.MONTHS},
        (
            "What is the deadline of {P} {subject} course?",
            "When {do} {S} have to hand in the {subject} work?",
        ),
    ),
    Answer(
        "What are you giving {kin} for the wedding?",
        "A {item}, but don't tell.",
        {"kin": v.NAMES, "item": v.ITEMS},
        ("What present did {S} get for the wedding of {kin}?", "What {be} {S} giving {kin}?"),
    ),
    Answer(
        "How did you get that scar on your {body}?",
        "{sport}, when I was nine.",
        {"body": v.BODY, "sport": v.SPORTS},
        ("Where does the scar on {P} {body} come from?", "What caused the scar that {S} {have}?"),
    ),
    Answer(
        "And which of the films won in the end?",
        "{film}, by one vote.",
        {"film": v.FILMS},
        ("Which of the films won?", "What film got the most votes, the one that won?"),
    ),
)

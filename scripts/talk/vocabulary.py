"""Words for the generated chats, all invented: what the facts of a person may be about."""

from __future__ import annotations


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in " ".join(text.split()).split(",") if part.strip())


NAMES = _list(
    """Anneke, Tobias, Mireille, Jonas, Priya, Callum, Yusra, Dario, Freya, Mateo, Ines, Ronan, Leila, Oskar,
    Bettina, Kofi, Noemi, Stellan, Amara, Felix, Greta, Hamid, Ilse, Joaquin, Katya, Lorcan, Maren, Nuno, Odette, Pavel,
    Quentin, Rosa, Sanna, Tariq, Ulla, Viggo, Wanda, Xenia, Yannick, Zora, Alba, Bruno, Carys, Dmitri, Elspeth, Farid,
    Gwen, Hugo, Imogen, Jasper, Keiko, Ludo, Mina, Nils, Orla, Piet, Rafael, Signe, Thea, Umar"""
)
PET_NAMES = _list(
    """Biscuit, Pickle, Waffles, Mochi, Truffle, Pepper, Noodle, Clover, Sprout, Ziggy, Maple, Tofu, Marble, Juniper,
    Peanut, Cricket, Rolo, Nimbus, Figgy, Otto, Basil, Saffron, Widget, Domino, Echo, Bramble"""
)
ANIMALS = _list(
    """kitten, greyhound, parrot, rabbit, tortoise, ferret, guinea pig, hedgehog, beagle, canary, gecko, terrier,
    cockatiel, spaniel, hamster"""
)
FOODS = _list(
    """shrimp, walnuts, strawberries, mango, sesame, celery, mussels, peaches, kiwi, soy milk, cashews, mustard,
    hazelnuts, crab, lupin flour"""
)
COMPANIES = _list(
    """Northwind Freight, Blue Heron Studios, Alder & Finch, Castellan Energy, Pinecrest Labs, Marlowe Publishing,
    Tidewater Robotics, Harrow Bank, Lumen Theatre, Okapi Software, Silverlake Clinic, Fernhill School, Brightwell
    Airlines, Quarry Street Bakery, Osprey Insurance"""
)
JOBS = _list(
    """translator, set designer, paramedic, data analyst, pastry chef, site engineer, copy editor, school
    counsellor, sound technician, surveyor, lab assistant, tour guide, florist, locksmith, archivist"""
)
INSTRUMENTS = _list(
    "cello, banjo, clarinet, harp, accordion, viola, trumpet, ukulele, oboe, drums, mandolin, flute, saxophone"
)
CITIES = _list(
    """Lisbon, Ghent, Tromso, Bologna, Valencia, Krakow, Halifax, Perth, Busan, Cusco, Tallinn, Porto, Leipzig,
    Marrakesh, Dublin, Split, Nairobi, Kyoto, Montreal, Antwerp, Sofia, Zagreb, Riga, Cordoba, Bergen, Graz, Utrecht,
    Malmo, Cardiff, Lyon, Seville, Basel, Hobart, Adelaide, Oaxaca, Quito, Tbilisi, Hanoi"""
)
STREETS = _list(
    """Willow Lane, Canal Street, Foundry Row, Mercer Avenue, Orchard Road, Saint Agnes Square, Harbour View,
    Copperfield Close, Lantern Hill, Old Mill Road, Kestrel Court, Vine Street, Bishop's Gate, Saddler Row"""
)
BODY = _list("ankle, wrist, knee, shoulder, elbow, back, hip, thumb, neck")
SPORTS = _list(
    """bouldering, badminton, rowing, fencing, squash, paddle boarding, skateboarding, handball, archery, trampolining,
    ice hockey, judo, surfing, curling, volleyball, roller derby, kayaking, table tennis"""
)
BOOKS = _list(
    """The Salt Orchard, Nine Winters, A Map of Quiet Rooms, The Clockmaker's Debt, Under Tin Skies, Letters to the
    Tide, The Glass Ferry, Hollow Kingdom Road, The Last Beekeeper, Paper Lions, Moths at Noon, The Borrowed Coast,
    Ember and Ash Street, The Cartographer's Son, Small Rain, Ten Thousand Lanterns, The Weight of Snow,
    Harbour of Crows"""
)
FILMS = _list(
    """Midnight Tram, The Paper Astronaut, Seven Doors Down, Copper Sun, The Lighthouse Thief, Velvet Static, Bread and
    Thunder, Goodbye Mr. Lark, The Long Detour, Static Hearts, Orchid Season, The Violin Heist"""
)
RESTAURANTS = _list(
    """Casa Nuna, The Rusty Ladle, Saffron Alley, Le Petit Four, Bluefin Corner, Mama Odile's, Kitchen 47, The Crooked
    Fork, Taverna Lykos, Lotus Garden, Smoke & Rye, Pasta Madre, The Hungry Heron"""
)
DISHES = _list(
    """gnocchi, ramen, lamb tagine, pierogi, paella, dumplings, shakshuka, mushroom risotto, jollof rice, moussaka,
    laksa, goulash, ceviche, ratatouille, pad thai, borscht, enchiladas, fish curry, lasagne, bibimbap"""
)
ITEMS = _list(
    """sewing machine, road bike, espresso machine, standing desk, telescope, film camera, leather armchair, record
    player, tent, food processor, piano stool, winter coat, drone, dishwasher, surfboard, bookcase, air fryer"""
)
CARS = _list("hatchback, camper van, old Volvo, pickup, estate car, scooter, convertible, minivan, motorbike")
PARTS = _list(
    "clutch, alternator, gearbox, exhaust, radiator, fuel pump, starter motor, timing belt, brake line"
)
TRIPS = _list("ferry, sleeper train, cabin, hostel, flight, campsite, rental car, guesthouse, cruise")
DRINKS = _list(
    "oolong tea, black coffee, kombucha, hot chocolate, chai, espresso, peppermint tea, oat latte, cider"
)
GENRES = _list(
    "jazz, heavy metal, opera, country, techno, baroque music, reggae, folk, hip hop, blues, synth pop"
)
COMMUTES = _list("the tram, my bike, the car, the ferry, a scooter, the bus, the night train, walking")
PLACES = _list(
    """the animal shelter, a soup kitchen, the library's reading hour, a community garden, the lifeboat station, a
    refugee centre, the food bank, a repair cafe, the hospice, a literacy project, the botanical garden"""
)
PRIZES = _list(
    """a poetry prize, the regional chess cup, a baking contest, a science medal, the photo competition, a scholarship,
    the half marathon, a grant for young artists, the pub quiz final, a design award"""
)
CAUSES = _list(
    "flooding, a power cut, a burst pipe, wasps, a gas leak, a strike, mould, a broken boiler, a lost key, snow"
)
FLOWERS = _list(
    "dahlias, tomatoes, lavender, sunflowers, chillies, rosemary, pumpkins, tulips, beans, figs, basil"
)
MONTHS = _list(
    "January, February, March, April, May, June, July, August, September, October, November, December"
)
SUBJECTS = _list(
    """Portuguese, sign language, Korean, ceramics history, tax law, Latin, first aid, bookkeeping, statistics,
    Norwegian, welding, screenwriting, astronomy, animal care"""
)
CODES = _list(
    "K71203, QM2080, X42957, ZH3834, RP4711, T25588, WD6465, B97342, VC8219, J59096, LN6A41, YG0318"
)
# What a person did on one day: the statement, and the words in which a later question names it.
EVENTS = (
    ("I signed up for a pottery workshop and got clay everywhere", "take the pottery class"),
    ("we got the keys to the new place", "move to the new place"),
    ("I ran the harbour half marathon without stopping once", "run the long race by the harbour"),
    ("I handed in my notice and walked out grinning", "hand in the notice at work"),
    ("the whole family came over for a barbecue in the yard", "host the barbecue for the family"),
    ("I had my wisdom teeth taken out", "lose the wisdom teeth"),
    ("we went up in a hot-air balloon over the vineyards", "fly in a balloon"),
    ("I gave a talk about coral reefs at the town hall", "speak about reefs in public"),
    ("I finally passed my driving test", "get the driving licence"),
    ("I adopted two hens from a farm rescue", "adopt the hens"),
    ("we planted thirty birch trees with the neighbours", "plant trees"),
    ("I cut my hair really short and donated the rest", "cut off the long hair"),
    ("our band played its first gig in a cellar bar", "perform on stage for the first time"),
    ("somebody broke into the garage and took the tools", "have the burglary"),
    ("I tried paragliding off the ridge", "go paragliding"),
    ("we painted the nursery a pale green", "decorate the nursery"),
    ("I went to a support group for people who lost a parent", "attend the grief group"),
    ("I met my biological aunt for the first time", "meet the long-lost aunt"),
    ("I sold the old sailing boat to a student", "sell the boat"),
    ("we camped by the glacier lake under the meteor shower", "see the shooting stars"),
    ("I defended my thesis in front of a very grumpy committee", "finish the thesis"),
    ("I joined a choir that rehearses in a disused church", "start singing with the choir"),
    ("my grandmother's quilt went on show at the museum", "exhibit the quilt"),
    ("we took the kids to the aquarium and saw the otters", "visit the aquarium"),
    ("I organised a charity bake sale for the fire station", "raise money for charity with cakes"),
    ("I got stuck in the lift for two hours with a tuba player", "get trapped in the lift"),
    ("the council approved my plans for the greenhouse", "get permission for the greenhouse"),
    ("I built a treehouse with my nephew", "build the treehouse"),
    ("we celebrated ten years of marriage with a picnic", "have the wedding anniversary"),
    ("I started training as a volunteer firefighter", "begin the firefighter training"),
    ("I lost my passport at the airport and missed the plane", "miss the flight"),
    ("I won the village tart contest, first prize", "win with the tart"),
    ("we watched the eclipse from the roof", "see the eclipse"),
    ("I had my first session with a therapist", "start seeing the therapist"),
    ("I released my podcast's pilot episode", "publish the podcast"),
    ("the dentist fitted my braces", "get braces"),
    ("I moderated a panel on city cycling", "lead the panel about bikes in the city"),
    ("we held a naming party for the twins", "celebrate the twins"),
    ("I found my great-grandfather's letters in the attic", "discover the old letters"),
    ("I took the exam for the sommelier certificate", "sit the wine exam"),
)
# The words for an event's day, and how many days before the session it was.
WHENS = (
    ("yesterday", 1),
    ("last night", 1),
    ("this morning", 0),
    ("two days ago", 2),
    ("last week", 7),
    ("last weekend", 5),
    ("the day before yesterday", 2),
    ("a few days back", 4),
    ("last month", 30),
    ("earlier today", 0),
)
OPENINGS = (
    "Hey {other}! Good to hear from you. How have you been?",
    "Hi {other}, long time no talk! What have you been up to?",
    "Morning {other}! How's everything going?",
    "{other}! I was just thinking of you. How are things?",
    "Hello {other}, hope your week is going well.",
    "Hey, it's been a while! How's life treating you?",
    "Hi there {other}! Anything new?",
    "Evening {other}. Long day here, how was yours?",
)
REPLIES = (
    "Hey {other}! Doing alright, thanks, a bit tired from work. And you?",
    "Hi {other}! Pretty good, busy as always. How about you?",
    "Great to hear from you, {other}! I can't complain.",
    "{other}, hi! It has been a hectic week, but a good one.",
    "Oh hey! All fine here, just got in. What's up with you?",
    "Hi! Not bad at all. Tell me what's going on with you.",
)
CLOSINGS = (
    ("Alright, I have to run. Talk soon!", "Bye {other}, take care!"),
    ("I should get dinner started. Great chatting with you!", "Same here! Catch you later."),
    ("Thanks for listening, {other}. It means a lot.", "Anytime! That's what friends are for."),
    ("My phone is dying, speak to you later!", "No worries, have a lovely evening!"),
    ("Okay, back to work for me.", "Good luck, see you!"),
)
REACTIONS = (
    "Wow, that's great!",
    "Oh no, really?",
    "That sounds amazing.",
    "Haha, I can picture it.",
    "Good for you!",
    "That must have been something.",
    "I'm so happy for you!",
    "Interesting, I didn't know that.",
    "Ha, typical.",
    "Thanks for telling me.",
    "I totally get that.",
    "No way!",
)
FOLLOW_UPS = (
    "How did it go?",
    "How do you feel about it?",
    "What happened then?",
    "Are you happy with it?",
    "What made you decide that?",
    "How did everybody take it?",
    "Was it what you expected?",
)
DETAILS = (
    "It took longer than I expected, but I'd do it again.",
    "Honestly I was nervous at first, and then it was fine.",
    "My friends keep teasing me about it.",
    "I took a few pictures, I'll show you some time.",
    "It makes me feel calmer, in a way.",
    "I still can't quite believe it.",
    "It was cheaper than I feared.",
    "Everybody was really supportive.",
    "I've learned a lot from it, to be honest.",
)
ACKS = (
    "Thanks!",
    "Thanks, {other}.",
    "Yeah, exactly.",
    "Right?",
    "I know!",
    "Cheers, I appreciate it.",
    "Sure thing.",
    "Absolutely.",
    "Haha, yes.",
    "Okay, cool.",
)
PROMPTS = (
    "Anything new on your end?",
    "What about you?",
    "So, tell me your news.",
    "What else is going on?",
    "And how was your week?",
    "Did you get up to anything fun?",
)
NO_ANSWERS = (
    "I'm not sure, to be honest.",
    "Let me think about that.",
    "Good question!",
    "I don't recall the details.",
    "Hmm, I would have to look that up.",
    "Sorry, I can't say.",
    "Noted.",
)

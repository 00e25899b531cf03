"""Finding the conversation: one test for each way in which clients send their history.

Each draws the stored tree and says what stands, what is confirmed and what goes upstream. Most hold with an id of the
client's own and without one; where they differ, the test says how.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gateway.core.conversation.wire_message import WireMessage
from tests.core.conversation.keyed import both
from tests.core.conversations import (
    World,
    assistant,
    call,
    extends_prompt,
    outline,
    picture,
    result,
    system,
    user,
)

# -- resent as it was


@both
def test_a_full_resend_goes_on(world: World, key: str | None) -> None:
    history = world.chat(("my cat is Tom", "Nice cat."), key=key)
    first = world.begin(history[:1], key)
    then = world.say([*history, user("bye now")], "Bye.", key)
    assert world.tree() == outline("""
        continued: my cat is Tom > Nice cat.
          active: bye now > Bye.
    """)
    assert then.is_untouched
    assert extends_prompt(then, first)
    assert world.active() == ["my cat is Tom", "Nice cat.", "bye now", "Bye."]
    assert world.confirmed() == ["my cat is Tom", "Nice cat."]
    world.wait(200)
    assert world.confirmed() == world.active()


@both
@pytest.mark.parametrize("kept", [3, 5], ids=["keeps 3", "keeps 5"])
def test_messages_that_a_trimmed_list_left_out_are_put_before_it(
    filling_world: World, key: str | None, kept: int
) -> None:
    history: list[WireMessage] = []
    last = None
    for k in range(6):
        history.append(user(f"step {k}"))
        request = filling_world.begin(history[-kept:], key)
        assert [m for _, m in request.sent] == history
        assert [line for line in request.lines if line.startswith("+")] == [
            f"+ {m['role']}: {m['content']}" for m in history[:-kept]
        ]
        assert last is None or extends_prompt(request, last)
        last = filling_world.finish(request, f"step {k} is done")
        history.append(assistant(f"step {k} is done"))
    assert filling_world.tree() == "\n".join(
        f"{'  ' * k}{'continued' if k < 5 else 'active'}: step {k} > step {k} is done" for k in range(6)
    )


def test_a_short_reply_to_two_messages_is_evidence_only_under_an_id(filling_world: World) -> None:
    for key in ("c1", None):
        history = filling_world.chat(("step 0", "is done"), ("step 1", "so is this"), key=key)
        request = filling_world.begin([history[-1], user("step 2")], key)
        left_out = ["+ user: step 0", "+ assistant: is done", "+ user: step 1"] if key else []
        assert request.lines == [*left_out, "assistant: so is this", "user: step 2"]


def test_without_an_id_a_long_reply_is_evidence_alone(filling_world: World) -> None:
    said = "Nobody else has ever written this sentence word for word."
    filling_world.chat(("step 0", "is done"), ("step 1", said))
    request = filling_world.begin([assistant(said), user("step 2")])
    assert request.lines == [
        "+ user: step 0",
        "+ assistant: is done",
        "+ user: step 1",
        f"assistant: {said}",
        "user: step 2",
    ]


def test_two_chats_that_are_equally_near_do_not_match(world: World) -> None:
    said = "Nobody else has ever written this sentence word for word."
    for head in ("my word is W1", "my word is W2"):
        world.chat((head, f"Noted: {head}."), ("go on", said), ("more", "More."), ("bye", "Bye."))
    rewritten = [user("the word was another"), assistant("Was it?"), user("go on"), assistant(said)]
    world.say([*rewritten, user("and now?")], "Now.")
    assert world.tree().splitlines()[-1].startswith("active: the word was another")


@both
def test_a_clock_in_the_system_prompt_changes_nothing(world: World, key: str | None) -> None:
    history: list[WireMessage] = []
    for k in range(3):
        history.append(user(f"key {k}"))
        clock = system(f"The time is 12:0{k}")
        request = world.say([clock, *history], "Ok.", key)
        assert [m for _, m in request.sent] == [clock, *history]
        history.append(assistant("Ok."))
    assert world.tree() == outline("""
        continued: key 0 > Ok.
          continued: key 1 > Ok.
            active: key 2 > Ok.
    """)
    assert not any("12:0" in text for text in world.active())


@both
def test_a_retry_is_one_turn(world: World, key: str | None) -> None:
    history = world.chat(("hello there", "Good day."), key=key)
    asked = [*history, user("my dog is Rex")]
    world.cancel(world.begin(asked, key))
    for _ in range(2):
        again = world.say(asked, "Nice dog.", key, retry=True)
        assert again.is_untouched
    assert world.tree() == outline("""
        continued: hello there > Good day.
          cancelled: my dog is Rex
          active: my dog is Rex > Nice dog.
    """)
    assert world.active().count("my dog is Rex") == 1
    assert world.confirmed() == ["hello there", "Good day."]


# -- asked again


@both
def test_a_regenerated_reply_replaces_the_old_one(world: World, key: str | None) -> None:
    history = world.chat(("hello there", "Good day."), key=key)
    asked = [*history, user("name for my parrot?")]
    old, new = world.say(asked, "OLD", key), world.say(asked, "NEW", key)
    assert old.lines == new.lines
    assert world.tree() == outline("""
        continued: hello there > Good day.
          superseded: name for my parrot? > OLD
          active: name for my parrot? > NEW
    """)
    world.say([*asked, assistant("NEW"), user("good")], "Yes.", key)
    assert world.confirmed() == ["hello there", "Good day.", "name for my parrot?", "NEW"]


@both
def test_going_on_from_the_reply_that_was_replaced_brings_it_back(world: World, key: str | None) -> None:
    history = world.chat(("hello there", "Good day."), key=key)
    asked = [*history, user("name for my parrot?")]
    world.say(asked, "OLD", key)
    world.say(asked, "NEW", key)
    world.say([*asked, assistant("OLD"), user("I prefer the first")], "Fine.", key)
    assert world.tree() == outline("""
        continued: hello there > Good day.
          continued: name for my parrot? > OLD
            active: I prefer the first > Fine.
          superseded: name for my parrot? > NEW
    """)


@both
@pytest.mark.parametrize("again", ["where do I eat", "where do I sleep"], ids=["regenerated", "edited"])
def test_after_an_empty_reply_a_question_asked_again_replaces_the_old_one(
    world: World, key: str | None, again: str
) -> None:
    """A model that used up its tokens in thought, or refused."""
    history = world.chat(("hi", "Hello."), ("plan a trip", ""), ("where do I eat", "At Ada's."), key=key)
    world.wait(1)
    world.say([*history[:4], user(again)], "By the river.", key)
    assert world.tree() == outline(f"""
        continued: hi > Hello.
          continued: plan a trip > {""}
            superseded: where do I eat > At Ada's.
            active: {again} > By the river.
    """)


@both
def test_a_regenerated_first_reply_stays_in_its_conversation(world: World, key: str | None) -> None:
    messages = [user("name for my parrot?")]
    world.say(messages, "OLD", key)
    world.say(messages, "NEW", key)
    assert world.tree() == outline("""
        superseded: name for my parrot? > OLD
        active: name for my parrot? > NEW
    """)


@both
def test_an_edit_of_an_earlier_message_leaves_what_was_continued(world: World, key: str | None) -> None:
    history = world.chat(("one", "r1"), ("two", "r2"), ("three", "r3"), key=key)
    edited = world.say([*history[:2], user("two EDITED")], "r2b", key)
    assert edited.is_untouched
    assert world.tree() == outline("""
        continued: one > r1
          continued: two > r2
            active: three > r3
          active: two EDITED > r2b
    """)
    world.say([*history[:2], user("two EDITED"), assistant("r2b"), user("more")], "r3b", key)
    assert world.confirmed() == ["one", "r1", "two", "r2", "two EDITED", "r2b"]


@both
def test_an_edit_of_the_last_message_replaces_it(world: World, key: str | None) -> None:
    history = world.chat(("one", "r1"), ("all WRONG", "r2"), key=key)
    world.say([*history[:2], user("now RIGHT")], "r2b", key)
    assert world.tree() == outline("""
        continued: one > r1
          superseded: all WRONG > r2
          active: now RIGHT > r2b
    """)


@both
def test_an_edit_replaces_what_was_dated_before_the_clock_was_put_back(world: World, key: str | None) -> None:
    world.now = year = 365 * 86_400.0
    history = world.chat(("hi", "Hello."), ("my sister is Bertha", "Noted."), key=key)
    world.now -= year
    world.say([*history[:2], user("my sister is Clara")], "I see.", key)
    assert world.tree() == outline("""
        continued: hi > Hello.
          superseded: my sister is Bertha > Noted.
          active: my sister is Clara > I see.
    """)


@pytest.mark.parametrize(("key", "state"), [("c1", "superseded"), (None, "active")], ids=["named", "found"])
def test_an_edit_after_the_idle_time_replaces_only_under_an_id(
    world: World, key: str | None, state: str
) -> None:
    history = world.chat(("one", "r1"), ("all WRONG", "r2"), key=key)
    world.wait(1000)
    world.say([*history[:2], user("now RIGHT")], "r2b", key)
    assert f"  {state}: all WRONG > r2" in world.tree().splitlines()


def test_an_edited_first_message_stands_once_it_is_continued(world: World) -> None:
    world.chat(("alpha WRONG", "r1"), key="c1")
    world.chat(("beta RIGHT", "r1b"), ("on", "r2"), key="c1")
    assert world.tree() == outline("""
        detached: alpha WRONG > r1
        continued: beta RIGHT > r1b
          active: on > r2
    """)


# -- heads and templates


@both
@pytest.mark.parametrize("reply", ["answer {}", "Ok."], ids=["telling replies", "replies all alike"])
def test_a_template_on_the_last_message_only(world: World, key: str | None, reply: str) -> None:
    history: list[WireMessage] = []
    for k, question in enumerate(("my boat is Ada", "the capital of Peru", "thanks")):
        wrapped = user(f"Documents: DOC{k} lorem.\nQuestion: {question}")
        assert world.say([*history, wrapped], reply.format(k), key).is_untouched
        history += [user(question), assistant(reply.format(k))]
    said = [reply.format(k) for k in range(3)]
    assert (
        world.tree()
        == outline(f"""
        continued: my boat is Ada > {said[0]}
          continued: the capital of Peru > {said[1]}
            active: Documents: DOC2 lorem.
    """)
        + f"\nQuestion: thanks > {said[2]}"
    )
    assert world.confirmed() == ["my boat is Ada", said[0], "the capital of Peru", said[1]]


@both
def test_the_clients_own_summary_in_place_of_the_head(world: World, key: str | None) -> None:
    history = world.chat(*((f"fact {k}", f"reply number {k}") for k in range(4)), key=key)
    request = world.say([user("Summary: four facts"), *history[-4:], user("next")], "Next.", key)
    assert request.is_untouched
    assert world.tree().splitlines()[-2:] == [
        "      continued: fact 3 > reply number 3",
        "        active: next > Next.",
    ]
    assert not any("Summary" in text for text in world.active())


@both
@pytest.mark.parametrize("kept", [1, 2, 3, 5])
@pytest.mark.parametrize("by", [user, assistant])
def test_the_clients_own_summary_takes_no_turns_place(
    world: World, key: str | None, kept: int, by: Callable[[str], WireMessage]
) -> None:
    """Frameworks cut anywhere, so that a reply may be the first that is left after the summary."""
    history = world.chat(
        *((f"fact {k}", f"this is the reply number {k} of all that I gave") for k in range(4)), key=key
    )
    summary = by("Here is a summary of the conversation to date: fact 0, fact 1, fact 2 and fact 3.")
    world.say([summary, *history[-kept:], user("next")], "Next.", key)
    told = [
        text for k in range(4) for text in (f"fact {k}", f"this is the reply number {k} of all that I gave")
    ]
    assert world.active() == [*told, "next", "Next."]


@both
@pytest.mark.parametrize("kept", [2, 4, 6])
def test_the_answer_to_the_clients_own_summary_takes_no_replys_place(
    world: World, key: str | None, kept: int
) -> None:
    """Coding agents say the summary in the user's place, with a short answer after it."""
    history = world.chat(
        *((f"fact {k}", f"this is the reply number {k} of all that I gave") for k in range(4)), key=key
    )
    summary = [user("I spoke to you previously about a number of things: facts."), assistant("Ok.")]
    world.say([*summary, *history[-kept:], user("next")], "Next.", key)
    told = [
        text for k in range(4) for text in (f"fact {k}", f"this is the reply number {k} of all that I gave")
    ]
    assert world.active() == [*told, "next", "Next."]


@both
def test_the_clients_own_summary_takes_no_questions_place_within_its_turn(
    world: World, key: str | None
) -> None:
    said = [user("What is the weather in all capitals?")]
    for k in range(4):
        asked = assistant(None, call(str(k), arguments=f'{{"n":{k}}}'))
        world.say(said, asked, key)
        said += [asked, result(str(k), f"sunny {k}")]
    summary = user("A summary: 'What is the weather in all capitals?' It was asked for two of them.")
    world.say([summary, *said[-4:]], "Sunny everywhere.", key)
    assert world.active() == ["What is the weather in all capitals?", "Sunny everywhere."]


def test_a_reply_that_comes_back_named_is_not_that_of_another_conversation(world: World) -> None:
    """Agent Framework names an agent's replies from the second request on. Greetings are alike everywhere."""
    greeting = "Hello! How can I assist you today, my friend?"
    named: WireMessage = {**assistant(greeting), "name": "helper"}
    world.say([user("Hi")], greeting)
    world.say([user("Hi"), named, user("I live in Turku")], "Nice.")
    world.say([user("Good morning")], greeting)
    world.say([user("Good morning"), named, user("I live in Oslo")], "Fine.")
    assert world.tree() == outline("""
        continued: Hi > Hello! How can I assist you today, my friend?
          active: I live in Turku > Nice.
        --
        continued: Good morning > Hello! How can I assist you today, my friend?
          active: I live in Oslo > Fine.
    """)


@both
def test_a_turn_takes_none_of_the_turn_before_it_where_the_clients_own_messages_moved(
    world: World, key: str | None
) -> None:
    """aider shows its files before what was said since the last commit, and reports that commit."""
    files = [user("These are the files: a.py"), assistant("Ok, I will change those.")]
    rules, committed = "\nWrite blocks.", [user("I committed the changes."), assistant("Ok.")]
    turns = [(f"Make change {k}", f"This is the change number {k} that you asked for.") for k in range(4)]
    done: list[WireMessage] = []
    for k, (asked, changed) in enumerate(turns):
        world.say([*done, *files, user(asked + rules)], changed, key)
        done += [user(asked), assistant(changed), *committed]
        remark, answer = f"I like it {k}", f"I am glad to hear that you like it {k}."
        world.say([*done, *files, user(remark + rules)], answer, key)
        world.say(
            [*done, *files, user(remark), assistant(answer), user(f"And {k}?" + rules)], f"And {k}.", key
        )
        done += [user(remark), assistant(answer), user(f"And {k}?"), assistant(f"And {k}.")]
    told = [text for text in world.active() if text.startswith(("Make", "This is"))]
    assert [text.removesuffix(rules) for text in told] == [text for turn in turns for text in turn]


@both
@pytest.mark.parametrize(
    "before", [[], [user("I have a bike"), assistant("What kind of a bike do you have, if I may ask?")]]
)
def test_a_message_without_words_takes_no_questions_place(
    world: World, key: str | None, before: list[WireMessage]
) -> None:
    """Mastra puts one before a reply that begins its list."""
    said, replied = "It has twelve gears.", "Twelve gears are enough for any hill there is."
    if before:
        world.say(before[:1], str(before[1]["content"]), key)
    world.say([*before, user(said)], replied, key)
    world.say([user("."), assistant(replied), user("and a bell")], "Ring it.", key)
    told = [str(message["content"]) for message in before]
    assert world.active() == [*told, said, replied, "and a bell", "Ring it."]


def shots() -> list[WireMessage]:
    return [
        user("My name is Zoe"),
        assistant("Extracted: name."),
        user("I am 30"),
        assistant("Extracted: age."),
    ]


@both
def test_a_fixed_few_shot_head_is_nobodys_memory(world: World, key: str | None) -> None:
    for k in range(3):
        turns = ((f"I like tea {k}", f"Extracted: tea {k}."), ("Bye", "Bye."))
        world.chat(*turns, key=f"c{k}" if key else None, start=shots())
    head = "My name is Zoe / Extracted: name. / I am 30 / Extracted: age."
    assert world.tree() == "\n--\n".join(
        f"continued: {head} / I like tea {k} > Extracted: tea {k}.\n  active: Bye > Bye." for k in range(3)
    )
    assert world.active() == [
        text for k in range(3) for text in (f"I like tea {k}", f"Extracted: tea {k}.", "Bye", "Bye.")
    ]


@pytest.mark.parametrize(
    "answer", ["Extracted: age.", "Extracted: age, and nothing else worth a field of its own."]
)
def test_a_few_shot_answer_that_the_model_repeats_is_no_evidence(world: World, answer: str) -> None:
    for k in range(3):
        world.say([*shots()[:3], assistant(answer), user(f"born in {1970 + k}")], answer)
    assert world.tree().count("--") == 2
    assert world.tree().count("active:") == 3


@both
def test_a_turn_under_way_that_was_not_stored_when_it_began_is_the_users_own(
    world: World, key: str | None
) -> None:
    """An answer for a program leaves nothing, and may be a call whose result comes next."""
    messages = [
        user("Which city is wettest? I live in Cork."),
        assistant(None, call("1")),
        result("1", "wet"),
    ]
    world.say([*shots(), *messages], "Cork is.", key)
    assert world.active() == ["Which city is wettest? I live in Cork.", "Cork is."]


@both
def test_an_imported_history_is_shown_once_it_was_continued(world: World, key: str | None) -> None:
    start = [user("my boat is Ada"), assistant("A boat.")]
    history = world.chat(("one", "r1"), key=key, start=start)
    world.wait(900)
    assert world.active() == world.confirmed() == ["one", "r1"]
    world.chat(("two", "r2"), key=key, start=history)
    assert world.active() == ["my boat is Ada", "A boat.", "one", "r1", "two", "r2"]


@both
def test_an_opening_that_was_cancelled_here_was_not_made_elsewhere(world: World, key: str | None) -> None:
    """Nothing is known of a reply that came while the first request was let go; the question was asked here."""
    messages = [user("I like tea")]
    world.cancel(world.begin(messages, key))
    world.say([*messages, assistant("Noted."), user("and coffee")], "Both.", key)
    assert world.active() == ["I like tea", "Noted.", "and coffee", "Both."]


def test_a_greeting_of_the_app_that_the_model_also_said_elsewhere(world: World) -> None:
    greeting = "Hello! How can I help?"
    world.chat(("Hi", greeting), ("my pin is 1234", "Noted."), ("say that again", greeting))
    assert world.say([assistant(greeting), user("what is the weather?")], "Fine.").is_untouched
    assert world.tree() == outline("""
        continued: Hi > Hello! How can I help?
          continued: my pin is 1234 > Noted.
            active: say that again > Hello! How can I help?
        --
        active: Hello! How can I help? / what is the weather? > Fine.
    """)


@both
def test_another_image_with_the_same_words_is_another_question(world: World, key: str | None) -> None:
    history = world.chat(("hello there", "Good day."), key=key)
    world.say([*history, picture("what is this?", "data:1")], "A cat.", key)
    world.say([*history, picture("what is this?", "data:2")], "A dog.", key)
    assert world.tree() == outline("""
        continued: hello there > Good day.
          superseded: what is this? > A cat.
          active: what is this? > A dog.
    """)


def test_another_image_opens_another_conversation(world: World) -> None:
    world.say([picture("what is this?", "data:1")], "A cat.")
    world.say([picture("what is this?", "data:2")], "A dog.")
    assert world.tree() == outline("""
        active: what is this? > A cat.
        --
        active: what is this? > A dog.
    """)


# -- append mode


def test_append_mode_puts_the_conversation_before_the_message(filling_world: World) -> None:
    last = None
    for k in range(3):
        request = filling_world.say([user(f"word {k}")], f"got {k}", "c1", append=True)
        earlier = [line for j in range(k) for line in (f"+ user: word {j}", f"+ assistant: got {j}")]
        assert request.lines == [*earlier, f"user: word {k}"]
        assert last is None or extends_prompt(request, last)
        last = request
    filling_world.cancel(filling_world.begin([user("lost?")], "c1", append=True))
    request = filling_world.begin([user("and now?")], "c1", append=True)
    assert request.lines[-2:] == ["+ user: lost?", "user: and now?"]
    filling_world.finish(request, "Now.")
    assert filling_world.tree() == outline("""
        continued: word 0 > got 0
          continued: word 1 > got 1
            continued: word 2 > got 2
              cancelled: lost?
              active: lost? / and now? > Now.
    """)
    again = filling_world.say([user("and now?")], "Again.", "c1", append=True, retry=True)
    assert again.lines == request.lines
    assert filling_world.active()[-3:] == ["lost?", "and now?", "Again."]


def test_a_cancelled_message_that_is_sent_again_in_append_mode_is_there_once(filling_world: World) -> None:
    filling_world.say([user("one")], "r1", "c1", append=True)
    filling_world.cancel(filling_world.begin([user("lost?")], "c1", append=True))
    request = filling_world.say([user("lost?")], "Found.", "c1", append=True)
    assert request.lines == ["+ user: one", "+ assistant: r1", "user: lost?"]
    assert filling_world.active() == ["one", "r1", "lost?", "Found."]


def test_a_transcript_that_went_on_in_append_mode_is_there_once(filling_world: World) -> None:
    filling_world.say([user("one")], "r1", "c1", append=True)
    for text in ("I would li", "I would like a"):
        filling_world.cancel(filling_world.begin([user(text)], "c1", append=True))
    request = filling_world.say([user("I would like a boat")], "Which?", "c1", append=True)
    assert request.lines == ["+ user: one", "+ assistant: r1", "user: I would like a boat"]
    assert filling_world.active() == ["one", "r1", "I would like a boat", "Which?"]


def test_a_transcript_that_was_shorter_meanwhile_is_there_once_in_append_mode(filling_world: World) -> None:
    """Recognisers revise what they heard, and sends of one moment may overtake each other."""
    filling_world.say([user("one")], "r1", "c1", append=True)
    for text in ("Wait", "I would like", "I would", "I would like", "I"):
        filling_world.cancel(filling_world.begin([user(text)], "c1", append=True))
    request = filling_world.say([user("I would like a boat")], "Which?", "c1", append=True)
    assert request.lines[2:] == ["+ user: Wait", "user: I would like a boat"]
    assert filling_world.active() == ["one", "r1", "Wait", "I would like a boat", "Which?"]


def test_a_retry_in_append_mode_repeats_the_very_words(filling_world: World) -> None:
    """The first try of the next message never came; that message begins with the words of the one before."""
    filling_world.say([user("I like boats")], "Which?", "c1", append=True)
    request = filling_world.say([user("I like boats with sails")], "I see.", "c1", append=True, retry=True)
    assert request.lines == ["+ user: I like boats", "+ assistant: Which?", "user: I like boats with sails"]


def test_an_unheard_reply_in_append_mode_leaves_its_question(filling_world: World) -> None:
    """The client reports what was heard of the reply before it, and not a word of the last one."""
    filling_world.say([user("one")], "This is the first reply.", "c1", append=True)
    told = assistant("This is the first")
    filling_world.say([told, user("two")], "Nobody heard this.", "c1", append=True)
    request = filling_world.say([told, user("three")], "Third.", "c1", append=True)
    assert request.lines == ["+ user: one", "+ assistant: This is the first", "+ user: two", "user: three"]
    assert filling_world.active() == ["one", "This is the first", "two", "three", "Third."]


def test_a_system_message_may_follow_what_was_heard_in_append_mode(filling_world: World) -> None:
    filling_world.say([user("one")], "This is the first reply.", "c1", append=True)
    spoken = [assistant("This is the first"), assistant("Are you still there?")]
    request = filling_world.say([*spoken, user("two")], "Second.", "c1", append=True)
    assert request.lines == [
        "+ user: one",
        "assistant: This is the first",
        "assistant: Are you still there?",
        "user: two",
    ]
    assert filling_world.active() == ["one", "This is the first", "Are you still there?", "two", "Second."]


def test_two_replies_sent_in_append_mode_have_the_question_of_a_cut_one_between_them(
    filling_world: World,
) -> None:
    filling_world.say([user("one")], "This is the first reply.", "c1", append=True)
    filling_world.cancel(filling_world.begin([user("two")], "c1", append=True), [assistant("The second")])
    messages = [assistant("This is the first reply."), assistant("The sec")]
    request = filling_world.begin([*messages, user("three")], "c1", append=True)
    first = ["+ user: one", "+ assistant: This is the first reply.", "+ user: two"]
    assert request.lines == [*first, "assistant: The sec", "user: three"]


def test_an_appending_client_that_resends_after_all_is_taken_at_its_word(world: World) -> None:
    world.say([user("one")], "r1", "c1", append=True)
    request = world.say([user("one"), assistant("r1"), user("two")], "r2", "c1", append=True)
    assert request.is_untouched
    assert world.tree() == outline("""
        continued: one > r1
          active: two > r2
    """)

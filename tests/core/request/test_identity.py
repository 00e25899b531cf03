"""Who is asking, and what they want of memory."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.core.applications import APPLICATIONS
from gateway.core.request.identity import Identity, IdentityRules, identify
from gateway.core.request.memory_mode import Mode
from gateway.core.request.side_requests import SideRequests
from gateway.errors import BadRequest
from gateway.settings import SideRequest
from storage.records import Scope
from tests.rows import each_row

RULES = IdentityRules("default")
HELLO = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def ask(headers: dict[str, str] | None = None, rules: IdentityRules = RULES, **fields: Any) -> Identity:
    raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return identify(raw, {**HELLO, **fields}, rules, "p")


def say(*messages: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in messages]


# --- users

USERS: list[tuple[dict[str, str], dict[str, Any]]] = [  # best first
    ({"x-mnemogate-user": "u"}, {}),
    ({"x-openwebui-user-id": "u"}, {}),
    ({}, {"user": "u"}),
    ({}, {"safety_identifier": "u"}),
    ({}, {"metadata": {"user_id": "u"}}),
    ({}, {"user_id": "u"}),
    ({}, {"elevenlabs_extra_body": {"user_id": "u"}}),
    ({}, {"customer": {"number": "u", "id": "other"}}),
    ({}, {"customer": {"id": "u"}}),
]


@pytest.mark.parametrize("place", range(len(USERS)))
def test_a_user_is_named_in_many_places_and_the_first_counts(place: int) -> None:
    headers: dict[str, str] = {}
    fields: dict[str, Any] = {}
    for later_headers, later_fields in reversed(USERS[place + 1 :]):
        headers |= dict.fromkeys(later_headers, "later")
        fields |= {
            k: "later" if isinstance(v, str) else dict.fromkeys(v, "later") for k, v in later_fields.items()
        }
    first_headers, first_fields = USERS[place]
    for key, value in first_fields.items():
        fields[key] = {**fields.get(key, {}), **value} if isinstance(value, dict) else value
    found = ask({**headers, **first_headers}, **fields)
    assert (found.user, found.scope) == ("u", Scope("p", "default", "user:u"))


def test_the_order_is_a_setting() -> None:
    rules = IdentityRules("default", user_order=("metadata.tenant.person", "X-Employee"))
    assert ask({"x-employee": "e"}, rules, metadata={"tenant": {"person": "p"}}).user == "p"
    assert ask({"x-employee": "e"}, rules, user="not asked").user == "e"


def test_numbers_are_ids_and_empty_ones_are_absent() -> None:
    assert ask(user_id=42).user == ask(metadata={"user_id": 42}).user == "42"
    assert ask({"x-mnemogate-user": "42"}, user=7).user == "42"  # then nobody looks there
    assert ask({"x-mnemogate-user": " \t "}, user="", user_id=" u ").user == "u"
    assert ask(user=None, metadata="free text", customer=[1]).user is None


@pytest.mark.parametrize("number", ["anonymous", "Unknown", "+266696687", "7378742833"])
def test_callers_who_withhold_their_numbers_are_not_one_person(number: str) -> None:
    call: dict[str, Any] = {"call": {"id": "c1"}}
    assert ask(customer={"number": number}, **call).scope == Scope("p", "default", "conversation:c1")
    assert ask(customer={"number": number, "id": "u"}, **call).user == "u"
    assert ask(user=number, **call).user == number  # a name that an application has chosen


def test_without_a_user_there_is_none_unless_the_settings_name_one() -> None:
    found = ask()
    assert (found.user, found.scope) == (None, None)
    rules = IdentityRules("default", default_user="owner")
    assert ask(rules=rules).scope == Scope("p", "default", "user:owner")
    assert ask(rules=rules, user="alice").scope == Scope("p", "default", "user:alice")


@each_row(
    ("headers", "fields", "param"),
    [
        ({}, {"user": "a\x00b"}, "user"),
        ({}, {"user": "a\nb"}, "user"),
        ({}, {"user": "\x7f"}, "user"),
        ({}, {"user": "a\u2028b"}, "user"),
        ({}, {"user": "x" * 257}, "user"),
        ({}, {"user": True}, "user"),
        ({}, {"user": 5}, "user"),  # as the API these two come from has it
        ({}, {"safety_identifier": 5}, "safety_identifier"),
        ({}, {"user": {"id": 1}}, "user"),
        ({}, {"user_id": ["a"]}, "user_id"),
        # a whole number beyond 64 bits is a float to the parser, and no longer one person's
        ({}, {"user_id": 1.2345678901234568e29}, "user_id"),
        ({}, {"metadata": {"user_id": "a\x00"}}, "metadata.user_id"),
        ({}, {"metadata": {"conversation_id": {}}}, "metadata.conversation_id"),
        ({"x-mnemogate-user": "a\x01"}, {}, "x-mnemogate-user"),
        ({"x-mnemogate-user": "a" * 10_000}, {}, "x-mnemogate-user"),
        ({"x-mnemogate-conversation": "a\tb"}, {}, "x-mnemogate-conversation"),
        ({"x-mnemogate-agent": "a\x00"}, {}, "x-mnemogate-agent"),
        ({"x-mnemogate-memory": "maybe"}, {}, "x-mnemogate-memory"),
        ({"x-mnemogate-history": "replace"}, {}, "x-mnemogate-history"),
        ({"x-mnemogate-history": "append"}, {}, "x-mnemogate-history"),  # to what?
        ({}, {"model": "agent/a\x00"}, "model"),
        ({"x-mnemogate-agent": "a"}, {"model": "agent/b"}, "x-mnemogate-agent"),
    ],
)
def test_the_refusal_of_a_wrong_id_names_the_field(
    headers: dict[str, str], fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        ask(headers, **fields)
    assert caught.value.param == param


def test_bytes_that_are_no_text_are_refused() -> None:
    for name in (b"x-mnemogate-user", b"x-mnemogate-memory", b"x-mnemogate-history", b"x-session-id"):
        with pytest.raises(BadRequest) as caught:
            identify([(name, b"\xff\xfe")], HELLO, RULES, "p")
        assert caught.value.param == name.decode()


def test_an_identity_sent_twice_must_be_the_same() -> None:
    one, two = (b"x-mnemogate-user", b"a"), (b"x-mnemogate-user", b"b")
    other = [(b"accept", b"1"), (b"accept", b"2")]
    assert identify([one, one, *other], HELLO, RULES, "p").user == "a"
    with pytest.raises(BadRequest, match="twice"):
        identify([one, two], HELLO, RULES, "p")


# --- conversations and agents


@pytest.mark.parametrize(
    ("headers", "fields"),
    [
        ({"x-mnemogate-conversation": "c"}, {}),
        ({"x-openwebui-chat-id": "c"}, {}),
        ({"x-claude-code-session-id": "c"}, {}),
        ({"x-session-id": "c"}, {}),
        ({}, {"metadata": {"conversation_id": "c"}}),
        ({}, {"call": {"id": "c"}}),
        ({}, {"elevenlabs_extra_body": {"conversation_id": "c"}}),
        ({"x-livekit-room-id": "c"}, {}),
    ],
)
def test_a_conversation_is_a_scope_of_its_own_only_without_a_user(
    headers: dict[str, str], fields: dict[str, Any]
) -> None:
    found = ask(headers, **fields)
    assert (found.conversation_key, found.scope) == ("c", Scope("p", "default", "conversation:c"))
    found = ask(headers, **fields, user="u")
    assert (found.conversation_key, found.scope) == ("c", Scope("p", "default", "user:u"))


def test_an_id_that_many_conversations_share_names_none() -> None:
    found = ask({"x-session-affinity": "w", "x-livekit-session-id": "s"}, prompt_cache_key="k")
    assert found.conversation_key is None


@pytest.mark.parametrize(
    ("headers", "model", "agent"),
    [
        ({}, "agent/coach", "coach"),
        ({"x-mnemogate-agent": "coach"}, "m", "coach"),
        ({"x-mnemogate-agent": "coach"}, "agent/coach", "coach"),
        ({}, "myagent/coach", None),
    ],
)
def test_an_agent_is_named_by_model_or_header(headers: dict[str, str], model: str, agent: str | None) -> None:
    found = ask(headers, model=model, user="u")
    assert (found.agent, found.profile) == (agent, agent or "default")
    assert found.scope == Scope("p", agent or "default", "user:u")


# --- wishes


@pytest.mark.parametrize("mode", list(Mode))
def test_the_control_header_says_what_memory_may_do(mode: Mode) -> None:
    header = {"x-mnemogate-memory": f" {mode.upper()} "}
    assert ask(header, messages=say(("user", "Hi"))).mode is mode
    # A schema is weaker: an application may give it to its user's own turn.
    schema = {"messages": say(("user", "Hi")), "response_format": {"type": "json_object"}}
    assert ask(header, **schema).mode is mode
    assert ask(**schema).mode is Mode.READ


@pytest.mark.parametrize("mode", list(Mode))
def test_a_control_header_makes_nobodys_words_of_a_side_request(mode: Mode) -> None:
    """A library that was given the header once sends it with each request, titles among them."""
    header = {"x-mnemogate-memory": mode.value}
    found = ask(header, messages=say(("user", OPEN_WEBUI)))
    assert found.mode is Mode.OFF
    assert found.side_request == (None if mode is Mode.OFF else "open-webui task")
    rules = IdentityRules("default", side_rules=(SideRequest("ours", "name this chat", "read"),))
    reads = ask(header, rules, messages=say(("user", "Name this chat")))
    assert reads.mode is (Mode.OFF if mode is Mode.OFF else Mode.READ)


def test_without_it_the_profile_decides_then_the_project() -> None:
    rules = IdentityRules("default", default_mode=Mode.READ, profile_modes={"coach": Mode.STRICT})
    assert ask(rules=rules).mode is Mode.READ
    assert ask(rules=rules, model="agent/coach").mode is Mode.STRICT
    assert ask({"x-mnemogate-memory": ""}, rules).mode is Mode.READ


def test_a_temporary_chat_is_off_the_record_where_its_id_names_no_conversation() -> None:
    rules = IdentityRules("default", conversation_order=("x-session-id",))
    found = ask({"x-openwebui-chat-id": "temporary:qk3v", "x-mnemogate-memory": "on"}, rules, user="u")
    assert (found.mode, found.conversation_key) == (Mode.OFF, None)


def test_append_and_retry_are_seen() -> None:
    found = ask(
        {"x-mnemogate-history": "append", "x-mnemogate-conversation": "c", "x-stainless-retry-count": "2"}
    )
    assert (found.sends_new_only, found.is_retry) == (True, True)
    for count in ("0", "00", "", "-1", "many"):
        assert not ask({"x-stainless-retry-count": count}).is_retry


OPEN_WEBUI = "### Task:\n{}\n### Guidelines:\n...\n### Chat History:\n<chat_history>\n</chat_history>"
SIDE = [
    (
        "open-webui title",
        say(("user", OPEN_WEBUI.format("Generate a concise, 3-5 word title summarizing the chat history"))),
    ),
    (
        "open-webui tags",
        say(("user", OPEN_WEBUI.format("Generate 1-3 broad tags categorizing the main themes"))),
    ),
    (
        "open-webui follow-ups",
        say(
            (
                "user",
                [{"type": "text", "text": OPEN_WEBUI.format("Suggest 3-5 relevant follow-up questions")}],
            )
        ),
    ),
    (
        "open-webui queries",
        say(
            (
                "user",
                OPEN_WEBUI.format("Analyze the chat history to determine the necessity of generating search"),
            )
        ),
    ),
    (
        "librechat title",
        say(
            (
                "user",
                "Provide a concise, 5-word-or-less title for the conversation, using title case conventions.",
            )
        ),
    ),
    (
        "librechat title and language",
        say(
            (
                "user",
                "Analyze this conversation and provide:\n1. The detected language of the conversation\n2. A",
            )
        ),
    ),
    # asked at the end of the conversation itself
    (
        "nextchat title",
        say(
            ("user", "hi"),
            ("assistant", "hello"),
            (
                "user",
                "Please generate a four to five word title summarizing our conversation without any lead-in",
            ),
        ),
    ),
    (
        "lobechat title",
        say(
            (
                "system",
                "You are a professional conversation summarizer. Generate a concise title that captures the essence",
            ),
            ("user", "user: hi\nassistant: hello"),
        ),
    ),
    (
        "cherry studio title",
        say(
            (
                "system",
                "You are an assistant skilled in conversation. You need to summarize the user's conversation",
            ),
            ("user", "[]"),
        ),
    ),
    *(
        (name, say(("system", system), ("user", "User: hi\nAssistant: hello")))
        for name, system in (
            (
                "onyx title",
                "Given the conversation history, provide a SHORT name for the conversation. Focus",
            ),
            (
                "witsy title",
                "You are an assistant whose task is to find the best title for the conversation below.",
            ),
            (
                "hermes title",
                "Generate a short, descriptive title (3-7 words) for a conversation that starts with the "
                "following exchange. The title should capture the main topic or intent.",
            ),
            (
                "openhands title",
                "You are a helpful assistant that generates concise, descriptive titles for "
                "conversations with OpenHands. OpenHands is a helpful AI agent",
            ),
            ("goose title", "Reply with only a description in four words or less"),
            (
                "goose summary",
                "## Task Context\n- An llm context limit was reached when a user was in a working session "
                "with an agent (you)\n- Generate a version of the below messages",
            ),
        )
    ),
]


@pytest.mark.parametrize(("name", "messages"), SIDE)
def test_a_side_request_of_a_front_end_leaves_no_trace(name: str, messages: list[dict[str, Any]]) -> None:
    found = SideRequests(APPLICATIONS.side_requests).find(messages)
    assert found is not None
    assert found.name == name
    assert ask(messages=messages, user="u").mode is Mode.OFF


@pytest.mark.parametrize(
    "messages",
    [
        # Open WebUI's template for answers from documents is the person's own question
        say(
            (
                "user",
                "### Task:\nRespond to the user query using the provided context, incorporating citations",
            )
        ),
        say(("user", "Write a short title for my novel about bees")),
        say(("user", "Generate tags for this blog post")),
        say(("user", "What did the assistant mean? It wrote: ### Task:\nGenerate a concise, 3-5 word title")),
        # the same words further up in the conversation
        say(
            ("user", OPEN_WEBUI.format("Generate a concise, 3-5 word title")),
            ("assistant", "x"),
            ("user", "hi"),
        ),
        say(("system", "### Task:\nGenerate a concise, 3-5 word title"), ("user", "hi")),
        say(("user", None)),
        say(("user", [])),
        say(("user", [{"type": "text"}])),
        [],
    ],
)
def test_a_persons_own_request_is_remembered(messages: list[dict[str, Any]]) -> None:
    assert SideRequests(APPLICATIONS.side_requests).find(messages) is None
    assert ask(messages=messages).mode is Mode.ON


def test_the_prompt_of_the_request_before_decides_nothing() -> None:
    title = "You are a title generator. You output ONLY a thread title."
    long = f"{title}{' ' * 40_000}"  # too long to be stored
    requests = SideRequests(APPLICATIONS.side_requests)
    prompts = ("Be kind.", title, title, "Be kind.", "Be kind.", long, "Be kind.", long, "")
    found = [requests.find(say(("system", prompt), ("user", "hi"))) for prompt in prompts]
    assert [None if rule is None else rule.name for rule in found] == [
        "opencode title" if prompt.startswith(title) else None for prompt in prompts
    ]


def test_side_rules_are_settings_and_never_widen_what_memory_may_do() -> None:
    own = (SideRequest("a", "(x)(y)"), SideRequest("b", "ping(?P<n>!)?", "read"))
    assert [SideRequests(own).find(say(("user", text))) for text in ("xy", "Ping!")] == list(own)
    rules = IdentityRules("default", side_rules=own)
    assert ask(rules=rules, messages=say(("user", "\n PING"))).mode is Mode.READ
    off = IdentityRules("default", default_mode=Mode.OFF, side_rules=rules.side_rules)
    assert ask(rules=off, messages=say(("user", "ping"))).mode is Mode.OFF
    none = IdentityRules("default", side_rules=())
    assert ask(rules=none, messages=say(("user", OPEN_WEBUI))).mode is Mode.ON


@pytest.mark.parametrize(
    "text",
    [
        " " * 1_000_000 + "x",
        "\n" * 1_000_000 + "x",
        "### Task:" + "<chat_history></chat_history> " * 100_000 + "x",
        "### Task:" + " " * 1_000_000,
        "<chat_history>" * 100_000,
    ],
)
@pytest.mark.parametrize("role", ["user", "system"])
def test_a_long_text_is_looked_at_once(role: str, text: str) -> None:
    """A pattern that went back and forth over it would not end within the time of a test."""
    assert SideRequests(APPLICATIONS.side_requests).find(say((role, text))) is None


JSON = {"type": "json_schema", "json_schema": {}}
CITY, RIVER = ({"type": "function", "function": {"name": name}} for name in ("city", "river"))


@pytest.mark.parametrize(
    ("messages", "fields", "mode"),
    [
        (say(("user", "extract")), {"response_format": JSON}, Mode.READ),
        (say(("system", "s"), ("user", "extract")), {"response_format": {"type": "json_object"}}, Mode.READ),
        (say(("user", "extract")), {"guided_json": {"a": 1}}, Mode.READ),
        (say(("user", "a"), ("assistant", "b"), ("user", "c")), {"response_format": JSON}, Mode.ON),
        (say(("user", "extract")), {"response_format": {"type": "text"}}, Mode.ON),
        (say(("user", "extract")), {"response_format": None, "grammar": None}, Mode.ON),
        # A library's other way to a structured answer: one tool, and it has to be called.
        (say(("user", "extract")), {"tools": [CITY], "tool_choice": CITY}, Mode.READ),
        (
            say(("user", "extract")),
            {"functions": [{"name": "city"}], "function_call": {"name": "city"}},
            Mode.READ,
        ),
        (
            say(("user", "a"), ("assistant", "b"), ("user", "c")),
            {"tools": [CITY], "tool_choice": CITY},
            Mode.ON,
        ),
        # An agent may have to call some tool first, and answers the person afterwards.
        (say(("user", "weather")), {"tools": [CITY, RIVER], "tool_choice": CITY}, Mode.ON),
        (say(("user", "weather")), {"tools": [CITY], "tool_choice": "required"}, Mode.ON),
        (say(("user", "weather")), {"tools": [CITY], "tool_choice": "auto"}, Mode.ON),
        (say(("user", "weather")), {"tools": [CITY], "tool_choice": {"type": "allowed_tools"}}, Mode.ON),
        # Anthropic's form, which servers of several dialects take.
        (say(("user", "weather")), {"tools": [CITY], "tool_choice": {"type": "auto"}}, Mode.ON),
    ],
)
def test_a_single_turn_for_a_program_is_read_only(
    messages: list[dict[str, Any]], fields: dict[str, Any], mode: Mode
) -> None:
    assert ask(messages=messages, **fields).mode is mode


@pytest.mark.parametrize(
    ("key", "scope"),
    [("k", Scope("p", "default", "conversation:k")), (None, None)],
    ids=["conversation", "none"],
)
def test_a_request_without_names_gets_the_memory_of_a_conversation_that_it_is_given(
    key: str | None, scope: Scope | None
) -> None:
    identity = ask().with_memory(key, None)
    assert (identity.conversation_key, identity.scope) == (key, scope)


def test_an_identity_is_stored_under_these_names() -> None:
    """Background responses that wait in a database have them."""
    stored = msgspec.to_builtins(ask({"x-mnemogate-conversation": "c", "x-mnemogate-history": "append"}))
    names = (
        "project profile agent user conversation scope mode append retry side_request leaves_nothing is_apart"
    )
    assert list(stored) == [*names.split(), "own", "name"]

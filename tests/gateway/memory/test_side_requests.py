"""Requests in which nobody speaks: what an application asks for itself, and chats that are off the record."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.settings import SideRequest
from storage.reader_commands import UnreadMessages
from storage.records import LEARNER
from tests.doubles import side_requests as recorded
from tests.doubles.upstream import Call, StrictUpstream, call_tools, say
from tests.gateway.sdk import World, remember
from tests.rows import each_row

Json = dict[str, Any]

FACT = "My cat is called Miso and she hates thunderstorms."
ANSWER = "Poor Miso! Thunder is loud."
QUESTION = "What is the name of my cat?"
LONG_AFTER = 4e9
CHAT = {"x-openwebui-chat-id": "2b1e6f0c-6a1f-4a58-93d1-0d2a54d0e0aa"}


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with remember(upstream, tmp_path) as made:
        yield made


def user(text: str) -> list[Json]:
    return [{"role": "user", "content": text}]


def quoting(template: str) -> str:
    return template.replace("{question}", FACT).replace("{answer}", ANSWER)


def kept(world: World) -> str:
    """Everything that was said and is stored."""
    return str(world.query('SELECT input, shown_reply, "full", notes FROM exchanges'))


def system(text: str) -> list[Json]:
    return [{"role": "system", "content": text}]


CHATTED = [*user(FACT), {"role": "assistant", "content": ANSWER}]
ASKED = [
    ("open-webui title", user(quoting(recorded.OPEN_WEBUI_TITLE))),
    ("open-webui follow-ups", user(quoting(recorded.OPEN_WEBUI_FOLLOW_UPS))),
    ("open-webui tags", user(quoting(recorded.OPEN_WEBUI_TAGS))),
    ("open-webui task", user(quoting(recorded.OPEN_WEBUI_IN_GERMAN))),
    ("open-webui summary", [*CHATTED, *user(recorded.OPEN_WEBUI_SUMMARY)]),
    ("open-webui tools", [*system(recorded.OPEN_WEBUI_TOOLS), *user(quoting(recorded.OPEN_WEBUI_TOOLS_QUERY))]),
    ("open-webui memories", [*system(recorded.OPEN_WEBUI_MEMORIES), *user(quoting(recorded.OPEN_WEBUI_MEMORIES_TASK))]),
    ("open-webui merged answer", user(quoting(recorded.OPEN_WEBUI_MERGED))),
    ("librechat memory", user(quoting(recorded.LIBRECHAT_MEMORY))),
    ("librechat summary", [*CHATTED, *user(recorded.LIBRECHAT_SUMMARY)]),
    ("librechat summary", [*CHATTED, *user("And at night?"), *user(recorded.LIBRECHAT_FURTHER_SUMMARY)]),
    ("librechat label", user(quoting(recorded.LIBRECHAT_LABEL))),
    ("lobechat summary", [*system(recorded.LOBECHAT_SUMMARY), *user(FACT)]),
    ("lobechat summary", [*system(recorded.LOBECHAT_COMPRESSION), *user(FACT)]),
    ("nextchat summary", [*CHATTED, *system(recorded.NEXTCHAT_SUMMARY)]),
    ("aichat summary", [*CHATTED, *user(recorded.NEXTCHAT_SUMMARY)]),
    ("chatbox title", user(quoting(recorded.CHATBOX_TITLE))),
    ("lobechat follow-ups", [*system(recorded.LOBECHAT_FOLLOW_UPS), *user(f"Last assistant message:\n{ANSWER}")]),
    ("cherry studio translation", user(quoting(recorded.CHERRY_STUDIO_TRANSLATION))),
    ("jan title", user(quoting(recorded.JAN_TITLE))),
    ("page assist title", user(quoting(recorded.PAGE_ASSIST_TITLE))),
    ("big-agi title", [*system(recorded.BIG_AGI_TITLE), *user(f"- You: {FACT}")]),
    ("typingmind title", [*CHATTED, *user(recorded.TYPINGMIND_TITLE)]),
    ("sillytavern aside", [*CHATTED, *system(recorded.SILLYTAVERN_IMPERSONATION)]),
    ("sillytavern aside", [*CHATTED, *system(recorded.SILLYTAVERN_SUMMARY)]),
    ("sillytavern aside", [*CHATTED, *system(recorded.SILLYTAVERN_OLDER_SUMMARY)]),
    ("sillytavern aside", [*CHATTED, *system(recorded.SILLYTAVERN_EMOTION)]),
    ("dify title", user(quoting(recorded.DIFY_TITLE))),
    ("dify title", user(quoting(recorded.DIFY_OLDER_TITLE))),
    ("dify questions", user(quoting(recorded.DIFY_QUESTIONS))),
    ("dify classification", [*system(recorded.DIFY_CLASSIFICATION), *user("Hi."), *CHATTED[1:], *user(FACT)]),
    ("dify parameters", [*system(recorded.DIFY_PARAMETERS), *user(FACT)]),
    ("dify parameters", [*system(recorded.DIFY_JSON_PARAMETERS), *user(FACT)]),
    ("flowise follow-ups", user(quoting(recorded.FLOWISE_FOLLOW_UPS))),
    ("vercel chatbot title", [*system(recorded.VERCEL_CHATBOT_TITLE), *user(FACT)]),
    ("copilot title", [*system(recorded.COPILOT_TITLE), *user(f"Please write a brief title:\n\n{FACT}")]),
    ("copilot summary", [*system(recorded.COPILOT_SUMMARY), *CHATTED, *user("Summarize the conversation history.")]),
    ("copilot summary", [*CHATTED, *user(recorded.COPILOT_SUMMARY_IN_PLACE)]),
    ("copilot commit message", [*system(recorded.COPILOT_COMMIT), *user("+TOKEN = 'sk-very-secret'")]),
    ("zed title", [*CHATTED, *user(recorded.ZED_TITLE)]),
    ("zed summary", [*CHATTED, *user(recorded.ZED_SUMMARY)]),
    ("coding summary", [*system(recorded.CODING_SUMMARY), *CHATTED, *user("Summarize the conversation so far.")]),
    ("coding summary", [*system(recorded.CODING_SUMMARIZER), *CHATTED, *user("Summarize the conversation so far.")]),
    ("coding summary", [*CHATTED, *user(recorded.CODING_SUMMARY)]),
    ("roo code prompt", user(quoting(recorded.ROO_CODE_PROMPT))),
    ("langchain4j queries", user(quoting(recorded.LANGCHAIN4J_COMPRESSION))),
    ("langchain4j queries", user(quoting(recorded.LANGCHAIN4J_EXPANSION))),
    ("langchain4j queries", user(quoting(recorded.LANGCHAIN4J_ROUTING))),
    ("spring ai queries", user(quoting(recorded.SPRING_AI_COMPRESSION))),
    ("spring ai queries", user(quoting(recorded.SPRING_AI_REWRITING))),
    ("spring ai queries", user(quoting(recorded.SPRING_AI_TRANSLATION))),
    ("spring ai queries", user(quoting(recorded.SPRING_AI_EXPANSION))),
    ("cherry studio question", [*system(recorded.CHERRY_STUDIO_QUESTION), *user(FACT)]),
    ("perplexica question", user(quoting(recorded.PERPLEXICA_QUESTION))),
    ("opencode title", recorded.opencode_title(FACT)),
    ("opencode summary", recorded.OPENCODE_SUMMARY),
    ("continue title", user(recorded.CONTINUE_TITLE + FACT)),
    ("continue summary", [*CHATTED, *user(recorded.CONTINUE_SUMMARY)]),
    ("gptme title", recorded.gptme_title(f"User: {FACT}\nAssistant: {ANSWER}\n")),
    ("gptme summary", recorded.gptme_summary(FACT)),
    ("aider commit message", recorded.aider_commit("+TOKEN = 'sk-very-secret'")),
    ("aider commit message", recorded.aider_commit("+TOKEN = 'sk-very-secret'", prefix="Formatting re-enabled.\n")),
    ("aider summary", recorded.aider_summary("# USER\nMy cat is called Miso.")),
    ("gptme nudge", [*CHATTED, *user(recorded.GPTME_NUDGE)]),
    ("langchain summary", user(quoting(recorded.LANGCHAIN_SUMMARY))),
    ("langgraph summary", [*CHATTED, *user(recorded.LANGGRAPH_SUMMARY)]),
    ("langgraph summary", [*CHATTED, *user(recorded.LANGGRAPH_FURTHER_SUMMARY)]),
    ("langmem memories", [*system(recorded.LANGMEM_MEMORIES), *user(f"Human Message: {FACT}")]),
    ("langchain question", user(quoting(recorded.LANGCHAIN_QUESTION))),
    ("llamaindex question", user(quoting(recorded.LLAMAINDEX_QUESTION))),
    ("llamaindex question", user(quoting(recorded.LLAMAINDEX_REWRITING))),
    ("autogen speaker", user(quoting(recorded.AUTOGEN_SPEAKER))),
    ("autogen speaker", system(quoting(recorded.AUTOGEN_SPEAKER))),
    ("magentic ledger", user(quoting(recorded.MAGENTIC_SURVEY))),
    ("magentic ledger", [*user(quoting(recorded.MAGENTIC_SURVEY)), *CHATTED[1:], *user(recorded.MAGENTIC_PLAN)]),
    ("magentic ledger", [*CHATTED, *user(quoting(recorded.MAGENTIC_PROGRESS))]),
    ("magentic ledger", [*CHATTED, *user(quoting(recorded.MAGENTIC_SURVEY_AGAIN))]),
    ("magentic ledger", [*CHATTED, *user(recorded.MAGENTIC_PLAN_AGAIN)]),
    ("instructor correction", [*CHATTED, *user(recorded.INSTRUCTOR_CORRECTION)]),
    ("instructor correction", [*CHATTED, *user(recorded.INSTRUCTOR_CORRECTION_OF_CALL)]),
    ("pydantic-ai correction", [*CHATTED, *user(recorded.PYDANTIC_AI_CORRECTION)]),
    ("pydantic-ai correction", [*CHATTED, *user(recorded.PYDANTIC_AI_1_CORRECTION)]),
    ("smolagents plan", user(quoting(recorded.SMOLAGENTS_PLAN))),
    ("smolagents plan", [*system(recorded.SMOLAGENTS_FURTHER_PLAN), *CHATTED, *user("Now write your new plan.")]),
    ("semantic kernel summary", [*CHATTED, *system(recorded.SEMANTIC_KERNEL_SUMMARY)]),
    ("llamaindex summary", [*system(recorded.LLAMAINDEX_SUMMARY), *user(FACT)]),
    ("haystack summary", [*system(recorded.HAYSTACK_SUMMARY), *user(FACT)]),
    ("agno summary", [*system(recorded.AGNO_SUMMARY), *user(FACT)]),
    ("strands summary", [*system(recorded.STRANDS_SUMMARY), *CHATTED, *user("Please summarize this conversation.")]),
    ("adk summary", user(quoting(recorded.ADK_SUMMARY))),
    ("mastra title", [*system(recorded.MASTRA_TITLE), *user(FACT)]),
    ("mastra title", [*system(recorded.MASTRA_TITLE_OF_TRANSCRIPT), *user(f"User: {FACT}\nAssistant: {ANSWER}")]),
    ("mastra observations", [*system(recorded.MASTRA_OBSERVER), *user("## Your Task"), *user(f"User (4 PM): {FACT}")]),
    ("mastra observations", [*system(recorded.MASTRA_REFLECTOR), *user(f"* User stated: {FACT}")]),
    ("llamaindex facts", [*CHATTED, *user(recorded.LLAMAINDEX_FACTS)]),
    ("llamaindex refinement", user(quoting(recorded.LLAMAINDEX_REFINEMENT))),
    ("llamaindex refinement", user(quoting(recorded.LLAMAINDEX_OLDER_REFINEMENT))),
    ("llamaindex queries", user(quoting(recorded.LLAMAINDEX_QUERIES))),
    ("langchain queries", user(quoting(recorded.LANGCHAIN_QUERIES))),
    ("haystack queries", user(quoting(recorded.HAYSTACK_QUERIES))),
    ("mem0 memories", [*system(recorded.MEM0_EXTRACTOR), *user(quoting(recorded.MEM0_MESSAGES))]),
    ("mem0 memories", [*system(recorded.MEM0_OLDER_EXTRACTOR), *user(f"Input:\nuser: {FACT}\n")]),
    ("mem0 memories", [*system(recorded.MEM0_PROCEDURES), *CHATTED, *user("Create procedural memory.")]),
    ("mem0 memories", user(quoting(recorded.MEM0_UPDATE))),
    ("graphiti memories", [*system(recorded.GRAPHITI_ENTITIES), *user(f"<CURRENT MESSAGE>\nAnn: {FACT}")]),
    ("graphiti memories", [*system(recorded.GRAPHITI_OLDER_ENTITIES), *user(f"<CURRENT MESSAGE>\nAnn: {FACT}")]),
    ("graphiti memories", [*system(recorded.GRAPHITI_RERANKER), *user(quoting(recorded.GRAPHITI_PASSAGE))]),
    ("crewai memories", [*system(recorded.CREWAI_MEMORIES), *user(f"Content:\n{FACT}")]),
    ("crewai query", [*system(recorded.CREWAI_QUERY), *user(f"The original query is: {FACT}.")]),
    ("crewai plan", [*system(recorded.CREWAI_PLAN), *user(f"Create an execution plan:\n\n## Task\n{FACT}")]),
    ("crewai summary", [*system(recorded.CREWAI_SUMMARY), *user(f"<conversation>\n{FACT}\n</conversation>")]),
    ("agno memories", [*system(recorded.AGNO_MEMORIES), *user(FACT)]),
    ("agno structured output", [*system(recorded.AGNO_OUTPUT), *user(ANSWER)]),
    ("ag2 summary", user(quoting(recorded.AG2_SUMMARY))),
    ("ag2 summary", user(quoting(recorded.AG2_WORKING_MEMORY))),
    ("autogen answer", [*system(recorded.AUTOGEN_TEAM), *user(FACT), *user(ANSWER)]),
    ("qwen code memories", [*system(recorded.QWEN_CODE_MEMORIES), *CHATTED, *user(recorded.QWEN_CODE_MEMORIES_TASK)]),
    ("qwen code memories", [*system(recorded.QWEN_CODE_DREAM), *user(FACT)]),
    ("qwen code memories", [*system(recorded.QWEN_CODE_CHOICE), *user(f"Query: {FACT}")]),
    ("qwen code memories", [*system(recorded.QWEN_CODE_SKILLS), *CHATTED, *user("Review.")]),
    ("qwen code summary", [*system(recorded.QWEN_CODE_SUMMARY), *CHATTED, *user("First, reason.")]),
    ("qwen code summary", [*system(recorded.QWEN_CODE_OLDER_SUMMARY), *CHATTED, *user("First, reason.")]),
    ("qwen code summary", [*system(recorded.QWEN_CODE_RECAP), *CHATTED, *user("Generate the recap now.")]),
    ("qwen code title", [*system(recorded.QWEN_CODE_TITLE), *user(f"Conversation so far:\n{FACT}")]),
    ("qwen code title", [*system(recorded.QWEN_CODE_NAME), *user(FACT)]),
    ("qwen code title", [*system(recorded.QWEN_CODE_LABEL), *user(f"Tools completed:\n\n{FACT}\n\nLabel:")]),
    ("qwen code suggestion", [*CHATTED, *user(recorded.QWEN_CODE_SUGGESTION)]),
    ("qwen code speaker", [*CHATTED, *user(recorded.QWEN_CODE_SPEAKER)]),
    ("qwen code page", user(quoting(recorded.QWEN_CODE_PAGE))),
    ("openclaw summary", [*system(recorded.OPENCLAW_SUMMARY), *user(FACT)]),
    ("openclaw title", [*system(recorded.OPENCLAW_TITLE), *user(FACT)]),
    ("openclaw name", user(quoting(recorded.OPENCLAW_SLUG))),
    ("openclaw flush", [*CHATTED, *user(recorded.OPENCLAW_FLUSH)]),
    ("openclaw heartbeat", [*CHATTED, *user(recorded.OPENCLAW_HEARTBEAT)]),
    ("openclaw heartbeat", [*CHATTED, *user(recorded.OPENCLAW_OLDER_HEARTBEAT)]),
    ("pipecat summary", [*system(recorded.PIPECAT_SUMMARY), *user(FACT)]),
    ("livekit summary", [*system(recorded.LIVEKIT_SUMMARY), *user(FACT)]),
]  # fmt: skip


@each_row(("number", "name", "messages"), [(number, *row) for number, row in enumerate(ASKED)])
def test_side_requests_have_no_part_in_memory(
    world: World, number: int, name: str, messages: list[Json]
) -> None:
    someone = f"user {number}"
    world.chat(user=someone).say("I am afraid of thunderstorms, as my cat is.")
    before = kept(world)
    reply = world.post(messages, CHAT, user=someone)
    assert reply.status == 200
    assert (reply.headers["x-mnemogate-memory"], reply.headers["x-mnemogate-side-request"]) == ("off", name)
    assert world.upstream.last.messages == messages
    assert kept(world).count("content") == before.count("content")
    later = "Which token, which thread title and which tool call of mine was it?"
    world.chat(user=someone).say(later)
    assert world.upstream.last.messages == user(later)


@pytest.mark.parametrize("mode", ["on", "strict"])
def test_an_application_that_sends_the_header_with_each_request_has_its_titles_forgotten(
    world: World, mode: str
) -> None:
    headers = {**CHAT, "x-mnemogate-memory": mode}
    world.chat(user="alice", headers=headers).say(FACT)
    prompt = quoting(recorded.OPEN_WEBUI_TITLE)
    reply = world.post(user(prompt), headers, user="alice")
    assert (reply.status, reply.headers["x-mnemogate-memory"]) == (200, "off")
    assert reply.headers["x-mnemogate-side-request"] == "open-webui title"
    assert world.upstream.last.messages == user(prompt)
    assert FACT in kept(world)
    assert "### Task" not in kept(world)


@each_row(
    "text",
    [
        recorded.OPEN_WEBUI_DOCUMENTS,
        "### Task:\nFind the bug in this template:\n<chat_history>\nUSER: hi\n</chat_history>\nIt renders twice.",
        "### Task:\nGenerate a concise, 3-5 word title for my paper about thunder.",
        "### Task:\nYou are an autocompletion system, and I am your user.",
        "You are a title generator. You output ONLY nonsense, my friend said to me.",
        "No tool call detected, says gptme. What does it mean?",
        "Please provide a concise summary of our conversation so far.",
        "Create a summary of the conversation above: its first half is enough.",
        "Summarize the discussion briefly in 200 words or less to use as a prompt for future context. Use Dutch.",
        "Please briefly explain what went wrong on this last run.",
        "Based on the chat history, give this conversation a name. Our dog's would be nice: he is called Rex.",
        "As a reminder, we are working to solve the following task: the kitchen has to be blue by Friday.",
        "Recall we are working on the following request: my tax return. What did I forget?",
        "Please write a passage to answer the question of my teacher: why do cats purr?",
        "The original query is as follows: why do cats purr? Answer it.",
        "# Current Chat:\nWhy is this heading not rendered?",
        "Hold on, before you continue I need you to write me a checkpoint.",
        "This is a summary of the conversation to date: we like cats. Is it right?",
        "Generate a detailed summary of this conversation.",
        "Human: hi\nAssistant: hello\nWho speaks here?",
        "Here is the query:\n------\nselect 1\n------\nIs it right?",
        "[Pause your roleplay. Where do I live?]",
        "Your task is to create a detailed summary of the conversation of my parents.",
        "Given a user query, translate it to SQL. How would you do that?",
    ],
)
def test_a_persons_request_is_not_taken_for_a_side_request(world: World, text: str) -> None:
    before = kept(world)
    reply = world.post(user(text), CHAT, user="alice")
    assert reply.headers["x-mnemogate-memory"] == "on"
    assert "x-mnemogate-side-request" not in reply.headers
    assert kept(world).count("content") > before.count("content")


def test_an_application_may_call_tools_of_its_own_for_what_it_asks_itself(world: World) -> None:
    tools = [{"type": "function", "function": {"name": "set_memory", "parameters": {"type": "object"}}}]
    world.chat(user="alice").say(FACT)
    before = kept(world)
    world.upstream.queue(call_tools(Call("set_memory", {"key": "cat", "value": FACT})), say("Noted."))
    reader = world.chat(user="alice", tools=tools)
    reader.say(quoting(recorded.LIBRECHAT_MEMORY))
    reader.answer(reader.messages[-1]["tool_calls"][0], "Memory set.")
    assert reader.go_on() == "Noted."
    assert kept(world).count("content") == before.count("content")


def test_a_message_that_waits_while_an_application_summarizes_is_remembered(world: World) -> None:
    told = [*CHATTED, *user("My dog Rex is afraid of nothing.")]
    world.chat(user="alice").say(FACT)
    world.post([*told, *user(recorded.LIBRECHAT_SUMMARY)], user="alice")
    world.post(told, user="alice")
    assert "Rex" in kept(world)
    assert "checkpoint" not in kept(world)


def test_a_coding_agents_session_begins_with_its_title_and_goes_on(world: World) -> None:
    session = {"x-session-id": "ses_1"}
    world.post(recorded.opencode_title(FACT), session, user="alice")
    chat = world.chat(user="alice", headers=session)
    chat.say(FACT)
    chat.say("Go on.")
    assert world.upstream.last.messages == chat.messages[:-1]
    assert "thread title" not in kept(world)
    world.chat(user="alice").say(QUESTION)
    assert FACT in world.upstream.last.body.decode()


def test_only_the_persons_words_in_clines_messages_are_remembered(world: World) -> None:
    """Its tools are called in words, and their results come in the user's role, next to the place and the time."""

    def sent(minute: int, *texts: str) -> Json:
        place = (
            f"<environment_details>\n# Current Time\n3/1/2026, 1:5{minute} PM (UTC)\n</environment_details>"
        )
        return {"role": "user", "content": [{"type": "text", "text": text} for text in (*texts, place)]}

    chat = world.chat(user="alice")
    feedback = (
        "The user has provided feedback on the results.\n<feedback>\nHer birthday is in May.\n</feedback>"
    )
    for said in (
        sent(0, f"<task>\n{FACT}\n</task>"),
        sent(1, "[read_file for 'a.py'] Result:", "birthday = 'of a turtle, in June'"),
        sent(2, "[attempt_completion] Result:", feedback),
    ):
        chat.messages.append(said)
        chat.go_on()
    assert world.query("SELECT count(*) FROM conversations") == [1]
    reader = world.chat(user="alice")
    reader.say("When is the birthday of my cat Miso?")
    note = world.upstream.last.body.decode()
    assert f"user: {FACT}" in note
    assert "user: Her birthday is in May." in note
    for other in ("turtle", "Result", "PM (UTC)", "feedback", "task"):
        assert other not in note


def test_a_conversation_goes_on_after_words_that_a_framework_said_in_the_users_place(world: World) -> None:
    chat = world.chat(user="alice")
    for text in (FACT, recorded.GPTME_NUDGE, "Her birthday is in May."):
        chat.say(text)
        assert world.upstream.last.messages == chat.messages[:-1]
    assert "No tool call" not in kept(world)
    assert "May" in kept(world)


CHECK = {"type": "json_schema", "json_schema": {"name": "check", "schema": {"type": "object"}}}


@pytest.mark.parametrize("headers", [{}, {"x-mnemogate-conversation": "c1"}])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_guardrail_parallel_to_the_users_turn_leaves_nothing(
    world: World, headers: dict[str, str], is_first: bool
) -> None:
    """Agents have a message judged or sorted by a prompt of its own, before they answer it or meanwhile."""
    check = [{"role": "system", "content": "Is it homework?"}, *user(FACT)]
    turn = [{"role": "system", "content": "Be kind."}, *user(FACT)]
    judge = {"response_format": CHECK}
    for messages, fields in ((check, judge), (turn, {})) if is_first else ((turn, {}), (check, judge)):
        world.upstream.queue(say('{"ok":true}' if fields else ANSWER))
        reply = world.post(messages, headers, user="alice", **fields)
        assert reply.headers["x-mnemogate-memory"] == ("read" if fields else "on")
        assert world.upstream.last.messages == messages
    assert kept(world).count(FACT) == 1
    assert '"ok"' not in kept(world).replace("\\", "")
    world.chat(user="alice").say(QUESTION)
    assert FACT in world.upstream.last.body.decode()


def test_a_chat_that_began_with_an_answer_for_a_program_is_remembered_when_it_goes_on(world: World) -> None:
    history = [*user(FACT), {"role": "assistant", "content": '{"name":"Miso"}'}]
    world.upstream.queue(say('{"name":"Miso"}'))
    world.post(history[:1], user="alice", response_format=CHECK)
    for text in ("Her birthday is in May.", "Thanks."):
        history += user(text)
        world.upstream.queue(say("Noted."))
        world.post(history, user="alice", response_format=CHECK)
        assert world.upstream.last.messages == history
        history.append({"role": "assistant", "content": "Noted."})
    world.chat(user="alice").say(QUESTION)
    assert FACT in world.upstream.last.body.decode()


TOOL = {"type": "function", "function": {"name": "respond", "parameters": {"type": "object"}}}


@pytest.mark.parametrize("fields", [{"response_format": CHECK}, {"tools": [TOOL], "tool_choice": TOOL}])
def test_a_message_sent_alone_for_an_answer_in_a_form_is_a_turn(world: World, fields: Json) -> None:
    """A list of one message says nothing of a first turn there, and what is not stored comes with no later list."""
    headers = {"x-mnemogate-conversation": "c1", "x-mnemogate-history": "append"}
    for text in (FACT, "Her birthday is in May."):
        world.upstream.queue(say('{"say":"Noted."}'))
        reply = world.post(user(text), headers, user="alice", **fields)
        assert reply.headers["x-mnemogate-memory"] == "on"
    assert [m["content"] for m in world.upstream.last.messages][:3:2] == [FACT, "Her birthday is in May."]


def test_the_call_of_the_one_tool_there_is_leaves_nothing_until_its_result_is_answered(world: World) -> None:
    """Structured answers of older libraries; an agent that has to search first goes on with what was found."""
    tool = {"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}
    call = {"id": "1", "type": "function", "function": {"name": "search", "arguments": "{}"}}
    world.upstream.queue(call_tools(Call("search", id="1")), say(ANSWER))
    reply = world.post(user(FACT), user="alice", tools=[tool], tool_choice=tool)
    assert reply.headers["x-mnemogate-memory"] == "read"
    assert kept(world) == "[]"
    called = {"role": "assistant", "content": None, "tool_calls": [call]}
    message = {"role": "tool", "tool_call_id": "1", "content": "Nothing."}
    world.post([*user(FACT), called, message], user="alice", tools=[tool])
    world.chat(user="alice").say(QUESTION)
    assert FACT in world.upstream.last.body.decode()


def test_a_call_that_is_asked_for_once_more_is_the_same_programs(world: World) -> None:
    """Instructor shows the model what was wrong with its call, as the call's result, and forces it again."""
    call = {"id": "1", "type": "function", "function": {"name": "respond", "arguments": "{}"}}
    called = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "Validation Error found: `age` is missing."},
    ]
    for messages in (user(FACT), [*user(FACT), *called]):
        world.upstream.queue(call_tools(Call("respond")))
        reply = world.post(messages, user="alice", tools=[TOOL], tool_choice=TOOL)
        assert reply.headers["x-mnemogate-memory"] == "read"
        assert world.upstream.last.messages == messages
    assert kept(world) == "[]"


@pytest.mark.parametrize("stream", [False, True])
def test_a_models_task_for_a_sub_agent_is_not_remembered_as_the_users(world: World, stream: bool) -> None:
    """OpenAI's Agents, Agent Framework, Strands and others give the task to the other agent in the user's role."""
    world.chat(user="alice").say(FACT)
    before = kept(world)
    task = "Find out why the cat Miso is afraid of thunder."
    ours = [*system("You help."), *user("Help my cat.")]
    tool = {"type": "function", "function": {"name": "research", "parameters": {"type": "object"}}}
    call = {
        "id": "1",
        "type": "function",
        "function": {"name": "research", "arguments": f'{{"input":"{task}"}}'},
    }
    look = {**call, "id": "2", "function": {"name": "look", "arguments": "{}"}}
    called = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    looked = [{"role": "assistant", "content": None, "tool_calls": [look]}]
    theirs = [*system("You research."), *user(task)]
    world.upstream.queue(
        call_tools(Call("research", {"input": task}, id="1")), say("I look."), say("It is loud.")
    )
    world.post(ours, user="alice", tools=[tool], stream=stream)
    for messages in (
        theirs,
        [*theirs, *looked, {"role": "tool", "tool_call_id": "2", "content": "Nothing."}],
    ):
        reply = world.post(messages, user="alice", stream=stream)
        assert reply.headers["x-mnemogate-side-request"] == "sub-agent"
        assert reply.headers["x-mnemogate-memory"] == "read"
        assert FACT in world.upstream.last.messages[1]["content"]
    result = {"role": "tool", "tool_call_id": "1", "content": "It is loud."}
    world.post([*ours, *called, result], user="alice", tools=[tool], stream=stream)
    assert "Help my cat." in kept(world).removeprefix(before[:-1])
    assert world.query("SELECT count(*) FROM exchanges") == [3]
    reply = world.post(theirs, user="alice")  # now it is somebody's own
    assert "x-mnemogate-side-request" not in reply.headers


def test_the_first_of_a_chain_of_agents_has_the_users_words(world: World) -> None:
    """LibreChat shows each further agent, in the user's role, what the ones before it have answered."""
    world.chat(user="alice").say("Thunder is what my cat Miso is afraid of.")
    asked = user("How do I calm my cat Miso in thunder?")
    world.upstream.queue(say("Close the shutters."), say("Give her a dark box."))
    world.post(asked, user="alice")
    noted = world.upstream.last.messages
    told = user(recorded.LIBRECHAT_CHAIN.replace("{answer}", "Close the shutters."))
    reply = world.post([*asked, *told], user="alice")
    assert reply.headers["x-mnemogate-side-request"] == "librechat chain"
    assert world.upstream.last.messages == [*noted, *told]  # it knows what was said to the first one
    assert "insights" not in kept(world)
    # The last agent's answer is what the user has seen.
    message = {"role": "assistant", "content": "Give her a dark box."}
    world.post([*asked, message, *user("She likes it.")], user="alice")
    assert "Give her a dark box." in kept(world)
    assert "Close the shutters." not in kept(world)
    assert world.query("SELECT count(*) FROM conversations") == [2]


def test_a_note_goes_with_the_users_text_and_not_with_an_applications_text_after_it(
    world: World,
) -> None:
    """OpenClaw says what its runtime does after each message, and in no later list."""
    world.chat(user="alice").say(FACT)
    told, asked = user(recorded.OPENCLAW_CONTEXT), user("[Mon 2026-11-23 08:09 UTC] What is my cat called?")
    world.upstream.queue(say("Miso, as you said to me."))
    world.post([*asked, *told], user="alice")
    messages = world.upstream.last.messages
    assert FACT in messages[0]["content"]
    assert messages[1:] == told
    goes_on = [{"role": "assistant", "content": "Miso, as you said to me."}, *user("She is three.")]
    world.post([*asked, *goes_on, *told], user="alice")
    assert world.upstream.last.messages == [messages[0], *goes_on, *told]
    world.chat(user="alice").say("Which exec sessions are active, and what is my cat called?")
    assert "Conversation data" not in world.upstream.last.body.decode()


def test_a_file_that_an_application_puts_before_a_chat_is_nobodys_words(world: World) -> None:
    """Open WebUI's terminals put their AGENTS.md in front, afresh with each request."""
    rules = "# AGENTS.md\n\nThe project Zephyr lives in /srv/zephyr."
    chat = world.chat(user="alice", headers=CHAT)
    chat.messages = user(rules)
    chat.say(FACT)
    chat.messages[0] = user(f"{rules} Use tabs.")[0]
    chat.say("She is three.")
    assert world.query("SELECT count(*) FROM conversations") == [1]
    world.post(user(f"{QUESTION} Where does Zephyr live?"), user="alice")
    assert FACT in world.upstream.last.body.decode()
    assert "/srv/zephyr" not in world.upstream.last.body.decode()
    # Who shows the file themselves has said it.
    world.post(user(f"{rules}\n\nIs this enough?"), user="alice")
    world.post(user("Where does Zephyr live, as I have shown you?"), user="alice")
    assert "/srv/zephyr" in world.upstream.last.body.decode()


def test_a_question_is_the_users_where_a_model_has_searched_with_its_words_before(world: World) -> None:
    """A question is corrected while the search runs: its last form may be what the model searched with."""
    tool = {"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}
    query = "weather in Zanzibar tomorrow"
    world.upstream.queue(call_tools(Call("search", {"query": query}, id="1")), say("Sunny."))
    world.post(user("wether in zanzibar tomorow"), user="alice", tools=[tool])
    reply = world.post(user(query), user="alice", tools=[tool])
    assert "x-mnemogate-side-request" not in reply.headers
    assert "Sunny." in kept(world)


@pytest.mark.parametrize("is_form", [False, True])
def test_a_read_only_turn_stays_so_after_its_tools(world: World, is_form: bool) -> None:
    """By the header the turn is known by its hashes; of an answer in a form nothing at all is."""
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    world.chat(user="alice").say(FACT)
    how: Json = {"headers": {"x-mnemogate-memory": "read"}}
    if is_form:
        tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
        how = {"tools": [tool], "tool_choice": {"type": "function", "function": {"name": "look"}}}
    asked, before = user(QUESTION), kept(world)
    sent = []
    for _ in range(3):
        reply = world.post(asked, user="alice", **how)
        assert reply.headers["x-mnemogate-memory"] == "read"
        sent.append(world.upstream.last.messages[0])
        asked += [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "Look elsewhere."},
        ]
    assert FACT in sent[0]["content"]
    assert sent == sent[:1] * 3
    assert FACT not in kept(world).removeprefix(before[:-1])


@pytest.mark.parametrize("fields", [{"response_format": CHECK}, {}])
def test_an_answer_that_was_corrected_for_a_program_is_gone_on_from(world: World, fields: Json) -> None:
    """Instructor asks again in the user's name; the program's list has the right answer alone, if it goes on at all."""
    history: list[Json] = []
    for text, right in (
        (FACT, '{"age":1}'),
        ("Her birthday is in May.", '{"age":2}'),
        ("She likes tuna.", '{"age":3}'),
    ):
        history += user(text)
        wrong = {"role": "assistant", "content": f'{{"age":"many", "of":"{text}"}}'}
        world.upstream.queue(say(wrong["content"]), say(right))
        world.post(history, user="alice", **fields)
        world.post([*history, wrong, *user(recorded.INSTRUCTOR_CORRECTION)], user="alice", **fields)
        assert world.upstream.last.messages[-3:] == [
            history[-1],
            wrong,
            *user(recorded.INSTRUCTOR_CORRECTION),
        ]
        history.append({"role": "assistant", "content": right})
    assert "Correct your JSON" not in kept(world)
    world.post([*history, *user("Thanks.")], user="alice")
    assert all(text in kept(world) for text in (FACT, "in May", "tuna"))


@pytest.mark.parametrize("correction", [recorded.PYDANTIC_AI_CORRECTION, recorded.PYDANTIC_AI_1_CORRECTION])
def test_a_correction_that_comes_back_in_later_lists_is_not_the_persons(
    world: World, correction: str
) -> None:
    """Pydantic AI keeps the wrong answer and what it said of it in its history."""
    history = [*user(FACT), {"role": "assistant", "content": "Sure!"}, *user(correction)]
    world.upstream.queue(say("Sure!"), say('{"age":3}'), say("You are welcome."), say("I see."))
    world.post(history[:1], user="alice", response_format=CHECK)
    world.post(history, user="alice", response_format=CHECK)
    assert kept(world) == "[]"
    history += [{"role": "assistant", "content": '{"age":3}'}, *user("Thanks.")]
    world.post(history, user="alice")
    world.post([*history, {"role": "assistant", "content": "You are welcome."}, *user("Bye.")], user="alice")
    world.chat(user="alice").say(f"{QUESTION} And which errors of validation were there?")
    body = world.upstream.last.body.decode()
    assert FACT in body
    assert "int_parsing" not in body
    assert "Fix the errors" not in body


@pytest.mark.parametrize(
    ("answer", "is_told"),
    [("Thought: I can answer.\nAnswer: It rains.", False), ("Give him my best wishes.", True)],
)
def test_what_a_tool_found_that_was_called_in_words_is_nobodys(
    world: World, answer: str, is_told: bool
) -> None:
    """LlamaIndex's ReAct agents say it in the user's role. Once the person goes on, they put the turn together."""
    called = "Thought: I look.\nAction: look\nAction Input: {'at': 'cat'}"
    world.upstream.queue(say(called), say(answer), say("Ok."))
    chat = world.chat(user="alice")
    chat.say("How is my uncle Carl?")
    chat.say("Observation: He has a fever and hates thunderstorms.")
    world.chat(user="alice").say("Who hates thunderstorms and has a fever?")
    assert ("user: Observation" in world.upstream.last.body.decode()) is is_told
    assert "my uncle Carl" in kept(world)


def test_a_guardrail_parallel_to_a_later_turn_takes_no_answers_place(world: World) -> None:
    history = [*user("Hello"), {"role": "assistant", "content": "Good day."}, *user(FACT)]
    world.upstream.queue(say("Good day."), say(ANSWER), say('{"ok":true}'))
    for messages, fields in ((history[:1], {}), (history, {}), (history, {"response_format": CHECK})):
        world.post(messages, user="alice", **fields)
    assert world.query("SELECT active FROM exchanges ORDER BY id") == [1, 1, 0]
    world.chat(user="alice").say(QUESTION)
    assert ANSWER in world.upstream.last.body.decode()


def test_a_guardrail_that_is_known_by_its_prompt_takes_no_turn_from_memory(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    rules = (SideRequest("guardrail", "Is it homework?", where="system"),)
    judge, kind = ({"role": "system", "content": text} for text in ("Is it homework?", "Be kind."))
    with remember(upstream, tmp_path, memory={"side_requests": rules}) as world:
        history: list[Json] = []
        for text in (FACT, "Her birthday is in May.", "She likes tuna."):
            history += user(text)
            upstream.queue(say("No."), say(f"I see: {text}"))
            assert world.post([judge, *history], user="alice").headers["x-mnemogate-memory"] == "off"
            assert world.post([kind, *history], user="alice").headers["x-mnemogate-memory"] == "on"
            history.append({"role": "assistant", "content": f"I see: {text}"})
        assert [kept(world).count(text) for text in (FACT, "birthday", "tuna")] == [2, 2, 2]
        world.chat(user="alice").say(QUESTION)
        assert FACT in upstream.last.body.decode()


def test_the_name_of_an_operators_rule_may_have_any_letters(upstream: StrictUpstream, tmp_path: Path) -> None:
    rules = (SideRequest("titre à nous\n", "Donne un titre"),)
    with remember(upstream, tmp_path, memory={"side_requests": rules}) as world:
        reply = world.post(user("Donne un titre"), user="alice")
        assert reply.headers["x-mnemogate-side-request"] == "titre %C3%A0 nous%0A"


@pytest.mark.parametrize("mode", [{}, {"x-mnemogate-memory": "on"}, {"x-mnemogate-memory": "strict"}])
@pytest.mark.parametrize("chat_id", ["temporary:qk3v", "local:qk3v"])
def test_a_temporary_chat_is_off_the_record(world: World, chat_id: str, mode: dict[str, str]) -> None:
    world.chat(user="alice").say("My dog is called Rex.")
    chat = world.chat(user="alice", headers={"x-openwebui-chat-id": chat_id, **mode})
    chat.say(FACT)
    chat.say("Does my dog Rex like her?")
    assert world.upstream.last.messages == chat.messages[:-1]
    assert "Miso" not in kept(world)
    reply = world.post(user(QUESTION), CHAT, user="alice")
    assert reply.headers["x-mnemogate-memory"] == "on"
    assert "Miso" not in world.upstream.last.body.decode()


def test_a_title_prompt_of_no_known_form_is_not_recalled(world: World) -> None:
    """Before the chat it quotes went on, which is when a title is asked for."""
    world.upstream.queue(say(ANSWER), say("Miso und der Donner"))
    world.chat(user="alice", headers=CHAT).say(FACT)
    prompt = quoting(recorded.NO_FORM)
    assert world.post(user(prompt), CHAT, user="alice").headers["x-mnemogate-memory"] == "on"
    world.chat(user="alice").say("Does my cat Miso hate thunderstorms? Welchen Titel hat das Gespräch?")
    body = world.upstream.last.body.decode()
    assert FACT in body
    assert "Antworte als JSON" not in body
    assert "Donner" not in body


def test_a_title_prompt_of_no_known_form_gets_no_note_and_nothing_is_learned_from_it(world: World) -> None:
    world.chat(user="alice").say("Miso, my cat, was born in May.")
    world.upstream.queue(say(ANSWER), say("Miso und der Donner"))
    world.chat(user="alice", headers=CHAT).say(FACT)
    assert "born in May" in world.upstream.last.body.decode()
    prompt = quoting(recorded.NO_FORM)
    assert world.post(user(prompt), CHAT, user="alice").status == 200
    assert world.upstream.last.messages == user(prompt)

    async def unlearned() -> UnreadMessages | None:
        store = world.gateway.app.services.store
        assert store is not None
        return await store.readers.find_unread(
            1, LEARNER, now=LONG_AFTER, idle_s=1.0, limit_chars=100_000, message_chars=4_000
        )

    found = world.gateway.call(unlearned())
    assert found is not None
    read = [message.text for message in found.messages]
    assert FACT in read
    assert not [text for text in read if "Titel" in text or "Donner" in text]


def test_who_goes_on_from_a_quote_means_it(world: World) -> None:
    world.upstream.queue(say(ANSWER), say("It is about Miso."))
    world.chat(user="alice", headers=CHAT).say(FACT)
    chat = world.chat(user="alice", headers=CHAT)
    chat.say(quoting("Someone wrote: {question} {answer} Which zebra is it about?"))
    active = "SELECT id FROM exchanges WHERE active <> 0 ORDER BY id"
    assert world.query(active) == [1]
    chat.say("Go on.")
    # The quote is now where the conversation goes on, as after an edit of its first message.
    assert world.query(active) == [2, 3]


def test_a_question_is_no_quote_of_the_chat_it_edits(world: World) -> None:
    """Neither the question alone, nor with more after it, nor in another chat."""
    world.upstream.queue(say(ANSWER))
    world.chat(user="alice", headers=CHAT).say(FACT)
    for headers, text in (
        (CHAT, FACT + " Is that common?"),
        ({"x-openwebui-chat-id": "another"}, quoting(recorded.NO_FORM)),
    ):
        world.post(user(text), headers, user="alice")
        assert world.query("SELECT active FROM exchanges ORDER BY id DESC LIMIT 1") == [1]


def test_requests_without_a_user_are_logged_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.post(user("Hi"), {"x-mnemogate-memory": "off"})
    world.post(user("Hi"), user="alice")
    assert "name no user" not in caplog.text
    for _ in range(3):
        assert world.post(user("Hi")).headers["x-mnemogate-memory"] == "none"
    assert caplog.text.count("Requests that name no user have no memory") == 1
    assert "memory.default_user" in caplog.text

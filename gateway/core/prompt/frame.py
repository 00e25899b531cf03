"""The frame around a person's words: what applications and frameworks say in the user's role, in fixed words.

It knows their tags, sentences and templates; it does not know messages, nor notes of ours.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_REMINDER, _REMINDED = "<system-reminder>", "</system-reminder>"
# What applications put beside the words, on the place that somebody works in and on what is attached: Cline and those
# made of it (Roo Code, Kilo Code), Codex, LobeChat, Zed.
_ADDED = (
    ("<environment_context>", "</environment_context>"),
    ("<turn_aborted>", "</turn_aborted>"),
    ("<environment_details>", "</environment_details>"),
    ("<explicit_instructions type=", "</explicit_instructions>"),
    ("<!-- SYSTEM CONTEXT (NOT PART OF USER QUERY) -->", "<!-- END SYSTEM CONTEXT -->"),
    ("<context>\nThe following items were attached by the user.", "</context>"),
)
# What a framework says in somebody's place, by its fixed words at the start of a message.
_IN_SOMEBODYS_PLACE = re.compile(
    "|".join(
        (
            # Google's ADK, of what another agent did (older ones without fences), and of the agent's own instruction.
            r"For context:(?: below is a transcript of what another agent did, quoted"
            r"|\[[^\]\n]{1,200}\] (?:said:|called tool `|`[^`\n]{1,200}` tool returned result:))(?s:.*)",
            r"The text between <<<BEGIN_SYSTEM_INSTRUCTION>>> and (?s:.*)<<<END_SYSTEM_INSTRUCTION>>>",
            # OpenAI Agents, of what was said before a handoff.
            r"For context, here is the conversation so far(?: between the user and the previous agent)?:\n"
            r"<CONVERSATION HISTORY>(?s:.*)",
            # Pydantic AI, of what is wrong with an answer.
            r"Your previous response failed the application's validation \(this is automated feedback, not a message"
            r"(?s:.*)",
            r"(?:Validation feedback|\d{1,9} validation errors?):\n(?s:.*)\n\nFix the errors and try again\.\s*\Z",
            # smolagents, of what its code printed, in front of the person's next task.
            r"Observation:\nExecution logs:\n(?s:.*?)(?:\nNew task:\n|\Z)",
            # Open WebUI, of images that tools brought, and of what a sub-agent in the background found.
            r"Here are the images from the tool results above\. Please analyze them\.\s*\Z",
            r"\[ASYNC SUBAGENT COMPLETE - deleg_[0-9a-f]{8}\]\nA background subagent you dispatched(?s:.*)",
            # LiteLLM, of what Claude Code says as the system within a conversation.
            r"Operator note \(not from the user\): the following was originally a mid-conversation system-role"
            r" reminder\.(?s:.*)",
            # OpenClaw, of what its runtime does, and of the time.
            r"<<<BEGIN_OPENCLAW_INTERNAL_CONTEXT>>>(?s:.*?)(?:<<<END_OPENCLAW_INTERNAL_CONTEXT>>>\s*|\Z)",
            r"\[(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) \d{4}-\d\d-\d\d \d\d:\d\d [^\]\n]{1,40}\]\s+",
            # Cline, of what its tools did, and that a task goes on.
            r"\[(?=(?s:.*)<(?:environment_details|explicit_instructions type=))"
            r"[a-z_]{1,60}(?: for '(?s:.*?)')?\] Result:(?s:.*)",
            r"\[ERROR\] You did not use a tool in your previous response!(?s:.*)",
            r"\[TASK RESUMPTION\] This task was interrupted (?s:.*)",
            # Codex, of what AGENTS.md says, and of what it has summarised.
            r"# AGENTS\.md instructions for [^\n]{1,4096}\n\n<INSTRUCTIONS>\n(?s:.*?)</INSTRUCTIONS>\s*",
            r"Another language model started to solve this problem and produced a summary of its thinking process\."
            r"(?s:.*)",
            # Copilot, of the place where somebody works.
            r"<environment_info>\n(?s:.*?)\n</environment_info>\n<workspace_info>\n(?s:.*)",
            # Spring AI, which has found no document.
            r"The user query is outside your knowledge base\.\n"
            r"Politely inform the user that you can't answer it\.\s*\Z",
        )
    )
)
# OpenClaw's, as the last line of a session's first message.
_RUNTIME, _OF_RUNTIME = "\n\nRuntime: ", " | session="


class _Template(NamedTuple):
    """How a framework asks what somebody has asked: between two fixed texts, the last ones of the message or the first.

    begin: with which the message begins. is_last: with `behind` it ends: who says more has quoted a template.
    """

    begin: str
    before: str
    behind: str
    is_last: bool = True

    def asked(self, text: str) -> str:
        """Returns the question of a text, white space aside; "": it has none."""
        if not self.is_last:
            asked, is_there, _ = text.partition(self.before)[2].partition(self.behind)
        elif text.endswith(self.behind):
            _, is_there, asked = text.removesuffix(self.behind).rpartition(self.before)
        else:
            return ""
        return asked.strip() if is_there else ""


# The default templates for answers from documents, which would be remembered as the person's words: of LlamaIndex and
# Spring AI, LangChain (and its rlm/rag-prompt), Haystack's tutorials, Open WebUI and Cherry Studio. The last are for
# tasks: LangChain's hwchase17/react, behind whose question stands all that the agent has done, CrewAI's, Copilot's (in
# VS Code), and those of Cline, which report of a call in front of what somebody said to its result.
_TEMPLATES = (
    _Template("Context information is below.\n", "\nQuery: ", "\nAnswer:"),
    _Template("Context information from multiple sources is below.\n---", "\nQuery: ", "\nAnswer:"),
    _Template(
        "Use the following pieces of context to answer the question at the end.",
        "\nQuestion: ",
        "\nHelpful Answer:",
    ),
    _Template(
        "You are an assistant for question-answering tasks. Use the following pieces of retrieved context to answer",
        "\nQuestion: ",
        "\nContext: ",
        is_last=False,
    ),
    _Template("Given the following information, answer the question.", "\nQuestion:", "\nAnswer:"),
    _Template("### Task:\nRespond to the user query using the provided context", "\n</context>", ""),
    _Template(
        "Please answer the question based on the reference materials",
        "\n## My question is:\n",
        "\n## Reference Materials:\n",
        is_last=False,
    ),
    _Template(
        "Answer the following questions as best you can. You have access to the following tools:",
        "\nBegin!\n\nQuestion: ",
        "\nThought:",
        is_last=False,
    ),
    _Template("Current Task: ", "Current Task: ", "\n\nThis is the expected criteria for", is_last=False),
    _Template("Current Task: ", "Current Task: ", "\n\nProvide your complete response:", is_last=False),
    _Template("<", "<userRequest>", "</userRequest>"),
    _Template("<task>", "<task>", "</task>"),
    _Template("<user_message>", "<user_message>", "</user_message>"),
    *(_Template("[", f"<{tag}>", f"</{tag}>") for tag in ("user_message", "feedback", "answer")),
)
_BEGINNINGS = tuple({template.begin for template in _TEMPLATES})
# What is put behind the words: documents (LangChain4j, Genkit, Spring AI), and the form of an answer for a program
# (LangChain4j, Spring AI).
_BEHIND = (
    "\n\nAnswer using the following information:\n",
    "\n\nUse the following information to complete your task:\n\n",
    "\nContext information is below, surrounded by ---------------------\n",
    "\nYou must answer strictly in the following JSON format: {",
    "\nYour response should be in JSON format.\nDo not include any explanations, only provide a RFC8259 compliant JSON",
)


def without_frame(text: str) -> str:
    """Returns what somebody has said themselves, without what applications say around it.

    Coding agents put that between these tags (Letta Code, Claude Code, opencode). A message of nothing else stays as it
    is: some wrap what the person says meanwhile. Of what a framework says in somebody's place nothing is left.
    """
    bare = _without_added(text)
    if asked := _asked(bare.strip()):
        bare = asked
    elif said := _IN_SOMEBODYS_PLACE.match(text):
        bare = _without_added(text[said.end() :])
    own, is_there, line = bare.rpartition(_RUNTIME)
    if is_there and _OF_RUNTIME in line and "\n" not in line:
        bare = own
    own = _without(bare, _REMINDER, _REMINDED)
    return own if own.strip() else bare


def _asked(text: str) -> str:
    """Returns what somebody has asked in a framework's template; "": it is none that is known."""
    if text.startswith(_BEGINNINGS):
        for template in _TEMPLATES:
            if text.startswith(template.begin) and (asked := template.asked(text)):
                return asked
    if "\n" in text:
        for behind in _BEHIND:
            own, is_there, _ = text.partition(behind)
            if is_there:
                return own.strip()
    return ""


def _without_added(text: str) -> str:
    if "<" in text:
        for begin, end in _ADDED:
            text = _without(text, begin, end)
    return text


def _without(text: str, begin: str, end: str) -> str:
    """Returns a text without what stands between two tags."""
    left, at = [], 0
    # Not by a pattern: it would read the rest of the text again for each tag that is not closed.
    while (opened := text.find(begin, at)) >= 0 and (closed := text.find(end, opened)) >= 0:
        left.append(text[at:opened])
        at = closed + len(end)
    return "".join((*left, text[at:])).strip() if at else text

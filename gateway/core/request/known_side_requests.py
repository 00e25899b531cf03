"""The rules by which side requests of well-known applications are recognised.

They know an application's fixed sentences, and the form of Open WebUI's templates, whose sentences change with each
release and are translated.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from gateway.core.request.side_requests import SideRule


class _Known(NamedTuple):
    name: str
    pattern: str
    where: Literal["user", "system"] = "user"
    memory: Literal["off", "read"] = "off"
    is_passing: bool = False  # said in the user's place, and in no later list

    @property
    def leaves_nothing(self) -> bool:
        return self.is_passing or self.where == "system"


# AutoGen's for a chat of several agents: the model chooses who speaks next.
_SPEAKER = r"You are in a role play game\. The following roles are available:"

# Of smolagents, for the first plan and for each further one.
_PLANNER = r"You are a world expert at analyzing a situation(?: to derive facts)?, and plan accordingly towards solving"
# Of NextChat, whose wording others took over.
_DISCUSSION = (
    r"Summarize the discussion briefly in 200 words or less to use as a prompt for future context\.\s*\Z"
)
# Claude Code's, which others took over; in newer ones behind a warning not to call tools.
_CODING_SUMMARY = (
    r"(?:CRITICAL: Respond with TEXT ONLY\. Do NOT call any tools\.(?s:.{0,1000}?))?"
    r"Your task is to create a detailed summary of (?:the conversation so far, paying close attention to the user's"
    r"|the RECENT portion of the conversation)"
    r"|You are a helpful AI assistant tasked with summarizing conversations\."
)
# Perplexica's, and of those that took it over.
_REPHRASER = (
    r"You are an AI question rephraser\. (?:You will be given a conversation|Your role is to rephrase)"
)
# Of Zep's Graphiti, which has one for each step; the second half of them is from before its version 0.29.
_GRAPHITI = (
    r"You are an entity (?:extraction|classification|attribute extraction) specialist\b"
    r"|You are a(?:n entity| fact) deduplication assistant\b"
    r"|You are a fact attribute extraction specialist\."
    r"|You extract temporal bounds from facts\."
    r"|You build the long-term memory of an AI agent\. From each conversation you extract the entities"
    r"|You maintain detailed, information-dense entity memories from episode text\."
    r"|You extract durable knowledge from message threads\."
    r"|You are a helpful assistant that (?:extracts entity (?:summaries|properties)|generates concise entity summaries"
    r"|combines summaries|generates detailed, information-dense summaries|describes provided contents in a single)"
    r"|You are an expert tasked with determining whether the passage is relevant to the query"
    r"|You are an expert fact extractor that extracts fact triples from text\."
    r"|You are an AI assistant that (?:extracts entity nodes from|classifies entity nodes"
    r"|extracts datetime information for graph edges|determines which facts contradict each other"
    r"|determines which entities have not been extracted)"
    r"|You are a helpful assistant that (?:de-duplicates (?:nodes|edges|facts) from|determines whether or not ENTITIES)"
)

# The fixed sentences of chat front ends and coding agents, from their sources. Whole sentences, because a person may
# well ask for "a short title" or "tags for this post", and Open WebUI's template for answers from documents, which is
# the person's own question, begins with "### Task:" like its side requests do.
KNOWN_SIDE_REQUESTS: tuple[SideRule, ...] = (
    _Known(
        "open-webui title",
        r"### Task:\s+Generate a concise(?:, 3-5 word)? title (?:with an emoji )?summarizing the chat history",
    ),
    _Known("open-webui tags", r"### Task:\s+Generate 1-3 broad tags categorizing"),
    _Known(
        "open-webui follow-ups",
        r"### Task:\s+(?:Suggest 3-5 relevant follow-up questions|Predict 3-5 useful messages this user might)",
    ),
    _Known(
        "open-webui queries", r"### Task:\s+Analyze the chat history to determine the necessity of generating"
    ),
    _Known(
        "open-webui image prompt", r"### Task:\s+Generate a detailed prompt for am? image generation task"
    ),
    _Known(
        "open-webui summary",
        r"### Task:\s+Summarize the conversation (?:above|history) that will be compacted",
    ),
    _Known(
        "open-webui autocompletion",
        r"### Task:\s+You are an autocompletion system\. Continue the text in `?<text>",
    ),
    # The form that these templates share: the quoted chat ends the message. It is looked for from the end, so that a
    # long message costs one pass.
    _Known("open-webui task", r"### Task:(?=(?s:.*?)<chat_history>)(?s:.*)</chat_history>\s*\Z"),
    # Where its tools are not called natively, the model is asked before each turn which of them to call.
    _Known(
        "open-webui tools",
        r"Available Tools: [^\n]*+\s+Your task is to choose and return the correct tool\(s\) from the list",
        "system",
    ),
    # It notes memories of its own, and makes one answer of those of several models.
    _Known("open-webui memories", r"You are Open WebUI's private memory reviewer\.", "system"),
    _Known(
        "open-webui merged answer",
        r"You have been provided with a set of responses from various models to the latest user query: ",
        is_passing=True,
    ),
    _Known(
        "open-webui emoji",
        r"Your task is to reflect the speaker's likely facial expression through a fitting emoji",
    ),
    _Known(
        "librechat title", r"(?:Please generate|Provide) a concise, 5-word-or-less title for the conversation"
    ),
    _Known(
        "librechat title and language",
        r"Analyze this conversation and provide:\s+1\. The detected language of the conversation",
    ),
    # Its memory agent reads the last messages after each turn.
    _Known("librechat memory", r"# Current Chat:\s+(?:Human: |AI: |\[Earlier chat content omitted)"),
    _Known(
        "librechat summary",
        r"Hold on, before you continue I need you to write me a checkpoint of everything so far\."
        r"|Hold on again, update your checkpoint\. Merge the new messages",
    ),
    _Known(
        "librechat label",
        r"You write the one-line header above a group of tool calls an AI agent just made\.",
    ),
    # Of agents in a chain, each is told so what the ones before it have answered.
    _Known(
        "librechat chain",
        r"Based on the following conversation and analysis from previous agents, please provide your insights:\n",
        memory="read",
        is_passing=True,
    ),
    _Known("nextchat title", r"Please generate a four to five word title summarizing our conversation"),
    _Known("nextchat summary", _DISCUSSION, "system"),
    _Known("aichat summary", _DISCUSSION),
    _Known(
        "chatbox title",
        r"Based on the chat history, give this conversation a (?:name|title)\.\s+Keep it short",
    ),
    _Known(
        "lobechat title",
        r"You are a professional conversation summarizer\. Generate a concise title that captures the essence",
        "system",
    ),
    _Known(
        "lobechat summary",
        r"You're an assistant who's good at extracting key takeaways from conversations and summarizing them\."
        r"|You are a conversation context compressor\.",
        "system",
    ),
    _Known(
        "lobechat follow-ups",
        r"You are a sidecar that extracts 0-4 quick-reply suggestions from the last assistant message\.",
        "system",
    ),
    # Servers on which such front ends are made.
    _Known(
        "dify title",
        r"You are asked to generate a concise chat title by decomposing the user.s input into two parts:"
        r"|You need to decompose the user's input into \"subject\" and \"intention\" in order to accurately figure out",
    ),
    _Known(
        "dify questions",
        r"(?:Human|User): (?s:.*)\nPlease help me predict the three most likely questions that human would ask, and "
        r"keep",
    ),
    _Known(
        "dify classification",
        r"### Job Description',?\s+You are a text classification engine that analyzes text data and assigns categories",
        "system",
    ),
    _Known(
        "dify parameters",
        r"You are a helpful assistant tasked with extracting structured information based on specific criteria "
        r"provided\."
        r"|You should always follow the instructions and output a valid JSON object\.\s+The structure of the JSON "
        r"object",
        "system",
    ),
    _Known(
        "flowise follow-ups",
        r"Given the following conversations: (?s:.*)\. Please help me predict the three most likely questions that "
        r"human",
    ),
    _Known("cherry studio question", _REPHRASER, "system"),
    _Known("perplexica question", _REPHRASER),
    _Known(
        "cherry studio title",
        r"You are an assistant skilled in conversation\.? (?:who needs|You need) to summarize (?:the )?user",
        "system",
    ),
    _Known(
        "cherry studio translation",
        r"You are a translation expert\. Your only task is to translate text enclosed with <translate_input>",
    ),
    _Known("chat-ui title", r"You are a chat thread titling assistant\.", "system"),
    _Known("jan title", r"Summarize in a \d{1,2}-word Title\. Give the title only\."),
    _Known(
        "page assist title",
        r"Here is the query:\s+-{6,}\s(?s:.*)\s-{6,}\s+Create a concise, 3-5 word phrase as a title for the previous "
        r"query",
    ),
    _Known(
        "big-agi title", r"You are an AI conversation titles assistant who specializes in creating", "system"
    ),
    _Known(
        "typingmind title",
        r"What would be a short and relevant title for this chat\? You must strictly answer with only the title",
        is_passing=True,
    ),
    # It asks behind the whole chat, as the system.
    _Known(
        "sillytavern aside",
        r"\[Pause your roleplay\b"
        r"|\[Write your next reply from the point of view of (?s:.{1,200}?), using the chat history so far as a "
        r"guideline"
        r"|Ignore previous instructions\. (?:Summarize the most important (?:facts|parts)|Classify the emotion of the "
        r"last)",
        "system",
    ),
    # Coding agents. A model's settings in aider may put a line of their own in front. It begins with a letter, so that
    # it is not looked for at each of many blanks.
    _Known(
        "copilot title",
        r"You are an expert in crafting (?:pithy|ultra-compact) (?:titles for chatbot conversations|branch names)\b",
        "system",
    ),
    _Known(
        "copilot summary",
        r"Your task is to create a comprehensive, detailed summary of the entire conversation",
        "system",
    ),
    _Known(
        "copilot summary",
        r"The conversation has grown too large for the context window and must be compacted now\.",
        is_passing=True,
    ),
    _Known(
        "copilot commit message",
        r"You are an AI programming assistant, helping a software developer to come with the best git commit message",
        "system",
    ),
    _Known(
        "zed title",
        r"Generate a concise 3-7 word title for this conversation, omitting punctuation\.",
        is_passing=True,
    ),
    _Known(
        "zed summary",
        r"Generate a detailed summary of this conversation\. Include:\s+1\. A brief overview of what was discussed",
        is_passing=True,
    ),
    _Known(
        "codex summary",
        r"You are performing a CONTEXT CHECKPOINT COMPACTION\. Create a handoff summary for another LLM",
        is_passing=True,
    ),
    # Claude Code and Roo Code (and Kilo Code), in the words of the former.
    _Known("coding summary", _CODING_SUMMARY, "system"),
    _Known("coding summary", _CODING_SUMMARY, is_passing=True),
    _Known(
        "roo code prompt",
        r"Generate an enhanced version of this prompt \(reply with only the enhanced prompt - no conversation",
    ),
    _Known("opencode title", r"You are a title generator\. You output ONLY", "system"),
    _Known(
        "opencode summary",
        r"You are a context summarization agent\. You are given a conversation"
        r"|Summarize what was done in this conversation\. Write like a pull request description\.",
        "system",
    ),
    # Qwen Code, in part with the words of Gemini CLI, from which it comes.
    _Known(
        "qwen code memories",
        r"You are now acting as the managed memory extraction subagent for an AI coding assistant\."
        r"|You are performing a managed memory dream\b"
        r"|You are selecting memories that will be useful to an AI coding assistant"
        r"|You are reviewing this conversation to extract reusable skills\.",
        "system",
    ),
    _Known(
        "qwen code summary",
        r"You are the component that summarizes (?:a conversation when its context window|internal chat history into)"
        r"|You generate session recaps for a programming assistant CLI\.",
        "system",
    ),
    _Known(
        "qwen code title",
        r"Generate a concise, sentence-case title \(3-7 words\) that captures what this programming-assistant session"
        r"|Generate a short kebab-case name \(2-4 words\) that captures the main topic of this conversation\."
        r"|Write a short summary label describing what these tool calls accomplished\.",
        "system",
    ),
    _Known(
        "qwen code suggestion",
        r"\[SUGGESTION MODE: Suggest what the user might naturally type next",
        is_passing=True,
    ),
    _Known(
        "qwen code speaker",
        r"Analyze \*only\* the content and structure of your immediately preceding response",
        is_passing=True,
    ),
    _Known(
        "qwen code page",
        r"The user requested the following: \"(?s:.*?)\"\.\s+I have fetched the content from ",
        is_passing=True,
    ),
    # OpenClaw's; the first is of the coding agent that it is made of, too.
    _Known(
        "openclaw summary",
        r"You are a context summarization assistant\. Your task is to read a conversation between a user and an AI",
        "system",
    ),
    _Known(
        "openclaw title",
        r"Generate a concise session title \(3-6 words, max 60 characters\) from the user's first message\.",
        "system",
    ),
    _Known(
        "openclaw name", r"Based on this conversation, generate a short 1-2 word filename slug \(lowercase"
    ),
    _Known("openclaw flush", r"(?:\[[^\]\n]{1,80}\] )?Pre-compaction memory flush\."),
    _Known(
        "openclaw heartbeat",
        r"(?:\[[^\]\n]{1,80}\] )?(?:Follow the heartbeat monitor scratch context when provided\."
        r"|Read HEARTBEAT\.md if it exists \(workspace context\)\.)",
    ),
    _Known(
        "aider commit message",
        r"(?:\S[^\n]{0,200}\n)?You are an expert software engineer (?:that|who) (?:generates|writes) concise, one-line",
        "system",
    ),
    _Known(
        "aider summary",
        r"(?:\S[^\n]{0,200}\n)?\*Briefly\* summarize this partial conversation about programming",
        "system",
    ),
    _Known(
        "continue title",
        r"Given the following\.\.\. please reply with a title for the chat that is 3-4 words",
    ),
    _Known(
        "continue summary",
        r"Please provide a concise summary of our conversation so far, capturing the key context, decisions made, and "
        r"current state\. Format this as a single comprehensive message",
    ),
    _Known("gptme title", r"Generate concise conversation titles\.", "system"),
    _Known(
        "gptme summary",
        r"You are a helpful assistant that helps summarize messages into bullet format\.",
        "system",
    ),
    # Without a person at hand gptme answers in the person's place.
    _Known("gptme nudge", r"<system>No tool call detected"),
    # Frameworks: what they say by default, where the developer gives no words of their own.
    _Known("langchain summary", r"<role>\s+Context Extraction Assistant\s+</role>"),
    _Known(
        "langchain summary",
        r"Progressively summarize the lines of conversation provided, adding onto the previous summary",
    ),
    _Known(
        "langgraph summary",
        r"Create a summary of the conversation above:\s*\Z"
        r"|This is (?:a )?summary of the conversation (?:so far|to date):(?s:.*)"
        r"Extend (?:the|this) summary by taking into account the new messages above:\s*\Z",
    ),
    _Known("langmem memories", r"You are a memory subroutine for an AI\.", "system"),
    _Known(
        "langchain question",
        r"Given the following conversation and a follow up question, rephrase the follow up question to be",
    ),
    _Known(
        "llamaindex question",
        r"Given a conversation \(between Human and Assistant\) and a follow up message from Human, rewrite the message"
        r"|Given the following conversation between a user and an AI assistant and a follow up question from user,\s+"
        r"rephrase the follow up question to be a standalone question",
    ),
    _Known(
        "llamaindex summary",
        r"The following is a conversation between the user and assistant\. Write a concise summary about the contents",
        "system",
    ),
    _Known(
        "semantic kernel summary",
        r"Provide a concise and complete summarization of the entire dialog that does not exceed 5 sentences\.",
        "system",
    ),
    _Known(
        "llamaindex facts",
        r"You are a precise fact (?:extraction|condensing) system designed to identify key information from",
    ),
    # It has an answer made better with each further text that was found.
    _Known(
        "llamaindex refinement",
        r"You are an expert Q&A system that strictly operates in two modes when refining existing answers:"
        r"|The original query is as follows: (?s:.*?)\nWe have provided an existing answer: ",
        is_passing=True,
    ),
    # One question made several, or an answer made up, to search for.
    _Known(
        "llamaindex queries",
        r"You are a helpful assistant that generates multiple search queries based on a single input query\."
        r"|Given a user question, and a list of tools, output a list of relevant sub-questions"
        r"|Please write a passage to answer the question\s+Try to include as many key details as possible\.",
        is_passing=True,
    ),
    _Known(
        "langchain queries",
        r"You are an AI language model assistant\. Your task is\s+"
        r"to generate \d{1,3} different versions of the given user\s+question to retrieve relevant documents",
        is_passing=True,
    ),
    _Known(
        "langchain4j queries",
        r"Read and understand the conversation between the User and the AI\. Then, analyze the new query from the "
        r"User\."
        r"|Generate \d{1,3} different versions of a provided user query\. Each version should be worded differently"
        r"|Based on the user query, determine the most suitable data source\(s\) to retrieve relevant information",
        is_passing=True,
    ),
    _Known(
        "spring ai queries",
        r"Given the following conversation history and a follow-up query, your task is to synthesize\s"
        r"|Given a user query, rewrite it to provide better results when querying a \S"
        r"|Given a user query, translate it to [^\n]{1,80}\.\n"
        r"|You are an expert at information retrieval and search optimization\.\s+Your task is to generate \d",
        is_passing=True,
    ),
    _Known(
        "haystack queries",
        r"You are part of an information system that processes user queries for retrieval\.",
        is_passing=True,
    ),
    # Other memories: what they note of a conversation, how they put it in order, and what they search in it. A note of
    # ours would be noted there as if it had been said just now.
    _Known(
        "mem0 memories",
        r"# ROLE\s+You are a Memory Extractor\b"
        r"|You are an? (?:Personal|Assistant) Information Organizer, specialized in accurately storing facts"
        r"|You are a memory summarization system that records and preserves the complete interaction history"
        r"|You are a smart assistant who understands entities and their types in a given text\."
        r"|You are an advanced algorithm designed to extract structured information from text to construct knowledge"
        r"|You are a graph memory manager specializing in identifying, managing, and optimizing relationships",
        "system",
    ),
    _Known(
        "mem0 memories",
        r"You are a smart memory manager which controls the memory of a system\.",
        is_passing=True,
    ),
    _Known("graphiti memories", _GRAPHITI, "system"),
    _Known(
        "crewai memories",
        r"You extract discrete, reusable memory statements from raw content"
        r"|You analyze a query for searching memory\."
        r"|You analyze content to be stored in a hierarchical memory system\."
        r"|You are comparing new content against existing memories to decide how to consolidate them\.",
        "system",
    ),
    _Known(
        "crewai query",
        r"Your goal is to rewrite the user query so that it is optimized for retrieval from a vector database\.",
        "system",
    ),
    _Known(
        "crewai plan",
        r"You are a strategic planning assistant\. Create concrete, executable plans where every step produces",
        "system",
    ),
    _Known(
        "crewai summary",
        r"You are a precise assistant that creates structured summaries of agent conversations\.",
        "system",
    ),
    _Known(
        "agno memories",
        r"You are a Memory Manager that is responsible for managing information and preferences about the user\.",
        "system",
    ),
    _Known(
        "agno structured output",
        r"You are tasked with creating a structured output from the provided (?:user message|data)\.",
        "system",
    ),
    _Known(
        "ag2 summary",
        r"Summarize the following conversation history concisely, preserving key decisions, findings, and context:\n"
        r"|Summarize this conversation\. Include key decisions, findings, outcomes, and any unfinished work:\n"
        r"|You maintain an agent's working memory\. Update it based on the new conversation below\.",
        is_passing=True,
    ),
    # What a team of agents said among themselves becomes one answer.
    _Known(
        "autogen answer",
        r"Earlier you were asked to fulfill a request\. You and your team worked diligently to address that request\.",
        "system",
    ),
    # What the orchestrator of Magentic-One asks itself; AutoGen, Agent Framework and Semantic Kernel have it.
    _Known(
        "magentic ledger",
        r"Below I will present you a request\.\s+Before we begin addressing the request, please answer the following"
        r"|Fantastic\. To address this request we have assembled the following team:"
        r"|Recall we are working on the following request:(?s:.*?)please answer the following questions"
        r"|As a reminder, we are working to solve the following task:(?s:.*?)we may have learned something new"
        r"|Please briefly explain what went wrong on this last run \(the root cause of the failure\)",
    ),
    # It asks once more, in the user's name, where an answer has not the form that a program needs. The program has
    # the right answer alone, and may well go on from it.
    _Known(
        "instructor correction",
        r"Correct your JSON ONLY RESPONSE, based on the following errors:"
        r"|Recall the function correctly, fix the errors, exceptions found\n"
        r"|Validation Error found:(?s:.*)Recall the function correctly, fix the errors\s*\Z",
        is_passing=True,
    ),
    # In its later lists it is known by gateway.core.prompt.frame. The second form is from before its version 2.
    _Known(
        "pydantic-ai correction",
        r"Your previous response failed the application's validation \(this is automated feedback, not a message"
        r"|(?:Validation feedback|\d{1,9} validation errors?):\n(?s:.*)\n\nFix the errors and try again\.\s*\Z",
        is_passing=True,
    ),
    _Known("smolagents plan", _PLANNER),
    _Known("smolagents plan", _PLANNER, "system"),
    _Known("autogen speaker", _SPEAKER),
    _Known("autogen speaker", _SPEAKER, "system"),
    _Known(
        "haystack summary", r"You are compacting one portion of a conversation between a user and", "system"
    ),
    _Known(
        "agno summary",
        r"Analyze the following conversation between a user and an assistant, and extract the following details:",
        "system",
    ),
    _Known(
        "strands summary",
        r"You are a conversation summarizer\. Provide a concise summary of the conversation history\.",
        "system",
    ),
    _Known(
        "adk summary",
        r"The following is a conversation history between a user and an AI agent\. It may or may not start from a "
        r"compacted history\.",
    ),
    _Known(
        "mastra title",
        r"(?:- )?you will generate a short title based on (?:the first message a user begins a conversation with"
        r"|a conversation transcript between a user and an assistant)",
        "system",
    ),
    _Known(
        "vercel chatbot title",
        r"Generate a short chat title \(2-5 words\) summarizing the user's message\.",
        "system",
    ),
    _Known(
        "mastra observations",
        r"You are the memory consciousness of an AI assistant\. "
        r"Your (?:observations|memory observation reflections) will be the ONLY information",
        "system",
    ),
    _Known(
        "pipecat summary",
        r"You are summarizing a conversation between a user and an AI assistant\.",
        "system",
    ),
    _Known(
        "livekit summary",
        r"Compress older (?:chat|conversation) history into a short, faithful summary\.",
        "system",
    ),
)

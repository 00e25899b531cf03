"""The agents of the agents API, as chat completions use them: `StoredAgents` of gateway.run.stored_agents."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from gateway.agents.core.repeated_messages import find_last_reply_texts, find_new_messages
from gateway.agents.core.waits import Waiter
from gateway.agents.registry.registry import Registry
from gateway.agents.runs.agent_messaging import Sender
from gateway.agents.runs.agent_runs import AgentRuns
from gateway.agents.runs.calls.called_tools import list_prompt_calls
from gateway.agents.runs.replay import replay
from gateway.agents.runs.run import RoutedSend, RunOutput, clean_message, make_sampling
from gateway.agents.runs.stored_conversation import without_spoken_messages
from gateway.agents.runs.turn_guide import make_guide
from gateway.agents.tools.agent_tools import find_serial_tools, read_asides
from gateway.core.agent import AgentSpec
from gateway.core.conversation.wire_message import count_leading_system
from gateway.core.ids import parse_uid
from gateway.core.memory.offered_tools import allows_hidden_tools
from gateway.core.request.chat_request import ChatRequest, add_missing_fields
from gateway.core.request.identity import Identity
from gateway.core.request.memory_mode import STORING_MODES
from gateway.core.turn.terms import TurnTerms
from gateway.core.turn.tool_call import AllBut
from gateway.core.upstream.context_window import ContextWindows
from gateway.errors import BadRequest
from gateway.run.call import ChatCall
from gateway.run.memory.block_edits import BlockEdits
from gateway.run.memory.memory_context import MemoryContext
from gateway.run.memory.prompt import Prompt
from gateway.run.stored_agents import ConfiguredRequest, GuidedTerms, StoredAgent
from gateway.run.tools.toolbox import Toolbox
from storage.errors import StoreError
from storage.records import DEFAULT_CONVERSATION


class ChatAgents(Struct, frozen=True):
    """The agents of all projects, for chat completions."""

    # Resolves the names of agents.
    registry: Registry
    # Performs the runs that chat completions become.
    agent_runs: AgentRuns
    # The known context windows of models.
    context_windows: ContextWindows

    # `StoredAgents` documents the methods.

    async def find(self, project: str, name: str) -> StoredAgent | None:
        resolved = await self.registry.resolver.resolve(project, name)
        return None if resolved is None else StoredAgent(resolved.spec, resolved.scope)

    async def has_conversation(self, identity: Identity, spec: AgentSpec) -> bool:
        # The name of a conversation is `default` for an agent of the agents API, and `default` or an id for any
        # stored conversation that has a message.
        name, scope = identity.conversation_key, identity.scope
        if name is None or scope is None:
            return False
        uid = parse_uid("conv", name)
        if name != DEFAULT_CONVERSATION and uid is None:
            return False
        if name == DEFAULT_CONVERSATION and not spec.is_profile:
            return True
        store = self.agent_runs.keeper.store
        try:
            agent = await store.agents.find(scope)
            if agent is None:
                return False
            conversation = await store.stored_paths.find_conversation(agent, uid or DEFAULT_CONVERSATION)
        except StoreError:
            return False
        return conversation is not None and bool(conversation.last_exchange)

    async def with_conversation_settings(
        self, spec: AgentSpec, identity: Identity, request: ChatRequest, *, is_stored: bool
    ) -> ConfiguredRequest:
        name = identity.conversation_key
        if is_stored and name is not None and (uid := parse_uid("conv", name)) is not None:
            spec = await self.registry.resolver.with_conversation_settings(identity.project, uid, spec)
        offers = bool(spec.tools) and identity.mode in STORING_MODES and allows_hidden_tools(request.json)
        sampling = make_sampling(spec, has_tools=request.has_tools or offers)
        return ConfiguredRequest(spec, add_missing_fields(request, sampling))

    async def complete(self, call: ChatCall) -> None:
        # Messages of stored turns, which the list of the request repeats, are left out.
        request, make_view, receipt = call.request, call.make_view, call.receipt
        if request.n > 1:
            raise BadRequest("A conversation of an agent goes on with one reply.", param="n")
        window = self.context_windows.with_known_window(call.route.first).context_window
        messages = tuple(clean_message(message, window) for message in find_new_messages(request.messages))
        spoken_count = len(request.messages) - count_leading_system(request.messages)
        receipt.headers["x-mnemogate-appended"] = f"{len(messages)} of {spoken_count}"
        if not messages:
            raise BadRequest(
                "There is nothing new in `messages`: what follows the last assistant message is appended.",
                param="messages",
            )
        identity, scope = call.identity, call.identity.scope
        assert scope is not None  # `has_conversation` has looked for the conversation in it
        send = RoutedSend(
            call.spec,
            scope,
            identity.conversation_key or DEFAULT_CONVERSATION,
            messages=messages,
            is_retry=identity.is_retry,
            forwarded=call.forwarded,
            request=without_spoken_messages(request),
            identity=identity,
            route=call.route,
            shows_steps=False,
            heard_texts=find_last_reply_texts(request.messages),
        )
        output = RunOutput(lambda _: make_view, call.sink, receipt)
        result = await self.agent_runs.answer_in_queue(send, output)
        if result.is_repeat:
            await replay(request, result, make_view, call.sink, receipt)

    def make_terms(
        self, spec: AgentSpec, request: ChatRequest, prompt: Prompt, terms: TurnTerms
    ) -> GuidedTerms:
        # The client sees no tool of the agent, so a call of an unknown tool is not for the client either.
        gateway_tools = AllBut(request.tool_names) if prompt.offered_tools else ()
        terms = replace(
            terms,
            gateway_tools=gateway_tools,
            serial_tools=find_serial_tools(spec),
            asides=read_asides(spec, request.tool_names),
        )
        calls = list_prompt_calls(prompt) if spec.definition.rules else ()
        return GuidedTerms(terms, make_guide(spec, prompt, calls=calls))

    def make_toolbox(self, call: ChatCall, context: MemoryContext, edits: BlockEdits) -> Toolbox:
        is_profile = context.request.spec.is_profile
        sender = None if is_profile else Sender.of(context, Waiter(context.agent.uid), call.forwarded)
        journal = None if call.record is None else call.record.journal
        return self.agent_runs.toolboxes.make_for_chat(context, edits, sender, journal)

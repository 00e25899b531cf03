"""The acceptance of runs in the background: a send is refused, or is on disk with its run and its job."""

from __future__ import annotations

from dataclasses import dataclass

from adapters.types import Json
from gateway.agents.registry.conversation_registry import find_conversation
from gateway.agents.runs.agent_runs import AgentRuns
from gateway.agents.runs.background.open_runs import OpenRun, OpenRuns, RunPhase
from gateway.agents.runs.background.run_logs import RunLogs
from gateway.agents.runs.background.stored_request import StoredRequest, hash_send
from gateway.agents.runs.resend import EarlierSend, SendMatcher, hash_otid
from gateway.agents.runs.run import RunRequest
from gateway.core.conversation.kind import QueueName
from gateway.core.ids import new_uid
from gateway.run.memory.conversation_uid import make_conversation_uid
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.memory.memory_agent import check_not_paused
from storage.errors import NotFound
from storage.records import DEFAULT_CONVERSATION
from storage.run_commands import RunAccept
from storage.run_records import Run, RunTextKind


@dataclass(eq=False, slots=True)
class RunAcceptance:
    """Accepts the background runs of a process."""

    # Checks whether a send can run, and has the ends of runs.
    agent_runs: AgentRuns
    # The memory, with the store to which runs are added.
    keeper: MemoryKeeper
    # The open runs of the process, to which accepted runs are added.
    open_runs: OpenRuns
    # The event logs of the process's runs.
    logs: RunLogs

    async def accept(
        self,
        run_request: RunRequest,
        *,
        callback: str | None = None,
        event_options: Json | None = None,
        listing: bytes | None = None,
    ) -> Run:
        """Accepts a run. Returns the run once it is on disk, and for a resent request the existing run.

        callback: the URL to call when the run has ended; None: no URL is called.
        event_options: the options of the dialect for the run's events; None: no events are logged.
        listing: the JSON that decides how the run's messages are listed; None: in the usual way.

        Raises: BadRequest, UnknownModel, StoreError; NotFound if there is no such agent or conversation; NotAllowed if
            the memory is paused.
        """
        self.agent_runs.check_background(run_request, callback)
        store = self.keeper.store
        agent = await store.agents.find(run_request.scope)
        if agent is None:
            raise NotFound("there is no such agent")
        check_not_paused(agent)
        conversation = await find_conversation(store, agent, run_request.conversation_name)
        # A conversation that has not begun has no row.
        conversation_row = 0 if conversation is None else conversation.id
        name = DEFAULT_CONVERSATION if conversation is None else conversation.name
        matcher = SendMatcher(store, agent, name, run_request, hash_otid(agent, name, run_request.otid))
        digest = hash_send(agent, run_request)
        earlier_send = await self._find_earlier_send(matcher, digest)
        if earlier_send is not None and earlier_send.is_answered:
            return earlier_send.run
        # Other sends may be answered before the new run is performed, so `perform_accepted` decides the rest.
        replaces = None if earlier_send is None else earlier_send.run.id
        draft = Run.make_draft(
            new_uid(),
            self.keeper.now(),
            agent_row=agent.id,
            conversation_row=conversation_row,
            parent=run_request.parent_run_row,
            depth=run_request.depth,
            background=True,
            otid=matcher.otid,
        )
        request = StoredRequest.of(run_request, digest, event_options, callback, replaces).encode()
        command = RunAccept(
            draft, request, DEFAULT_CONVERSATION, make_conversation_uid(), replaces=replaces, listing=listing
        )
        # Before the write, since the job may begin as soon as it is committed.
        queue = QueueName(agent.uid, name)
        open_run = self.open_runs.add(draft.uid, queue, run_request.forwarded, RunPhase.ACCEPTING)
        # If other processes may perform the run, the process that performs it begins the log.
        if event_options is not None and not self.agent_runs.ends.is_shared:
            open_run.log = self.logs.make(draft, agent)
        return await self._write_accepted(command, open_run)

    async def _write_accepted(self, command: RunAccept, open_run: OpenRun) -> Run:
        """Writes an accepted run, and begins its log. Returns the run, or an earlier run of the same send."""
        try:
            accepted = await self.keeper.store.runs.accept_run(command)
        except BaseException:
            self.open_runs.close(open_run)
            raise
        if accepted.uid != command.run.uid:
            self.open_runs.close(open_run)
            return accepted
        self.open_runs.note_accepted(open_run)
        # The deletion of the agent may have ended the log meanwhile.
        if open_run.log is not None and open_run.phase is not RunPhase.ENDED:
            self.logs.begin(open_run.log, accepted)
        return accepted

    async def _find_earlier_send(self, matcher: SendMatcher, digest: bytes) -> EarlierSend | None:
        """Returns the earlier send that this send repeats, or None. If the earlier run is open, it answers both sends.

        digest: the digest of this send (`hash_send`).
        """
        if matcher.otid is None and not matcher.send.is_retry:
            return None
        run = await matcher.find_candidate(self.keeper.now())
        if run is None:
            return None
        if not run.is_over:
            is_same = matcher.otid is not None or await self._has_digest(run, digest)
            return EarlierSend(run, (), is_answered=True, needs_messages=False) if is_same else None
        return await matcher.match(run)

    async def _has_digest(self, run: Run, digest: bytes) -> bool:
        """Returns whether the stored request of a run has this digest."""
        texts = await self.keeper.store.run_texts.load_texts(run.agent_row, run.id, RunTextKind.REQUEST)
        return bool(texts) and StoredRequest.decode(texts[0].data).digest == digest.hex()

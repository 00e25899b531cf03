"""The gateway's calls in one reply: which of them run, which wait for an answer, and their results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from adapters.types import Json
from gateway.core.memory.call_arguments import read_arguments
from gateway.core.tags import quote_text
from gateway.core.turn.call_ids import make_valid_tool_name
from gateway.core.turn.commands import RunTool
from gateway.core.turn.guide import Forbidden, FreeGuide, Guide, NeedsApproval, ProposedCall, Undecided
from gateway.core.turn.terms import TurnTerms
from gateway.core.turn.tool_call import ToolCall
from gateway.core.turn.tool_result import ToolResult
from storage.run_records import WaitKind

# Results of calls, as the model reads them.
SPOKEN_RESULT = "The user has read it."
NOT_SPOKEN_RESULT = "Error: {name} needs `{key}`, a text. Nothing was said."
INTERRUPTED_RESULT = "Error: the call was interrupted; it may or may not have been done."
NOT_MADE_RESULT = "Error: the call was not made, since the turn ended before it."
_BAD_ARGUMENTS_RESULT = "Error: the arguments of {name} are not a JSON object: {arguments}. Nothing was done."
# The most characters of unreadable arguments that their error quotes: enough for the model to recognise them. Not
# measured.
_QUOTED_CHARS = 500


class ResumedCalls(Struct, frozen=True):
    """Calls of a stored step, with which a turn begins after they were answered."""

    # All calls of the step.
    calls: tuple[Json, ...]
    # The results of calls that were answered, denied, or run before. Calls without a result are judged and run.
    results: tuple[ToolResult, ...] = ()
    # Ids of the calls that a person has approved.
    approved_ids: frozenset[str] = frozenset()
    # Ids of the calls that a person has denied.
    denied_ids: frozenset[str] = frozenset()
    # Ids of the calls that the client has to answer and has not been shown yet.
    unanswered_ids: frozenset[str] = frozenset()


class GatewayCalls:
    """The gateway calls of one reply."""

    def __init__(
        self,
        terms: TurnTerms,
        guide: Guide,
        calls: Sequence[ToolCall] = (),
        resumed: ResumedCalls | None = None,
    ) -> None:
        # The calls of the reply that the gateway runs.
        self.calls = calls
        # The calls that wait for an approval, or are held, by their ids.
        self.waiting: dict[str, WaitKind] = {}
        self._terms = terms
        self._guide = guide
        # The ids of the calls that a person has approved.
        self._approved_ids = frozenset() if resumed is None else resumed.approved_ids
        # The results by the ids of their calls; None: the call is running.
        self._results: dict[str, ToolResult | None] = {}
        # The ids of the calls that are forbidden.
        self._forbidden_ids: list[str] = []
        # The calls that are still to be judged.
        self._unjudged_calls = [*calls]
        if resumed is not None:
            self._add_resumed_results(resumed)

    @property
    def results(self) -> tuple[ToolResult, ...]:
        """The results so far, in the order of the calls."""
        if not self._results:
            return ()
        results = (self._results.get(call.id) for call in self.calls)
        return tuple(result for result in results if result is not None)

    @property
    def interrupted_results(self) -> tuple[ToolResult, ...]:
        """The results so far, and an error for each call that is still running."""
        begun_ids = [call.id for call in self.calls if call.id in self._results]
        return tuple(
            self._results[each] or ToolResult(each, INTERRUPTED_RESULT, "error") for each in begun_ids
        )

    @property
    def final_results(self) -> tuple[ToolResult, ...]:
        """The results of all calls of a turn that ends now. A call that is running or was not begun has an error."""
        results = {result.call_id: result for result in self.interrupted_results}
        return tuple(
            results.get(call.id) or ToolResult(call.id, NOT_MADE_RESULT, "error", was_run=False)
            for call in self.calls
        )

    @property
    def is_running(self) -> bool:
        return None in self._results.values()

    @property
    def is_judged(self) -> bool:
        return not self._unjudged_calls

    def judge(self) -> list[RunTool]:
        """Judges calls in their order, up to the first that depends on earlier results. Returns the calls to run.

        Each call that is judged is made valid, as it is stored and sent again.
        """
        runs: list[RunTool] = []
        while self._unjudged_calls:
            call = self._unjudged_calls[0]
            arguments, asides = self._split_arguments(call)
            verdict = self._guide.judge(
                ProposedCall(call.id, call.name, arguments, asides, call.id in self._approved_ids)
            )
            if isinstance(verdict, Undecided):
                break
            self._unjudged_calls.pop(0)
            if arguments is None:
                self._results[call.id] = _make_bad_arguments_result(call)
            elif isinstance(verdict, NeedsApproval):
                self.waiting[call.id] = "approval"
            elif isinstance(verdict, Forbidden):
                self._results[call.id] = _make_forbidden_result(call, verdict)
                self._forbidden_ids.append(call.id)
            elif result := self._make_spoken_result(call, arguments):
                self._results[call.id] = result
                self._guide.add_result(result)
            else:
                self._results[call.id] = None
                is_serial = call.name in self._terms.serial_tools
                runs.append(RunTool(call.id, call.name, {**arguments, **verdict.prefilled}, is_serial))
            # After the judgement, which finds the call's tool by the name as the model wrote it.
            _make_valid(call, has_arguments=arguments is not None)
        return runs

    def finish(self, result: ToolResult) -> ToolResult | None:
        """Adds the result of a running call. Returns it with the approval of the call; None: no such call runs."""
        if result.call_id not in self._results or self._results[result.call_id] is not None:
            return None
        if result.call_id in self._approved_ids:
            result = replace(result, approval="approved")
        self._results[result.call_id] = result
        self._guide.add_result(result)
        return result

    def hold(self) -> None:
        """Makes the calls that would run wait, since another call has to be approved first.

        A call that a rule forbids waits as well if it comes after a call that needs an approval: the rules go by the
        calls that were run, and it is not known yet whether that call will be run.
        """
        running_ids = [call_id for call_id, result in self._results.items() if result is None]
        ids = [call.id for call in self.calls]
        needs_approval = [self.waiting.get(each) == "approval" for each in ids]
        ids_from_approval = ids[needs_approval.index(True) :] if any(needs_approval) else []
        forbidden_ids = [each for each in self._forbidden_ids if each in ids_from_approval]
        unjudged_ids = [call.id for call in self._unjudged_calls]
        for call_id in (*running_ids, *forbidden_ids, *unjudged_ids):
            self._results.pop(call_id, None)
            self.waiting[call_id] = "held"

    def _add_resumed_results(self, resumed: ResumedCalls) -> None:
        """Adds the results of the calls that have one. Only the other calls are judged."""
        results = {result.call_id: result for result in resumed.results}
        self._unjudged_calls = [call for call in self.calls if call.id not in results]
        for call in self.calls:
            if call.id in results:
                result = self._results[call.id] = results[call.id]
                self._guide.add_answer(call.name, result, is_denied=call.id in resumed.denied_ids)

    def _split_arguments(self, call: ToolCall) -> tuple[Json | None, Json]:
        """Returns a call's arguments as its tool gets them (None: unreadable), and the asides among them."""
        arguments = read_arguments(call.arguments_text)
        asides = self._terms.asides
        if arguments is None or asides is None:
            return arguments, {}
        return asides.split(call.name, arguments)

    def _make_spoken_result(self, call: ToolCall, arguments: Json) -> ToolResult | None:
        """Returns the result of a call that speaks to the user; None: another tool. Its text has been shown already."""
        key = None if self._terms.asides is None else self._terms.asides.spoken_arguments.get(call.name)
        if key is None:
            return None
        if not isinstance(arguments.get(key), str):
            return ToolResult(call.id, NOT_SPOKEN_RESULT.format(name=call.name, key=key), "error")
        return ToolResult(call.id, SPOKEN_RESULT)


# The calls of a reply without gateway calls. It never changes.
NO_CALLS: Final = GatewayCalls(TurnTerms(), FreeGuide(0))


def _make_bad_arguments_result(call: ToolCall) -> ToolResult:
    error_text = _BAD_ARGUMENTS_RESULT.format(
        name=call.name, arguments=quote_text(call.arguments_text[:_QUOTED_CHARS])
    )
    return ToolResult(call.id, error_text, "error", was_run=False)


def _make_forbidden_result(call: ToolCall, verdict: Forbidden) -> ToolResult:
    return ToolResult(
        call.id, verdict.result_text, "error", was_run=False, is_unapproved=verdict.is_unapproved
    )


def _make_valid(call: ToolCall, *, has_arguments: bool) -> None:
    """Replaces a name and arguments that strict servers refuse, which would refuse every later request, too.

    has_arguments: True if the arguments of the call are an object.
    """
    call.name = make_valid_tool_name(call.name)
    if not has_arguments or not call.arguments_text.strip():
        call.argument_pieces = ["{}"]

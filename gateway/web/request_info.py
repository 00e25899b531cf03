"""The facts of one request, which the edge and the routes note."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.types import Scope

from gateway.core.trace_context import TraceContext
from gateway.errors import ErrorForm
from gateway.run.receipt import Receipt
from gateway.run.receipts import set_current_receipt
from gateway.run.request_clock import RequestClock
from gateway.web.auth import ANONYMOUS, Caller


@dataclass(slots=True)
class RequestInfo:
    """The facts of one request, for the access log, metrics and error replies."""

    # The id in logs and in `x-mnemogate-request-id`.
    request_id: str
    # The arrival of the request, as `time.perf_counter()` gives it.
    began_at: float
    # True: the client sent `request_id`; False: the gateway has made it.
    has_client_id: bool = False
    # The form of errors, which the route sets when it begins; None: `Edge._choose_error_form` decides.
    error_form: ErrorForm | None = None
    # The caller, with the key of the request and its rights.
    caller: Caller = ANONYMOUS
    # The name of the route in logs and metrics.
    route: str = "other"
    # The path that is logged; None: the path of the request.
    path: str | None = None
    # The model that the request names, if any.
    model: str | None = None
    # True: the request asks for a stream; None: not known, or the route has no streams.
    is_streamed: bool | None = None
    # The state of memory, as in `x-mnemogate-memory`; None: the route has no memory.
    memory: str | None = None
    # The receipt of a request that an upstream may answer.
    receipt: Receipt | None = None
    # The place of the request in its trace; None: the request is not traced.
    trace_context: TraceContext | None = None
    # The bytes of the request's body that were read.
    bytes_in: int = 0
    # The bytes of the reply's body that were sent.
    bytes_out: int = 0
    # The status of the reply; 0: no head was sent.
    status: int = 0
    # True: the reply is an event stream.
    is_event_stream: bool = False
    # True: the whole reply was sent.
    is_complete: bool = False
    # True: the gateway's shutdown has cut the reply.
    is_cut: bool = False
    # True: the client waits for `100 Continue` before it sends the body.
    expects_continue: bool = False

    def note_model(self, model: str | None, *, is_streamed: bool) -> None:
        """Notes the model that the request names (None: no model), and whether the request asks for a stream."""
        self.model = model
        self.is_streamed = is_streamed

    def begin_receipt(self) -> Receipt:
        """Begins the receipt of a request that was read; the edge publishes it after the reply.

        Raises: NotAllowed: the key may not ask for this model.
        """
        if self.model is not None:
            self.caller.check_model(self.model)
        self.receipt = self.make_receipt()
        set_current_receipt(self.receipt)
        return self.receipt

    def make_receipt(self) -> Receipt:
        """Returns an empty receipt of the request, which the edge does not publish."""
        return Receipt(
            self.request_id,
            self.caller.project,
            self.caller.key_id,
            clock=RequestClock(self.began_at),
            trace=self.trace_context,
        )


def get_request_info(scope: Scope) -> RequestInfo:
    """Returns the facts of the request with this scope, which the edge has begun."""
    info: RequestInfo = scope["state"]["request_info"]
    return info

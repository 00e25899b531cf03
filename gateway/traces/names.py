"""The names of attributes and of the one event, in one table; `spans` names the spans.

(opentelemetry.io/docs/specs/semconv: http, gen-ai; `mnemogate.` are the gateway's own)
"""

from __future__ import annotations

from typing import Final

# The instrumentation scope: the library that makes the spans.
SCOPE_NAME: Final = "mnemogate"
# -- the resource
SERVICE_VERSION: Final = "service.version"
SERVICE_INSTANCE: Final = "service.instance.id"
# -- any span
ERROR_TYPE: Final = "error.type"
# The kind of a span, as OpenInference calls it. Set on spans that Phoenix cannot classify by the GenAI conventions.
SPAN_KIND: Final = "openinference.span.kind"
KIND_CHAIN: Final = "CHAIN"
KIND_RETRIEVER: Final = "RETRIEVER"
# -- a request
METHOD: Final = "http.request.method"
ROUTE: Final = "http.route"
STATUS: Final = "http.response.status_code"
SCHEME: Final = "url.scheme"
USER: Final = "user.id"
SESSION: Final = "session.id"
REQUEST_ID: Final = "mnemogate.request.id"
PROJECT: Final = "mnemogate.project"
KEY_ID: Final = "mnemogate.key.id"
# on, read, off, none or unavailable.
MEMORY: Final = "mnemogate.memory"
ADDED_MS: Final = "mnemogate.added_ms"
SIDE_REQUEST: Final = "mnemogate.side_request"
CLIENT_GONE: Final = "mnemogate.client_gone"
LIMIT_ID: Final = "mnemogate.limit"
# The headers of a reply that have numbers, by the attributes that get the numbers.
ATTRIBUTE_HEADERS: Final = {
    "mnemogate.recalled_tokens": "x-mnemogate-recalled-tokens",
    "mnemogate.injected_tokens": "x-mnemogate-injected-tokens",
    "mnemogate.evicted_tokens": "x-mnemogate-evicted-tokens",
}
# -- a call of an upstream
OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
MODEL: Final = "gen_ai.request.model"
STREAM: Final = "gen_ai.request.stream"
MAX_TOKENS: Final = "gen_ai.request.max_tokens"
RESPONSE_ID: Final = "gen_ai.response.id"
RESPONSE_MODEL: Final = "gen_ai.response.model"
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
# In the order of `TokenCounts`.
TOKEN_COUNTS: Final = (
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.output_tokens",
    "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.usage.cache_write.input_tokens",
    "gen_ai.usage.reasoning.output_tokens",
)
# The name before `cache_write`. The released packages of the conventions have it, so that collectors read it.
CACHE_CREATION: Final = "gen_ai.usage.cache_creation.input_tokens"
CONVERSATION: Final = "gen_ai.conversation.id"
COMPACTED: Final = "gen_ai.conversation.compacted"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
UPSTREAM: Final = "mnemogate.upstream"
# An event: one try of a call at an endpoint.
TRY_EVENT: Final = "mnemogate.try"
# -- steps of the gateway's own
MEMORY_STORE_ID: Final = "gen_ai.memory.store.id"
RECORD_COUNT: Final = "gen_ai.memory.record.count"
RECALL_TOKENS: Final = "mnemogate.recall.tokens"
RECALL_LATE: Final = "mnemogate.recall.late"
IS_DURABLE: Final = "mnemogate.durable"
TOOL_NAME: Final = "gen_ai.tool.name"
TOOL_TYPE: Final = "gen_ai.tool.type"
AGENT: Final = "mnemogate.agent.id"
# The roots of work without a request: `mnemogate.` and the kind of the work.
WORK_PREFIX: Final = "mnemogate."

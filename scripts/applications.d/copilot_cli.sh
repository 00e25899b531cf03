# Copilot CLI: npm @github/copilot@latest
# note: with a provider of its own, it needs no account
export COPILOT_PROVIDER_BASE_URL="$URL" COPILOT_PROVIDER_API_KEY="$KEY" COPILOT_MODEL="$MODEL" COPILOT_OFFLINE=true
export COPILOT_PROVIDER_HEADERS="x-mnemogate-user: $WHO"
ask() { copilot --allow-all-tools "$@" </dev/null; }
ask -p "$SAY"
ask --continue -p "$MORE"
ask -p "$ASK"
ask -p "$TOOL"

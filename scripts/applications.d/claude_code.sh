# Claude Code: npm @anthropic-ai/claude-code@latest
# api: messages
# also: claude
# Without the tag npm takes an old version under Node 20, which the newest names too old; it brings a program of its own.
export ANTHROPIC_BASE_URL="${URL%/v1}" ANTHROPIC_API_KEY="$KEY" ANTHROPIC_MODEL="$MODEL"
export ANTHROPIC_CUSTOM_HEADERS="x-mnemogate-user: $WHO"
export CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1 DISABLE_AUTOUPDATER=1
claude -p "$SAY" </dev/null
claude -p -c "$MORE" </dev/null
claude -p -c "/compact" </dev/null
claude -p -c "$STREAM" </dev/null
claude -p "$ASK" </dev/null
claude -p "$DELEGATE" --allowedTools Agent </dev/null
claude -p "$TOOL" --allowedTools Bash </dev/null

# nanobot: pip nanobot-ai
mkdir "$HOME/.nanobot"
cat >"$HOME/.nanobot/config.json" <<CONFIG
{"agents": {"defaults": {"model": "$MODEL", "provider": "custom"}},
 "providers": {"custom": {"apiBase": "$URL", "apiKey": "$KEY", "extraHeaders": {"x-mnemogate-user": "$WHO"}}}}
CONFIG
ask() { nanobot agent --no-markdown "$@"; }
ask -m "$SAY"
ask -m "$MORE"
ask -s second -m "$ASK"
ask -s third -m "$TOOL"

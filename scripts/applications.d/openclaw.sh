# OpenClaw: npm openclaw@latest
# note: needs Node 22; says what its runtime does behind each message
mkdir "$HOME/.openclaw"
cat >"$HOME/.openclaw/openclaw.json" <<CONFIG
{"models": {"providers": {"gate": {"baseUrl": "$URL", "apiKey": "$KEY", "api": "openai-completions",
  "headers": {"x-mnemogate-user": "$WHO"},
  "models": [{"id": "$MODEL", "name": "gate", "input": ["text"], "contextWindow": 128000, "maxTokens": 4096}]}}},
 "agents": {"defaults": {"model": {"primary": "gate/$MODEL"}, "workspace": "$PWD", "skipBootstrap": true}}}
CONFIG
ask() { openclaw agent --local --session-id "$1" -m "$2"; }
ask one "$SAY"
ask one "$MORE"
ask two "$ASK"

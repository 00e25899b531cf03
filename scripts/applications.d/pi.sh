# pi: npm @mariozechner/pi-coding-agent@latest
mkdir -p "$HOME/.pi/agent"
cat > "$HOME/.pi/agent/models.json" <<END
{"providers": {"gate": {"baseUrl": "$URL", "apiKey": "$KEY", "api": "openai-completions", "models": [{"id": "$MODEL"}],
 "headers": {"x-mnemogate-user": "$WHO"}}}}
END
ask() { pi --provider gate --model "$MODEL" "$@" </dev/null; }
ask -p "$SAY"
ask -c -p "$MORE"
ask -p "$ASK"
ask -p "$TOOL"

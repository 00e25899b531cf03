# opencode: npm opencode-ai
cat > opencode.json <<END
{"model": "gate/$MODEL", "small_model": "gate/$MODEL", "autoupdate": false, "share": "disabled",
 "permission": {"bash": "allow"},
 "provider": {"gate": {"npm": "@ai-sdk/openai-compatible", "models": {"$MODEL": {"tool_call": true}},
  "options": {"baseURL": "$URL", "apiKey": "$KEY", "headers": {"x-mnemogate-user": "$WHO"}}}}}
END
git init -q .
opencode run "$SAY"
opencode run --continue "$MORE"
opencode run "$ASK"
opencode run "$TOOL"

# Codex CLI: npm @openai/codex
# api: responses
# also: claude
mkdir -p "$HOME/.codex"
cat > "$HOME/.codex/config.toml" <<END
model = "$MODEL"
model_provider = "gate"
[model_providers.gate]
name = "gate"
base_url = "$URL"
env_key = "KEY"
wire_api = "responses"
http_headers = {"x-mnemogate-user" = "$WHO"}
END
codex exec --skip-git-repo-check "$SAY" </dev/null
codex exec --skip-git-repo-check resume --last "$MORE" </dev/null
codex exec --skip-git-repo-check "$ASK" </dev/null
codex exec --skip-git-repo-check "$TOOL" </dev/null

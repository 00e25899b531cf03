# Codex CLI: npm @openai/codex
# api: responses
# also: claude
# It finds no sandbox where its home lies in the folder of temporary files.
export TMPDIR="$HOME/tmp"
mkdir -p "$HOME/.codex" "$TMPDIR"
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
# Runs it with these arguments; it has to report tokens.
run() {
    codex exec --skip-git-repo-check "$@" </dev/null 2>"$HOME/report" || { cat "$HOME/report" >&2; exit 1; }
    cat "$HOME/report" >&2
    grep -A1 '^tokens used' "$HOME/report" | grep -q '[1-9]' || { echo "no tokens are reported" >&2; exit 1; }
}
# Runs it with these arguments; it has to run a command, which prints this.
run_tool() {
    run "$@" "$TOOL"
    grep -qx 'Rain' "$HOME/report" || { echo "the tool did not run" >&2; exit 1; }
}
run "$SAY"
run resume --last "$MORE"
run "$ASK"
run_tool
run_tool --sandbox danger-full-access

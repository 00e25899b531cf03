# gptme: pip gptme
export OPENAI_BASE_URL="$URL" GPTME_CHECK=false
mkdir -p "$HOME/.config/gptme"
cat > "$HOME/.config/gptme/config.toml" <<END
[[providers]]
name = "gate"
base_url = "$URL"
api_key = "$KEY"
default_model = "$MODEL"
END
gptme -n -m "gate/$MODEL" --name one "$SAY"
gptme -n -m "gate/$MODEL" --name one "$MORE"
gptme -n -m "gate/$MODEL" --name two "$ASK"

# Continue (cn): npm @continuedev/cli
cat > config.yaml <<END
name: gate
version: 0.0.1
schema: v1
models:
  - name: gate
    provider: openai
    model: $MODEL
    apiBase: $URL
    apiKey: $KEY
    roles: [chat]
    requestOptions: {headers: {x-mnemogate-user: $WHO}}
END
cn --config config.yaml -p "$SAY"
cn --config config.yaml -p --resume "$MORE"
cn --config config.yaml -p "$ASK"
cn --config config.yaml --allow Bash -p "$TOOL"

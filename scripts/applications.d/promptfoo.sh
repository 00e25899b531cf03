# promptfoo: npm promptfoo
# memory: off
# note: an evaluation, so its key has memory off
export PROMPTFOO_DISABLE_TELEMETRY=1 PROMPTFOO_DISABLE_UPDATE=1 PROMPTFOO_CONFIG_DIR="$HOME"
cat > promptfooconfig.yaml <<END
prompts: ["{{text}}"]
providers:
  - id: openai:chat:$MODEL
    config: {apiBaseUrl: "$URL", apiKey: "$KEY", headers: {x-mnemogate-user: "$WHO"}}
tests:
  - {vars: {text: "$SAY"}, assert: [{type: contains, value: Reply}]}
  - {vars: {text: "$ASK"}, assert: [{type: contains, value: Reply}]}
END
promptfoo eval --no-cache -j 1 --no-progress-bar

# llm: pip llm
export LLM_USER_PATH="$HOME/llm"
mkdir -p "$LLM_USER_PATH"
cat > "$LLM_USER_PATH/extra-openai-models.yaml" <<END
- {model_id: gate, model_name: $MODEL, api_base: "$URL", api_key_name: gate, supports_tools: true,
   headers: {x-mnemogate-user: $WHO}}
END
llm keys set gate --value "$KEY"
llm --no-stream -m gate "$SAY"
llm --no-stream -m gate -c "$MORE"
llm --no-stream -m gate "$ASK"
llm -m gate "$STREAM"
llm --no-stream -m gate "$TOOL" --functions 'def get_weather(city: str) -> str:
    "The weather in a city."
    return f"Rain in {city}."'

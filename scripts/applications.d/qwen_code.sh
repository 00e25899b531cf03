# Qwen Code: npm @qwen-code/qwen-code@latest
# note: needs Node 22; it notes memories of its own after each turn
export OPENAI_BASE_URL="$URL" OPENAI_MODEL="$MODEL"
mkdir work
cd work
git init -q .
ask() { qwen --auth-type openai --approval-mode yolo "$@"; }
ask -p "$SAY"
ask --continue -p "$MORE"
ask -p "$ASK"
ask -p "$TOOL"

"""OpenAI's Responses API, told by way of chat completions."""

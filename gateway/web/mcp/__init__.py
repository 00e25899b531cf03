"""MCP: a memory for other programs, over HTTP and over stdio. Loading it loads the SDK, so only who serves it does."""

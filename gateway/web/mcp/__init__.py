"""MCP: a memory for other programs, over HTTP and stdio. This loads the SDK, so only a gateway with MCP imports it."""

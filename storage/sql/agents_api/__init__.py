"""The statements of the agents API: one module a resource, under its name in `gateway/agents/api`.

Tools, MCP servers, identities and archives are documents without tables of their own: `definitions.py` has them all,
`attached.py` which agents they are attached to. A group is an agent with its sleeptime agent (`sleeptime_agents.py`).
Passages belong to every memory, so they lie in `storage/sql/passages.py`.
"""

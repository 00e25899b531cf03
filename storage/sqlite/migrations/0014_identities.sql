-- A person or another party to whom agents belong is a definition of the kind identity, called by the application's own
-- key, and attached to agents as tools are. A project has each key once.
DROP INDEX definitions_called;
CREATE UNIQUE INDEX definitions_called ON definitions (project, kind, name) WHERE kind IN ('tool', 'mcp', 'identity');

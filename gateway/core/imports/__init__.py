"""Conversations and facts that a person brings along from another application, read from each format. Pure."""

"""Conversations and facts that a person brings along from another application: what is read of each format. Pure."""

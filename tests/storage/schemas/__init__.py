"""Databases as older programs made them, with rows: SQLite files as SQL, and the tables of PostgreSQL."""

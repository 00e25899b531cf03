"""The tokens that replies report, and what asking a stream for them adds to it."""

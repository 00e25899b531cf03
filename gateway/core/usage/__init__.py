"""The tokens that replies report, and the additions to a stream that the request for them causes."""

"""The meter of what requests use, and the limits that it is held to."""

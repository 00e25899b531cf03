"""The meter of usage, and the limits of usage."""

"""Traces: spans made of the receipts of requests, and sent to a collector by OTLP over HTTP.

The event loop decides what is sampled and puts the receipt on a queue; a thread does all else. Nothing of this room is
imported unless an endpoint is set.
"""

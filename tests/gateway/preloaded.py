"""Imports modules and fills caches in the process from which gateways are forked (`forked`)."""

from __future__ import annotations

import uvicorn.lifespan.on

import gateway.cli
import gateway.cli_commands
from tests.gateway import deadlines, startup_caches

__all__ = ["deadlines", "gateway", "uvicorn"]

startup_caches.install()
startup_caches.fill()

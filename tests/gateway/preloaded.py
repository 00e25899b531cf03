"""Imported by the process whose copies are gateways (`forked`): what it imports and makes, they need not."""

from __future__ import annotations

import uvicorn.lifespan.on

import gateway.cli
import gateway.cli_commands
from tests.gateway import deadlines, made_once

__all__ = ["deadlines", "gateway", "uvicorn"]

made_once.share()
made_once.make()

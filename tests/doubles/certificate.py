"""A certificate for a test, signed by itself."""

from __future__ import annotations

import subprocess
from pathlib import Path


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """Makes a certificate of a host. Returns it and its key."""
    key, certificate = folder / "key.pem", folder / "cert.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=x"
    names = ["-addext", f"subjectAltName=DNS:{name}"]
    subprocess.run(
        [*command.split(), *names, "-keyout", key, "-out", certificate], check=True, capture_output=True
    )
    return certificate, key

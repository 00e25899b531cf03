"""`python -m gateway` is `mnemogate`."""

from gateway.cli import main

raise SystemExit(main())

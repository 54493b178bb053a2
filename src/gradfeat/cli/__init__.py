"""The command line. Thin: every command reads arguments, calls the library, and shows what came back.

Nothing here imports torch before a command runs, so that `gradfeat --help` answers at once.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run `gradfeat`; an error that gradfeat raises on purpose is shown as one message, without a traceback."""
    from gradfeat.cli.app import app
    from gradfeat.errors import GradfeatError

    try:
        app()
    except GradfeatError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)

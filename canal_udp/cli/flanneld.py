"""canal-flanneld: the daemon behind flanneld's command line."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from canal_udp import __version__
from canal_udp.errors import CanalError, UsageError
from canal_udp.flannel.flags import HelpWanted, read, usage

PROGRAM = "canal-flanneld"


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns the exit status: 0 after a signal, 1 if it cannot start, 2 wrong usage."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        options = read(words, os.environ)
    except HelpWanted:
        print(usage(PROGRAM), end="", file=sys.stderr)
        return 0
    except UsageError as error:
        print(f"{error}\n{usage(PROGRAM)}", end="", file=sys.stderr)
        return error.exit_status
    if options.switch("version"):
        print(__version__, file=sys.stderr)
        return 0
    from canal_udp.flannel.run import run

    try:
        return run(options, os.environ)
    except (CanalError, OSError) as error:
        logging.getLogger("canal.flanneld").error("%s", error)
        return 1


if __name__ == "__main__":
    sys.exit(main())

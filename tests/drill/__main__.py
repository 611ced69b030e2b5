"""The command line of the drill; see `drill`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from .runner import FULL, KINDS, QUICK, failures, print_report, run_drill


def main() -> int:
    """Run the drill and return its exit code."""
    parser = argparse.ArgumentParser(prog="drill", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="Seed of all random draws.")
    parser.add_argument("--points", type=int, help="Number of cases of each kind.")
    parser.add_argument("--only", choices=KINDS, help="One kind of cases.")
    parser.add_argument("--case", help="One case, as COMMAND:NUMBER; needs --only.")
    parser.add_argument("--command", help="One command, such as train; needs --only.")
    parser.add_argument("--quick", action="store_true", help="The fixed part that CI runs.")
    parser.add_argument("--home", type=Path, help="HF_HOME with the generated faces, to save the time of making them.")
    parser.add_argument("--verbose", action="store_true", help="Print every verdict.")
    options = parser.parse_args()
    if (options.case or options.command) and not options.only:
        parser.error("--case and --command need --only")
    plan = (QUICK if options.quick else FULL).narrowed(options.only, options.points)
    with tempfile.TemporaryDirectory(prefix="oneshui-drill-", ignore_cleanup_errors=True) as folder:
        settings = {"case": options.case, "command": options.command, "home": options.home, "verbose": options.verbose}
        report = run_drill(Path(folder), plan, options.seed, **settings)
    print_report(report, options.seed)
    return 1 if failures(report) else 0


if __name__ == "__main__":
    sys.exit(main())

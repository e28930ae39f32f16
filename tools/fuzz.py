"""Feeds damaged files to every reader of files that others may have written, and counts what comes of it.

    .venv/bin/python tools/fuzz.py --quick                            # a minute
    .venv/bin/python tools/fuzz.py --count 1000000 --json fuzz.json   # goes on where FILE ends
    .venv/bin/python tools/fuzz.py --reader gguf --only 4711          # one input again, with its traceback

Good is: read without complaint, or refused with a `UserError`. Anything else that is raised is a crash, and so is a process that
dies; more than a second of computing is a hang. Input number n of a reader is a function of (seed, reader, n).
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.fuzzing import campaign
from tools.fuzzing.readers import READERS


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100_000, help="inputs in all, shared by the readers")
    parser.add_argument("--quick", action="store_true", help="5,000 inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--reader", choices=READERS, action="append", help="this one alone; may be given several times"
    )
    parser.add_argument(
        "--only", type=int, metavar="N", help="with --reader: only this input, in this process"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="keep the counts there, and go on from them"
    )
    options = parser.parse_args()
    names = options.reader or list(READERS)
    if options.only is not None:
        campaign.repeat(names[0], options.seed, options.only)
        return 0
    each = -(-(5_000 if options.quick else options.count) // len(names))
    counts = campaign.run(names, each, seed=options.seed, path=options.json)
    print(campaign.table(counts))
    return 1 if any(count.crashes or count.hangs for count in counts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

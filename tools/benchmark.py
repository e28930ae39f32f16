"""How fast, and in how much memory: measured beside what one would use instead, in the same run.

    .venv/bin/python tools/benchmark.py train --quick                 # about five minutes on two cores
    .venv/bin/python tools/benchmark.py train --data FOLDER --json benchmark.json
    .venv/bin/python tools/benchmark.py loss
    .venv/bin/python tools/benchmark.py decode --quick

What it compares with is installed by `pip install -c tools/constraints.txt -r tools/benchmark-requirements.txt`.
One module per command in `tools/benchmarks/`.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.benchmarks import decode, loss, train

COMMANDS = {"train": train, "loss": loss, "decode": decode}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="|".join(COMMANDS))
    for name, module in COMMANDS.items():
        summary = module.__doc__.partition("\n")[0]
        command = commands.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()

"""What a run leaves to read: `report.json` for programs, `report.md` and `curves.png` for people.

    results     of a head, of the task, of a source of the data, of the gradients
    report      all of a run's results and what is needed to repeat it
    gathering   a report, from what a run has at its end
    tables      what it shows in rows and columns
    facts       what it says in words
    page        both as text for the terminal, and as `report.md`
    files       a report, written into the run's folder

Numbers stand with the number of items behind them, a share with its 95 % interval, and data that are no benchmark are
never called one.
"""

from keras_mtp.report.files import plot, write
from keras_mtp.report.gathering import from_run
from keras_mtp.report.report import Report
from keras_mtp.report.results import GradientResult, HeadResult, SourceResult, TaskResult

__all__ = [
    "GradientResult",
    "HeadResult",
    "Report",
    "SourceResult",
    "TaskResult",
    "from_run",
    "plot",
    "write",
]

"""A run's snapshots (snapshot.py): taken between two steps, written beside the training, gone on from after a crash.

What is to be kept is copied between the steps and written by a thread. The last few snapshots are kept; when the run goes on,
the newest whole one counts; they go once the run is finished.

    of_run      where a run goes on, and what is written
    of_stage    when they are taken, and of what
    same_run    what must be the same for a run to go on
"""

from keras_mtp.snapshots.of_run import Snapshots
from keras_mtp.snapshots.of_stage import StageSnapshots

__all__ = ["Snapshots", "StageSnapshots"]

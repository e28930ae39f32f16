"""The memory that a run will take: its parts, as the backend will have them, in the phase that takes most."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from keras_mtp.memory_plan.measured import weighed
from keras_mtp.memory_plan.parts import counted
from keras_mtp.memory_plan.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The memory that a run will take.

    Args:
        workload: what it is predicted from.
        phases: bytes by part, for every phase; what is kept all the time is in each.
    """

    workload: Workload
    phases: Mapping[str, Mapping[str, float]]

    @property
    def phase(self) -> str:
        """The one that takes most."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def parts(self) -> Mapping[str, float]:
        """Bytes by part in that phase."""
        return self.phases[self.phase]

    @property
    def peak_bytes(self) -> int:
        """Most memory at once, beyond what importing the libraries takes."""
        return math.ceil(sum(self.parts.values()))


def predict(workload: Workload, factors: Mapping[str, float]) -> Prediction:
    """The memory of a run.

    Args:
        factors: what a backend makes of each part, from `factors`; `program` is bytes.
    """
    return Prediction(workload=workload, phases=weighed(counted(workload), factors))

"""A machine on paper: how fast its devices compute, and talk to each other. Every number is an assumption with a source."""

import math
from dataclasses import dataclass, field

from tools.on_paper.volumes import Volume

# How much of a result's bytes a device sends, of n in a ring (Thakur et al. 2005, "Optimization of Collective Communication
# Operations in MPICH", section 4; NCCL's "bus bandwidth" is by the same factors).
_SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}


def _number(default: float, text: str):
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Devices in hosts, all alike. By default NVIDIA's H100 SXM, eight a host."""

    peak_flops: float = _number(989e12, "of a device, FLOP/s: H100 SXM, dense bfloat16, NVIDIA's data sheet")
    link: float = _number(
        450e9, "B/s that a device sends to others of its host: NVLink 4, 900 GB/s both ways, same sheet"
    )
    network: float = _number(
        50e9, "B/s that a device sends to other hosts: a 400 Gbit/s adapter a device, as in a DGX H100"
    )
    per_host: int = _number(8, "devices: as in a DGX H100")  # type: ignore[assignment]
    link_share: float = _number(
        0.8,
        "of `link` and `network` that is reached: 370 of 450 GB/s, github.com/NVIDIA/nccl-tests/issues/212",
    )
    latency: float = _number(
        5e-6, "seconds per doubling of the devices that a collective takes at least; assumed"
    )
    fixed: float = _number(0.0, "seconds of a step that stay however little a device has to do; not measured")

    def seconds(self, volume: Volume, data: int, model: int) -> float:
        """That collectives take in a mesh, one after another.

        Devices that share weights are neighbours, so a host has `per_host / model` of those that share a batch; each brings
        its own adapter, and a ring through all of them leaves the host by all adapters at once.
        """
        number = {"data": data, "model": model, "all": data * model}[volume.axis]
        if number == 1:
            return 0.0
        here = max(1, self.per_host // model) if volume.axis == "data" else self.per_host
        bandwidth = self.link if number <= here else min(self.link, here * self.network)
        sent = _SENT[volume.kind](number) * volume.bytes
        doublings = math.ceil(math.log2(number))
        return sent / (bandwidth * self.link_share) + volume.calls * self.latency * doublings

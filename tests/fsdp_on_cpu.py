"""train.py with FSDP2 on CPUs, which accelerate 1.15 takes for accelerators only.

Run with `--accelerator_config {"use_configured_state": true}`: then what is said here about the processes holds.
"""

from accelerate import PartialState
from accelerate.utils import DistributedType

import train


def main() -> None:
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_XPU
    train.main()
    assert PartialState._shared_state["distributed_type"] is DistributedType.FSDP  # no DDP in its place

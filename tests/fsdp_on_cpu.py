"""train.py with FSDP2 on CPUs, which accelerate 1.15 takes for accelerators only.

Run with `--accelerator_config {"use_configured_state": true}`: then what is said here about the processes holds.
"""

import sys

from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

import train


def main() -> None:
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_XPU
    train.main()
    assert PartialState._shared_state["distributed_type"] is DistributedType.FSDP  # no DDP in its place
    if "fsdp_configs/hsdp.json" in sys.argv:
        mesh = AcceleratorState().device_mesh
        assert dict(zip(mesh.mesh_dim_names, mesh.shape)) == {"dp_replicate": 2, "dp_shard": 2}

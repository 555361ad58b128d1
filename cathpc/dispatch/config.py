"""Config of where stages run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from cathpc.schema import speed


class ClusterKind(Enum):
    """local: this machine, in the foreground; slurm: jobs of a Slurm cluster."""

    local = "local"
    slurm = "slurm"


@dataclass
class ClusterConfig:
    """Group `cluster`. Nothing in it changes a result."""

    kind: ClusterKind = speed(ClusterKind.local)
    cores: int = speed(0)
    """Cores that local stages share; 0 takes what this process may use."""
    nodes: int = speed(1)
    """Nodes that the training may take."""
    gpus_per_node: int = speed(0)
    """GPUs of a node; 0 trains on CPUs."""
    gpu_memory_gb: float = speed(0.0)
    """Memory of one GPU, in units of 10^9 bytes."""
    timeout_min: int = speed(14 * 24 * 60)
    """Wall-clock limit of one training job, in minutes; training goes on in the next one."""

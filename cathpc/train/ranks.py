"""The ranks of one training and the few collectives that they need outside of DeepSpeed.

All of them must be called by every rank, in the same order. Payloads are a handful of numbers, never objects.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cathpc.errors import LostError

if TYPE_CHECKING:
    import torch

    from cathpc.train.config import TrainConfig


def start(config: TrainConfig) -> None:
    """Join the process group (NCCL on GPUs, else gloo) and fix the CPU threads of this rank.

    RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT come from the environment.
    """
    import deepspeed
    import torch
    from deepspeed.accelerator import get_accelerator

    deepspeed.utils.logger.setLevel("WARNING")
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger"
    )  # DeepSpeed's calls
    shared = max(1, len(os.sched_getaffinity(0)) // config.ranks_per_node)
    threads = config.threads_per_rank or int(os.environ.get("OMP_NUM_THREADS", shared))
    torch.set_num_threads(threads)
    if get_accelerator().device_name() == "cpu":
        # DeepSpeed would spend half a minute compiling a shared-memory all-reduce that only inference uses.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed("gloo", verbose=False)
        return
    get_accelerator().set_device(int(os.environ["LOCAL_RANK"]))
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        os.environ["FLASH_ATTENTION_DETERMINISTIC"] = "1"  # transformers hands it on to flash-attn
        torch.use_deterministic_algorithms(True)
    deepspeed.init_distributed("nccl", verbose=False)


@contextmanager
def together() -> Iterator[None]:
    """Raise LostError for what a rank sees when another one, the network or its GPU is gone: a fault of neither code
    nor data.

    NCCL and the rendezvous raise errors of their own, gloo a RuntimeError that names its source file, CUDA an
    AcceleratorError (not for a lack of memory).
    """
    import torch
    import torch.distributed as dist

    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        what = (str(error).splitlines() or ["no message"])[0]
        if isinstance(error, torch.AcceleratorError):
            raise LostError(f"lost the GPU: {what}") from error
        if isinstance(error, dist.DistError) or "gloo/" in str(error):
            raise LostError(f"lost the other ranks: {what}") from error
        raise


def rank() -> int:
    """Number of this process, 0..world_size - 1."""
    import torch.distributed as dist

    return dist.get_rank()


def world_size() -> int:
    """Number of ranks."""
    import torch.distributed as dist

    return dist.get_world_size()


def device() -> torch.device:
    """Where this rank computes."""
    import torch
    from deepspeed.accelerator import get_accelerator

    return torch.device(get_accelerator().current_device_name())


def gather(values: Sequence[float | torch.Tensor]) -> list[list[float]]:
    """The rows of all ranks, in rank order; every rank gives the same number of values.

    Tensors are scalars on this rank's device.
    """
    import torch
    import torch.distributed as dist

    mine = torch.empty(len(values), dtype=torch.float64, device=device())
    numbers = [0.0 if isinstance(v, torch.Tensor) else float(v) for v in values]
    mine.copy_(torch.tensor(numbers, dtype=torch.float64))
    for at, value in enumerate(values):
        if isinstance(value, torch.Tensor):
            mine[at] = value
    rows = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(rows, mine)
    everyone: list[list[float]] = torch.stack(rows).tolist()
    return everyone


def agree(well: bool) -> bool:
    """True where all ranks say True."""
    return all(row[0] for row in gather([float(well)]))


def any_rank(flag: bool) -> bool:
    """True where one rank at least says True."""
    return any(row[0] for row in gather([float(flag)]))


def from_first(value: int) -> int:
    """Rank 0's value."""
    return int(gather([float(value)])[0][0])


def barrier() -> None:
    """Wait until all ranks are here."""
    gather([0.0])


def stop() -> None:
    """Leave the process group."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()

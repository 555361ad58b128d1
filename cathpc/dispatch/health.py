"""The check of a training's nodes before an attempt: `python -m cathpc.dispatch.health SPEC`, one process a node.

In: the nodes of this job. Out: 0 where every node sees its GPUs, writes to the stage's folder, passes the site's own
command and takes part in a small all-reduce; else 75, and `health-<job>-<attempt>.json` names the bad nodes, which the
requeue then leaves out. A node that answers nothing within the time limit is bad; where the all-reduce fails and every
node by itself is well, nobody is blamed.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cathpc.dispatch import jobs
from cathpc.dispatch.job import port
from cathpc.errors import EXIT_AGAIN
from cathpc.lease import slurm_job

WAIT_S = 120.0
DEVICES = ("/dev/nvidiactl", "/dev/kfd")
REDUCE_S = 60.0


def node_faults(spec: dict[str, Any]) -> list[str]:
    """What is wrong with this node by itself."""
    faults = []
    folder = Path(spec["folder"])
    try:
        with tempfile.NamedTemporaryFile(dir=jobs.folder(folder), prefix=".health.") as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        faults.append(f"cannot write to {folder}: {error.strerror}")
    wanted = int(spec.get("gpus_per_node") or 0)
    if wanted and not spec.get("pretended_gpus") and not any(map(os.path.exists, DEVICES)):
        faults.append(f"there is no {' or '.join(DEVICES)}: the driver is not loaded")
    elif wanted and Path("/dev/nvidiactl").exists():
        try:
            said = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=60)
            seen = sum(line.startswith("GPU ") for line in said.stdout.splitlines())
            if said.returncode or seen < wanted:
                faults.append(f"nvidia-smi sees {seen} of {wanted} GPUs {said.stderr.strip()}".strip())
        except (OSError, subprocess.TimeoutExpired) as error:
            faults.append(f"nvidia-smi: {error}")
    command = [str(word) for word in spec.get("health_command") or ()]
    if command:
        try:
            said = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S / 2)
            if said.returncode:
                words = (said.stderr or said.stdout).strip().splitlines()
                faults.append(f"{command[0]} ended with {said.returncode} {words[-1] if words else ''}".strip())
        except (OSError, subprocess.TimeoutExpired) as error:
            faults.append(f"{command[0]}: {error}")
    return faults


def reduce(rank: int, ranks: int, address: str, where: int) -> str:
    """'' where an all-reduce between one process a node gives the right sum, else what it gave."""
    import datetime

    import torch
    import torch.distributed as dist

    meet = f"tcp://{address}:{where}"
    dist.init_process_group(
        "gloo", init_method=meet, rank=rank, world_size=ranks, timeout=datetime.timedelta(seconds=REDUCE_S)
    )
    value = torch.full((1024,), float(rank + 1))
    dist.all_reduce(value)
    expected = ranks * (ranks + 1) / 2
    dist.destroy_process_group()
    return "" if bool((value == expected).all()) else f"an all-reduce gave {value[0].item()} instead of {expected}"


def main(argv: list[str]) -> int:
    """Check this node and, on rank 0, judge all; returns the exit code."""
    spec = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    job, restart = slurm_job()
    rank, ranks = int(os.environ.get("SLURM_PROCID", 0)), int(os.environ.get("SLURM_NTASKS", 1))
    name = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    reports = jobs.folder(Path(spec["folder"])) / f"health-{job}-{restart}"
    reports.mkdir(exist_ok=True, mode=0o700)
    mine = {"node": name, "faults": node_faults(spec)}
    _write(reports / f"{rank}.json", mine)
    everyone = _wait(reports, ranks) if rank == 0 else {}
    bad: list[str] = []
    note = "; ".join(mine["faults"])
    if rank == 0:
        from submitit.slurm.slurm import SlurmJobEnvironment

        nodes = SlurmJobEnvironment().hostnames
        silent = [node for number, node in enumerate(nodes[:ranks]) if number not in everyone]
        bad = sorted({*silent, *(report["node"] for report in everyone.values() if report["faults"])})
        note = "; ".join(f"{r['node']}: {', '.join(r['faults'])}" for r in everyone.values() if r["faults"])
        note += "".join(f"; {node}: no answer within {WAIT_S:.0f} s" for node in silent)
        _write(reports.with_suffix(".json"), {"bad": bad, "note": note.strip("; "), "time": time.time()})
    elif not _seen(reports.with_suffix(".json")):
        return EXIT_AGAIN
    verdict = json.loads(reports.with_suffix(".json").read_text(encoding="utf-8"))
    if verdict["bad"]:
        if rank == 0:
            print(f"cathpc: health check: {verdict['note']}", file=sys.stderr, flush=True)
        return EXIT_AGAIN
    if ranks > 1:
        address = os.environ.get("MASTER_ADDR") or _first_node()
        try:
            fault = reduce(rank, ranks, address, port(job, restart) + 1)
        except Exception as error:
            fault = f"the all-reduce between nodes failed: {error}"
        if fault:
            print(f"cathpc: health check on {name}: {fault}", file=sys.stderr, flush=True)
            return EXIT_AGAIN
    return 0


def _first_node() -> str:
    from submitit.slurm.slurm import SlurmJobEnvironment

    return str(SlurmJobEnvironment().hostnames[0])


def _write(path: Path, value: Any) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value), encoding="utf-8")
    os.replace(temporary, path)


def _wait(reports: Path, ranks: int) -> dict[int, dict[str, Any]]:
    """The reports by rank, all of them or those that came in time."""
    deadline = time.monotonic() + WAIT_S
    while True:
        found = {int(p.stem): json.loads(p.read_text(encoding="utf-8")) for p in reports.glob("[0-9]*.json")}
        if len(found) == ranks or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def _seen(path: Path) -> bool:
    deadline = time.monotonic() + WAIT_S + 30
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

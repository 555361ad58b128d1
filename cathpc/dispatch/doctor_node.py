"""`doctor` on a node: `python -m cathpc.dispatch.doctor_node SPEC`, one process a node, started by srun.

In: the JSON file that `doctor_job` wrote. Out: `node-<rank>.json` beside it, with what this node sees; verdicts are the
login node's. No part may hang or end the rest: torch and the all-reduce run in a process of their own with a time
limit, and what a part raises stands in its place.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

REDUCE_S = 60.0
TORCH_S = 240.0
REDUCE_MB = 64


def main(argv: list[str]) -> int:
    """Write what this node sees; returns the exit code."""
    if argv[0] == "--torch":
        torch_part(json.loads(Path(argv[1]).read_text(encoding="utf-8")))
        return 0
    began = time.time()
    spec = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    rank = int(os.environ.get("SLURM_PROCID", 0))
    name = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    parts: dict[str, Callable[[], Any]] = {
        "software": software,
        "folders": lambda: folders(spec["folders"], f"{name}.{rank}"),
        "links": lambda: links(spec["folders"]),
        "hub": lambda: reach(spec["hub"]),
        "scratch": scratch,
        "shm_gb": lambda: free_gb(Path("/dev/shm")),
        "memory_gb": memory_gb,
        "cores": lambda: len(os.sched_getaffinity(0)),
        "limits": limits,
        "scontrol": answers,
        "gpus": gpus,
        "torch": lambda: torch_process(argv[0]),
    }
    seen: dict[str, Any] = {"node": name, "rank": rank, "began": began}
    seen["offline"] = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    seen["nvidia"] = os.path.exists("/dev/nvidiactl")
    for key, part in parts.items():
        try:
            seen[key] = part()
        except Exception as error:  # of one part; the others are still worth knowing
            seen[key] = {"error": f"{type(error).__name__}: {error}"}
    seen["ended"] = time.time()
    write(Path(argv[0]).with_name(f"node-{rank}.json"), seen)
    print(json.dumps(seen), flush=True)
    return 0


def write(path: Path, value: Any) -> None:
    """Write JSON durably under a temporary name, then rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def software() -> dict[str, str]:
    """The versions that this node's Python finds."""
    from cathpc.dispatch.doctor_machine import software as versions

    return versions()


def folders(probes: dict[str, str], name: str) -> dict[str, str]:
    """Of each folder: '' where the login node's probe is read and an answer is written beside it, else the fault."""
    found = {}
    for key, probe in probes.items():
        try:
            text = Path(probe).read_text(encoding="utf-8")
            Path(f"{probe}.{name}").write_text(text, encoding="utf-8")
            found[key] = ""
        except OSError as error:
            found[key] = str(error.strerror)
    return found


def reach(endpoint: str) -> str:
    """'' where the Hub, or the proxy before it, takes a connection within 3 s; else why not."""
    url = urllib.parse.urlsplit(endpoint)
    proxy = urllib.request.getproxies().get(url.scheme)
    if proxy and not urllib.request.proxy_bypass(url.hostname or ""):
        url = urllib.parse.urlsplit(proxy if "//" in proxy else f"http://{proxy}")
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        socket.create_connection((url.hostname or "", port), timeout=3.0).close()
    except OSError as error:
        return f"{url.hostname}:{port}: {error.strerror or error}"
    return ""


def links(probes: dict[str, str]) -> dict[str, str]:
    """Of each folder that holds leases and markers: '' where it takes hard links, else why not."""
    from cathpc.dispatch.doctor_machine import links as fault

    return {key: fault(Path(probe).parent) for key, probe in probes.items() if key != "paths.cache"}


def free_gb(folder: Path) -> float:
    """Free space in GB."""
    room = os.statvfs(folder)
    return round(room.f_bavail * room.f_frsize / 1e9, 2)


def scratch() -> dict[str, Any]:
    """The folder of temporary files: its path and its room; raises where nothing can be written."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"x")
    return {"folder": tempfile.gettempdir(), "free_gb": free_gb(Path(tempfile.gettempdir()))}


def memory_gb() -> float:
    """Memory of the node."""
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)


def limits() -> dict[str, int]:
    """Soft limits of this process; -1 is none."""
    names = {"nofile": resource.RLIMIT_NOFILE, "memlock": resource.RLIMIT_MEMLOCK}
    return {name: resource.getrlimit(number)[0] for name, number in names.items()}


def answers() -> str:
    """'' where scontrol answers for this job from here; else why not."""
    if shutil.which("scontrol") is None:
        return "not found"
    command = ["scontrol", "--oneliner", "show", "job", os.environ.get("SLURM_JOB_ID", "0")]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        return "no answer within 30 s"
    return "" if done.returncode == 0 else (done.stderr.strip() or "it failed without a message").splitlines()[-1]


def gpus() -> list[dict[str, Any]]:
    """What nvidia-smi says of each GPU of this job; empty where there is none."""
    if shutil.which("nvidia-smi") is None or not os.path.exists("/dev/nvidiactl"):
        return []
    fields = "name,memory.total,driver_version,ecc.errors.uncorrected.volatile.total"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or done.stdout.strip() or "nvidia-smi failed").splitlines()[-1])
    return parse_gpus(done.stdout)


def parse_gpus(text: str) -> list[dict[str, Any]]:
    """Lines such as 'NVIDIA A100-SXM4-80GB, 81920, 535.104.05, 0'."""
    found = []
    for line in text.splitlines():
        words = [word.strip() for word in line.split(",")]
        if len(words) == 4:
            mib, ecc = (int(w) if w.isdigit() else 0 for w in (words[1], words[3]))
            found.append(
                {"name": words[0], "memory_gb": round(mib * 1.048576 / 1000, 1), "driver": words[2], "ecc": ecc}
            )
    return found


# --- torch, in a process of its own -----------------------------------------------------------------------------------


def torch_process(spec: str) -> dict[str, Any]:
    """What `torch_part` prints, also where it hangs or dies half-way."""
    command = [sys.executable, "-m", "cathpc.dispatch.doctor_node", "--torch", spec]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TORCH_S, check=False)
        text, end = done.stdout, (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        fault = "" if done.returncode == 0 else end
    except subprocess.TimeoutExpired as error:
        text = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout or ""
        fault = f"no answer within {TORCH_S:.0f} s"
    found: dict[str, Any] = {}
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            if line.startswith("{"):
                found |= json.loads(line)
    return {**found, "fault": fault} if fault else found


def torch_part(spec: dict[str, Any]) -> None:
    """Print, a line of JSON a part: torch's CUDA, flash-attn where it is wanted, the all-reduce between the nodes."""
    began = time.monotonic()
    import torch

    ready = torch.cuda.is_available()
    _say(import_s=round(time.monotonic() - began, 1), cuda=torch.version.cuda, available=ready)
    _say(devices=torch.cuda.device_count() if ready else 0)
    if spec["flash"]:
        try:
            import flash_attn  # type: ignore[import-not-found,unused-ignore]  # an extra: absent here

            _say(flash=str(flash_attn.__version__))
        except Exception as error:  # a wheel for another torch fails in many ways
            _say(flash="", flash_fault=f"{type(error).__name__}: {error}"[:200])
    if int(os.environ.get("SLURM_NTASKS", 1)) > 1:
        _say(backend="nccl" if ready else "gloo")
        try:
            _say(**reduce("nccl" if ready else "gloo"))
        except Exception as error:
            _say(
                reduce_fault=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"[:300]
            )


def _say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def reduce(backend: str) -> dict[str, Any]:
    """All-reduce between one process a node: where they met, whether the sum is right, and its speed."""
    import datetime

    import torch
    import torch.distributed as dist

    from cathpc.dispatch.job import port
    from cathpc.lease import slurm_job

    rank, ranks = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    address, limit = os.environ.get("MASTER_ADDR") or _first_node(), datetime.timedelta(seconds=REDUCE_S)
    where = f"tcp://{address}:{port(*slurm_job())}"
    dist.init_process_group(backend, init_method=where, rank=rank, world_size=ranks, timeout=limit)
    value = torch.full((REDUCE_MB * 250_000,), float(rank + 1), device="cuda" if backend == "nccl" else "cpu")
    dist.all_reduce(value)
    right = bool((value == ranks * (ranks + 1) / 2).all())
    began = time.monotonic()
    for _ in range(5):
        dist.all_reduce(value)
    if backend == "nccl":
        torch.cuda.synchronize()
    took = (time.monotonic() - began) / 5
    dist.destroy_process_group()
    return {"master": address, "right": right, "gb_s": round(2 * (ranks - 1) / ranks * REDUCE_MB / 1000 / took, 3)}


def _first_node() -> str:
    from submitit.slurm.slurm import SlurmJobEnvironment

    return str(SlurmJobEnvironment().hostnames[0])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

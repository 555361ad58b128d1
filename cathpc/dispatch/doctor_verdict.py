"""`doctor`'s verdicts on what a node saw: plain functions of its answer and of the config."""

from __future__ import annotations

import math
from typing import Any

from cathpc.config import Config
from cathpc.dispatch.config import Requeue, Runtime
from cathpc.dispatch.doctor_check import Check, fail, warn, well
from cathpc.dispatch.doctor_job import Target
from cathpc.dispatch.doctor_machine import linked

DRIVERS = {11: 450, 12: 525, 13: 580}
"""Oldest driver branch of each CUDA major version (NVIDIA, CUDA compatibility, minor-version compatibility)."""
SLOW_IMPORT_S = 60.0
SHM_GB = 8.0
SCRATCH_GB = 5.0
NCCL_GB_S = 2.0
"""Below this an all-reduce between nodes runs over Ethernet, or over the wrong interface."""
SKEW_S = (5.0, 60.0)
NOFILE = 4096

Node = dict[str, Any]


def verdicts(
    node: Node,
    target: Target,
    config: Config,
    *,
    here: dict[str, str],
    unseen: list[str],
    after: float,
    until: float,
    hub_needed: bool,
    commands: str,
) -> list[Check]:
    """All checks of one node.

    `here`: versions on the login node; `unseen`: folders whose answer did not come back; the job started no sooner than
    `after` and had answered by `until`; `commands`: what its batch shell found, a path a line.
    """
    checks = [
        software(node["software"], here, contained=config.cluster.container.runtime is not Runtime.none),
        *visible(node["folders"], unseen),
        *hard_links(node["links"], node["folders"]),
        torch_check(node["torch"]),
        *(gpu_checks(node, target, config.cluster.gpu_memory_gb) if target.gpus else []),
        *([flash(node["torch"])] if config.train.attention.name == "flash" and target.gpus else []),
        *(reduce_check(node["torch"], first=node["rank"] == 0) if target.nodes > 1 else []),
        hub(node, target, offline=config.cluster.offline_nodes, needed=hub_needed),
        slurm_commands(commands, node["scontrol"], config.cluster.requeue),
        clock(node["began"], node["ended"], after, until),
        scratch(node["scratch"], config.cluster.scratch),
        sizes(node, target, config),
        limits(node["limits"], gpus=bool(target.gpus) and node["nvidia"]),
    ]
    return checks


def _error(value: Any) -> str:
    """What a part of the node's answer raised; '' where it did not."""
    return str(value["error"]) if isinstance(value, dict) and "error" in value else ""


def software(found: dict[str, str], here: dict[str, str], *, contained: bool = False) -> Check:
    """Whether the node runs the same versions as the login node."""
    if error := _error(found):
        return fail("environment", error, "the Python of the login node must be visible on the nodes, and whole")
    other = [f"{k} {found.get(k)} (here {v})" for k, v in here.items() if found.get(k) != v]
    if other and contained:
        advice = "the container has its own; build it from constraints.txt to have the same"
        return warn("environment", ", ".join(other), advice)
    if other:
        return fail("environment", ", ".join(other), "install one environment on a shared file system, and use it here")
    return well("environment", f"the same as here: Python {found.get('python')}, torch {found.get('torch')}")


def visible(found: dict[str, str], unseen: list[str]) -> list[Check]:
    """Whether the folders of a run are one and the same here and on the node."""
    if error := _error(found):
        return [fail("folders", error, "the folders of a run must be visible on the nodes")]
    faults = {key: text for key, text in found.items() if text}
    faults |= {key: "what the node wrote is not seen here" for key in unseen if key not in faults}
    if not faults:
        return [well("folders", f"{', '.join(found)}: written here, read and answered there")]
    advice = "choose a folder on a file system that login and compute nodes share"
    return [fail("folders", f"{key}: {text}", f"{advice}: {key}=FOLDER") for key, text in faults.items()]


def hard_links(found: dict[str, str], folders: dict[str, str]) -> list[Check]:
    """Whether leases and markers can be made in those folders of a run that the node sees."""
    if error := _error(found):
        return [fail("links", error, "report the node")]
    seen = {key: fault for key, fault in found.items() if folders.get(key) == ""}
    return [linked("links", seen)] if seen else []


def torch_check(torch: dict[str, Any]) -> Check:
    """Whether torch can be imported there, and how long that takes."""
    if "import_s" not in torch:
        seen = _error(torch) or torch.get("fault", "no answer")
        return fail("torch", seen, "install torch for these nodes, or load what it needs (cluster.modules)")
    if torch["import_s"] > SLOW_IMPORT_S:
        advice = "every rank pays this at each start: a faster file system, or a container, helps"
        return warn("torch", f"imported in {torch['import_s']:.0f} s", advice)
    return well("torch", f"imported in {math.ceil(torch['import_s'])} s, CUDA {torch['cuda'] or 'none'}")


def gpu_checks(node: Node, target: Target, memory_gb: float) -> list[Check]:
    """GPUs that the job was given: number, memory, errors, and the driver against torch's CUDA."""
    torch, found = node["torch"], node["gpus"]
    exclude = f"leave the node out and report it: cluster.exclude={node['node']}"
    if not node["nvidia"]:
        advice = "right on a test cluster; on a real one leave the node out: cluster.exclude, and report it"
        return [warn("GPUs", f"Slurm gave {target.gpus}, there is no device: pretended GPUs", advice)]
    if error := _error(found):
        return [fail("GPUs", f"nvidia-smi: {error}", exclude)]
    if len(found) < target.gpus:
        return [fail("GPUs", f"nvidia-smi sees {len(found)} of {target.gpus}", exclude)]
    gpu = found[0]
    seen = f"{len(found)} x {gpu['name']}, {gpu['memory_gb']} GB, driver {gpu['driver']}"
    checks = []
    if gpu["memory_gb"] < 0.95 * memory_gb:
        checks.append(
            warn("GPUs", f"{seen}; cluster.gpu_memory_gb is {memory_gb}", "set what is there: `plan` uses it")
        )
    if any(g["ecc"] for g in found):
        checks.append(warn("GPUs", f"{sum(g['ecc'] for g in found)} uncorrected memory errors", exclude))
    checks.append(driver(torch, gpu["driver"], seen))
    return checks


def driver(torch: dict[str, Any], version: str, seen: str) -> Check:
    """The driver against the CUDA that torch was built for."""
    if torch.get("available"):
        return well("GPUs", f"{seen}, torch's CUDA {torch['cuda']}")
    cuda = torch.get("cuda")
    if not cuda:
        return fail("GPUs", f"{seen}; this torch is built for CPUs", "install a CUDA build of torch (pytorch.org)")
    needed = DRIVERS.get(int(cuda.split(".")[0]), max(DRIVERS.values()))
    major = version.split(".")[0]
    if major.isdigit() and int(major) < needed:
        advice = f"install torch for an older CUDA, or ask for driver {needed} or newer"
        return fail("GPUs", f"{seen} is too old for torch's CUDA {cuda} ({needed} or newer)", advice)
    return fail("GPUs", f"{seen}; torch (CUDA {cuda}) cannot use them", "see CUDA_VISIBLE_DEVICES and cluster.modules")


def flash(torch: dict[str, Any]) -> Check:
    """flash-attn, where train.attention asks for it."""
    if torch.get("flash"):
        return well("flash-attn", str(torch["flash"]))
    advice = "pip install 'cathpc[flash]' (it is built for your torch), or take train.attention=sdpa"
    return fail("flash-attn", torch.get("flash_fault", "not known"), advice)


def reduce_check(torch: dict[str, Any], *, first: bool) -> list[Check]:
    """The all-reduce between two nodes; where it is well, the first one says so for both."""
    backend = torch.get("backend", "torch")
    variable = "NCCL_SOCKET_IFNAME" if backend == "nccl" else "GLOO_SOCKET_IFNAME"
    if "right" not in torch:
        fault = torch.get("reduce_fault") or torch.get("fault") or _error(torch) or "no answer"
        advice = (
            f"name the interface between the nodes: cluster.env.{variable}=NAME (see `ip address` there); where names "
            "of nodes do not resolve: cluster.env.MASTER_ADDR; ports 12000-31999 must be open between nodes"
        )
        return [fail("all-reduce", f"{backend}: {fault}", advice)]
    seen = f"{backend} between two nodes, met at {torch['master']}: {torch['gb_s']} GB/s"
    if not torch["right"]:
        return [
            fail("all-reduce", f"{seen}, and the sum is wrong", "report the nodes; leave them out: cluster.exclude")
        ]
    if backend == "nccl" and torch["gb_s"] < NCCL_GB_S:
        advice = (
            "NCCL seems to run over Ethernet: see cluster.env.NCCL_IB_HCA, NCCL_SOCKET_IFNAME; NCCL_DEBUG=INFO says"
        )
        return [warn("all-reduce", seen, advice)]
    return [well("all-reduce", seen)] if first else []


def hub(node: Node, target: Target, *, offline: bool, needed: bool) -> Check:
    """Whether the node reaches the Hub, against what the config says of it."""
    fault = _error(node["hub"]) or node["hub"]
    if target.network:
        if fault and needed:
            advice = "cluster.network_partition='' and `fetch` here instead; or a partition (or HTTPS_PROXY) that does"
            return fail("Hub", f"not reached, but cluster.network_partition says so: {fault}", advice)
        if fault:
            return warn("Hub", f"not reached ({fault}); this experiment uses nothing of it", "for others: `fetch` here")
        if node["offline"]:
            return fail("Hub", "reached, but HF_HUB_OFFLINE is set in the job", "unset HF_HUB_OFFLINE here")
        return well("Hub", "reached")
    if fault:
        if offline:
            return well("Hub", "not reached; jobs here work offline (cluster.offline_nodes)")
        return warn("Hub", f"not reached: {fault}", "set cluster.offline_nodes=true")
    return well("Hub", "reached" + (", not used (cluster.offline_nodes)" if offline else ""))


def slurm_commands(commands: str, answer: Any, requeue: Requeue) -> Check:
    """scontrol and its friends on the node, outside of any container, where a job requeues itself."""
    have = {line.rpartition("/")[2] for line in commands.splitlines()}
    if "scontrol" not in have and requeue is Requeue.scontrol:
        return fail("Slurm there", "no scontrol: a job cannot requeue itself", "set cluster.requeue=chain")
    fault = _error(answer) or answer
    if "scontrol" in have and fault and fault != "not found":  # not found: inside a container
        advice = "a job may not be able to requeue itself: set cluster.requeue=chain"
        return (fail if requeue is Requeue.scontrol else warn)(
            "Slurm there", f"scontrol does not answer: {fault}", advice
        )
    seen = ", ".join(sorted(have & {"scontrol", "squeue", "sacct"})) or "none of its commands"
    if "squeue" not in have:
        advice = "a stage's folder that a dead job of another node holds is then freed by `run` only"
        return warn("Slurm there", f"no squeue ({seen})", advice)
    return well("Slurm there", f"{seen}; going on by {requeue.name}")


def clock(began: float, ended: float, after: float, until: float) -> Check:
    """The node's clock against this one's, as far as the moments between which it ran can tell."""
    least, most = ended - until, began - after
    skew = least if least > 0 else most if most < 0 else 0.0
    seen = f"{skew:+.0f} s at least" if skew else f"no difference seen, within {max(most, -least):.0f} s"
    if abs(skew) > SKEW_S[1]:
        return fail("clock", seen, "ask the administrator for NTP on the nodes: file times and certificates are wrong")
    if abs(skew) > SKEW_S[0]:
        return warn("clock", seen, "ask the administrator for NTP on the nodes: times in logs do not fit each other")
    return well("clock", seen)


def scratch(found: dict[str, Any], wanted: str) -> Check:
    """The folder of temporary files on the node."""
    if error := _error(found):
        return fail("scratch", error, f"cluster.scratch is {wanted!r}: name a folder that jobs can write")
    seen = f"{found['folder']}, {found['free_gb']:.0f} GB free"
    if found["free_gb"] < SCRATCH_GB:
        return warn("scratch", seen, "temporary files may not fit: name a larger folder in cluster.scratch")
    return well("scratch", seen)


def sizes(node: Node, target: Target, config: Config) -> Check:
    """Cores, memory and /dev/shm of the node."""
    cluster = config.cluster
    asked = max(1, min(2, cluster.cpus))
    for key in ("shm_gb", "memory_gb", "cores"):
        if error := _error(node[key]):
            return warn("sizes", f"{key}: {error}", "report the node")
    seen = (
        f"{node['cores']} cores for {asked} asked, {node['memory_gb']:.0f} GB memory, /dev/shm {node['shm_gb']:.0f} GB"
    )
    wanted = cluster.mem_gb if target.gpus else cluster.cpu_mem_gb
    if node["cores"] < asked:
        return warn("sizes", seen, "fewer cores than Slurm gave: ranks share them (TaskPlugin, or a pretended cluster)")
    if node["memory_gb"] < wanted:
        return warn("sizes", f"{seen}; {wanted:g} GB are asked", "lower cluster.mem_gb or cluster.cpu_mem_gb")
    if target.gpus and node["nvidia"] and node["shm_gb"] < SHM_GB:
        return warn("sizes", seen, "NCCL shares memory there: ask for a larger /dev/shm, or set NCCL_SHM_DISABLE=1")
    return well("sizes", seen)


def limits(found: dict[str, int], *, gpus: bool) -> Check:
    """Limits of open files and locked memory."""
    if error := _error(found):
        return warn("limits", error, "report the node")
    texts = {k: "unlimited" if v in (-1, math.inf) else f"{v:,}" for k, v in found.items()}
    seen = f"open files {texts['nofile']}, locked memory {texts['memlock']}"
    if 0 <= found["nofile"] < NOFILE:
        return warn("limits", seen, f"put `ulimit -n {NOFILE}` into cluster.setup")
    if gpus and found["memlock"] != -1:
        return warn("limits", seen, "InfiniBand needs unlimited locked memory: ask for it, or `ulimit -l unlimited`")
    return well("limits", seen)

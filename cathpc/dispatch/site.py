"""What a site can run, asked before anything is submitted: partitions, their limits, widths of arrays."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from cathpc.dispatch import slurm
from cathpc.dispatch.config import ClusterConfig
from cathpc.dispatch.script import Request
from cathpc.errors import UserError
from cathpc.progress import duration


def check(requests: Sequence[Request], cluster: ClusterConfig) -> None:
    """Raise one `UserError` that lists every request that Slurm would refuse, or that would wait for ever."""
    known = slurm.partitions(cluster)
    faults: dict[str, None] = {}
    for request in requests:
        names = request.partition.split(",") if request.partition else [_default(known)]
        for name in names:  # Slurm takes the first of several that is free
            for fault in _faults(request, name, known, _timeout_key(request, cluster)):
                faults[fault] = None
    if faults:
        raise UserError("the cluster cannot run this; nothing was submitted:\n  " + "\n  ".join(faults))


def _default(known: dict[str, dict[str, str]]) -> str:
    return next((n for n, p in known.items() if p.get("Default") == "YES"), "")


def _faults(request: Request, name: str, known: dict[str, dict[str, str]], timeout_key: str) -> list[str]:
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return [f"there is no partition {name!r} (stage {request.stage}).{hint} Partitions: {', '.join(sorted(known))}"]
    partition = known[name]
    faults = []
    limit = slurm.minutes(partition.get("MaxTime", "UNLIMITED"))
    if request.timeout_min > limit:
        faults.append(
            f"stage {request.stage} asks for {duration(request.timeout_min * 60)}, partition {name} allows "
            f"{duration(limit * 60)}: lower {timeout_key}"
        )
    nodes = partition.get("MaxNodes", "UNLIMITED")
    if nodes.isdigit() and request.nodes > int(nodes):
        faults.append(f"stage {request.stage} asks for {request.nodes} nodes, partition {name} allows {nodes}")
    total = partition.get("TotalNodes", "")
    if total.isdigit() and request.nodes > int(total):
        faults.append(f"stage {request.stage} asks for {request.nodes} nodes, partition {name} has {total}")
    if partition.get("State", "UP") != "UP":
        faults.append(f"partition {name} is {partition['State']} (stage {request.stage})")
    if request.lead_s * 2 > request.timeout_min * 60:
        faults.append(
            f"stage {request.stage}: a limit of {duration(request.timeout_min * 60)} leaves too little beside the "
            f"{request.lead_s} s of warning that a save needs (cluster.lead_s): raise {timeout_key}"
        )
    return faults


def _timeout_key(request: Request, cluster: ClusterConfig) -> str:
    own = cluster.stages.get(request.stage)
    if own and own.timeout_min:
        return f"cluster.stages.{request.stage}.timeout_min"
    return "cluster.timeout_min" if request.place == "ranks" else "cluster.short_timeout_min"


def capped(cluster: ClusterConfig) -> dict[str, int]:
    """Widths of arrays that the QOS lets this user submit beside the other jobs of a graph."""
    most = slurm.max_submit(cluster)
    if most is None:
        return dict(cluster.arrays)
    room = max(1, (most - 20) // 2)
    return {name: max(1, min(width, room)) for name, width in cluster.arrays.items()}

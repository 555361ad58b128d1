"""`doctor`: check a site before a job waits two days in its queue.

In: the composed config. Out: a list of checks, in groups: this machine, the folders of a run, Slurm, and the nodes of
each partition that the stages use, which one tiny job visits. Without jobs, or on `cluster=local`, what needs none.
"""

from __future__ import annotations

import dataclasses
import getpass
import grp
import os
import secrets
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from cathpc.config import Config
from cathpc.dispatch import doctor_job as job
from cathpc.dispatch import doctor_parts as parts
from cathpc.dispatch import doctor_site as site_checks
from cathpc.dispatch.config import ClusterKind, Runtime
from cathpc.dispatch.doctor_check import Check, State, fail, merged, under, warn
from cathpc.dispatch.doctor_machine import folder_checks, folders, machine, made, software
from cathpc.dispatch.doctor_verdict import verdicts
from cathpc.errors import CathpcError

HUB = "https://huggingface.co"


@dataclasses.dataclass(frozen=True)
class Options:
    """What the user asked of `doctor`."""

    jobs: bool = True
    wait_s: float = 120.0
    all_gpus: bool = False
    named: bool = False
    """Whether an experiment was named: what it does not use is then no fault."""


def examine(config: Config, options: Options, say: Callable[[str], None]) -> list[Check]:
    """All checks; `say` prints what is waited for."""
    config = whole_site(config)
    with made(config.paths) as faults:
        checks = under("this machine", machine(config)) + under("folders", folder_checks(config, faults))
        if config.cluster.kind is ClusterKind.local:
            return checks
        found = site_checks.found_commands()
        first = [site_checks.commands(found)]
        if any(check.state is State.failed for check in first):
            return checks + under("Slurm", first)
        try:
            site = site_checks.read(config.cluster, getpass.getuser())
        except CathpcError as error:
            first.append(fail("controller", str(error), "see `sinfo`; try again when Slurm answers"))
            return checks + under("Slurm", first)
        checks += under("Slurm", first + slurm_checks(config, site))
        if faults:
            return checks
        return checks + on_nodes(config, site, options, say)


def whole_site(config: Config) -> Config:
    """The config with a training that takes all nodes and GPUs that the cluster's file names."""
    cluster = config.cluster
    if cluster.kind is ClusterKind.local:
        return config
    ranks = cluster.gpus_per_node or config.train.ranks_per_node
    return dataclasses.replace(
        config, train=dataclasses.replace(config.train, nodes=cluster.nodes, ranks_per_node=ranks)
    )


def slurm_checks(config: Config, site: site_checks.Site) -> list[Check]:
    """What Slurm says of itself against what the stages ask."""
    cluster, asked = config.cluster, site_checks.needs(config)
    groups = [grp.getgrgid(number).gr_name for number in os.getgroups()]
    checks = [site_checks.controller(site), site_checks.accounting(site), *site_checks.rights(cluster, site)]
    by_partition: dict[str, list[Check]] = {}
    for need in asked:
        name = need.partition or site_checks.default_partition(site.partitions)
        found = parts.partition(need, cluster, site, groups)
        if name in site.partitions:
            found += [parts.hardware(need, cluster, site), parts.preemption(need, cluster, site)]
        by_partition.setdefault(name, []).extend(found)
    for found in by_partition.values():
        checks += _once(found)
    checks += parts.walls(asked, cluster, site)
    checks += [site_checks.lead(cluster, asked), *site_checks.arrays(cluster, site)]
    checks.append(site_checks.requeueing(cluster, site))
    checks += site_checks.container(cluster, _runtime(cluster.container.runtime), _image(cluster.container.image))
    if not cluster.network_partition:
        seen, do = "none (cluster.network_partition is empty)", "`fetch` gets data and models here before `run`"
        checks.append(warn("network partition", seen, do))
    return checks


def _once(found: list[Check]) -> list[Check]:
    """Of checks by the same name all that are not well, or the first one."""
    kept: list[Check] = []
    for name in dict.fromkeys(check.name for check in found):
        same = [check for check in found if check.name == name]
        kept += list(dict.fromkeys(c for c in same if c.state is not State.passed)) or same[:1]
    return kept


def _runtime(runtime: Runtime) -> bool:
    if runtime is Runtime.pyxis:
        try:
            done = subprocess.run(["srun", "--help"], capture_output=True, text=True, timeout=30, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return False
        return "--container-image" in done.stdout
    return runtime is Runtime.none or shutil.which(runtime.name) is not None


def _image(image: str) -> bool:
    return Path(image).exists()


def on_nodes(config: Config, site: site_checks.Site, options: Options, say: Callable[[str], None]) -> list[Check]:
    """One tiny job a partition, and what sbatch says of the real ones; the folder stays only where a job failed."""
    default = site_checks.default_partition(site.partitions)
    asked = [need for need in site_checks.needs(config) if (need.partition or default) in site.partitions]
    nonce = secrets.token_hex(8)
    folder = folders(config.paths)["paths.runs"] / "doctor" / nonce
    folder.mkdir(parents=True, mode=0o700)
    keep = False
    try:
        trials = _once([parts.trial(need, config, folder) for need in asked])
        checks = under("Slurm", trials)
        if not options.jobs:
            return checks
        with job.probes(config, nonce) as probes:
            spec = {
                "folders": probes,
                "hub": os.environ.get("HF_ENDPOINT", HUB),
                "flash": config.train.attention.name == "flash",
            }
            targets = job.targets(asked, site, all_gpus=options.all_gpus)
            visits = [job.submit(target, config, folder / target.partition, spec) for target in targets]
            job.wait(config.cluster, visits, options.wait_s, say)
            for visit in visits:
                checks += under(f"nodes of {visit.target.partition}", of_visit(visit, config, options, probes, nonce))
        keep = any(check.name == "job" and check.state is State.failed for check in checks)
        return checks
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
            try:
                folder.parent.rmdir()
            except OSError:  # an earlier one is kept there
                pass


def of_visit(visit: job.Visit, config: Config, options: Options, probes: dict[str, str], nonce: str) -> list[Check]:
    """The checks of one partition's nodes."""
    from cathpc.acts.pin import hub_ids

    here = software()
    commands = visit.folder / "commands.txt"
    text = commands.read_text(encoding="utf-8") if commands.exists() else ""
    found = {
        node["node"]: verdicts(
            node,
            visit.target,
            config,
            here=here,
            unseen=[key for key, probe in probes.items() if not job.answered(probe, nonce, node)],
            after=visit.after,
            until=visit.until,
            hub_needed=bool(hub_ids(config)) or not options.named,
            commands=text,
        )
        for node in visit.nodes
    }
    return [job.outcome(visit, config.cluster), *merged(found)]

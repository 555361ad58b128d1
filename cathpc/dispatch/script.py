"""A job as a batch script: what it asks of Slurm, its environment, and the trap that brings it back.

In: a `Request`. Out: the text of the script, or the id of the job once it is submitted. submitit writes the `#SBATCH`
lines and calls sbatch; the job's own work is a plain command, `python -m cathpc.dispatch.job SPEC`, and no pickle: the
spec is a JSON file. Whatever comes from a config is quoted; a site's own `setup` lines stand as they are.
"""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit

from cathpc.data import lock
from cathpc.dispatch import slurm
from cathpc.dispatch.config import SECRET, ClusterConfig, Runtime
from cathpc.errors import UserError

PASSED = {"network": ("HF_TOKEN",)}
"""Keys that a job gets, by the kind of its place; where nodes have a network, each gets that of W&B besides."""


@dataclass(frozen=True)
class Request:
    """One job, or one array job, before it is submitted."""

    name: str
    stage: str
    spec: Path
    """The JSON file that tells the job what to do."""
    content: dict[str, Any]
    """What stands in it."""
    logs: Path
    partition: str
    timeout_min: int
    nodes: int = 1
    tasks_per_node: int = 1
    cpus_per_task: int = 1
    gpus_per_node: int = 0
    mem_gb: float = 0.0
    width: int | None = None
    """Tasks of an array; None is a plain job."""
    dependency: str = ""
    place: str = "cpu"
    lead_s: int = 120
    """Seconds before its limit at which the job is told."""
    mounts: tuple[Path, ...] = ()
    comment: str = ""
    exclusive: bool = False
    health: bool = False
    """Whether its nodes are checked first."""
    keys: tuple[str, ...] = ()
    """Names of variables with secrets that it needs of the user's environment."""
    module: str = "cathpc.dispatch.job"
    """What runs in it; the shell brings back those of the stages alone."""


class Executor(submitit.SlurmExecutor):
    """submitit's Slurm executor for a command instead of a pickled function."""

    def __init__(self, folder: Path, prefix: list[str]) -> None:
        """`prefix`: what stands before sbatch, such as `env -u NAME`."""
        super().__init__(folder)
        self._prefix = prefix

    @classmethod
    def affinity(cls) -> int:
        """Usable where Slurm is not: a dry run writes scripts anywhere."""
        return 2

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        return [*self._prefix, "sbatch", str(submission_file_path)]

    def text(self, command: str) -> str:
        """The script."""
        return str(self._make_submission_file_text(command, ""))

    def send(self, command: str) -> str:
        """Submit the script; returns the job's id. Raises QueueError with what sbatch said where it took no job."""
        try:
            return str(self._submit_command(command).job_id)
        except submitit.core.utils.FailedJobError as error:
            said = [line for line in str(error).splitlines() if line.strip()] or ["it failed without a message"]
            raise slurm.QueueError(f"sbatch: {said[-1]}") from None


def script(request: Request, cluster: ClusterConfig) -> str:
    """The text of the request's batch script."""
    return executor(request, cluster).text(_command(request, cluster))


def send(request: Request, cluster: ClusterConfig) -> str:
    """Submit the request; returns the job's id.

    Raises QueueError where Slurm does not answer, and UserError where it does and refuses the job (an account, a QOS,
    a reservation): the same command would be refused again.
    """
    request.logs.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        return executor(request, cluster).send(_command(request, cluster))
    except slurm.QueueError as error:
        if not slurm.answers(cluster):
            raise
        raise UserError(
            f"Slurm refuses the job of stage {request.stage}: {error}. Look at account, qos, constraint and sbatch of "
            f"your cluster (python -m cathpc doctor); what was submitted before it is kept"
        ) from None


def executor(request: Request, cluster: ClusterConfig) -> Executor:
    """submitit's executor with what the request asks of Slurm and with the lines before its command."""
    made = Executor(request.logs, _prefix(request, cluster))
    extra: dict[str, Any] = dict(cluster.sbatch)
    extra["requeue"] = True
    extra["kill-on-invalid-dep"] = "yes"
    if cluster.mail:
        extra |= {"mail-user": cluster.mail, "mail-type": "FAIL,TIME_LIMIT,INVALID_DEPEND"}
    parameters: dict[str, Any] = {
        "job_name": request.name,
        "partition": request.partition or None,
        "time": request.timeout_min,
        "nodes": request.nodes,
        "ntasks_per_node": request.tasks_per_node,
        "cpus_per_task": request.cpus_per_task,
        "mem": f"{request.mem_gb:g}GB" if request.mem_gb and request.mem_gb.is_integer() else None,
        "gres": ":".join(filter(None, ["gpu", cluster.gpu_type, str(request.gpus_per_node)]))
        if request.gpus_per_node
        else None,
        "account": cluster.account or None,
        "qos": cluster.qos or None,
        "constraint": cluster.constraint or None,
        "exclude": cluster.exclude or None,
        "dependency": request.dependency or None,
        "exclusive": request.exclusive or None,
        "comment": request.comment or None,
        "signal_delay_s": request.lead_s,
        "stderr_to_stdout": True,
        "wckey": None,
        "setup": _setup(request, cluster),
        "srun_args": _srun_args(request, cluster),
        "array_parallelism": cluster.array_parallelism,
        "additional_parameters": extra,
    }
    if request.mem_gb and not request.mem_gb.is_integer():
        parameters["mem"] = f"{round(request.mem_gb * 1024)}MB"
    elif not request.mem_gb:
        parameters["mem"] = "0"
    made.parameters = {**parameters, **({"map_count": request.width} if request.width else {})}
    return made


def _prefix(request: Request, cluster: ClusterConfig) -> list[str]:
    """sbatch hands on the user's environment; secrets are left out of it, by name."""
    tracked = () if cluster.offline_nodes else ("WANDB_API_KEY",)
    passed = (*PASSED.get(request.place, ()), *tracked, *request.keys)
    hidden = sorted(n for n in os.environ if SECRET.search(n) and n not in passed)
    prefix = ["env", *(word for name in hidden for word in ("-u", name))]
    if cluster.slurm_conf and "SLURM_CONF" not in os.environ:
        prefix.append(f"SLURM_CONF={cluster.slurm_conf}")
    return prefix


def _setup(request: Request, cluster: ClusterConfig) -> list[str]:
    lines = ["umask 077"]
    if cluster.slurm_conf:
        lines.append(f"export SLURM_CONF=${{SLURM_CONF:-{shlex.quote(cluster.slurm_conf)}}}")
    if cluster.offline_nodes and request.place != "network":
        lines.append("export WANDB_MODE=offline")
    if (
        cluster.container.runtime is not Runtime.none
    ):  # the image has a lock file of its own, which is that of its builder
        lines.append(f"export CATHPC_LOCK={shlex.quote(str(lock.lock_file().absolute()))}")
    lines += [f"export {name}={shlex.quote(value)}" for name, value in sorted(cluster.env.items())]
    lines += [f"module load {shlex.quote(name)}" for name in cluster.modules]
    if cluster.scratch:
        lines += [f'export TMPDIR="{cluster.scratch}"', 'mkdir -p "$TMPDIR"']
    lines += cluster.setup
    if request.module != Request.module:
        return lines
    own, spec = shlex.quote(sys.executable), shlex.quote(str(request.spec))
    lines += [
        "cathpc_end() {",
        "  code=$?",
        "  trap '' TERM USR2",
        f'  {own} -m cathpc.dispatch.attempt {spec} "$code" "$SECONDS"',
        "  exit $?",
        "}",
        "trap cathpc_end EXIT",
        "trap : TERM USR2  # the job's own processes answer them; this shell lives on to bring the job back",
    ]
    if request.health:
        once = ["srun", "--ntasks-per-node=1", f"--ntasks={request.nodes}", "--kill-on-bad-exit=0"]
        run = shlex.join([*once, *_inside(request, cluster)])
        lines.append(f"{run} {python(request, cluster)} -m cathpc.dispatch.health {spec} || exit 75")
    return lines


def _srun_args(request: Request, cluster: ClusterConfig) -> list[str]:
    own = ["--export=ALL", "--kill-on-bad-exit=1", f"--cpus-per-task={request.cpus_per_task}"]
    return [*own, *_inside(request, cluster)]


def _inside(request: Request, cluster: ClusterConfig) -> list[str]:
    """What srun is told so that its tasks run in the container; Apptainer needs nothing of srun."""
    container = cluster.container
    if container.runtime is not Runtime.pyxis:
        return []
    mounts = [*container.mounts, *(f"{p}:{p}" for p in request.mounts)]
    return [f"--container-image={container.image}", f"--container-mounts={','.join(mounts)}"]


def python(request: Request, cluster: ClusterConfig) -> str:
    """The Python that does the job's work, as a shell word or several."""
    container = cluster.container
    if container.runtime is Runtime.none:
        return shlex.join([sys.executable, "-u"])
    if container.runtime is Runtime.pyxis:
        return shlex.join([container.python, "-u"])
    binds = ",".join([*container.mounts, *(str(p) for p in request.mounts)])
    nv = ["--nv"] if request.gpus_per_node else []
    return shlex.join(["apptainer", "exec", *nv, "--bind", binds, container.image, container.python, "-u"])


def _command(request: Request, cluster: ClusterConfig) -> str:
    return f"{python(request, cluster)} -m {request.module} {shlex.quote(str(request.spec))}"

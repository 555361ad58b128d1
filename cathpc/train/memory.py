"""Memory of a training, reckoned before anything is queued: config and model dimensions in, rows of bytes out.

The rows follow what `cathpc.train.engine` and DeepSpeed's ZeRO-3 really hold, tensor by tensor; each says its formula.
Not all of them live at the same time: a training's peak is the largest of four moments (`Moment`). Sources:

- states: Rajbhandari et al. 2020 (ZeRO, arXiv:1910.02054), section 3.1 and figure 1; offloaded: Ren et al. 2021
  (ZeRO-Offload, arXiv:2101.06840); 8-bit: Dettmers et al. 2022 (arXiv:2110.02861), section 2;
- activations: Korthikanti et al. 2022 (arXiv:2205.05198), section 4.1, counted anew for grouped queries, SwiGLU,
  RMSNorm and an attention that keeps no score, as transformers' `LlamaDecoderLayer` saves them for backward;
- gathered weights and buffers: DeepSpeed's documentation of `zero_optimization` and its defaults, which we take.

Grows with: parameters / ranks (states), micro_batch x seq_len x width x layers (activations), loss_chunk x vocabulary
and width x vocabulary (loss). Symbols: N parameters, n trained ones, R ranks, T = micro_batch x seq_len tokens, L
layers, h width, f mlp_width, q and k widths of all queries and keys, V vocabulary, w bytes of `train.dtype`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from cathpc.models.config import Dtype
from cathpc.models.shape import parameters
from cathpc.train.config import Attention, Offload, Optimizer

if TYPE_CHECKING:
    from cathpc.models.shape import ShapeConfig
    from cathpc.train.config import TrainConfig

GIB = 2**30
BUCKET = 500_000_000
"""DeepSpeed's reduce_bucket_size, in elements."""
PREFETCH = 50_000_000
"""DeepSpeed's stage3_prefetch_bucket_size, in elements."""
LIVE = 1_000_000_000
"""DeepSpeed's stage3_max_live_parameters and stage3_max_reuse_distance, in elements."""
SUB_GROUP = 1_000_000_000
"""DeepSpeed's sub_group_size: elements that the optimizer steps through at once."""
CONTEXT = 1.5 * GIB
"""Assumed: CUDA context, cuBLAS workspaces and NCCL's channels of one rank."""
MARGIN = 0.06
"""Assumed: share that torch's caching allocator loses to fragments and to pools of other streams."""
PROCESS_GPU, PROCESS_CPU = 3e9, 0.5e9
"""Assumed: host memory of a rank's process before the model: Python, torch, with CUDA's and NCCL's libraries or not."""


class Moment(Enum):
    """When the peak may be."""

    loss = "end of the forward pass: the loss and its gradient"
    backward = "backward pass of the last layer"
    reduction = "reduction of the last gradients"
    step = "optimizer step"


ALWAYS = tuple(Moment)
PASS = (Moment.loss, Moment.backward)


@dataclass(frozen=True)
class Row:
    """Something that takes memory, in bytes at each moment at which it is there."""

    name: str
    bytes: dict[Moment, float]
    how: str
    assumed: bool = False
    """Whether it is an assumption rather than a count of tensors."""


@dataclass(frozen=True)
class Memory:
    """What one GPU, or one CPU process, needs."""

    rows: tuple[Row, ...]

    def at(self, moment: Moment, *, counted: bool = False) -> float:
        """Bytes at a moment; with `counted` those of tensors alone."""
        return sum(row.bytes.get(moment, 0.0) for row in self.rows if not (counted and row.assumed))

    @property
    def peak(self) -> Moment:
        """The moment that needs most."""
        return max(Moment, key=self.at)

    @property
    def total(self) -> float:
        """Bytes at the peak, margin and process included."""
        return self.at(self.peak)

    @property
    def tensors(self) -> float:
        """Bytes of tensors at the peak: what `torch.cuda.max_memory_allocated` reports."""
        return max(self.at(moment, counted=True) for moment in Moment)


@dataclass(frozen=True)
class Sizes:
    """The symbols of this module's formulas."""

    parameters: int
    trained: int
    ranks: int
    tokens: int
    bytes: int

    @property
    def shard(self) -> float:
        """Trained parameters whose states a rank holds."""
        return self.trained / self.ranks


def sizes(train: TrainConfig, seq_len: int, shape: ShapeConfig) -> Sizes:
    """The symbols for a config; with adapters n is rank x (inputs + outputs) of each adapted layer."""
    whole, lora = parameters(shape), train.lora
    adapters = sum(lora.rank * sum(sides) for name, sides in shape.matrices.items() if name in lora.targets)
    adapters *= shape.layers
    return Sizes(
        parameters=whole + adapters,
        trained=adapters if lora.rank else whole,
        ranks=train.nodes * train.ranks_per_node,
        tokens=train.micro_batch * seq_len,
        bytes=2 if train.dtype is Dtype.bfloat16 else 4,
    )


def rank(train: TrainConfig, seq_len: int, shape: ShapeConfig, *, gpu: bool) -> Memory:
    """Memory of one GPU of the training, or of one of its CPU processes."""
    size = sizes(train, seq_len, shape)
    parts = (_states, _gathered, _activations, _loss, _reduction)
    rows = [row for part in parts for row in part(train, size, shape, gpu) if any(row.bytes.values())]
    if not gpu:
        return Memory((*rows, _row("process", PROCESS_CPU, "Python and torch, assumed", assumed=True)))
    rows.append(_row("CUDA context, NCCL", CONTEXT, "assumed", assumed=True))
    lost = {moment: MARGIN * Memory(tuple(rows)).at(moment) for moment in Moment}
    return Memory((*rows, Row("fragments", lost, f"{MARGIN:.0%} of the rest, assumed", assumed=True)))


def _row(name: str, size: float, how: str, *moments: Moment, assumed: bool = False) -> Row:
    """A row of one size at some moments, at all where none is named."""
    return Row(name, dict.fromkeys(moments or ALWAYS, size), how, assumed)


def moment_bytes(optimizer: Optimizer) -> float:
    """Bytes a trained parameter of AdamW's two moments: fp32, or 8 bits and an fp32 scale for each block of 256."""
    return 8.0 if optimizer is Optimizer.adamw else 2 * (1 + 4 / 256)


def _states(train: TrainConfig, size: Sizes, shape: ShapeConfig, gpu: bool) -> Iterator[Row]:
    w, n = size.bytes, size.shard
    whole = train.zero_stage < 3
    if not (gpu and train.offload is Offload.parameters):
        yield _row("weights", w * size.parameters / (1 if whole else size.ranks), f"{w} N" + ("" if whole else " / R"))
    if gpu and train.offload is not Offload.none:
        return
    yield _row("gradients", 4.0 * n, "4 n / R, summed in fp32")
    # Under float32 too: DeepSpeed 0.19 means to share the two then, but compares a device to its name.
    yield _row("fp32 weights", 4 * n, "4 n / R")
    moments = moment_bytes(train.optimizer)
    yield _row("AdamW's moments", moments * n, f"{moments:.3g} n / R")
    if train.offload is Offload.none:
        yield _row("gradients of a sub-group", 4 * min(n, SUB_GROUP), "4 min(n / R, 1e9), laid flat", Moment.step)
    else:
        yield _row("gradients for the step", 4 * n, "4 n / R")


def _gathered(train: TrainConfig, size: Sizes, shape: ShapeConfig, gpu: bool) -> Iterator[Row]:
    """Whole weights that ZeRO-3 puts together; one rank alone has them anyway."""
    if train.zero_stage < 3 or size.ranks == 1:
        return
    w, head = size.bytes, shape.embedding
    there = {
        Moment.loss: w * max(min(size.parameters, LIVE), head),
        Moment.backward: w * min(size.parameters - head, LIVE),
        Moment.reduction: w * head,
    }
    yield Row("gathered weights", {m: float(b) for m, b in there.items()}, "w min(N, 1e9), at the end w V h")
    if size.parameters > LIVE:
        ahead = PREFETCH + max(i * o for i, o in shape.matrices.values())
        yield _row("weights on their way", w * ahead, "w (5e7 + largest matrix)", *PASS)


def layer_bytes(train: TrainConfig, shape: ShapeConfig, *, gpu: bool) -> float:
    """Bytes a token that one decoder layer saves for its backward pass.

    Attention: queries, keys, values and its output (2 q + 2 k values, and 4 bytes a head); `sdpa` puts its segments
    together in one more copy of the output, and repeats keys and values for each query head on CPUs. SwiGLU: gate, its
    SiLU, up and their product (Liger: three of them). Each RMSNorm: its fp32 input, the normalised one and its output
    (Liger: input and output).
    """
    w = 2 if train.dtype is Dtype.bfloat16 else 4
    q, k, h, f = shape.query, shape.keys, shape.width, shape.mlp_width
    sdpa = train.attention is Attention.sdpa
    keys = q if sdpa and not gpu else k
    attention = w * ((3 if sdpa else 2) * q + 2 * keys) + 4 * shape.heads
    mlp = w * f * (3 if train.fused_kernels else 4)
    norms = 3 * w * h if train.fused_kernels else 2 * h * (4 + 2 * w)
    return attention + mlp + norms


def _activations(train: TrainConfig, size: Sizes, shape: ShapeConfig, gpu: bool) -> Iterator[Row]:
    w, tokens, h, f = size.bytes, size.tokens, shape.width, shape.mlp_width
    layer = tokens * layer_bytes(train, shape, gpu=gpu)
    if not train.activation_checkpointing:
        yield _row("activations", layer * shape.layers, "T L x what a layer saves", *PASS)
    else:
        offloaded = gpu and train.offload_activations
        how = "w T h x 2, on their way to the host" if offloaded else "w T h L, each layer's input"
        yield _row("activation checkpoints", w * tokens * h * (2 if offloaded else shape.layers), how, *PASS)
        yield _row("activations of one layer", layer, "T x what a layer saves", Moment.backward)
    largest = 0 if train.lora.rank else max(i * o for i, o in shape.matrices.values())
    theirs = w * (tokens * (2 * f + 2 * h) + largest)
    yield _row("gradients of one layer", theirs, "w (T (2 f + 2 h) + largest matrix)", Moment.backward)


def _loss(train: TrainConfig, size: Sizes, shape: ShapeConfig, gpu: bool) -> Iterator[Row]:
    w, tokens, head = size.bytes, size.tokens, float(shape.embedding)
    yield _row("last hidden states", tokens * shape.width * (4 + 4 * w), "T h (4 + 4 w)", Moment.loss)
    chunk, a_logit = min(train.loss_chunk, tokens), 8 + 2 * w * (tokens > train.loss_chunk)
    how = f"loss_chunk V ({'8 + 2 w, with what is left of the one before' if a_logit > 8 else '8'})"
    yield _row("logits of a chunk", chunk * shape.vocab * a_logit, how, Moment.loss)
    if not train.lora.rank:
        there = {Moment.loss: (4 + w) * head, Moment.backward: w * head * shape.tied}
        yield Row("gradient of the output layer", there, "V h (4 + w); where it is tied, w V h to the end")


def _reduction(train: TrainConfig, size: Sizes, shape: ShapeConfig, gpu: bool) -> Iterator[Row]:
    """Buffers in which gradients are summed over ranks in fp32. Gloo sums in a copy of its own."""
    filled = min(BUCKET, size.trained)
    # On CPUs memory counts when it is first written to.
    yield _row("reduction bucket", 4.0 * (BUCKET if gpu else filled), "4 x 5e8" if gpu else "4 min(n, 5e8)")
    copies = 1 if gpu else 2
    last = 4.0 * copies * filled
    if shape.embedding > BUCKET and not train.lora.rank:  # it does not fit the bucket and is converted by itself
        last = (4 * copies + size.bytes) * float(shape.embedding)
    there = {Moment.backward: 4.0 * copies * BUCKET * (size.trained > BUCKET), Moment.reduction: last}
    yield Row("gradients being summed", there, "4 min(n, 5e8); the embedding's (4 + w) V h where V h > 5e8")


# --- the node ---------------------------------------------------------------------------------------------------------


def pinned(size: float) -> float:
    """Bytes that torch's caching host allocator takes for page-locked memory: the next power of two."""
    return float(1 << max(0, int(size) - 1).bit_length()) if size >= 1 else 0.0


@dataclass(frozen=True)
class HostRow:
    """Something that takes memory of a node; `passing` are those of which only the largest counts."""

    name: str
    bytes: float
    how: str
    passing: bool = False


def host(train: TrainConfig, seq_len: int, shape: ShapeConfig, *, gpu: bool) -> list[HostRow]:
    """Host memory of one node of the training; the page cache, which holds the packed data, is not counted."""
    size, per_node = sizes(train, seq_len, shape), train.ranks_per_node
    n = size.shard
    if not gpu:
        total = rank(train, seq_len, shape, gpu=False).total
        return [HostRow("ranks", per_node * total, f"{per_node} x {total / GIB:.1f} GiB")]
    rows = [HostRow("processes", per_node * PROCESS_GPU, f"{per_node} x {PROCESS_GPU / 1e9:.0f} GB, assumed")]
    group = min(n, SUB_GROUP)
    if train.offload is not Offload.none:
        states = per_node * (4 + moment_bytes(train.optimizer)) * n
        rows.append(HostRow("fp32 weights, moments", states, f"{4 + moment_bytes(train.optimizer):.3g} n / R a rank"))
        groups, left = divmod(n, SUB_GROUP)
        step = groups * pinned(4 * SUB_GROUP) + pinned(4 * left)
        rows.append(
            HostRow("gradients", per_node * (pinned(4 * n) + step), "8 n / R a rank, page-locked in powers of two")
        )
        # The moments of a checkpoint become those of the optimizer, which has none before.
        rows.append(HostRow("reading a checkpoint", per_node * 4 * n, "its fp32 weights, 4 n / R a rank", passing=True))
    else:
        rows.append(
            HostRow("writing a checkpoint", per_node * 4 * group, "its largest tensor of each rank", passing=True)
        )
        read = state_bytes(train) * n
        rows.append(
            HostRow("reading a checkpoint", per_node * read, "its states, on their way to the GPU", passing=True)
        )
    if train.offload is Offload.parameters:
        weights = pinned(size.bytes * size.parameters / size.ranks)
        rows.append(HostRow("weights", per_node * weights, "w N / R a rank, page-locked in powers of two"))
    if train.offload_activations and train.activation_checkpointing:
        kept = shape.layers * pinned(size.bytes * size.tokens * shape.width)
        rows.append(HostRow("activations", per_node * kept, "L w T h a rank, page-locked in powers of two"))
    return rows


def host_total(rows: list[HostRow]) -> float:
    """Bytes of a node at its peak."""
    return sum(r.bytes for r in rows if not r.passing) + max((r.bytes for r in rows if r.passing), default=0.0)


def state_bytes(train: TrainConfig) -> float:
    """Bytes a trained parameter that a checkpoint holds of its states: fp32 weight and moments."""
    return 4 + moment_bytes(train.optimizer)


def checkpoint(train: TrainConfig, shape: ShapeConfig) -> float:
    """Bytes of one checkpoint: the trained parameters' states; ZeRO 1 and 2 add the weights as they are used, once."""
    size = sizes(train, 1, shape)
    return state_bytes(train) * size.trained + (size.bytes * size.trained if train.zero_stage < 3 else 0)

"""The model under DeepSpeed.

In: the config and a Hugging Face folder. Out: an engine whose forward pass takes a packed micro-batch and gives the sum
of its losses. Under ZeRO-3 no rank ever holds the whole model: weights are partitioned while they load. What a rank
holds, in bytes a parameter over the number of ranks: 2 for the bfloat16 weights, 4 for the gradient, 12 for float32
weights and AdamW's two moments (Rajbhandari et al. 2020, arXiv:1910.02054, figure 1, with a float32 gradient).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cathpc.errors import UserError
from cathpc.models.config import Dtype
from cathpc.models.logits import refuse_changed
from cathpc.train import attention, flops, ranks
from cathpc.train.checkpoint import CheckpointWriter
from cathpc.train.config import Offload, Optimizer
from cathpc.train.loss import LossHead

if TYPE_CHECKING:
    from cathpc.train.config import TrainConfig


class PackedLM(torch.nn.Module):
    """A causal language model that takes packed rows and returns the sum of its losses over supervised tokens.

    Its parameters have the names that they have in the Hugging Face model, which is what `export` relies on.
    """

    def __init__(self, model: Any, config: TrainConfig) -> None:
        super().__init__()
        self.prefix = model.base_model_prefix
        self.add_module(self.prefix, model.base_model)
        self.lm_head = LossHead(model.get_output_embeddings().weight, config.loss_chunk)
        self.attention = config.attention

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor, position_ids: torch.Tensor, bounds: list[int]
    ) -> torch.Tensor:
        """Loss sum (float32 scalar) of a micro-batch as `cathpc.train.microbatch.tensors` makes it."""
        segments = attention.arguments(self.attention, bounds, input_ids.device)
        hidden = getattr(self, self.prefix)(
            input_ids=input_ids, position_ids=position_ids, attention_mask=None, use_cache=False, **segments
        ).last_hidden_state
        loss: torch.Tensor = self.lm_head(hidden, labels)
        return loss


def accumulation(config: TrainConfig, world_size: int) -> int:
    """Micro-batches a rank takes in a step; UserError where the global batch is not divisible."""
    taken = config.micro_batch * world_size
    if config.global_batch % taken:
        raise UserError(
            f"train.global_batch={config.global_batch} is not a multiple of train.micro_batch={config.micro_batch} x "
            f"{world_size} ranks = {taken}: choose a multiple of {taken}."
        )
    return config.global_batch // taken


def deepspeed_config(config: TrainConfig, world_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration. Gradients are summed in float32 over ranks and micro-batches, whatever the dtype."""
    zero: dict[str, Any] = {"stage": config.zero_stage, "memory_efficient_linear": False}
    if config.offload is not Offload.none:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if config.offload is Offload.parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": accumulation(config, world_size),
        "gradient_clipping": config.clip,
        "bf16": {"enabled": config.dtype is Dtype.bfloat16, "check_grad_overflow": True},
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW steps on the CPUs without a compiler
        "zero_allow_untested_optimizer": True,  # bitsandbytes'
        "steps_per_print": 1_000_000_000,
    }


def load_model(config: TrainConfig, folder: Path, settings: dict[str, Any]) -> tuple[PackedLM, flops.Work]:
    """The model of a Hugging Face folder, partitioned over the ranks while it loads where `settings` say ZeRO-3, and
    what a token costs in it."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    described = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    refuse_changed(folder, described)
    chosen = attention.implementation(config.attention, described)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(described)  # type: ignore[no-untyped-call]  # untyped there
    if getattr(empty.get_output_embeddings(), "bias", None) is not None:
        raise UserError(
            f"{folder}: the output layer has a bias, which the chunked loss does not add. Choose another one."
        )
    work = flops.work(empty)
    if config.fused_kernels:
        _fuse(described.model_type)
    partition: Any = HfDeepSpeedConfig(settings)  # type: ignore[no-untyped-call]  # untyped there
    # It must be alive during from_pretrained, or every rank loads all of the model.
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, config.dtype.value),
        attn_implementation=chosen,
        trust_remote_code=False,
        use_safetensors=True,
        local_files_only=True,
    )
    del partition
    if config.lora.rank:
        _adapt(model, config)
    if config.activation_checkpointing:
        # Reentrant: the other kind works under ZeRO-3 too, but also compares the shapes of all that is recomputed.
        away = config.offload_activations and torch.cuda.is_available()  # on CPUs they are there already
        model.activation_checkpointing_enable({"use_reentrant": True}, offload=away)
    return PackedLM(model, config), work


def _adapt(model: Any, config: TrainConfig) -> None:
    """Put adapters into the model's layers in place, so that names stay; only they are trained."""
    from peft import LoraConfig, inject_adapter_in_model

    lora = config.lora
    adapters = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # a float is fine
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
    )
    inject_adapter_in_model(adapters, model.base_model)
    dtype = getattr(torch, config.dtype.value)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name:
            parameter.data = parameter.data.to(dtype)


def _fuse(model_type: str) -> None:
    """Liger's kernels for this architecture; the loss stays ours, which does the same."""
    try:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN as KNOWN
    except ImportError:
        raise UserError(
            "train.fused_kernels needs liger-kernel, which is missing: install the extra 'cathpc[liger]', or take "
            "train.fused_kernels=false"
        ) from None
    if model_type not in KNOWN:
        raise UserError(
            f"train.fused_kernels: Liger knows {', '.join(sorted(KNOWN))}, and no {model_type}; switch it off"
        )
    KNOWN[model_type](cross_entropy=False, fused_linear_cross_entropy=False)


def start(config: TrainConfig, folder: Path) -> tuple[Any, flops.Work]:
    """A DeepSpeed engine around the model in `folder`, before its first step, and what a token costs in it."""
    import deepspeed

    settings = deepspeed_config(config, ranks.world_size())
    model, work = load_model(config, folder, settings)
    trained = [p for p in model.parameters() if p.requires_grad]
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=trained, config=settings, optimizer=_optimizer(config, trained)
    )
    engine.checkpoint_engine = CheckpointWriter()
    engine._copy_recovery_script = lambda folder: None  # a script beside each checkpoint, whose work `export` does
    engine.train()  # from_pretrained leaves dropout off
    return engine, work


def _optimizer(config: TrainConfig, parameters: list[Any]) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) over the partitions that DeepSpeed will put in place."""
    settings: dict[str, Any] = {
        "lr": config.lr,
        "betas": (config.beta1, config.beta2),
        "weight_decay": config.weight_decay,
    }
    if config.optimizer is Optimizer.adamw8bit:
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError:
            raise UserError(
                "train.optimizer=adamw8bit needs bitsandbytes, which is missing: install the extra 'cathpc[bnb]', or "
                "take train.optimizer=adamw"
            ) from None
        eight: torch.optim.Optimizer = AdamW8bit(parameters, **settings)
        return eight
    return torch.optim.AdamW(parameters, **settings, fused=True)


def set_lr(engine: Any, lr: float) -> None:
    """The learning rate of the steps from here on."""
    for group in engine.optimizer.param_groups:
        group["lr"] = lr


def guard(engine: Any, refuses: Callable[[float], bool]) -> None:
    """Ask `refuses(norm)` in every optimizer step, with the norm of the whole gradient before clipping; a step that is
    refused changes no weight and no optimizer state. All ranks see the same norm.

    A refused norm is handed on as DeepSpeed's mark of one that is not finite, after which it drops the gradients.
    """
    from deepspeed.runtime.utils import combine_grad_norm_groups

    optimizer = engine.optimizer
    if hasattr(optimizer, "_get_norm_groups"):  # ZeRO-3
        groups = optimizer._get_norm_groups

        def guarded_groups() -> Any:
            norms = groups()
            return [norms[0] * 0 - 1.0] * len(norms) if refuses(float(combine_grad_norm_groups(norms))) else norms

        optimizer._get_norm_groups = guarded_groups
    else:  # ZeRO-2
        # It would drop a gradient that is not finite without asking for its norm.
        optimizer.check_overflow = lambda **_: None
        whole = optimizer.scaled_global_norm

        def guarded_norm(*args: Any, **kwargs: Any) -> Any:
            norm = whole(*args, **kwargs)
            return norm * 0 - 1.0 if refuses(float(norm)) else norm

        optimizer.scaled_global_norm = guarded_norm

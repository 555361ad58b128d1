"""The model under DeepSpeed.

In: the config and a Hugging Face folder. Out: an engine whose forward pass takes a packed micro-batch and gives the sum
of its losses. Under ZeRO-3 no rank ever holds the whole model: weights are partitioned while they load.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cathpc.errors import UserError
from cathpc.models.config import Dtype
from cathpc.train import ranks
from cathpc.train.checkpoint import CheckpointWriter
from cathpc.train.config import Attention
from cathpc.train.loss import LossHead
from cathpc.train.schedule import lr_factor

if TYPE_CHECKING:
    from cathpc.train.config import TrainConfig


class PackedLM(torch.nn.Module):
    """A causal language model that takes packed rows and returns the sum of its losses over supervised tokens.

    Its parameters have the names that they have in the Hugging Face model, which is what `export` relies on.
    """

    def __init__(self, model: Any, loss_chunk: int) -> None:
        super().__init__()
        self.prefix = model.base_model_prefix
        self.add_module(self.prefix, model.base_model)
        self.lm_head = LossHead(model.get_output_embeddings().weight, loss_chunk)

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Loss sum (float32 scalar) of a micro-batch as `cathpc.train.batches.micro_batch` makes it."""
        hidden = getattr(self, self.prefix)(
            input_ids=input_ids, position_ids=position_ids, attention_mask=attention_mask, use_cache=False
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
    return {
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": accumulation(config, world_size),
        "gradient_clipping": config.clip,
        "bf16": {"enabled": config.dtype is Dtype.bfloat16},
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": {"stage": config.zero_stage, "memory_efficient_linear": False},
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": config.lr,
                "betas": [config.beta1, config.beta2],
                "weight_decay": config.weight_decay,
                "torch_adam": True,  # DeepSpeed's own would be compiled with the system's compiler first
            },
        },
        "steps_per_print": 1_000_000_000,
    }


def load_model(config: TrainConfig, folder: Path, settings: dict[str, Any]) -> PackedLM:
    """The model of a Hugging Face folder, partitioned over the ranks while it loads where `settings` say ZeRO-3."""
    from transformers import AutoModelForCausalLM
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    partition: Any = HfDeepSpeedConfig(settings)  # type: ignore[no-untyped-call]
    # It must be alive during from_pretrained, or every rank loads all of the model.
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, config.dtype.value),
        attn_implementation=_attention(config.attention),
        trust_remote_code=False,
        use_safetensors=True,
        local_files_only=True,
    )
    del partition
    for key in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        if getattr(model.config, key, None) is not None:
            raise UserError(
                f"{folder / 'config.json'}: '{key}' says that this architecture ({model.config.model_type}) changes "
                f"its logits after the output layer, which the chunked loss does not do. Choose a model without it."
            )
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        raise UserError(
            f"{folder}: the output layer has a bias, which the chunked loss does not add. Choose another one."
        )
    if config.activation_checkpointing:
        # Reentrant: the other kind works under ZeRO-3 too, but also compares the shapes of all that is recomputed.
        model.activation_checkpointing_enable({"use_reentrant": True})
    return PackedLM(model, config.loss_chunk)


def _attention(attention: Attention) -> str:
    if attention is Attention.flash:
        if importlib.util.find_spec("flash_attn") is None:
            raise UserError(
                "train.attention=flash needs the package flash-attn, which is missing: take train.attention=sdpa"
            )
        return "flash_attention_2"
    return "sdpa"


def start(config: TrainConfig, folder: Path, total_steps: int) -> Any:
    """A DeepSpeed engine around the model in `folder`, at step 0 of `total_steps`."""
    import deepspeed

    if config.zero_stage not in (1, 2, 3):
        raise UserError(f"train.zero_stage={config.zero_stage} is unknown: 1, 2 or 3 (3 partitions the weights too).")
    settings = deepspeed_config(config, ranks.world_size())
    model = load_model(config, folder, settings)
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=[p for p in model.parameters() if p.requires_grad],
        config=settings,
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: lr_factor(config, step, total_steps)
        ),
    )
    engine.checkpoint_engine = CheckpointWriter()
    engine._copy_recovery_script = lambda folder: None  # a script beside each checkpoint, whose work `export` does
    engine.train()  # from_pretrained leaves dropout off
    return engine

"""Cross entropy over supervised tokens, without ever holding the logits of a whole sequence.

In: hidden states [tokens, width] and labels [tokens]. Out: the sum (not the mean) of the negative log-likelihoods of
the tokens that have a label, float32. Memory grows with `chunk` x vocabulary: logits are computed chunk by chunk, and
the gradients with them, so that they are computed once (Hsu et al. 2024, Liger Kernel, arXiv:2410.10989, section 3.2);
the gradient of the weight, in float32, is held from the forward to the backward pass. The caller divides by the
supervised tokens of the whole global batch, so that the loss is a mean over tokens, whatever the split into ranks and
micro-batches.
"""

from __future__ import annotations

from typing import Any

import torch

from cathpc.data.pack import NO_LABEL


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of cross entropies of `hidden @ weight.T` against `labels` (no NO_LABEL among them)."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, chunk: int) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        learns_hidden, learns_weight = ctx.needs_input_grad[:2]
        hidden_grad = torch.empty_like(hidden) if learns_hidden else None
        # Summed in float32: with many chunks a bfloat16 sum would lose the small ones.
        weight_grad = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if learns_weight else None
        for at in range(0, len(labels), chunk):
            here = slice(at, at + chunk)
            logits = (hidden[here] @ weight.t()).float()
            targets = labels[here, None]
            normalizers = torch.logsumexp(logits, dim=-1, keepdim=True)
            total += (normalizers - logits.gather(1, targets)).sum()
            if hidden_grad is None and weight_grad is None:
                continue
            slope = logits.sub_(normalizers).exp_()  # softmax - one-hot
            slope.scatter_add_(1, targets, torch.full_like(normalizers, -1.0))
            slope = slope.to(hidden.dtype)
            if hidden_grad is not None:
                hidden_grad[here] = slope @ weight
            if weight_grad is not None:
                weight_grad += slope.t() @ hidden[here]
            del logits, slope  # else they live on beside the next chunk's
        ctx.dtype = weight.dtype
        ctx.save_for_backward(hidden_grad, weight_grad)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        hidden_grad, weight_grad = ctx.saved_tensors
        scale = gradients[0]
        return (
            None if hidden_grad is None else (hidden_grad * scale).to(hidden_grad.dtype),
            None if weight_grad is None else weight_grad.mul_(scale).to(ctx.dtype),
            None,
            None,
        )


def sum_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, chunk: int) -> torch.Tensor:
    """Sum over the labelled positions of -log softmax(hidden @ weight.T)[label], float32, differentiable.

    `hidden` [tokens, width] and `labels` [tokens] are aligned: row i predicts labels[i]. Without any label the sum is
    0 and still belongs to the graph, so that a rank with an empty micro-batch takes part in the backward pass.
    """
    positions = (labels != NO_LABEL).nonzero().squeeze(1)
    rows = hidden.index_select(0, positions)
    total: torch.Tensor = _ChunkedCrossEntropy.apply(rows, weight, labels[positions], chunk)  # type: ignore[no-untyped-call]  # torch's
    return total


class LossHead(torch.nn.Module):
    """The output layer of a language model that gives the loss instead of the logits.

    A module of its own, so that ZeRO-3 gathers its weight once a forward and once a backward pass, not once a chunk.
    """

    def __init__(self, weight: torch.nn.Parameter, chunk: int) -> None:
        super().__init__()
        self.weight = weight
        self.chunk = chunk

    def forward(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Loss sum of `hidden` [batch, seq_len, width] against `labels` [batch, seq_len]: position t predicts t + 1."""
        before, after = hidden[:, :-1], labels[:, 1:]
        return sum_cross_entropy(before.flatten(0, 1), self.weight, after.flatten(), self.chunk)

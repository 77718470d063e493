"""How an attention's outputs move the answers of a text: a gradient that does not vanish where the model is sure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from triattn.calibrate.errors import CalibrationError
from triattn.calibrate.replay import attention_replaced, placed


def answers(logits: Tensor) -> Tensor:
    """What logits [T, vocabulary] say, one number: Σ a / (|a| + 1), a the log-odds of a position's best token.

    Log-odds, since probabilities near one no longer move; each by its own size, since a sure answer can bear more.
    """
    best = logits.float().topk(1, dim=-1)
    others = logits.float().scatter(-1, best.indices, -torch.inf).logsumexp(-1)
    odds = best.values[:, 0] - others
    return (odds / (odds.detach().abs() + 1)).sum()


def gradients(model: Any, tokens: Sequence[int], prompt: int = 0) -> dict[int, Tensor]:
    """Of `answers` after the prompt, with respect to each layer's attention output: [heads, T, D] by layer.

    Raises CalibrationError where a GPU has no memory for the pass backwards.
    """
    outputs: dict[int, Tensor] = {}

    def attention(layer: int, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        # Not `attend`, whose probabilities of every layer would stay for the pass backwards.
        group = query.shape[0] // keys.shape[0]
        wide = [x.repeat_interleave(group, 0)[None] for x in (keys, values)]
        out = scaled_dot_product_attention(query[None], *wide, is_causal=True, scale=scaling)[0]
        outputs[layer] = out
        return out

    try:
        with torch.inference_mode(False), torch.enable_grad():
            ids, where = placed(model, tokens)
            start = model.get_input_embeddings()(ids).detach().requires_grad_(True)
            with attention_replaced(model, attention):
                logits = model(inputs_embeds=start, position_ids=where, use_cache=False).logits[0]
            found = torch.autograd.grad(answers(logits[max(prompt - 1, 0) :]), list(outputs.values()))
    except torch.OutOfMemoryError as error:
        what = "a pass backwards over them needs more memory than the GPU has; run with a smaller --window, or 32"
        raise CalibrationError("probe-units of 64, tokens", len(tokens), what) from error
    return dict(zip(outputs, found, strict=True))

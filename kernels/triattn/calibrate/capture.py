"""The real pre-rotary queries of a running transformers model.

Every transformers attention hands its queries, after any q_norm, to its module's `apply_rotary_pos_emb` and
what comes back to an attention function. Both are wrapped here: the first yields the queries, the second
proves them, since rotating a captured query by the frequencies of the configuration must give the query that
attention receives.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from triattn.calibrate.errors import CalibrationError

ROTATE = "apply_rotary_pos_emb"
EAGER = "eager_attention_forward"
OnQuery = Callable[[int, Tensor], None]


def attention_layers(model: nn.Module) -> dict[int, nn.Module]:
    """Attention modules of the decoder by layer index. Raises CalibrationError where there are none to
    capture."""
    found: dict[int, nn.Module] = {}
    for name, module in model.named_modules():
        index = getattr(module, "layer_idx", None)
        if not isinstance(index, int) or "Attention" not in type(module).__name__ or "vis" in name:
            continue
        home = sys.modules[type(module).__module__]
        if not callable(getattr(home, ROTATE, None)):
            what = (
                f"{type(module).__name__} does not rotate through {ROTATE}, so its queries cannot be captured"
            )
            raise CalibrationError("model", type(model).__name__, f"{what}; unsupported architecture")
        if index in found:
            raise CalibrationError(
                "model", type(model).__name__, f"has two attentions in layer {index}; unsupported"
            )
        found[index] = module
    if not found:
        raise CalibrationError(
            "model", type(model).__name__, "has no attention layers known here; unsupported"
        )
    return found


def _heads_first(query: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """[batch, heads, tokens, dim] of a query as given to `apply_rotary_pos_emb(q, k, cos, sin,
    unsqueeze_dim=1)`."""
    dim = kwargs.get("unsqueeze_dim", args[4] if len(args) > 4 else 1)
    return query.transpose(1, 2) if dim == 2 else query


@contextmanager
def _replaced(
    home: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    original = getattr(home, name)
    setattr(home, name, wrap(original))
    try:
        yield
    finally:
        setattr(home, name, original)


@contextmanager
def captured(
    model: Any, on_query: OnQuery, on_rotated: OnQuery | None = None
) -> Iterator[dict[int, nn.Module]]:
    """While active, every forward pass of `model` reports (layer, queries [batch, heads, tokens, dim]):
    before the rotation to `on_query` (of the rotated dimensions at least), as attention receives them to
    `on_rotated`."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    layers = attention_layers(model)
    current: list[int] = []

    def rotating(original: Callable[..., Any]) -> Callable[..., Any]:
        def rotate(*args: Any, **kwargs: Any) -> Any:
            if current:
                on_query(current[-1], _heads_first(kwargs["q"] if "q" in kwargs else args[0], args, kwargs))
            return original(*args, **kwargs)

        return rotate

    def attending(original: Callable[..., Any]) -> Callable[..., Any]:
        def attend(module: nn.Module, query: Tensor, *args: Any, **kwargs: Any) -> Any:
            if current and on_rotated is not None:
                on_rotated(current[-1], query)
            return original(module, query, *args, **kwargs)

        return attend

    def enter(index: int) -> Callable[..., None]:
        return lambda *_: current.append(index)

    def leave(*_: Any) -> None:
        current.pop()

    with ExitStack() as stack:
        for index, module in layers.items():
            stack.callback(module.register_forward_pre_hook(enter(index)).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        for home in {sys.modules[type(module).__module__] for module in layers.values()}:
            stack.enter_context(_replaced(home, ROTATE, rotating))
            if on_rotated is not None and hasattr(home, EAGER):
                stack.enter_context(_replaced(home, EAGER, attending))
        name = model.config._attn_implementation
        if on_rotated is not None and name in ALL_ATTENTION_FUNCTIONS:
            original = ALL_ATTENTION_FUNCTIONS[name]
            ALL_ATTENTION_FUNCTIONS.register(name, attending(original))
            stack.callback(ALL_ATTENTION_FUNCTIONS.register, name, original)
        yield layers


def pairs(query: Tensor, dim: int, pairing: str) -> tuple[Tensor, Tensor]:
    """Real and imaginary part, [..., dim / 2] each, of the first `dim` elements of queries [..., ≥ dim]."""
    if pairing == "interleaved":
        return query[..., 0:dim:2], query[..., 1:dim:2]
    return query[..., : dim // 2], query[..., dim // 2 : dim]


def prove(before: Tensor, after: Tensor, inv_freq: Tensor, scaling: float, dim: int, pairing: str) -> float:
    """Relative error ‖rotated before − after‖ / ‖after‖ over queries [batch, heads, tokens, dim] at positions
    0, 1, ….

    Rotation by angle position · inv_freq, times `scaling` (RoFormer, arXiv 2104.09864, eq. 34), in float32.
    """
    real, imag = (x.float().cpu() for x in pairs(before, dim, pairing))
    want_real, want_imag = (x.float().cpu() for x in pairs(after, dim, pairing))
    angle = torch.arange(real.shape[-2], dtype=torch.float32)[:, None] * inv_freq
    cos, sin = angle.cos() * scaling, angle.sin() * scaling
    error = torch.cat((real * cos - imag * sin - want_real, real * sin + imag * cos - want_imag))
    return float(error.norm() / torch.cat((want_real, want_imag)).norm())

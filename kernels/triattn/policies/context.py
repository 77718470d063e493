"""What a score term may look at: the model's shape on this rank, and one request at one round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from types import SimpleNamespace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

LONGEST_TABLE = 2**15
"""Positions of which turns are kept to be looked up."""


class QueryStatistics(Protocol):
    """Mean pre-rotary queries: float32 [layers, query heads, F], F = rotary dimensions / 2 (`triattn.statistics`).

    They may have more: `q_covariance` float32 [3, layers, query heads, F] (see `triattn.policies.expected`), and
    `learned_terms`, `learned_weights`, `learned_share` (see `Policy.with_statistics`), and `learned_probe` (see
    `triattn.policies.probe`).
    """

    @property
    def q_mean_real(self) -> Tensor: ...
    @property
    def q_mean_imag(self) -> Tensor: ...
    @property
    def q_abs_mean(self) -> Tensor: ...


@dataclass(frozen=True)
class ModelShape:
    """The part of a model that one rank holds.

    `layer_ids`, `kv_head_ids`, `query_head_ids` are global indices, in local order. Local query head q reads
    local KV head q // group. `inv_freq` is float32 [F] in radians a token, after scaling; `pairing` says which
    dimensions of a head form a complex number: "half" (f, f + F) or "interleaved" (2f, 2f + 1). A model without
    rotary embedding has `rotary_dim` 0.
    """

    layer_ids: tuple[int, ...]
    kv_head_ids: tuple[int, ...]
    query_head_ids: tuple[int, ...]
    head_dim: int
    rotary_dim: int
    inv_freq: Tensor
    attention_scaling: float = 1.0
    pairing: Literal["half", "interleaved"] = "half"

    def __post_init__(self) -> None:
        if not self.kv_head_ids or len(self.query_head_ids) % len(self.kv_head_ids):
            raise ValueError(f"{len(self.query_head_ids)} query heads on {len(self.kv_head_ids)} KV heads")
        if (
            self.rotary_dim % 2
            or self.rotary_dim > self.head_dim
            or len(self.inv_freq) != self.rotary_dim // 2
        ):
            raise ValueError(
                f"rotary_dim {self.rotary_dim}, head_dim {self.head_dim}, {len(self.inv_freq)} frequencies"
            )

    @property
    def layers(self) -> int:
        """Number of layers on this rank."""
        return len(self.layer_ids)

    @property
    def kv_heads(self) -> int:
        """Number of KV heads on this rank."""
        return len(self.kv_head_ids)

    @property
    def query_heads(self) -> int:
        """Number of query heads on this rank."""
        return len(self.query_head_ids)

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.query_heads // self.kv_heads

    @cached_property
    def folded(self) -> ModelShape:
        """All layers' heads as those of one layer: head h of layer l is number l * heads + h."""
        return replace(
            self,
            layer_ids=(0,),
            kv_head_ids=tuple(range(self.layers * self.kv_heads)),
            query_head_ids=tuple(range(self.layers * self.query_heads)),
        )

    def turns_back(self, positions: Tensor) -> Tensor:
        """e^(−i p ω), complex64 [..., F], at positions int64 [...]. Those of short contexts are looked up."""
        if positions.device.type != "cpu" or positions.numel() == 0:
            return self._turns_back(positions)
        least = int(positions.max()) + 1
        if least > LONGEST_TABLE:
            return self._turns_back(positions)
        table: Tensor | None = self.__dict__.get("_table")
        if table is None or len(table) < least:
            table = self._turns_back(torch.arange(min(LONGEST_TABLE, max(1024, 2 * least))))
            self.__dict__["_table"] = table
        return table[positions]

    def _turns_back(self, positions: Tensor) -> Tensor:
        # Angles in float64: at position 100,000 a float32 product is off by hundredths of a radian.
        angles = positions[..., None].double() * -self.inv_freq.double().to(positions.device)
        return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)

    def bands(self, keys: Tensor) -> Tensor:
        """Keys [..., D] as complex numbers [..., F] per frequency band."""
        rotary = keys[..., : self.rotary_dim].float()
        if self.pairing == "half":
            real, imag = rotary.chunk(2, dim=-1)
        else:
            real, imag = rotary[..., 0::2], rotary[..., 1::2]
        return torch.complex(real.contiguous(), imag.contiguous())


@dataclass(frozen=True)
class Memory:
    """What terms remember of entries from round to round, so that a round looks at new entries alone.

    `known` rows from 0 on have it; `stored(term, layer)` is float32 [kv_heads, N], anything from `known` on. A term
    leaves what it found in `found`, likewise for all N, and it moves along with the entries.
    """

    known: int
    stored: Callable[[Any, int], Tensor]
    found: dict[tuple[Any, int], Tensor] = field(default_factory=dict)

    def folded(self, layers: int) -> Memory:
        """The same with all layers' heads as those of one layer."""
        return Memory(
            self.known,
            lambda term, _: torch.cat([self.stored(term, layer) for layer in range(layers)]),
            _ByLayer(self.found, layers),
        )


class _ByLayer(dict[tuple[Any, int], Tensor]):
    """What is found of all layers as of one goes to `found` of each."""

    def __init__(self, found: dict[tuple[Any, int], Tensor], layers: int) -> None:
        super().__init__()
        self._found, self._layers = found, layers

    def __setitem__(self, key: tuple[Any, int], values: Tensor) -> None:
        for layer, part in enumerate(values.chunk(self._layers)):
            self._found[key[0], layer] = part


@dataclass(frozen=True)
class Round:
    """One request at one round, as this rank sees it.

    `keys(layer)` and `values(layer)` give float32 [kv_heads, N, head_dim] in row order, keys as cached (post-rotary,
    dequantised); `layer` is local. `positions` is int64 [layers, kv_heads, N], logical. `computed` is C, the
    position that the next token will have. `queries(layer)`, where the engine keeps them, gives those of the last n
    positions up to C, oldest first, for some n > 0: float32 [query_heads, n, head_dim], rotated, times the scale of
    attention.
    """

    model: ModelShape
    keys: Callable[[int], Tensor]
    values: Callable[[int], Tensor]
    positions: Tensor
    computed: int
    prompt_len: int
    pin_prompt: bool
    statistics: QueryStatistics | None = None
    memory: Memory | None = None
    queries: Callable[[int], Tensor] | None = None
    unfolded: Round | None = None
    """What this round is `folded` of."""

    @cached_property
    def scores(self) -> dict[tuple[object, int], Tensor]:
        """What terms made of a layer of this round, by term and layer: a policy and its reserve may share some."""
        return {}

    def score(self, term: Any, layer: int) -> Tensor:
        """A term's scores of a layer, made once a round."""
        made = self.scores.get((term, layer))
        if made is None:
            if self.unfolded is not None and getattr(term, "names_heads", False):
                made = torch.cat([term.score(self.unfolded, i) for i in range(self.unfolded.model.layers)])
            else:
                made = term.score(self, layer)
            self.scores[term, layer] = made
        return made

    @cached_property
    def folded(self) -> Round:
        """The same round with all layers' heads as those of one layer: terms score them in one go.

        It is for terms that do not ask which layer and head they score.
        """
        layers, stats = range(self.model.layers), self.statistics

        def joined(of: Callable[[int], Tensor]) -> Callable[[int], Tensor]:
            return lru_cache(maxsize=1)(lambda _: torch.cat([of(layer) for layer in layers]))

        return replace(
            self,
            model=self.model.folded,
            keys=joined(self.keys),
            values=joined(self.values),
            positions=self.positions.flatten(0, 1)[None],
            statistics=None if stats is None else _folded(stats),
            memory=None if self.memory is None else self.memory.folded(len(layers)),
            # A copy: rounds that know each other would stay in memory until the garbage collector comes.
            unfolded=replace(self),
        )


def _folded(statistics: QueryStatistics) -> QueryStatistics:
    """Statistics with all layers' query heads as those of one layer."""
    names = ("q_mean_real", "q_mean_imag", "q_abs_mean", "q_covariance")
    parts = {name: getattr(statistics, name, None) for name in names}
    folded = {name: x if x is None else x.flatten(-3, -2).unsqueeze(-3) for name, x in parts.items()}
    probe = getattr(statistics, "learned_probe", None)
    return SimpleNamespace(learned_probe=probe if probe is None else probe.flatten(0, 1)[None], **folded)

"""Rounds on a GPU: a constant number of launches for all requests, layers and heads; the host waits for nothing.

Launches of a round, in order (those that the policy does not need are left out):

    extras      terms with kernels of their own (knorm, vnorm, vrange, superseded, probe, expected, leverage,
                observed, accumulated, redundancy, gumbel)
    anchor      partial sums of unit keys (keydiff)
    prepare     the vectors that keys are multiplied by, at this round's time
    score       raw scores, K read once, and the moments that z-scores need (not where extras are all there is)
    moments     the moments of the extras, where each term is z-scored
    aggregate   one score per choice (choices shared by layers or heads; long rows; places given away)
    promote     the reserve, then quotas of segments: chosen scores become +inf
    row         select and compact (rows that fit in registers), or else select, then compact
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from triattn.ops import (
    aggregate,
    anchor,
    compact,
    copy_blocks,
    leverage,
    observed,
    prepare,
    promote,
    row,
    score,
    select,
)
from triattn.ops.extras import launch_extras, launch_moments
from triattn.ops.interface import FIELDS, LayerCache, RoundBatch, planes
from triattn.ops.layer_groups import KEY_TYPES, MOVE_TYPES, LayerGroup, group_layers, scales_of
from triattn.ops.program import compile_policy, split_matrix
from triattn.ops.queries import QueryRing
from triattn.ops.workspace import Workspace, round_up
from triattn.policies import ModelShape, Policy, PolicyError, QueryStatistics
from triattn.policies.accumulated import Accumulated
from triattn.policies.expected import Expected
from triattn.policies.leverage import Leverage
from triattn.policies.observed import Observed
from triattn.policies.redundancy import Redundancy

CHUNKS = 16
"""Most chunks that a row is cut into: whoever combines their sums reads them at once."""


@dataclass(frozen=True)
class Tuning:
    """Tiles of the kernels, in entries, and warps of their programs. None changes a result."""

    score_tile: int = 64
    score_tiles: int = 8
    score_warps: int = 4
    score_stages: int = 3
    anchor_tile: int = 64
    anchor_tiles: int = 8
    anchor_warps: int = 4
    superseded_new: int = 128
    superseded_warps: int = 4
    expected_warps: int = 8
    leverage_tile: int = 64
    leverage_warps: int = 8
    observed_warps: int = 8
    redundancy_tile: int = 64
    redundancy_warps: int = 4
    aggregate_tile: int = 128
    aggregate_rows: int = 8
    aggregate_warps: int = 4
    row_blocks: tuple[int, ...] = (2048, 4096, 8192)
    """Row lengths for which select and compact are one program; longer rows take separate kernels."""
    row_warps: int = 8
    row_registers: int | None = 80
    move_tile: int = 32
    long_block: int = 2048
    long_count: int = 256
    long_warps: int = 8


@dataclass(frozen=True)
class Buffers:
    """Scratch of a batch: see the kernels for the shapes. `stride` entries a row, a multiple of 256.

    Cuts are (chunks a row, tiles a chunk).
    """

    requests: int
    stride: int
    score_cut: tuple[int, int]
    anchor_cut: tuple[int, int]
    move_stride: int
    raw: Tensor
    final: Tensor
    partials: Tensor
    matrices: Tensor
    anchors: Tensor
    sums: Tensor
    moves: Tensor
    counts: Tensor
    given: Tensor
    reserved: Tensor
    logits: Tensor
    masses: Tensor
    inverses: Tensor
    observed: Tensor
    paid: Tensor
    alike: Tensor
    latest: Tensor


class TritonRounds:
    """Rounds of `policy` on strided caches. Arguments as for TorchRounds, on one device.

    `max_resident` is the longest row a round can meet, in tokens, where it is known. Scratch memory is
    `workspace_bytes`; a batch that needs more is done in parts, and one request that needs more enlarges it.

    `ring` holds the queries that the terms `observed` and `accumulated` look at.

    Raises:
        PolicyError: the policy, or a cache, has no kernel.
    """

    def __init__(
        self,
        caches: Sequence[LayerCache],
        positions: Tensor,
        shape: ModelShape,
        policy: Policy,
        statistics: QueryStatistics | None = None,
        *,
        memory: Tensor | None = None,
        max_resident: int | None = None,
        workspace_bytes: int = 256 << 20,
        tuning: Tuning | None = None,
        ring: QueryRing | None = None,
    ) -> None:
        if positions.dtype != torch.int32 or not positions.is_contiguous():
            raise ValueError(f"positions must be contiguous int32, not {positions.dtype}")
        policy = policy.with_statistics(statistics)
        self.caches, self.positions, self.shape, self.policy = caches, positions, shape, policy
        self.device = positions.device
        self.remembered = policy.remembered
        self.memory = planes(positions, self.planes) if memory is None else memory
        self.max_resident = max_resident
        self.ring = ring
        self.tuning = tuning or Tuning()
        self.program = p = compile_policy(policy, shape, statistics, self.device)
        self.groups = group_layers(caches, self.device)
        self.scales = scales_of(caches, "k", self.device)
        self.value_scales = scales_of(caches, "v", self.device)
        self.workspace = Workspace(workspace_bytes, self.device)
        self.rows = shape.layers * shape.kv_heads
        self.chunks = CHUNKS
        self.choices = {"per_layer_per_head": self.rows, "per_head": shape.kv_heads, "union": 1}[
            policy.selection
        ]
        bands, dim = shape.rotary_dim // 2, shape.head_dim
        paired = bands if bands else dim // 2
        self._bands = {
            # Without rotary embedding the halves of a head are read the same way: keydiff needs all dimensions.
            "BANDS": paired,
            "BANDS_P2": max(16, triton.next_power_of_2(paired)),
            "REST_P2": triton.next_power_of_2(dim - 2 * paired) if dim > 2 * paired else 0,
            "PAIR_STEP": 1 if shape.pairing == "half" else 2,
            "PAIR_GAP": paired if shape.pairing == "half" else 1,
        }
        size = positions.shape[3]
        self._head = {"HEAD_DIM": dim, "HEAD_DIM_P2": triton.next_power_of_2(dim), "BLOCK_SIZE": size}
        self._sets = {
            "CHANNELS": p.channels,
            "GROUP": p.group,
            "QUERY_SETS": p.query_sets,
            "KV_SETS": p.kv_sets,
            "STATS": p.stats,
            "GROUP_MEAN": policy.group_aggregation == "mean",
            "CHUNKS_P2": CHUNKS,
        }
        # A column for KeyDiff's anchor beside the query heads'; at least four, for the matrix units.
        self._columns = max(4, triton.next_power_of_2(p.group + p.keydiff))
        self._matrices = (p.trig or p.keydiff) + p.steps.shape[0] * p.trig_max
        self._split = {KEY_TYPES[g.dtype][1] > 0 for g in self.groups} == {True}
        if not self._split and len(self.groups) > 1:
            raise PolicyError("kv_cache_dtype", "float32 and others", "layers must have one cache dtype")
        self._expects = any(isinstance(e.term, Expected) for e in p.extras)
        self._leverage = any(isinstance(e.term, Leverage) for e in p.extras)
        self._redundancy = any(isinstance(e.term, Redundancy) for e in p.extras)
        # Softmax denominators of a row and chunk: of each observed query, and of each head or of the whole group.
        self._observed = max(
            (
                observed.window_columns(e.term.window) * observed.members_of(e.term, shape.group)
                for e in p.extras
                if isinstance(e.term, Observed | Accumulated)
            ),
            default=0,
        )
        if self._observed and (ring is None or ring.length < policy.observes):
            raise PolicyError(
                "terms", "observed", f"no ring that holds {policy.observes} queries of a request"
            )
        self._spreads = split_matrix(
            p.spread if p.norm else p.spread[:, :, :0],
            shape.kv_heads,
            self._bands["BANDS_P2"],
            self._columns,
            self._split,
        )

    @property
    def planes(self) -> int:
        """See Rounds."""
        return len(self.remembered)

    def remember_in(self, memory: Tensor) -> None:
        """See Rounds."""
        self.memory = memory

    def refresh_scales(self) -> None:
        """Read the scales of fp8 caches again, on the stream: only needed if they change after construction."""
        self.scales.copy_(scales_of(self.caches, "k", self.device))
        self.value_scales.copy_(scales_of(self.caches, "v", self.device))

    def warm_up(self) -> None:
        """Compile and load every kernel that a round can need, by rounds over an empty request."""
        fields = torch.zeros(1, len(FIELDS), dtype=torch.int32, device=self.device)
        tables = torch.zeros(1, 1, dtype=torch.int32, device=self.device)
        blocks = self.tuning.row_blocks
        for shorter, length in zip((0, *blocks), (*blocks, blocks[-1] + 1), strict=True):
            if self.max_resident is None or self.max_resident > shorter:
                self.run(RoundBatch(tables, fields, length, 1, fields[:, :2]))
        self.copy_blocks(torch.full((1, 2), -1, dtype=torch.int32, device=self.device))

    def run(self, batch: RoundBatch) -> None:
        """See Rounds."""
        if batch.size == 0 or batch.max_evicted <= 0:
            return
        buffers = self._divide(batch.max_resident, batch.max_evicted)
        for first in range(0, batch.size, buffers.requests):
            part = slice(first, first + buffers.requests)
            fields = batch.fields[part]
            recent = None if batch.recent is None else batch.recent[part].contiguous()
            self._run(fields, batch.block_tables, buffers, batch.max_resident, batch.max_evicted, recent)

    def copy_blocks(self, pairs: Tensor) -> None:
        """See Rounds."""
        for group in self.groups:
            copy_blocks.copy_blocks_kernel[(pairs.shape[0] * group.size * self.shape.kv_heads,)](
                pairs,
                group.key_bases,
                group.value_bases,
                group.layers,
                self.positions,
                self.memory,
                self.memory.stride(0),
                *self.positions.stride()[:2],
                *group.strides,
                **self._moved(group),
                HEADS=self.shape.kv_heads,
                TILE=min(32, triton.next_power_of_2(self.positions.shape[3])),
            )

    def _divide(self, max_resident: int, max_evicted: int) -> Buffers:
        """Scratch for rows of up to `max_resident` entries, `max_evicted` of which go."""
        t, p, rows, dim = self.tuning, self.program, self.rows, self.shape.head_dim
        stride = round_up(max_resident, 256)
        score_cut = _cut(stride, t.score_tile, t.score_tiles)
        anchor_cut = _cut(stride, t.anchor_tile, t.anchor_tiles)
        move_stride = round_up(max_evicted, 128)
        scored = not self._noise_only(max_resident)
        final = scored and self._final(max_resident)
        matrix = 2 * self._bands["BANDS_P2"] * 4 * self._columns
        requests, parts = self.workspace.divide(
            (rows * p.channels * stride * scored, torch.float32),
            (self.choices * stride * final, torch.float32),
            (rows * score_cut[0] * (2 * p.channels + 1) * p.stats, torch.float32),
            (rows * self._matrices * matrix, torch.bfloat16 if self._split else torch.float32),
            (rows * (dim + 1) * p.keydiff, torch.float32),
            (rows * anchor_cut[0] * dim * p.keydiff, torch.float32),
            (rows * 2 * move_stride, torch.int32),
            (self.choices, torch.int32),
            (rows * stride * (p.given and not self._direct(max_resident)), torch.float32),
            (self.choices * stride * bool(self.policy.reserve), torch.float32),
            (rows * self.shape.group * stride * self._expects, torch.float32),
            (rows * self.shape.group * 2 * anchor_cut[0] * self._expects, torch.float32),
            (rows * (leverage.SIZE + 1) * leverage.SIZE * self._leverage, torch.float32),
            (rows * anchor_cut[0] * 2 * self._observed, torch.float32),
            (rows * stride * (self._observed > 0), torch.float32),
            (rows * 3 * stride * self._redundancy, torch.float32),
            (rows * stride * self._redundancy, torch.int32),
        )
        return Buffers(requests, stride, score_cut, anchor_cut, move_stride, *parts)

    def _long(self, max_resident: int) -> bool:
        return max_resident > self.tuning.row_blocks[-1]

    def _direct(self, max_resident: int) -> bool:
        """Whether extras write raw scores. Long rows need their positions, which the score kernel fills in."""
        return self.program.direct and not self._long(max_resident)

    def _final(self, max_resident: int) -> bool:
        """Whether the scores of choices are written out before the rows are selected."""
        return self._long(max_resident) or self.choices < self.rows or self.program.promotes

    def _noise_only(self, max_resident: int) -> bool:
        return self.program.noise_only and not self._long(max_resident)

    def _run(
        self,
        fields: Tensor,
        tables: Tensor,
        b: Buffers,
        max_resident: int,
        max_evicted: int,
        recent: Tensor | None,
    ) -> None:
        long = self._long(max_resident)
        if not self._noise_only(max_resident):
            direct = self._direct(max_resident)
            if self.program.extras:
                launch_extras(self, fields, tables, b, recent, direct)
            if self.program.keydiff:
                for group in self.groups:
                    self._anchor(group, fields, tables, b)
            if self._matrices:
                self._prepare(fields, b)
            for group in self.groups if not direct else ():
                self._score(group, fields, tables, b, long)
            if self.program.extras and self.program.separate:
                launch_moments(self, fields, tables, b)
            if self._final(max_resident):
                self._aggregate(fields, tables, b, max_resident, b.final, 0)
            if self.policy.reserve:
                self._aggregate(fields, tables, b, max_resident, b.reserved, 1)
                self._promote(fields, tables, b, b.reserved, 0)
            if self.policy.segments:
                self._promote(fields, tables, b, b.final, self.policy.segments)
        if long:
            self._select(fields, b)
        for group in self.groups:
            if long:
                self._compact(group, fields, tables, b, max_evicted)
            else:
                self._row(group, fields, tables, b, max_resident)

    def _anchor(self, group: LayerGroup, fields: Tensor, tables: Tensor, b: Buffers) -> None:
        chunks, tiles = b.anchor_cut
        anchor.anchor_kernel[(fields.shape[0] * group.size * self.shape.kv_heads * chunks,)](
            b.sums,
            group.key_bases,
            group.layers,
            fields,
            tables,
            tables.stride(0),
            chunks,
            tiles,
            *group.key_strides,
            **self.read_of(group),
            TILE=self.tuning.anchor_tile,
            num_warps=self.tuning.anchor_warps,
        )

    def _prepare(self, fields: Tensor, b: Buffers) -> None:
        p = self.program
        prepare.prepare_kernel[(fields.shape[0] * self.rows,)](
            b.matrices,
            b.anchors,
            b.sums,
            fields,
            p.query,
            p.turns,
            p.steps,
            b.anchor_cut[0],
            p.steps.shape[0],
            ROWS=self.rows,
            GROUP=p.group,
            COLUMNS=self._columns,
            MATRICES=self._matrices,
            HEAD_DIM=self.shape.head_dim,
            HEAD_DIM_P2=self._head["HEAD_DIM_P2"],
            **{k: v for k, v in self._bands.items() if k != "REST_P2"},
            CHUNKS_P2=CHUNKS,
            SPLIT=self._split,
            TRIG=p.trig,
            TRIG_MAX=p.trig_max,
            KEYDIFF=p.keydiff,
            num_warps=4,
        )

    def _score(self, group: LayerGroup, fields: Tensor, tables: Tensor, b: Buffers, fill: bool) -> None:
        t, p = self.tuning, self.program
        chunks, tiles = b.score_cut
        score.score_kernel[(fields.shape[0] * group.size * self.shape.kv_heads * chunks,)](
            b.raw,
            b.partials,
            b.matrices,
            self._spreads,
            b.anchors,
            group.key_bases,
            self.scales,
            group.layers,
            fields,
            tables,
            self.positions,
            p.term_weights,
            p.ids,
            b.given,
            tables.stride(0),
            chunks,
            tiles,
            b.stride // 16,
            self.policy.sinks,
            self.policy.window,
            p.steps.shape[0],
            *self.positions.stride()[:2],
            *group.key_strides,
            **self.read_of(group),
            KEY_PARTS=KEY_TYPES[group.dtype][1],
            GROUP=p.group,
            COLUMNS=self._columns,
            MATRICES=self._matrices,
            TILE=t.score_tile,
            STAGES=t.score_stages,
            CHANNELS=p.channels,
            TRIG=p.trig,
            TRIG_MAX=p.trig_max,
            NORM=p.norm,
            KEYDIFF=p.keydiff,
            RANDOM=p.random,
            RECENCY=p.recency,
            GIVEN=p.given,
            EXTRAS=len(p.extras) if p.separate else 0,
            SEPARATE=p.separate,
            STATS=p.stats,
            FILL=fill,
            num_warps=t.score_warps,
        )

    def _aggregate(
        self, fields: Tensor, tables: Tensor, b: Buffers, max_resident: int, out: Tensor, which: int
    ) -> None:
        """Scores of choices into `out`, by the policy's own weights (`which` 0) or the reserve's (1)."""
        t, shared = self.tuning, self.rows // self.choices
        tiles = triton.cdiv(max_resident, t.aggregate_tile)
        aggregate.aggregate_kernel[(fields.shape[0] * self.choices * tiles,)](
            out,
            b.raw,
            b.partials,
            fields,
            tables,
            self.positions,
            self.program.set_weights[which],
            tables.stride(0),
            tiles,
            b.score_cut[0],
            b.stride // 16,
            self.policy.sinks,
            self.policy.window,
            *self.positions.stride()[:2],
            LAYERS=self.shape.layers,
            HEADS=self.shape.kv_heads,
            CHOICES=self.choices,
            SHARED=shared,
            **self._sets,
            LAYER_MEAN=self.policy.selection == "per_head" and self.policy.layer_aggregation == "mean",
            BLOCK_SIZE=self.positions.shape[3],
            TILE=t.aggregate_tile,
            LOAD=min(t.aggregate_rows, triton.next_power_of_2(shared)),
            num_warps=t.aggregate_warps,
        )

    def _promote(self, fields: Tensor, tables: Tensor, b: Buffers, by: Tensor, segments: int) -> None:
        promote.promote_kernel[(fields.shape[0] * self.choices,)](
            b.final,
            by,
            self.program.shares,
            fields,
            tables,
            self.positions,
            tables.stride(0),
            b.stride // 16,
            self.policy.sinks,
            self.policy.window,
            self.policy.segment_share,
            *self.positions.stride()[:2],
            HEADS=self.shape.kv_heads,
            CHOICES=self.choices,
            SEGMENTED=segments > 0,
            SEGMENTS=max(segments, 1),
            BLOCK_SIZE=self.positions.shape[3],
            BLOCK=self.tuning.long_block,
            COUNT=self.tuning.long_count,
            num_warps=self.tuning.long_warps,
        )

    def _select(self, fields: Tensor, b: Buffers) -> None:
        select.select_kernel[(fields.shape[0] * self.choices,)](
            b.moves,
            b.counts,
            b.final,
            fields,
            b.stride // 16,
            b.move_stride,
            CHOICES=self.choices,
            BLOCK=self.tuning.long_block,
            COUNT=self.tuning.long_count,
            num_warps=self.tuning.long_warps,
        )

    def _compact(
        self, group: LayerGroup, fields: Tensor, tables: Tensor, b: Buffers, max_evicted: int
    ) -> None:
        heads = self.shape.kv_heads
        tiles = triton.cdiv(max_evicted, self.tuning.move_tile)
        compact.compact_kernel[(fields.shape[0] * group.size * heads * tiles,)](
            b.moves,
            b.counts,
            group.key_bases,
            group.value_bases,
            group.layers,
            fields,
            tables,
            self.positions,
            self.memory,
            tables.stride(0),
            tiles,
            b.move_stride,
            self.memory.stride(0),
            *self.positions.stride()[:2],
            *group.strides,
            **self._moved(group),
            HEADS=heads,
            CHOICES=self.choices,
            TILE=self.tuning.move_tile,
            num_warps=self.tuning.row_warps,
        )

    def _row(self, group: LayerGroup, fields: Tensor, tables: Tensor, b: Buffers, max_resident: int) -> None:
        p, shared = self.program, self._final(max_resident)
        source = row.FINAL if shared else row.NOISE if p.noise_only else row.RAW
        row.row_kernel[(fields.shape[0] * group.size * self.shape.kv_heads,)](
            b.moves,
            b.final if shared else b.raw,
            b.partials,
            group.key_bases,
            group.value_bases,
            group.layers,
            fields,
            tables,
            self.positions,
            p.term_weights if p.noise_only else p.set_weights[0],
            p.ids,
            self.memory,
            tables.stride(0),
            b.score_cut[0],
            b.stride // 16,
            b.move_stride,
            self.memory.stride(0),
            self.policy.sinks,
            self.policy.window,
            *self.positions.stride()[:2],
            *group.strides,
            **self._moved(group),
            SOURCE=source,
            LAYERS=self.shape.layers,
            HEADS=self.shape.kv_heads,
            CHOICES=self.choices,
            **self._sets,
            RANDOM=p.random,
            RECENCY=p.recency,
            BLOCK=next(size for size in self.tuning.row_blocks if size >= max_resident),
            TILE=self.tuning.move_tile,
            num_warps=self.tuning.row_warps,
            maxnreg=self.tuning.row_registers,
        )

    def _moved(self, group: LayerGroup) -> dict[str, object]:
        return {
            "DTYPE": MOVE_TYPES[group.dtype.itemsize],
            "ALIGN": group.align,
            "GROUP_LAYERS": group.size,
            "PLANES": len(self.remembered),
            **self._head,
        }

    def read_of(self, group: LayerGroup) -> dict[str, object]:
        """What kernels that read a layer group's keys are compiled for."""
        return {
            "DTYPE": KEY_TYPES[group.dtype][0],
            "ALIGN": group.align,
            "GROUP_LAYERS": group.size,
            "LAYERS": self.shape.layers,
            "HEADS": self.shape.kv_heads,
            "HEAD_DIM": self.shape.head_dim,
            "BLOCK_SIZE": self._head["BLOCK_SIZE"],
            **self._bands,
        }

    def plain_of(self, group: LayerGroup) -> dict[str, object]:
        """The same for kernels that read whole keys or values, not frequency bands of them."""
        read = self.read_of(group)
        return {name: value for name, value in read.items() if name not in (*self._bands,)}


def _cut(length: int, tile: int, tiles: int) -> tuple[int, int]:
    """Chunks of a row of `length` entries, at most CHUNKS, and tiles a chunk: about `tiles`, spread evenly."""
    count = triton.cdiv(length, tile)
    chunks = min(triton.cdiv(count, tiles), CHUNKS)
    each = triton.cdiv(count, chunks)
    return triton.cdiv(count, each), each

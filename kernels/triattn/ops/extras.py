"""Launches of terms that have kernels of their own: each fills a channel of the raw scores, or adds to one sum."""

from __future__ import annotations

import math
from typing import Any

import triton
from torch import Tensor

from triattn.ops import (
    expected,
    gumbel,
    leverage,
    magnitude,
    moments,
    observed,
    redundancy,
    superseded,
)
from triattn.ops.program import Extra
from triattn.policies import PolicyError
from triattn.policies.accumulated import Accumulated
from triattn.policies.expected import Expected
from triattn.policies.gumbel import Gumbel
from triattn.policies.leverage import SKETCH, Leverage
from triattn.policies.magnitude import KeyNorm, ValueNorm, ValueRange
from triattn.policies.observed import Observed
from triattn.policies.probe import REPEATS, Probe
from triattn.policies.redundancy import Redundancy
from triattn.policies.superseded import Superseded
from triattn.statistics import UNITS


def launch_extras(
    rounds: Any, fields: Tensor, tables: Tensor, b: Any, recent: Tensor | None, direct: bool
) -> None:
    """Fill the channels of a `TritonRounds`' extras for a batch, or its buffer `given`, or with `direct` its one
    channel with their sum."""
    p = rounds.program
    out, channels = (b.given, 1) if p.given and not direct else (b.raw, p.channels)
    # The two read the same keys, and one looks at the other: one kernel does both.
    both = {type(e.term): e for e in p.extras if e.term == REPEATS or isinstance(e.term, Probe)}
    for number, extra in enumerate(p.extras):
        into = {
            "weight": extra.weight if p.given else 1.0,
            "channel": extra.channel,
            "CHANNELS": channels,
            "ADD": p.given and number > 0,
        }
        match extra.term:
            case KeyNorm():
                _magnitude(rounds, fields, tables, b, out, into, "k", magnitude.LENGTH)
            case ValueNorm():
                what = magnitude.LOG_LENGTH if extra.term.log else magnitude.LENGTH
                _magnitude(rounds, fields, tables, b, out, into, "v", what)
            case ValueRange():
                _magnitude(rounds, fields, tables, b, out, into, "v", magnitude.RANGE)
            case Superseded() | Probe():
                alike = extra.term == REPEATS or isinstance(extra.term, Probe)
                if not alike or extra is next(iter(both.values())):
                    of = both if alike else {Superseded: extra}
                    _superseded(rounds, fields, tables, b, out, into, of.get(Superseded), of.get(Probe))
            case Expected():
                _expected(rounds, fields, tables, b, out, into, extra.constants)
            case Leverage():
                _leverage(rounds, fields, tables, b, out, into, extra.constants)
            case Observed() | Accumulated():
                assert recent is not None, "engines that keep no queries refuse this term"
                observed.launch(rounds, fields, tables, b, out, into, extra.term, recent)
            case Redundancy():
                redundancy.launch(rounds, fields, tables, b, out, into)
            case Gumbel():
                _gumbel(rounds, fields, tables, b, out, into)
            case _:
                raise PolicyError("terms", type(extra.term).__name__, "this score term has no GPU kernel")


def launch_moments(rounds: Any, fields: Tensor, tables: Tensor, b: Any) -> None:
    """Moments of the extras' channels, beside those of the score kernel."""
    p, (chunks, tiles) = rounds.program, b.score_cut
    moments.moments_kernel[(fields.shape[0] * rounds.rows * chunks * len(p.extras),)](
        b.partials,
        b.raw,
        fields,
        tables,
        rounds.positions,
        tables.stride(0),
        chunks,
        tiles,
        b.stride // 16,
        rounds.policy.sinks,
        rounds.policy.window,
        *rounds.positions.stride()[:2],
        LAYERS=rounds.shape.layers,
        HEADS=rounds.shape.kv_heads,
        BLOCK_SIZE=rounds.positions.shape[3],
        CHANNELS=p.channels,
        EXTRAS=len(p.extras),
        TILE=rounds.tuning.score_tile,
        num_warps=1,
    )


def _magnitude(
    rounds: Any,
    fields: Tensor,
    tables: Tensor,
    b: Any,
    out: Tensor,
    into: dict[str, Any],
    which: str,
    what: Any,
) -> None:
    chunks, tiles = b.anchor_cut
    for group in rounds.groups:
        keys = which == "k"
        read = rounds.read_of(group)
        magnitude.magnitude_kernel[(fields.shape[0] * group.size * rounds.shape.kv_heads * chunks,)](
            out,
            group.key_bases if keys else group.value_bases,
            rounds.scales if keys else rounds.value_scales,
            group.layers,
            fields,
            tables,
            tables.stride(0),
            chunks,
            tiles,
            b.stride // 16,
            into["channel"],
            into["weight"],
            *(group.key_strides if keys else group.value_strides),
            **{
                k: read[k]
                for k in ("DTYPE", "ALIGN", "GROUP_LAYERS", "LAYERS", "HEADS", "HEAD_DIM", "BLOCK_SIZE")
            },
            HEAD_DIM_P2=triton.next_power_of_2(rounds.shape.head_dim),
            CHANNELS=into["CHANNELS"],
            WHAT=what,
            ADD=into["ADD"],
            TILE=rounds.tuning.anchor_tile,
            num_warps=rounds.tuning.anchor_warps,
        )


def _superseded(
    rounds: Any,
    fields: Tensor,
    tables: Tensor,
    b: Any,
    out: Tensor,
    into: dict[str, Any],
    extra: Extra | None,
    probe: Extra | None,
) -> None:
    """The term `superseded`, the term `probe`, or both; `into` is of the first of them."""
    given = rounds.program.given
    term = REPEATS if extra is None else extra.term
    keys, (chunks, tiles) = term.space == "key", b.anchor_cut
    for group in rounds.groups:
        superseded.superseded_kernel[(fields.shape[0] * group.size * rounds.shape.kv_heads * chunks,)](
            out,
            rounds.memory[rounds.remembered.index(term)],
            group.key_bases if keys else group.value_bases,
            group.layers,
            fields,
            tables,
            rounds.positions,
            rounds.program.turns,
            rounds.scales if probe is None else probe.constants,
            rounds.scales,
            tables.stride(0),
            chunks,
            tiles,
            b.stride // 16,
            0 if extra is None else extra.channel,
            extra.weight if extra is not None and given else 1.0,
            0 if probe is None else probe.channel,
            probe.weight if probe is not None and given else 1.0,
            *rounds.positions.stride()[:2],
            *(group.key_strides if keys else group.value_strides),
            **rounds.read_of(group),
            CHANNELS=into["CHANNELS"],
            ROTATED=keys and rounds.shape.rotary_dim > 0,
            SCORE=extra is not None,
            ADD=into["ADD"],
            PROBE=probe is not None,
            PROBE_ADD=into["ADD"] or (given and extra is not None),
            HIDDEN=UNITS[0] if probe is None else probe.constants.shape[-1],
            TILE=rounds.tuning.anchor_tile,
            NEW=rounds.tuning.superseded_new,
            num_warps=rounds.tuning.superseded_warps,
        )


def _expected(
    rounds: Any,
    fields: Tensor,
    tables: Tensor,
    b: Any,
    out: Tensor,
    into: dict[str, Any],
    queries: Tensor | None,
) -> None:
    shape, t, (chunks, tiles) = rounds.shape, rounds.tuning, b.anchor_cut
    columns = max(16, triton.next_power_of_2(shape.group))
    for group in rounds.groups:
        read = {k: v for k, v in rounds.read_of(group).items() if k not in ("HEAD_DIM", "REST_P2")}
        expected.expected_kernel[(fields.shape[0] * group.size * shape.kv_heads * chunks,)](
            b.logits,
            b.masses,
            queries,
            rounds.program.turns,
            group.key_bases,
            rounds.scales,
            group.layers,
            fields,
            tables,
            rounds.positions,
            tables.stride(0),
            chunks,
            tiles,
            b.stride // 16,
            *rounds.positions.stride()[:2],
            *group.key_strides,
            **read,
            GROUP=shape.group,
            COLUMNS=columns,
            TILE=t.anchor_tile,
            num_warps=t.expected_warps,
        )
    tiles = triton.cdiv(b.stride, t.aggregate_tile)
    expected.softmax_kernel[(fields.shape[0] * rounds.rows * tiles,)](
        out,
        b.logits,
        b.masses,
        fields,
        chunks,
        tiles,
        b.stride // 16,
        into["channel"],
        into["weight"],
        math.log(shape.group),
        ROWS=rounds.rows,
        GROUP=shape.group,
        COLUMNS=triton.next_power_of_2(shape.group),
        CHUNKS_P2=rounds.chunks,
        CHANNELS=into["CHANNELS"],
        ADD=into["ADD"],
        TILE=t.aggregate_tile,
        num_warps=t.aggregate_warps,
    )


def _leverage(
    rounds: Any,
    fields: Tensor,
    tables: Tensor,
    b: Any,
    out: Tensor,
    into: dict[str, Any],
    phi: Tensor | None,
) -> None:
    shape, t = rounds.shape, rounds.tuning
    tiles = b.stride // t.leverage_tile
    for group in rounds.groups:
        rows = fields.shape[0] * group.size * shape.kv_heads
        of = (group.key_bases, group.layers, fields, tables, rounds.positions, rounds.program.turns)
        strides = (*rounds.positions.stride()[:2], *group.key_strides)
        compiled = {
            **rounds.read_of(group),
            "ROTATED": shape.rotary_dim > 0,
            "SIZE": leverage.SIZE,
            "TILE": t.leverage_tile,
            "num_warps": t.leverage_warps,
        }
        leverage.inverse_kernel[(rows,)](
            b.inverses, phi, *of, tables.stride(0), *strides, USED=min(shape.head_dim, SKETCH), **compiled
        )
        leverage.leverage_kernel[(rows * tiles,)](
            out,
            b.inverses,
            phi,
            *of,
            tables.stride(0),
            tiles,
            b.stride // 16,
            into["channel"],
            into["weight"],
            *strides,
            CHANNELS=into["CHANNELS"],
            ADD=into["ADD"],
            **compiled,
        )


def _gumbel(rounds: Any, fields: Tensor, tables: Tensor, b: Any, out: Tensor, into: dict[str, Any]) -> None:
    tile = rounds.tuning.aggregate_tile
    tiles = triton.cdiv(b.stride, tile)
    gumbel.gumbel_kernel[(fields.shape[0] * rounds.rows * tiles,)](
        out,
        fields,
        tables,
        rounds.positions,
        rounds.program.ids,
        tables.stride(0),
        tiles,
        b.stride // 16,
        into["channel"],
        into["weight"],
        *rounds.positions.stride()[:2],
        LAYERS=rounds.shape.layers,
        HEADS=rounds.shape.kv_heads,
        BLOCK_SIZE=rounds.positions.shape[3],
        CHANNELS=into["CHANNELS"],
        ADD=into["ADD"],
        TILE=tile,
        num_warps=rounds.tuning.aggregate_warps,
    )

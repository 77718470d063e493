# Generated from packages/protocol by `pnpm --filter @triattn/protocol generate`. Do not edit.
# ruff: noqa
"""Messages and policy document of the triattn protocol."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, convert, field
from triattn.wire_base import Strict


class EngineInfo(Strict, kw_only=True):
    name: Literal["vllm", "sglang"]
    version: str
    runner: Annotated[str, Meta(description="v1 or v2 for vLLM.")]
    pid: Annotated[int, Meta(ge=0, le=9007199254740991)]
    world_size: Annotated[int, Meta(ge=1, le=9007199254740991)] = field(name="worldSize")


class Rotary(Strict, kw_only=True):
    type: Annotated[
        str, Meta(description="default, linear, yarn, llama3, … as in the model's configuration.")
    ]
    theta: float
    dim: Annotated[int, Meta(description="Rotated dimensions of a head.", ge=2, le=9007199254740991)]
    attention_scaling: Annotated[float, Meta(description="Factor on cos and sin.")] = field(
        name="attentionScaling"
    )
    pairing: Literal["half", "interleaved"]


class CacheInfo(Strict, kw_only=True):
    block_size: Annotated[int, Meta(ge=1, le=9007199254740991)] = field(name="blockSize")
    blocks: Annotated[int, Meta(description="Usable blocks of the pool.", ge=0, le=9007199254740991)]
    max_model_len: Annotated[int, Meta(ge=0, le=9007199254740991)] = field(name="maxModelLen")
    dtype: str


class Ack(Strict, kw_only=True, tag_field="type", tag="ack"):
    revision: Annotated[int, Meta(ge=0, le=9007199254740991)]
    step: Annotated[
        int,
        Meta(
            description="Scheduler step at which every rank began to use this revision.",
            ge=0,
            le=9223372036854775807,
        ),
    ]


class Refusal(Strict, kw_only=True, tag_field="type", tag="refusal"):
    """
    The engine cannot use this policy; the one before stays in force.
    """

    revision: Annotated[int, Meta(ge=0, le=9007199254740991)]
    field_: str = field(name="field")
    value: str
    remedy: str
    message: str


class RoundEvent(Strict, kw_only=True, tag_field="kind", tag="round"):
    step: Annotated[int, Meta(ge=0, le=9223372036854775807)]
    request: str
    revision: Annotated[int, Meta(ge=0, le=9007199254740991)]
    budget: Annotated[int, Meta(ge=0, le=9007199254740991)]
    computed: Annotated[int, Meta(description="Logical length at the round.", ge=0, le=9007199254740991)]
    evicted: Annotated[int, Meta(description="Tokens evicted by this round.", ge=0, le=9007199254740991)]
    evicted_total: Annotated[int, Meta(description="E after this round.", ge=0, le=9007199254740991)] = field(
        name="evictedTotal"
    )
    blocks_reclaimed: Annotated[int, Meta(ge=0, le=9007199254740991)] = field(name="blocksReclaimed")
    blocks_copied: Annotated[
        int, Meta(description="Shared blocks copied before they were compacted.", ge=0, le=9007199254740991)
    ] = field(name="blocksCopied")


class SkipEvent(Strict, kw_only=True, tag_field="kind", tag="skip"):
    step: Annotated[int, Meta(ge=0, le=9223372036854775807)]
    request: str
    reason: str


class FinishEvent(Strict, kw_only=True, tag_field="kind", tag="finish"):
    """
    A request gave its blocks back.
    """

    step: Annotated[int, Meta(ge=0, le=9223372036854775807)]
    request: str
    reason: Literal["finished", "aborted", "preempted"]
    computed: Annotated[int, Meta(ge=0, le=9007199254740991)]
    evicted_total: Annotated[int, Meta(ge=0, le=9007199254740991)] = field(name="evictedTotal")
    rounds: Annotated[int, Meta(ge=0, le=9007199254740991)]


class Counters(Strict, kw_only=True):
    """
    Totals since the engine started, and the current state.
    """

    step: Annotated[int, Meta(ge=0, le=9223372036854775807)]
    running: Annotated[int, Meta(ge=0, le=9007199254740991)]
    waiting: Annotated[int, Meta(ge=0, le=9007199254740991)]
    resident_tokens: Annotated[
        int,
        Meta(
            description="Tokens whose KV is in the cache now, over all running requests.",
            ge=0,
            le=9007199254740991,
        ),
    ] = field(name="residentTokens")
    peak_resident_tokens: Annotated[int, Meta(ge=0, le=9007199254740991)] = field(name="peakResidentTokens")
    used_blocks: Annotated[int, Meta(ge=0, le=9007199254740991)] = field(name="usedBlocks")
    peak_used_blocks: Annotated[int, Meta(ge=0, le=9007199254740991)] = field(name="peakUsedBlocks")
    tokens_generated: Annotated[int, Meta(ge=0, le=9223372036854775807)] = field(name="tokensGenerated")
    requests_finished: Annotated[int, Meta(ge=0, le=9223372036854775807)] = field(name="requestsFinished")
    preemptions: Annotated[int, Meta(ge=0, le=9223372036854775807)]
    rounds: Annotated[int, Meta(ge=0, le=9223372036854775807)]
    tokens_evicted: Annotated[int, Meta(ge=0, le=9223372036854775807)] = field(name="tokensEvicted")
    blocks_reclaimed: Annotated[int, Meta(ge=0, le=9223372036854775807)] = field(name="blocksReclaimed")
    rounds_skipped: Annotated[
        int,
        Meta(
            description="Rounds put off for lack of a free block to copy a shared one to.",
            ge=0,
            le=9223372036854775807,
        ),
    ] = field(name="roundsSkipped")
    round_batches: Annotated[
        int, Meta(description="Steps in which at least one round ran.", ge=0, le=9223372036854775807)
    ] = field(name="roundBatches")
    plan_seconds: Annotated[float, Meta(description="Scheduler time spent on planning.", ge=0.0)] = field(
        name="planSeconds"
    )
    round_seconds: Annotated[
        float,
        Meta(
            description="Worker time of the batches of rounds: on a CPU measured, on a GPU by its own clock, from samples.",
            ge=0.0,
        ),
    ] = field(name="roundSeconds")
    stall_seconds: Annotated[
        float,
        Meta(
            description="Time that running requests waited for rounds: planning and rounds together.", ge=0.0
        ),
    ] = field(name="stallSeconds")
    events_dropped: Annotated[int, Meta(ge=0, le=9223372036854775807)] = field(name="eventsDropped")


class RequestState(Strict, kw_only=True):
    request: Annotated[str, Meta(description="The engine's id of it, as in events.")]
    state: Literal["running", "waiting"]
    priority: Annotated[int, Meta(ge=-9007199254740991, le=9007199254740991)]
    tags: Annotated[list[str], Meta(max_length=64)]
    rule: Annotated[str, Meta(description="Name of the rule that matched it.")] | None
    prompt: Annotated[int, Meta(description="Prompt tokens.", ge=0, le=9007199254740991)]
    computed: Annotated[int, Meta(description="Logical length.", ge=0, le=9007199254740991)]
    resident: Annotated[int, Meta(description="Tokens whose KV is in the cache.", ge=0, le=9007199254740991)]
    budget: Annotated[
        int,
        Meta(description="Tokens that a round leaves it; 0: never compressed.", ge=0, le=9007199254740991),
    ]
    evicted_total: Annotated[int, Meta(ge=0, le=9007199254740991)] = field(name="evictedTotal")
    rounds: Annotated[int, Meta(ge=0, le=9007199254740991)]


class KeptReport(Strict, kw_only=True, tag_field="type", tag="kept"):
    """
    What a round of the watched request kept.
    """

    request: str
    step: Annotated[int, Meta(ge=0, le=9223372036854775807)]
    computed: Annotated[
        int, Meta(description="Logical length at the round that this shows.", ge=1, le=9007199254740991)
    ]
    resident: Annotated[
        int, Meta(description="Tokens kept by each layer and KV head.", ge=0, le=9007199254740991)
    ]
    layers: Annotated[
        int,
        Meta(description="Those of the last stage, with pipeline parallelism.", ge=1, le=9007199254740991),
    ]
    kv_heads: Annotated[
        int, Meta(description="All of the model, with tensor parallelism too.", ge=1, le=9007199254740991)
    ] = field(name="kvHeads")
    bins: Annotated[
        int, Meta(description="Equal slices of the logical positions [0, computed).", ge=1, le=1024)
    ]
    counts: Annotated[
        bytes,
        Meta(
            description="uint16 little-endian [layers, kvHeads, bins]: tokens kept in each slice, at most 65535."
        ),
    ]


class Heartbeat(Strict, kw_only=True, tag_field="type", tag="heartbeat"):
    """
    Sent while the engine is idle, so that a dead peer is told from a quiet one.
    """

    revision: Annotated[
        int, Meta(description="Policy revision in force; 0 before the first.", ge=0, le=9007199254740991)
    ]
    next_event: Annotated[
        int, Meta(description="Number that the next event will carry.", ge=0, le=9223372036854775807)
    ] = field(name="nextEvent")


class Bye(Strict, kw_only=True, tag_field="type", tag="bye"):
    reason: str


class TrigTerm(Strict, kw_only=True, tag_field="kind", tag="trig"):
    """
    Expected future attention from pre-rotary query centres (arXiv 2604.04921).
    """

    weight: Annotated[
        float, Meta(description="Factor of this term in the sum.", ge=-1000000.0, le=1000000.0)
    ] = 1
    offsets: Annotated[Literal["mean", "max"], Meta(description="Aggregation over the future offsets.")] = (
        "mean"
    )
    max_offset: Annotated[
        int, Meta(description="Offsets are the powers of two from 1 up to this, in tokens.", ge=1, le=1048576)
    ] = field(name="maxOffset", default=65536)


class NormTerm(Strict, kw_only=True, tag_field="kind", tag="norm"):
    """
    Key magnitude weighted by the spread of the queries (arXiv 2604.04921).
    """

    weight: Annotated[
        float, Meta(description="Factor of this term in the sum.", ge=-1000000.0, le=1000000.0)
    ] = 1
    residual: Annotated[
        bool,
        Meta(
            description="True: (E|q| - |E q|) per band, as in the paper. False: E|q|, the ablation without that weighting."
        ),
    ] = True


class KeyDiffTerm(Strict, kw_only=True, tag_field="kind", tag="keydiff"):
    """
    Negative cosine of a key to the mean of the unit keys (arXiv 2504.15364).
    """

    weight: Annotated[
        float, Meta(description="Factor of this term in the sum.", ge=-1000000.0, le=1000000.0)
    ] = 1


class RandomTerm(Strict, kw_only=True, tag_field="kind", tag="random"):
    """
    Uniform noise in [0, 1), drawn anew each round from the policy's seed.
    """

    weight: Annotated[
        float, Meta(description="Factor of this term in the sum.", ge=-1000000.0, le=1000000.0)
    ] = 1


class RecencyTerm(Strict, kw_only=True, tag_field="kind", tag="recency"):
    """
    The token's logical position.
    """

    weight: Annotated[
        float, Meta(description="Factor of this term in the sum.", ge=-1000000.0, le=1000000.0)
    ] = 1


class KeyNormTerm(Strict, kw_only=True, tag_field="kind", tag="knorm"):
    """
    Length of the key. A negative weight keeps short keys (arXiv 2406.11430); which sign helps depends on the model.
    """

    weight: Annotated[
        float, Meta(description="Factor of this term in the sum.", ge=-1000000.0, le=1000000.0)
    ] = 1


class ValueNormTerm(Strict, kw_only=True, tag_field="kind", tag="vnorm"):
    """
    Length of the value.
    """

    weight: Annotated[
        float, Meta(description="Factor of this term in the sum.", ge=-1000000.0, le=1000000.0)
    ] = 1
    log: Annotated[bool, Meta(description="True: the logarithm of the length, a factor on a softmax.")] = (
        False
    )


class ValueRangeTerm(Strict, kw_only=True, tag_field="kind", tag="vrange"):
    """
    Largest less smallest element of the value: few values are abnormally large (arXiv 2606.03928).
    """

    weight: Annotated[
        float, Meta(description="Factor of this term in the sum.", ge=-1000000.0, le=1000000.0)
    ] = 1


class SupersededTerm(Strict, kw_only=True, tag_field="kind", tag="superseded"):
    """
    Negative of the largest cosine to a later resident token: what a later token repeats is replaceable, the newest of its kind and what is unique stay.
    """

    weight: Annotated[
        float, Meta(description="Factor of this term in the sum.", ge=-1000000.0, le=1000000.0)
    ] = 1
    space: Annotated[
        Literal["key", "value"],
        Meta(description="What is compared: keys with their rotation undone, or values."),
    ] = "key"


class ExpectedTerm(Strict, kw_only=True, tag_field="kind", tag="expected"):
    """
    Logarithm of the attention that normally distributed queries are expected to pay, averaged over the GQA group (arXiv 2510.00636); covariances within a frequency band count, those between bands do not. Needs statistics with covariances. The paper's factor |v| is the term vnorm with log, of the same weight.
    """

    weight: Annotated[
        float, Meta(description="Factor of this term in the sum.", ge=-1000000.0, le=1000000.0)
    ] = 1
    horizon: Annotated[
        int,
        Meta(
            description="Next positions over which the rotation of the queries is averaged, in tokens.",
            ge=1,
            le=65536,
        ),
    ] = 512


class LeverageTerm(Strict, kw_only=True, tag_field="kind", tag="leverage"):
    """
    Statistical leverage of the key, its rotation undone and the mean taken off, among all resident keys, after a Gaussian sketch of 48 dimensions from the policy's seed (arXiv 2507.08143): what no others stand in for is kept.
    """

    weight: Annotated[
        float, Meta(description="Factor of this term in the sum.", ge=-1000000.0, le=1000000.0)
    ] = 1


class ProbeTerm(Strict, kw_only=True, tag_field="kind", tag="probe"):
    """
    A small network for each layer and KV head, of the key with its rotation undone, the token's age and its largest cosine to a later key: what calibration found to foretell how much later queries miss a token (as KVzap does from hidden states, arXiv 2601.07891). Needs statistics with a probe.
    """

    weight: Annotated[
        float, Meta(description="Factor of this term in the sum.", ge=-1000000.0, le=1000000.0)
    ] = 1


class ObservedTerm(Strict, kw_only=True, tag_field="kind", tag="observed"):
    """
    Attention that the most recent queries pay (arXiv 2404.14469). The engine keeps those queries: memory for every request that may run, set aside at start-up.
    """

    weight: Annotated[
        float, Meta(description="Factor of this term in the sum.", ge=-1000000.0, le=1000000.0)
    ] = 1
    window: Annotated[
        int,
        Meta(
            description="Queries that are observed: those of the most recent tokens, or as many as there are.",
            ge=1,
            le=64,
        ),
    ] = 32
    reach: Annotated[
        int,
        Meta(
            description="A token gets the largest attention of those at most so many positions away; 3: of seven.",
            ge=0,
            le=32,
        ),
    ] = 3
    group: Annotated[
        Literal["mean", "max"],
        Meta(
            description="mean: of each query head's softmax over all resident tokens (SnapKV). max: softmax of the group's largest logits, over the tokens before the window (R-KV)."
        ),
    ] = "mean"


class AccumulatedTerm(Strict, kw_only=True, tag_field="kind", tag="accumulated"):
    """
    All attention that queries have paid, added up from round to round (arXiv 2306.14048). The engine keeps the queries since the round before: memory for every request that may run, set aside at start-up.
    """

    weight: Annotated[
        float, Meta(description="Factor of this term in the sum.", ge=-1000000.0, le=1000000.0)
    ] = 1
    window: Annotated[
        int,
        Meta(
            description="Most queries that a round adds, the most recent ones: at least the interval, or some would be left out. Budget + interval: at the first round, too, no query of a generated token is.",
            ge=1,
            le=1024,
        ),
    ] = 128


class RedundancyTerm(Strict, kw_only=True, tag_field="kind", tag="redundancy"):
    """
    Negative softmax of a key's mean cosine to all others; of tokens alike by more than 0.5 the latest is spared (arXiv 2505.24133).
    """

    weight: Annotated[
        float, Meta(description="Factor of this term in the sum.", ge=-1000000.0, le=1000000.0)
    ] = 1


class GumbelTerm(Strict, kw_only=True, tag_field="kind", tag="gumbel"):
    """
    Gumbel noise from the policy's seed: added to other terms, tokens are drawn without replacement with probabilities softmax(the other terms / weight).
    """

    weight: Annotated[
        float, Meta(description="Factor of this term in the sum.", ge=-1000000.0, le=1000000.0)
    ] = 1


class Segments(Strict, kw_only=True):
    """
    Quotas by age: each segment of the sequence keeps its best tokens before the rest compete.
    """

    count: Annotated[
        int,
        Meta(description="Segments of equal length that the evictable positions are cut into.", ge=1, le=64),
    ]
    share: Annotated[
        float,
        Meta(
            description="Part of the free places that is divided evenly among the segments; the rest goes to the best.",
            ge=0.0,
            le=1.0,
        ),
    ] = 1


class Pin(Strict, kw_only=True):
    """
    Tokens that no round evicts.
    """

    prompt: Annotated[
        bool,
        Meta(
            description="Never evict prompt tokens. A prompt too long for the budget competes like any other token."
        ),
    ] = True
    sinks: Annotated[
        int, Meta(description="First tokens of a request that are never evicted.", ge=0, le=65536)
    ] = 4
    window: Annotated[
        int, Meta(description="Most recent tokens that a round never evicts.", ge=0, le=1048576)
    ] = 128


MinPriority: TypeAlias = Annotated[
    int,
    Meta(
        description="Matches requests of at least this priority number.",
        ge=-9007199254740991,
        le=9007199254740991,
    ),
]


MaxPriority: TypeAlias = Annotated[
    int,
    Meta(
        description="Matches requests of at most this priority number.",
        ge=-9007199254740991,
        le=9007199254740991,
    ),
]


Tag: TypeAlias = Annotated[str, Meta(max_length=64, min_length=1)]


Budget: TypeAlias = Annotated[
    int, Meta(description="KV budget of the requests it matches.", ge=0, le=16777216)
]


Policy: TypeAlias = Annotated[
    int,
    Meta(
        description="Their policy: an index into SetPolicy's `policies`; null: the policy itself.", ge=0, le=7
    ),
]


class EngineRule(Strict, kw_only=True):
    """
    The first rule that matches a request decides; its own budget wins.
    """

    name: Annotated[str, Meta(pattern="^[a-z0-9][a-z0-9._-]{0,63}\\Z")]
    min_priority: (
        Annotated[MinPriority, Meta(description="Matches requests of at least this priority number.")] | None
    ) = field(name="minPriority")
    max_priority: (
        Annotated[MaxPriority, Meta(description="Matches requests of at most this priority number.")] | None
    ) = field(name="maxPriority")
    tags: Annotated[
        list[Tag], Meta(description="Matches requests that carry all of these (triattn_tags).", max_length=16)
    ]
    budget: Annotated[Budget, Meta(description="KV budget of the requests it matches.")] | None
    policy: (
        Annotated[
            Policy,
            Meta(description="Their policy: an index into SetPolicy's `policies`; null: the policy itself."),
        ]
        | None
    )


class Watch(Strict, kw_only=True, tag_field="type", tag="watch"):
    """
    Asks for reports that cost the engine something, for a while.
    """

    seconds: Annotated[
        int, Meta(description="How long to report, unless asked again; 0 ends it.", ge=0, le=60)
    ]
    requests: Annotated[bool, Meta(description="Report the state of requests twice a second.")]
    kept: (
        Annotated[
            str,
            Meta(
                description="Request whose rounds KeptReport is to show: its id in events, or where unlike, the client's."
            ),
        ]
        | None
    )


class Rejected(Strict, kw_only=True, tag_field="type", tag="rejected"):
    """
    The control plane will not serve this engine.
    """

    message: str


class Identify(Strict, kw_only=True, tag_field="type", tag="identify"):
    """
    Asks the engine to say hello (again).
    """


class ModelGeometry(Strict, kw_only=True):
    """
    Numbers of the whole model, not of one rank.
    """

    name: str
    fingerprint: Annotated[str, Meta(description="Hash of the geometry and rotary parameters.")]
    weights: Annotated[str, Meta(description="Hash over the weights, where they could be read.")] | None
    layers: Annotated[int, Meta(ge=1, le=9007199254740991)]
    query_heads: Annotated[int, Meta(ge=1, le=9007199254740991)] = field(name="queryHeads")
    kv_heads: Annotated[int, Meta(ge=1, le=9007199254740991)] = field(name="kvHeads")
    head_dim: Annotated[int, Meta(ge=1, le=9007199254740991)] = field(name="headDim")
    rotary: Rotary | None


EngineEvent: TypeAlias = RoundEvent | SkipEvent | FinishEvent


class CountersReport(Strict, kw_only=True, tag_field="type", tag="counters"):
    counters: Counters


class RequestsReport(Strict, kw_only=True, tag_field="type", tag="requests"):
    """
    Sent while a control plane watches, see Watch.
    """

    step: Annotated[int, Meta(ge=0, le=9223372036854775807)]
    requests: Annotated[list[RequestState], Meta(max_length=4096)]
    omitted: Annotated[
        int, Meta(description="Requests left out because there were too many.", ge=0, le=9007199254740991)
    ]


ScoreTerm: TypeAlias = (
    TrigTerm
    | NormTerm
    | KeyDiffTerm
    | RandomTerm
    | RecencyTerm
    | KeyNormTerm
    | ValueNormTerm
    | ValueRangeTerm
    | SupersededTerm
    | ExpectedTerm
    | LeverageTerm
    | ProbeTerm
    | ObservedTerm
    | AccumulatedTerm
    | RedundancyTerm
    | GumbelTerm
)


class Reserve(Strict, kw_only=True):
    """
    A part of the budget that other terms choose, before the policy's own choose the rest. Needs normalize each.
    """

    share: Annotated[
        float,
        Meta(
            description="Part of the places that pinned tokens leave free, rounded down to whole tokens.",
            ge=0.0,
            le=1.0,
        ),
    ]
    terms: Annotated[list[ScoreTerm], Meta(max_length=16, min_length=1)]


class Hello(Strict, kw_only=True, tag_field="type", tag="hello"):
    protocol: Literal[1]
    engine_id: Annotated[
        str, Meta(description="Constant for the life of an engine process.", max_length=128, min_length=1)
    ] = field(name="engineId")
    engine: EngineInfo
    model: ModelGeometry
    cache: CacheInfo
    capabilities: Annotated[list[str], Meta(max_length=256)]
    revision: Annotated[
        int, Meta(description="Policy revision in force; 0 before the first.", ge=0, le=9007199254740991)
    ]
    next_event: Annotated[
        int, Meta(description="Number that the next event will carry.", ge=0, le=9223372036854775807)
    ] = field(name="nextEvent")


class Events(Strict, kw_only=True, tag_field="type", tag="events"):
    first: Annotated[
        int,
        Meta(
            description="Number of the first event of this batch; numbers are consecutive.",
            ge=0,
            le=9223372036854775807,
        ),
    ]
    events: Annotated[list[EngineEvent], Meta(max_length=4096)]


class PolicyDocument(Strict, kw_only=True):
    """
    How the KV cache of each request is kept inside its budget.
    """

    name: Annotated[str, Meta(pattern="^[a-z0-9][a-z0-9._-]{0,63}\\Z")]
    terms: Annotated[list[ScoreTerm], Meta(max_length=16, min_length=1)]
    schema: Annotated[Literal[1], Meta(description="Version of this document's form.")] = 1
    budget: Annotated[
        int,
        Meta(
            description="KV budget: resident tokens of a request after a round. 0: never compress.",
            ge=0,
            le=16777216,
        ),
    ] = 2048
    interval: Annotated[
        int,
        Meta(
            description="A round fires once a request has budget + interval resident tokens.",
            ge=1,
            le=1048576,
        ),
    ] = 128
    reserve: Reserve | None = None
    segments: Segments | None = None
    learned: Annotated[
        bool,
        Meta(
            description="True: where the statistics have learned weights, those of each layer and KV head replace the terms, and the learned share that of the reserve. Needs normalize each."
        ),
    ] = False
    statistics: Annotated[
        Literal["required", "optional"],
        Meta(description="Optional: without statistics of the model, the terms that need them are left out."),
    ] = "required"
    normalize: Annotated[
        Literal["none", "sum", "each"],
        Meta(
            description="z-score over the evictable tokens, per query head: of the weighted sum, of each term, or not at all."
        ),
    ] = "sum"
    group_aggregation: Annotated[
        Literal["max", "mean"], Meta(description="From query heads to their KV head.")
    ] = field(name="groupAggregation", default="max")
    layer_aggregation: Annotated[
        Literal["mean", "max"],
        Meta(description="From layers to one score per KV head; used by selection per_head."),
    ] = field(name="layerAggregation", default="mean")
    selection: Annotated[
        Literal["per_layer_per_head", "per_head", "union"],
        Meta(
            description="Who chooses: every layer and KV head; every KV head for all layers; one choice for all."
        ),
    ] = "per_head"
    pin: Pin = field(default_factory=lambda: convert({}, type=Pin))
    count_prompt: Annotated[
        bool,
        Meta(
            description="True: the budget covers the prompt. False: the budget covers generated tokens only."
        ),
    ] = field(name="countPrompt", default=True)
    seed: Annotated[
        int,
        Meta(
            description="Seed of the random and gumbel terms, and of leverage's sketch.", ge=0, le=4294967295
        ),
    ] = 0


EngineMessage: TypeAlias = (
    Hello | Ack | Refusal | Events | CountersReport | RequestsReport | KeptReport | Heartbeat | Bye
)


class SetPolicy(Strict, kw_only=True, tag_field="type", tag="policy"):
    revision: Annotated[int, Meta(ge=1, le=9007199254740991)]
    policy: PolicyDocument
    statistics: (
        Annotated[str, Meta(description="Path of the statistics file, if the policy needs one.")] | None
    )
    rules: Annotated[list[EngineRule], Meta(max_length=64)] = field(default_factory=list)
    policies: Annotated[
        list[PolicyDocument], Meta(description="Policies that rules name by index.", max_length=8)
    ] = field(default_factory=list)


ControlMessage: TypeAlias = SetPolicy | Watch | Rejected | Identify


Message: TypeAlias = Annotated[EngineMessage | ControlMessage, Meta(title="Message")]


PROTOCOL_VERSION = 1

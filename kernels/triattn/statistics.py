"""Statistics of a model's queries: the file that calibration writes and the trig, norm and expected terms read.

One safetensors file a model. Tensors, all float32: `q_mean_real`, `q_mean_imag` (E of the pre-rotary query as
a complex number) and `q_abs_mean` (E of its magnitude), each [layers, query heads, F], and `inv_freq` [F] in
radians a token after scaling, with F = rotary dim / 2 (TriAttention, arXiv 2604.04921, eq. 5-8). A file of format 2
has what calibration learned of selection, too: `learned_weights` [terms, layers, KV heads] and `learned_share`
[layers, KV heads], the part of the free places that is reserved for distinct tokens. A file of format 3 has those or
not, and `q_covariance` [3, layers, query heads, F]: the variances of the pre-rotary query's real and of its imaginary
part, and their covariance. A file of format 5 has all that, and `learned_probe` [layers, KV heads, head dim + 6, hidden
units], the network of the term `probe` (triattn.policies.probe); what was format 4 had a linear one and is no longer
read. Its `__metadata__` has one key, `triattn`: a JSON object with the fields of `Metadata`.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from triattn import wire
from triattn.errors import ConfigError
from triattn.fingerprint import fingerprint
from triattn.rotary import frequencies

if TYPE_CHECKING:
    import torch

FORMATS = (1, 2, 3, 5)
TENSORS = ("q_mean_real", "q_mean_imag", "q_abs_mean", "inv_freq")
LEARNED = ("learned_weights", "learned_share")
COVARIANCE = "q_covariance"
PROBE = "learned_probe"
UNITS = (16, 32, 64)
"""Hidden units that a probe may have; the first is calibration's choice where nobody makes one."""
BESIDE_KEYS = 6
"""Rows of a probe beside those of a key's dimensions."""
OPTIONAL = (*LEARNED, COVARIANCE, PROBE)
LEARNABLE = ("probe",)
"""What is learned by default: a network of the key, its age and whether later keys repeat it."""
LEARNABLE_TOO = ("superseded", "recency", "trig", "norm", "keydiff", "knorm", "vnorm", "expected", "leverage")
"""Further terms that weights can be learned for beside it, where asked."""
_REMEDY = "get the file again, or make it with `triattn calibrate`"


class StatisticsError(ConfigError):
    """A statistics file that cannot be used: `field` has `value`; `remedy` says what to do."""


class Learned(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How weights were learned: for which terms, and what they keep of the attention of later queries on text that
    they were not fitted on, beside what other scores keep; `kept` has a number in [0, 1] for each."""

    terms: list[
        Literal[
            "trig",
            "norm",
            "keydiff",
            "superseded",
            "recency",
            "knorm",
            "vnorm",
            "probe",
            "expected",
            "leverage",
        ]
    ]
    tokens: int
    seed: int
    kept: dict[str, float]


class Metadata(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Where statistics come from. `identity` is what the fingerprint was taken over; `sha256` is over the
    tensors."""

    format: int
    model: wire.ModelGeometry
    identity: dict[str, Any]
    sha256: str
    tokens: int | None = None
    source: str = ""
    license: str = ""
    created_by: str = ""
    learned: Learned | None = None


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over the bytes of the tensors (float32, little endian, row-major), in the order of TENSORS, OPTIONAL."""
    total = hashlib.sha256()
    for name in (*TENSORS, *(n for n in OPTIONAL if n in tensors)):
        total.update(tensors[name].contiguous().numpy().tobytes())
    return total.hexdigest()


@dataclass(frozen=True)
class Statistics:
    """Mean pre-rotary queries of a model; tensors as in the module's description, on the CPU."""

    metadata: Metadata
    q_mean_real: torch.Tensor
    q_mean_imag: torch.Tensor
    q_abs_mean: torch.Tensor
    inv_freq: torch.Tensor
    learned_weights: torch.Tensor | None = None
    learned_share: torch.Tensor | None = None
    q_covariance: torch.Tensor | None = None
    learned_probe: torch.Tensor | None = None
    path: str = ""

    @property
    def model(self) -> wire.ModelGeometry:
        """Geometry of the model that was measured."""
        return self.metadata.model

    @property
    def attention_scaling(self) -> float:
        """Factor on cos and sin."""
        assert self.model.rotary is not None
        return self.model.rotary.attention_scaling

    def part(self, layers: Sequence[int], query_heads: slice) -> Statistics:
        """The statistics of one rank: these global layers, in this order, and these query heads."""
        index = list(layers)
        parts = {n: getattr(self, n)[index][:, query_heads].contiguous() for n in TENSORS[:3]}
        if self.learned_weights is not None and self.learned_share is not None:
            group = self.model.query_heads // self.model.kv_heads
            heads = slice(query_heads.start // group, -(-query_heads.stop // group))
            parts["learned_weights"] = self.learned_weights[:, index][:, :, heads].contiguous()
            parts["learned_share"] = self.learned_share[index][:, heads].contiguous()
            if self.learned_probe is not None:
                parts[PROBE] = self.learned_probe[index][:, heads].contiguous()
        if self.q_covariance is not None:
            parts[COVARIANCE] = self.q_covariance[:, index][:, :, query_heads].contiguous()
        return replace(self, **parts)

    @property
    def learned_terms(self) -> tuple[str, ...]:
        """Kinds of the terms that `learned_weights` has a row for; none where nothing was learned."""
        return tuple(self.metadata.learned.terms) if self.metadata.learned else ()

    def check(self, model: wire.ModelGeometry) -> None:
        """Raise StatisticsError, with both fingerprints, unless these statistics belong to `model`."""
        name = self.path or "statistics"
        own = self.model
        if own.fingerprint != model.fingerprint:
            fields = ("layers", "query_heads", "kv_heads", "head_dim", "rotary")
            differ = [
                f"{f} {getattr(own, f)} and {getattr(model, f)}"
                for f in fields
                if getattr(own, f) != getattr(model, f)
            ]
            raise StatisticsError(
                "fingerprint",
                own.fingerprint,
                f"{name} was made for {own.name}, but the model served, {model.name}, has fingerprint "
                f"{model.fingerprint} ({'; '.join(differ) or 'hidden or vocabulary size, or scaling'}); "
                "run `triattn calibrate` on the model served",
            )
        if not _same_rotary(own.rotary, model.rotary):
            raise StatisticsError(
                "rotary", own.rotary, f"{name} does not fit the model served: {model.rotary}; {_REMEDY}"
            )
        if own.weights is not None and model.weights is not None and own.weights != model.weights:
            raise StatisticsError(
                "weights",
                own.weights,
                f"{name} was made for {own.name}, but the model served, {model.name}, has the same geometry "
                f"(fingerprint {model.fingerprint}) and other weights ({model.weights}); "
                "run `triattn calibrate` on the model served",
            )

    @staticmethod
    def load(path: str | Path) -> Statistics:
        """Read and verify a statistics file.

        Raises StatisticsError for anything missing, damaged, truncated or of another kind.
        """
        import torch
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                text = (file.metadata() or {}).get("triattn")
                names = sorted(file.keys())
                known = set(TENSORS) <= set(names) <= {*TENSORS, *OPTIONAL}
                tensors = {n: file.get_tensor(n).clone() for n in names} if known else {}
        except OSError as error:
            raise StatisticsError(
                "statistics", path, f"cannot be read ({error.strerror or error})"
            ) from error
        except (SafetensorError, ValueError) as error:
            raise StatisticsError(
                "statistics", path, f"not a whole safetensors file ({error}); {_REMEDY}"
            ) from error
        if text is None:
            raise StatisticsError(
                "statistics", path, f"a safetensors file, but not of triattn statistics; {_REMEDY}"
            )
        if not tensors:
            expected = f"must be {sorted(TENSORS)}, and may be {sorted(OPTIONAL)}; {_REMEDY}"
            raise StatisticsError(f"tensors of {path}", names, expected)
        try:
            form = msgspec.json.decode(text, type=dict[str, Any]).get("format")
            if form not in FORMATS or isinstance(form, bool):
                *others, last = FORMATS
                known = f"{', '.join(map(str, others))} and {last}"
                raise StatisticsError(f"format of {path}", form, f"this triattn reads {known}; {_REMEDY}")
            metadata = msgspec.json.decode(text, type=Metadata)
        except msgspec.DecodeError as error:
            raise StatisticsError(f"metadata of {path}", text[:80], f"{error}; {_REMEDY}") from error
        result = Statistics(metadata=metadata, path=str(path), **tensors)
        _verify(result, torch)
        return result


def _same_rotary(a: wire.Rotary | None, b: wire.Rotary | None) -> bool:
    """Equality up to the last bits of the attention scaling, which each library computes by itself."""
    if a is None or b is None:
        return False
    scale = a.attention_scaling
    return a == msgspec.structs.replace(b, attention_scaling=scale) and math.isclose(
        scale, b.attention_scaling, rel_tol=1e-6
    )


def _chosen(values: Any, names: dict[str, Any]) -> dict[str, Any] | None:
    return {k: values.get(k) for k in names} if isinstance(values, dict) else None


def _verify(stats: Statistics, torch: Any) -> None:
    """Raise StatisticsError unless the tensors are what the metadata says and could be means of queries."""
    model = stats.model
    where = f" of {stats.path}"
    if model.rotary is None:
        raise StatisticsError(f"rotary{where}", None, f"statistics need a rotary embedding; {_REMEDY}")
    found = fingerprint(stats.metadata.identity)
    if found != model.fingerprint:
        raise StatisticsError(
            f"fingerprint{where}", model.fingerprint, f"its own parameters give {found}; {_REMEDY}"
        )
    own = {
        "layers": model.layers,
        "queryHeads": model.query_heads,
        "kvHeads": model.kv_heads,
        "headDim": model.head_dim,
        "rotary": {k: getattr(model.rotary, k) for k in ("type", "theta", "dim")},
    }
    said = stats.metadata.identity
    if own != {**{k: said.get(k) for k in own}, "rotary": _chosen(said.get("rotary"), own["rotary"])}:
        raise StatisticsError(f"model{where}", own, f"differs from its own parameters {said}; {_REMEDY}")
    bands = model.rotary.dim // 2
    whole = [model.layers, model.query_heads, bands]
    tensors = {n: getattr(stats, n) for n in (*TENSORS, *OPTIONAL) if getattr(stats, n) is not None}
    terms = stats.learned_terms
    if stats.metadata.format == 1 and len(tensors) > len(TENSORS):
        raise StatisticsError(f"format{where}", 1, f"has no tensors beside {sorted(TENSORS)}; {_REMEDY}")
    if (stats.metadata.format >= 3) != (COVARIANCE in tensors):
        raise StatisticsError(
            f"format{where}",
            stats.metadata.format,
            f"{COVARIANCE} makes a file one of format 3 or 5; {_REMEDY}",
        )
    if (stats.metadata.format == 5) != (PROBE in tensors):
        raise StatisticsError(
            f"format{where}", stats.metadata.format, f"{PROBE} makes a file one of format 5; {_REMEDY}"
        )
    if ("probe" in terms) != (PROBE in tensors):
        raise StatisticsError(
            f"learned.terms{where}", list(terms), f"probe and {PROBE} go together; {_REMEDY}"
        )
    if "expected" in terms and COVARIANCE not in tensors:
        raise StatisticsError(f"learned.terms{where}", list(terms), f"expected needs {COVARIANCE}; {_REMEDY}")
    if bool(terms) != all(n in tensors for n in LEARNED) or bool(terms) != any(n in tensors for n in LEARNED):
        raise StatisticsError(f"learned{where}", terms, f"goes with {list(LEARNED)}, all or none; {_REMEDY}")
    shapes = {
        "inv_freq": [bands],
        "learned_weights": [len(terms), model.layers, model.kv_heads],
        "learned_share": [model.layers, model.kv_heads],
        COVARIANCE: [3, *whole],
        PROBE: [model.layers, model.kv_heads, model.head_dim + BESIDE_KEYS, _units(stats)],
    }
    for name, tensor in tensors.items():
        shape = shapes.get(name, whole)
        if list(tensor.shape) != shape or tensor.dtype != torch.float32:
            found = f"{tensor.dtype} {list(tensor.shape)}"
            raise StatisticsError(f"{name}{where}", found, f"must be float32 {shape}; {_REMEDY}")
        if not bool(torch.isfinite(tensor).all()):
            raise StatisticsError(f"{name}{where}", "not finite", _REMEDY)
    if digest(tensors) != stats.metadata.sha256:
        raise StatisticsError(
            f"sha256{where}", digest(tensors), f"the file says {stats.metadata.sha256}; {_REMEDY}"
        )
    length = torch.hypot(stats.q_mean_real, stats.q_mean_imag)
    # The length of a mean is at most the mean of lengths; what breaks that was never measured.
    if bool((length > stats.q_abs_mean * 1.001 + 1e-6).any()):
        raise StatisticsError(
            f"q_abs_mean{where}", "smaller than |q_mean|", f"impossible for means; {_REMEDY}"
        )
    if stats.q_covariance is not None:
        _verify_covariance(stats.q_covariance, length, stats.q_abs_mean, where)
    share = stats.learned_share
    if share is not None and bool(((share < 0) | (share > 1)).any()):
        raise StatisticsError(f"learned_share{where}", "outside [0, 1]", _REMEDY)
    if len(set(terms)) != len(terms):
        raise StatisticsError(f"learned.terms{where}", list(terms), f"names a term twice; {_REMEDY}")
    inverse, scaling = frequencies(said["rotary"])
    same = math.isclose(scaling, model.rotary.attention_scaling, rel_tol=1e-6)
    if not same or not torch.allclose(stats.inv_freq, inverse, rtol=1e-5, atol=0.0):
        raise StatisticsError(
            f"inv_freq{where}", "other frequencies", f"not of its own parameters; {_REMEDY}"
        )


def _units(stats: Statistics) -> int:
    """Hidden units of the probe; the first of what they may be where that is not it."""
    found = 0 if stats.learned_probe is None else stats.learned_probe.shape[-1]
    return found if found in UNITS else UNITS[0]


def _verify_covariance(
    covariance: torch.Tensor, length: torch.Tensor, size: torch.Tensor, where: str
) -> None:
    """Raise StatisticsError unless these can be covariances of queries whose mean has `length` and whose mean length
    is `size`: each up to rounding."""
    real, imag, both = covariance
    if bool((covariance[:2] < 0).any()):
        raise StatisticsError(f"{COVARIANCE}{where}", "a negative variance", f"impossible; {_REMEDY}")
    if bool((both.abs() > (real * imag).sqrt() * 1.001 + 1e-6).any()):
        found = "a covariance larger than its variances allow"
        raise StatisticsError(f"{COVARIANCE}{where}", found, f"impossible; {_REMEDY}")
    # E|q|² is at least (E|q|)².
    if bool((size > (length.square() + real + imag).sqrt() * 1.001 + 1e-6).any()):
        found = "variances smaller than q_abs_mean allows"
        raise StatisticsError(f"{COVARIANCE}{where}", found, f"impossible for one set of queries; {_REMEDY}")


def save(
    path: str | Path,
    tensors: dict[str, torch.Tensor],
    model: wire.ModelGeometry,
    identity: dict[str, Any],
    *,
    tokens: int | None,
    source: str,
    license: str,
    created_by: str,
    learned: Learned | None = None,
) -> Statistics:
    """Write a statistics file whole or not at all (a temporary file beside it, then a rename), and load it
    back.

    `tensors` as in the module's description. Raises StatisticsError when it cannot be written or would not
    load.
    """
    from safetensors.torch import save as encode

    more = [n for n in OPTIONAL if n in tensors]
    metadata = Metadata(
        format=5 if PROBE in more else 3 if COVARIANCE in more else 2 if more else 1,
        model=model,
        identity=identity,
        sha256=digest(tensors),
        tokens=tokens,
        source=source,
        license=license,
        created_by=created_by,
        learned=learned,
    )
    contents = {n: tensors[n].contiguous() for n in (*TENSORS, *more)}
    data = encode(contents, metadata={"triattn": msgspec.json.encode(metadata).decode()})
    path = Path(path)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        result = Statistics.load(temporary)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise StatisticsError("out", path, f"cannot be written ({error.strerror or error})") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
    return replace(result, path=str(path))

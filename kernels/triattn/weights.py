"""A digest over a few of a model's weights, to tell apart models of one geometry (a base and its
fine-tunes)."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, BinaryIO

# Names as in transformers' decoders; towers for other inputs have layers of the same names.
_FIRST_LAYER = re.compile(
    r"^(?:.*\.)?layers\.0\.(?:self_attn|attention|attn)\.(q_proj|k_proj|qkv_proj)\.weight$"
)
_OTHER_TOWER = re.compile(r"vis|audio|encoder")
_DTYPES = ("F64", "F32", "F16", "BF16")
_SLICE = 4096
_HEADER_LIMIT = 100_000_000


def _header(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """Header of an open safetensors file, and where its data begins."""
    size = int.from_bytes(file.read(8), "little")
    if not 2 <= size <= _HEADER_LIMIT:
        raise ValueError("no safetensors header")
    return json.loads(file.read(size)), 8 + size


def _files(directory: Path) -> list[Path]:
    """The files that hold the first layer's projections: of the index where there is one, else all."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        names = json.loads(index.read_text())["weight_map"]
        return sorted({directory / f for n, f in names.items() if _FIRST_LAYER.match(n)})
    return sorted(directory.glob("model*.safetensors"))


def weights_digest(model_dir: str | Path) -> str | None:
    """SHA-256 (64 hexadecimal digits) over dtype, shape and three slices of 4,096 bytes each (start, middle,
    end) of the first layer's query and key projections in the safetensors files of `model_dir`.

    Independent of how the file is laid out, so saving a model again does not change it. None where the
    weights are not there, not readable, or quantized (then they are not comparable with the unquantized
    ones).
    """
    found: dict[str, bytes] = {}
    try:
        for path in _files(Path(model_dir)):
            with path.open("rb") as file:
                header, start = _header(file)
                for name, entry in header.items():
                    match = _FIRST_LAYER.match(name)
                    if not match or _OTHER_TOWER.search(name):
                        continue
                    if match[1] in found or entry["dtype"] not in _DTYPES:
                        return None
                    begin, end = entry["data_offsets"]
                    length = min(_SLICE, end - begin)
                    text = json.dumps([match[1], entry["dtype"], entry["shape"]], separators=(",", ":"))
                    parts = [text.encode()]
                    for offset in (0, (end - begin - length) // 2, end - begin - length):
                        file.seek(start + begin + offset)
                        parts.append(file.read(length))
                        if len(parts[-1]) != length:
                            return None
                    found[match[1]] = b"\n".join(parts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if set(found) not in ({"q_proj", "k_proj"}, {"qkv_proj"}):
        return None
    return hashlib.sha256(b"\n".join(found[k] for k in sorted(found))).hexdigest()

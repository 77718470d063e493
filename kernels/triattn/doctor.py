"""What an environment's engine can do under triattn, found by importing it; nothing is started.

    python -m triattn.doctor '{"engine": "vllm|sglang", "model": null, "flags": []}'

With a model that is on this machine, vLLM also reads ``flags`` into its own configuration and triattn checks that.
The last line printed is the result as JSON; whatever imports print comes before it, or on stderr.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

from triattn.errors import ConfigError

VERSIONS = ("torch", "triton", "vllm", "sglang", "msgspec", "pyzmq", "safetensors", "transformers")


def versions() -> dict[str, str | None]:
    """Versions of the distributions that matter, None where one is not installed."""
    found: dict[str, str | None] = {}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def plugins(group: str) -> list[dict[str, str]]:
    """Entry points of a group: what every engine of this environment loads."""
    points = importlib.metadata.entry_points(group=group)
    return [{"name": point.name, "value": point.value} for point in points]


def devices() -> dict[str, Any]:
    """CUDA as torch sees it."""
    import torch

    if not torch.cuda.is_available():
        return {"build": torch.version.cuda, "devices": []}
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            {
                "name": properties.name,
                "memoryBytes": properties.total_memory,
                "capability": f"{properties.major}.{properties.minor}",
            }
        )
    return {"build": torch.version.cuda, "devices": found}


def hook_vllm() -> None:
    """Install the hooks into this process: what is not where it is expected is refused.

    Raises:
        ConfigError: this vLLM is built differently from what triattn knows.
    """
    from triattn.engines.vllm.plugin import register

    register()


def hook_sglang() -> None:
    """Look for every function that triattn hooks; SGLang itself would only log that one is missing.

    Raises:
        ConfigError: this SGLang is built differently from what triattn knows.
    """
    from triattn.engines.sglang import probe

    probe.check_targets()


HOOKS = {"vllm": hook_vllm, "sglang": hook_sglang}
GROUPS = {"vllm": "vllm.general_plugins", "sglang": "sglang.srt.plugins"}


def configure_vllm(model: str, flags: list[str]) -> list[str]:
    """Read a model and flags as ``vllm serve`` does, and check the configuration; names of what is on.

    Raises:
        ConfigError: triattn refuses this configuration.
        SystemExit: vLLM does not know a flag or its value.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from triattn.engines.vllm import probe

    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    # Flags of the server, such as --port, are not the engine's.
    arguments, _ = parser.parse_known_args(["--model", model, *flags])
    config = AsyncEngineArgs.from_cli_args(arguments).create_engine_config()
    probe.check_config(config)
    probe.model_geometry(config)
    return probe.capabilities(config)


def attempt(check: str, work: Callable[[], Any]) -> dict[str, Any]:
    """The outcome of `work`: ``ok`` with its result, or ``error`` with field, value and remedy where there are any."""
    try:
        return {"check": check, "ok": True, "result": work()}
    except ConfigError as error:
        detail = {"field": error.field, "value": str(error.value), "remedy": error.remedy}
        return {"check": check, "ok": False, "message": str(error), **detail}
    except SystemExit as error:
        return {"check": check, "ok": False, "message": f"the engine does not accept its flags ({error})"}
    except Exception as error:
        return {"check": check, "ok": False, "message": f"{type(error).__name__}: {error}"}


def examine(engine: str, model: str | None, flags: list[str]) -> dict[str, Any]:
    """Everything that can be found out in this process."""
    outcomes = [attempt("cuda", devices)]
    if engine in HOOKS:
        outcomes.append(attempt("hooks", HOOKS[engine]))
    if engine == "vllm" and model is not None and outcomes[-1]["ok"]:
        outcomes.append(attempt("configuration", lambda: configure_vllm(model, flags)))
    return {
        "versions": versions(),
        "plugins": plugins(GROUPS[engine]) if engine in GROUPS else [],
        "outcomes": outcomes,
    }


def main() -> None:
    """Examine what the JSON of the first argument names."""
    asked = json.loads(sys.argv[1])
    with redirect_stdout(sys.stderr):
        result = examine(asked["engine"], asked.get("model"), asked.get("flags", []))
    print(json.dumps(result))


if __name__ == "__main__":
    main()

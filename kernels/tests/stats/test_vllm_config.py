"""The fingerprint through vLLM's own reading of a config.json, which changes configuration objects on the way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stats.make_vectors import VECTORS

pytest.importorskip("vllm")

SCRIPT = """
import json, sys
from vllm.transformers_utils.config import get_config, get_hf_text_config
from triattn.model import geometry
found = [geometry(get_hf_text_config(get_config(path, False))).fingerprint for path in json.loads(sys.argv[1])]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_fingerprints_survive_vllm(tmp_path: Path) -> None:
    accepted = json.loads(VECTORS.read_text())["accepted"]
    paths = []
    for i, vector in enumerate(accepted):
        directory = tmp_path / str(i)
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(vector["config"]))
        paths.append(str(directory))
    # A process of its own: importing vLLM patches transformers for good.
    command = [sys.executable, "-c", SCRIPT, json.dumps(paths)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(done.stdout.splitlines()[-1]) == [vector["fingerprint"] for vector in accepted]

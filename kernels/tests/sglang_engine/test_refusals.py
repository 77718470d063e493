"""What cannot work is refused before the scheduler is up, in one line that names field, value and remedy."""

from __future__ import annotations

import pytest
from engine.models import SPECS, statistics
from engine.policies import plugin

from .rig import EngineFailed, run
from .scenario import Scenario

pytestmark = pytest.mark.engine


def refusal(given: dict, **changes: object) -> str:
    """The error's line."""
    with pytest.raises(EngineFailed) as caught:
        run(Scenario("llama", given, **changes))
    return str(caught.value).partition("--- log ---")[0].strip().splitlines()[-1]


def test_policies_and_arguments_that_cannot_work() -> None:
    foreign = plugin("llama", "triattention") | {"statistics": str(statistics(SPECS["qwen3"]))}
    cases = [
        (plugin("llama", budget=12), {}, ("budget", "12", "13")),
        (foreign, {}, ("fingerprint", "qwen3")),
        (
            plugin("llama"),
            {"server": {"enable_mixed_chunk": True}},
            ("enable_mixed_chunk", "--enable-mixed-chunk"),
        ),
        (plugin("llama", "snapkv"), {}, ("terms = 'observed'", "serve with vLLM")),
        (plugin("llama", budget=4096), {"tokens": 1024}, ("budget", "4096", "1024")),
    ]
    for given, changes, expected in cases:
        line = refusal(given, **changes)
        for part in expected:
            assert part in line, f"{part!r} not in {line!r}"


def test_arguments_refused_by_name() -> None:
    """Every one of them, without an engine."""
    from types import SimpleNamespace

    from triattn.engines.sglang import probe
    from triattn.errors import ConfigError

    for name, _, _ in probe._REFUSED:
        with pytest.raises(ConfigError) as caught:
            probe.check_arguments(SimpleNamespace(**{name: "something"}))
        assert caught.value.field == name
    probe.check_arguments(SimpleNamespace(attention_backend="fa3"))
    config = SimpleNamespace(model_path="m", attention_arch=SimpleNamespace(name="MLA"))
    with pytest.raises(ConfigError, match="latent"):
        probe.check_model(config)
    config = SimpleNamespace(model_path="m", attention_arch=SimpleNamespace(name="MHA"), is_hybrid_swa=True)
    with pytest.raises(ConfigError, match="sliding-window"):
        probe.check_model(config)


@pytest.mark.parametrize("name", ["managers.scheduler.Scheduler.__init__", "no.such.module.thing"])
def test_a_hook_that_cannot_be_applied_ends_the_process(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """SGLang would log it and go on uncompressed."""
    from triattn.engines.sglang import plugin as entry
    from triattn.engines.sglang import probe
    from triattn.errors import ConfigError

    monkeypatch.setenv("TRIATTN_POLICY", "keydiff")
    monkeypatch.setattr(probe, "HOOKED", (name,))
    monkeypatch.setattr(probe, "check_targets", lambda check=probe.check_targets: check())
    if name.startswith("no."):
        with pytest.raises(SystemExit) as ended:
            entry.register()
        assert ended.value.code == entry.EXIT_CODE
        assert "no.such.module.thing" in capfd.readouterr().err
    else:
        with pytest.raises(ConfigError, match="not applied"):
            probe.check_applied()

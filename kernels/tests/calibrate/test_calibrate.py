"""Calibration against means computed independently, from the projections' own outputs."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GlmConfig,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    StableLmConfig,
)

from triattn.calibrate.__main__ import main
from triattn.calibrate.capture import captured
from triattn.calibrate.errors import CalibrationError
from triattn.calibrate.run import Options, measure
from triattn.calibrate.text import cut, own_documents, prompt_of, read_documents, windows
from triattn.model import Statistics, geometry

SMALL: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 300,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}
LENGTH = {"original_max_position_embeddings": 64}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**SMALL, rope_theta=100000.0),
    "llama linear": lambda: LlamaConfig(**SMALL, rope_scaling={"type": "linear", "factor": 4.0}),
    "llama llama3": lambda: LlamaConfig(
        **SMALL,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            **LENGTH,
        },
    ),
    "llama yarn": lambda: LlamaConfig(**SMALL, rope_scaling={"rope_type": "yarn", "factor": 8.0, **LENGTH}),
    "qwen2 with biases": lambda: Qwen2Config(**SMALL),
    "qwen3 with q_norm": lambda: Qwen3Config(**SMALL, rope_theta=1000000.0),
    "qwen3 yarn": lambda: Qwen3Config(**SMALL, rope_scaling={"rope_type": "yarn", "factor": 4.0, **LENGTH}),
    "gpt-oss with windows": lambda: GptOssConfig(
        **SMALL, num_local_experts=2, num_experts_per_tok=1, sliding_window=16
    ),
    "stablelm, part of the head": lambda: StableLmConfig(
        **{k: v for k, v in SMALL.items() if k != "head_dim"} | {"hidden_size": 96}, partial_rotary_factor=0.5
    ),
    "glm, interleaved, part of the head": lambda: GlmConfig(**SMALL, partial_rotary_factor=0.5),
}


def network(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    """A random model whose queries have means far from zero."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj.bias" in name or "q_norm.weight" in name:
                parameter.copy_(torch.linspace(0.5, 2.0, parameter.numel()).reshape(parameter.shape))
            elif "proj" in name:
                parameter.mul_(8.0)
    return model


def pieces(lengths: tuple[int, ...] = (100, 37, 2)) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, 300, (n,), generator=generator).tolist() for n in lengths]


def expected(model: Any, config: Any, texts: list[list[int]]) -> list[torch.Tensor]:
    """Mean real, imaginary and absolute query [layers, heads, F] in float64, and covariances [3, …], from hooks on
    q_proj and q_norm only."""
    rope = geometry(config).rotary
    outputs: dict[int, list[torch.Tensor]] = {}

    def hook(layer: int) -> Callable[..., None]:
        return lambda module, args, output: outputs.setdefault(layer, []).append(output.detach().double())

    handles = []
    for layer, block in enumerate(model.model.layers):
        attention = block.self_attn
        handles.append(
            (getattr(attention, "q_norm", None) or attention.q_proj).register_forward_hook(hook(layer))
        )
    with torch.no_grad():
        for text in texts:
            model(torch.tensor([text]))
    for handle in handles:
        handle.remove()
    results: list[list[torch.Tensor]] = [[], [], [], []]
    heads = config.num_attention_heads
    for layer in range(config.num_hidden_layers):
        queries = torch.cat(
            [
                o.reshape(-1, heads, o.numel() // (heads * n))
                for o, n in zip(outputs[layer], map(len, texts), strict=True)
            ]
        )
        rotated = queries[..., : rope.dim]
        if rope.pairing == "half":
            parts = rotated.unflatten(-1, (2, -1)).movedim(-2, 0)
        else:
            parts = rotated.unflatten(-1, (-1, 2)).movedim(-1, 0)
        z = torch.complex(parts[0], parts[1])
        off = parts - parts.mean(1, keepdim=True)
        covariance = torch.stack([(off[i] * off[j]).mean(0) for i, j in ((0, 0), (1, 1), (0, 1))])
        found = (z.mean(0).real, z.mean(0).imag, z.abs().mean(0), covariance)
        for kind, value in zip(results, found, strict=True):
            kind.append(value)
    return [*map(torch.stack, results[:3]), torch.stack(results[3], dim=1)]


@pytest.mark.parametrize("name", CONFIGS)
def test_means_equal_those_computed_from_the_projections(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]()
    model, texts = network(config), pieces()
    means = measure(model, texts, config, Options(model="", out=tmp_path))
    assert means.tokens == sum(map(len, texts))
    for (kind, found), wanted in zip(means.result().items(), expected(model, config, texts), strict=True):
        assert found.shape == wanted.shape and found.dtype == torch.float32
        torch.testing.assert_close(
            found.double(), wanted, rtol=1e-5, atol=1e-6, msg=lambda m, k=kind: f"{k}: {m}"
        )
    # Random text does not make this test vacuous: the means are not small.
    assert float(expected(model, config, texts)[2].mean()) > 0.05


def test_bfloat16(tmp_path: Path) -> None:
    config = CONFIGS["qwen3 with q_norm"]()
    model, texts = network(config, torch.bfloat16), pieces()
    means = measure(model, texts, config, Options(model="", out=tmp_path))
    assert all(torch.isfinite(value).all() for value in means.result().values())


def test_without_q_norm_the_means_would_be_others(tmp_path: Path) -> None:
    config = CONFIGS["qwen3 with q_norm"]()
    model, texts = network(config), pieces()
    means = measure(model, texts, config, Options(model="", out=tmp_path)).result()
    raw: list[torch.Tensor] = []
    handle = model.model.layers[0].self_attn.q_proj.register_forward_hook(lambda *a: raw.append(a[2]))
    with torch.no_grad():
        model(torch.tensor([texts[0]]))
    handle.remove()
    size = raw[0].reshape(-1, 6, 2, 8).norm(dim=2).mean(0)
    assert not torch.allclose(size, means["q_abs_mean"][0], rtol=0.2)


@pytest.mark.parametrize("damage", ["frequencies", "scaling", "pairing"])
def test_a_rotation_that_is_not_the_configurations_is_refused(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIGS["llama yarn"]()
    model = network(config)
    if damage == "frequencies":
        model.model.rotary_emb.inv_freq *= 1.01
    if damage == "scaling":
        model.model.rotary_emb.attention_scaling = 1.0
    if damage == "pairing":
        monkeypatch.setattr("triattn.rotary.HALF", frozenset())
        monkeypatch.setattr("triattn.rotary.INTERLEAVED", frozenset({"llama"}))
    with pytest.raises(CalibrationError, match="rotation error of layer 0"):
        measure(model, pieces(), config, Options(model="", out=tmp_path))


def test_capturing_leaves_the_model_as_it_was() -> None:
    config = CONFIGS["llama"]()
    model, ids = network(config), torch.tensor([pieces()[0]])
    seen: list[int] = []
    with torch.no_grad():
        before = model(ids).logits
        with captured(model, lambda layer, q: seen.append(layer), lambda layer, q: seen.append(layer)):
            during = model(ids).logits
        after = model(ids).logits
    assert torch.equal(before, during) and torch.equal(before, after)
    assert seen == [0, 0, 1, 1, 2, 2]


def test_streaming_does_not_lose_precision(tmp_path: Path) -> None:
    config = CONFIGS["llama"]()
    model, text = network(config), pieces((64,))[0]
    once = measure(model, [text], config, Options(model="", out=tmp_path)).result()
    often = measure(model, [text] * 50, config, Options(model="", out=tmp_path)).result()
    for name, value in once.items():
        torch.testing.assert_close(often[name], value, rtol=1e-6, atol=1e-7)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3 with a byte-level tokenizer, saved as models are."""
    directory = tmp_path_factory.mktemp("model") / "Tiny-Qwen3"
    network(Qwen3Config(**SMALL)).save_pretrained(directory)
    alphabet = {c: i for i, c in enumerate(["<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")
    fast.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    fast.save_pretrained(directory)
    return directory


def run(*arguments: object) -> tuple[int, list[dict[str, Any]]]:
    """Exit status and messages of the command."""
    out = io.StringIO()
    with redirect_stdout(out):
        status = main([*map(str, arguments), "--progress", "json"])
    return status, [json.loads(line) for line in out.getvalue().splitlines()]


def test_the_command(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny.safetensors"
    text = tmp_path / "text.txt"
    text.write_text("Ein Text über Wasser. " * 40, encoding="utf-8")
    status, messages = run(checkpoint, "--out", out, "--text", text, "--window", 128, "--tokens", 500)
    assert status == 0
    progress = [m for m in messages if m["type"] == "progress" and m["phase"] == "measure"]
    assert [m["done"] for m in progress] == [128, 256, 384, 500] and {m["total"] for m in progress} == {500}
    stats = Statistics.load(out)
    assert messages[-1]["type"] == "done" and messages[-1]["fingerprint"] == stats.model.fingerprint
    assert stats.metadata.tokens == messages[-1]["tokens"] == 500
    assert stats.model.name == "Tiny-Qwen3" and stats.metadata.source == "text.txt"
    assert stats.model.weights is not None
    stats.check(geometry(Qwen3Config(**SMALL), checkpoint))
    assert 0 < messages[-1]["concentration"] <= 1
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    ids = PreTrainedTokenizerFast.from_pretrained(checkpoint)(text.read_text(encoding="utf-8"))["input_ids"]
    texts = [ids[start : min(start + 128, 500)] for start in range(0, 500, 128)]
    assert stats.metadata.format == 3
    names = ("q_mean_real", "q_mean_imag", "q_abs_mean", "q_covariance")
    for name, wanted in zip(names, expected(model, model.config, texts), strict=True):
        torch.testing.assert_close(getattr(stats, name).double(), wanted, rtol=1e-5, atol=1e-6)


def test_the_text_that_comes_with_it(checkpoint: Path, tmp_path: Path) -> None:
    documents = own_documents()
    assert documents == own_documents() and any(isinstance(d, list) for d in documents)
    assert (
        sum(len(d) if isinstance(d, str) else sum(len(m["content"]) for m in d) for d in documents) > 40_000
    )
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint)
    ids = list(windows(documents, tokenizer, 256))
    assert max(map(len, ids)) == 256 and "<user>" in "".join(tokenizer.decode(piece) for piece in ids)
    out = tmp_path / "tiny.safetensors"
    assert run(checkpoint, "--out", out, "--tokens", 300)[0] == 0
    assert Statistics.load(out).metadata.source == "text of triattn.calibrate"


def test_prompts_and_answers_come_from_json_lines(checkpoint: Path, tmp_path: Path) -> None:
    lines = tmp_path / "items.jsonl"
    items = [
        {"prompt": "one two", "expected": "three four five"},
        {"prompt": "six", "completion": "seven " * 300},
    ]
    lines.write_text("".join(json.dumps(item) + "\n" for item in items))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint)
    pieces = list(windows(read_documents([lines]), tokenizer, 200))
    first, second, *rest = pieces
    assert first == [i for text in ("one two", "three four five") for i in tokenizer(text)["input_ids"]]
    assert prompt_of(first) == len(tokenizer("one two")["input_ids"])
    assert prompt_of(second) == len(tokenizer("six")["input_ids"]) and len(second) == 200
    assert rest and not any(map(prompt_of, rest))
    assert prompt_of(cut(first, 0, 2)) == (prompt_of(first) if prompt_of(first) < 2 else 0)
    assert prompt_of(cut(first, 1, 3)) == 0
    for bad in ('{"prompt": "x"}', "[]", "no json", '{"prompt": "x", "completion": ""}'):
        lines.write_text('{"prompt": "a", "completion": "b"}\n' + bad + "\n")
        with pytest.raises(CalibrationError, match="line 2"):
            read_documents([lines])


def test_what_cannot_be_used_is_said_before_anything_is_written(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    latin, empty, gpt2 = tmp_path / "latin.txt", tmp_path / "empty.txt", tmp_path / "gpt2"
    latin.write_bytes("für".encode("latin-1"))
    empty.write_text(" \n")
    GPT2Config(n_layer=1, n_embd=8, n_head=2).save_pretrained(gpt2)
    cases: list[tuple[list[object], str]] = [
        ([tmp_path / "missing", "--out", out], "model"),
        ([gpt2, "--out", out], "rope_theta"),
        ([checkpoint, "--out", tmp_path / "missing" / "out.safetensors"], "out"),
        ([checkpoint, "--out", out, "--text", latin], "text"),
        ([checkpoint, "--out", out, "--text", empty], "text"),
        ([checkpoint, "--out", out, "--text", tmp_path / "missing.txt"], "text"),
        ([checkpoint, "--out", out, "--device", "cuda:99"], "device"),
    ]
    for arguments, field in cases:
        status, messages = run(*arguments)
        assert (status, messages[-1]["type"], messages[-1]["field"]) == (2, "error", field), messages
        assert messages[-1]["remedy"] and not out.exists()

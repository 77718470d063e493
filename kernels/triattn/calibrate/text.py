"""What a model is measured on: the package's own text and worked problems, or the user's files."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from triattn.calibrate.errors import CalibrationError

Chat = list[dict[str, str]]


@dataclass(frozen=True)
class Answered:
    """A prompt and what was generated after it."""

    prompt: str
    answer: str


Document = str | Chat | Answered


class Piece(list[int]):
    """Token ids that are run together; the first `prompt` are of a prompt."""

    prompt: int = 0


def cut(piece: Sequence[int], start: int, length: int) -> Piece:
    """`length` tokens of a piece from `start` on."""
    part = Piece(piece[start : start + length])
    prompt = prompt_of(piece)
    part.prompt = prompt if start == 0 and prompt < len(part) else 0
    return part


def prompt_of(piece: Sequence[int]) -> int:
    """How many of a piece's first tokens are of a prompt."""
    return piece.prompt if isinstance(piece, Piece) else 0


def _chat(text: str) -> list[dict[str, str]]:
    """Messages of a conversation written as `user: …` and `assistant: …`."""
    parts = re.split(r"^(user|assistant): ", text, flags=re.MULTILINE)[1:]
    return [{"role": r, "content": c.strip()} for r, c in zip(parts[::2], parts[1::2], strict=True)]


def own_documents() -> list[Document]:
    """The documents that come with triattn (written for it; several languages, code, data, dialogue,
    reasoning)."""
    text = resources.files("triattn.calibrate").joinpath("corpus.txt").read_text(encoding="utf-8")
    documents: list[Document] = []
    for kind, body in re.findall(r"^=== (\w+)\n(.*?)(?=^=== |\Z)", text, flags=re.MULTILINE | re.DOTALL):
        documents.append(_chat(body) if kind == "chat" else body.strip())
    return documents + worked_problems(random.Random(0), 12)


def _euclid(rng: random.Random) -> str:
    a, b = rng.randrange(1000, 9999), rng.randrange(100, 999)
    lines = [f"Compute the greatest common divisor of {a} and {b}."]
    while b:
        lines.append(f"{a} = {a // b} * {b} + {a % b}, so we go on with {b} and {a % b}.")
        a, b = b, a % b
    return "\n".join([*lines, f"The remainder is 0, so the greatest common divisor is {a}."])


def _product(rng: random.Random) -> str:
    a, b = rng.randrange(1000, 99999), rng.randrange(100, 9999)
    lines, total = [f"Multiply {a} by {b} digit by digit."], 0
    for power, digit in enumerate(reversed(str(b))):
        part = a * int(digit) * 10**power
        lines.append(f"{a} * {digit} = {a * int(digit)}, shifted by {power}: {part}. Sum: {total} + {part} =")
        total += part
        lines[-1] += f" {total}."
    return "\n".join([*lines, f"The product is {total}."])


def _walk(rng: random.Random) -> str:
    names = rng.sample(["Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivo", "Jo"], 8)
    knows: dict[str, set[str]] = {n: set() for n in names}
    for i, name in enumerate(names[1:], 1):
        for other in rng.sample(names[:i], min(i, 2)):
            knows[name].add(other)
            knows[other].add(name)
    lines = [f"{n} knows {', '.join(sorted(k))}." for n, k in knows.items()]
    lines.append(f"{names[0]} hears some news. Who hears it, and on which day?")
    heard, day = {names[0]}, 0
    while True:
        new = sorted({k for n in heard for k in knows[n]} - heard)
        if not new:
            return "\n".join([*lines, f"So everybody has heard it by day {day}."])
        day += 1
        heard.update(new)
        lines.append(f"Day {day}: {', '.join(new)}. By now {len(heard)} of {len(names)} have heard it.")


def _sort(rng: random.Random) -> str:
    values = rng.sample(range(100), 9)
    lines = [f"Sort {values} by insertion."]
    for i in range(1, len(values)):
        value = values.pop(i)
        place = next((j for j in range(i) if values[j] > value), i)
        values.insert(place, value)
        lines.append(f"Take {value}; it belongs at place {place + 1}: {values}.")
    return "\n".join([*lines, f"Sorted: {values}."])


def worked_problems(rng: random.Random, count: int) -> list[Document]:
    """`count` problems with each step of their solution, the kind of text that long generations consist
    of."""
    makers = (_euclid, _product, _walk, _sort)
    return ["\n\n".join(makers[(i + j) % 4](rng) for j in range(4)) for i in range(count)]


def _answered(path: str | Path, text: str) -> list[Document]:
    """The lines of a file as `triattn eval generate --json` writes them: objects with `prompt` and `expected`, or
    `completion`."""
    documents: list[Document] = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            item = json.loads(line)
            answer = item.get("completion", item.get("expected"))
            documents.append(Answered(str(item["prompt"]), str(answer)))
            if not answer:
                raise KeyError("completion")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CalibrationError(
                "text", f"{path}, line {number}", "is no JSON object with prompt and completion"
            ) from error
    return documents


def read_documents(paths: Sequence[str | Path]) -> list[Document]:
    """The user's files, each one document, or with the ending .jsonl a document a line. Raises CalibrationError for one
    that is missing, empty, not UTF-8 or not JSON lines."""
    documents: list[Document] = []
    for path in paths:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise CalibrationError("text", path, f"is not UTF-8 text (byte {error.start})") from error
        except OSError as error:
            raise CalibrationError("text", path, f"cannot be read ({error.strerror})") from error
        if not text.strip():
            raise CalibrationError("text", path, "is empty")
        documents += _answered(path, text) if str(path).endswith(".jsonl") else [text]
    return documents


def windows(documents: Sequence[Document], tokenizer: Any, length: int) -> Iterator[Piece]:
    """Token ids of the documents in pieces of at most `length`; conversations go through the chat template
    where the tokenizer has one. A piece of one token is left out."""
    for document in documents:
        prompt = 0
        if isinstance(document, Answered):
            first = tokenizer(document.prompt)["input_ids"]
            prompt = len(first)
            ids = first + tokenizer(document.answer, add_special_tokens=False)["input_ids"]
        elif isinstance(document, str):
            ids = tokenizer(document)["input_ids"]
        elif getattr(tokenizer, "chat_template", None):
            text = tokenizer.apply_chat_template(document, tokenize=False)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            ids = tokenizer("\n\n".join(f"{m['role']}: {m['content']}" for m in document))["input_ids"]
        whole = Piece(ids)
        whole.prompt = prompt
        for start in range(0, len(whole), length):
            if len(piece := cut(whole, start, length)) > 1:
                yield piece

"""The training's log as a figure."""

from __future__ import annotations

import json
import math
from pathlib import Path

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 320, 56, 150, 40, 40
COLOURS = ["#3f7f4f", "#6b9bd1", "#c0504d", "#d08a2e", "#7a5ea8", "#3a9ca0", "#a0763a", "#b0567f"]


def draw(log: Path, out: Path) -> None:
    """Loss on a logarithmic axis in grey, exact held-out traces by task and length in colours, over steps."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    last = max((line["step"] for line in lines), default=1) or 1
    loss = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    exact: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in line.get("exact", {}).items():
            exact.setdefault(name, []).append((line["step"], value))
    tall = HEIGHT - TOP - BOTTOM

    def x(step: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last

    def path(points: list[tuple[float, float]], colour: str) -> str:
        text = "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
        return f'<path d="M{text}" fill="none" stroke="{colour}" stroke-width="1.5"/>'

    parts = []
    if loss:
        logs = [math.log10(max(value, 1e-6)) for _, value in loss]
        low, high = min(logs), max(*logs, min(logs) + 1e-6)
        points = [
            (x(s), TOP + tall * (high - v) / (high - low)) for (s, _), v in zip(loss, logs, strict=True)
        ]
        parts.append(path(points, "#8a8f98"))
        title = f"loss {loss[0][1]:.2f} to {loss[-1][1]:.4f} (log)"
        parts.append(f'<text x="{WIDTH - RIGHT + 8}" y="{TOP}">{title}</text>')
    for index, (name, values) in enumerate(sorted(exact.items())):
        colour = COLOURS[index % len(COLOURS)]
        parts.append(path([(x(s), TOP + tall * (1 - v)) for s, v in values], colour))
        label = f"{name} {values[-1][1]:.2f}"
        parts.append(
            f'<text x="{WIDTH - RIGHT + 8}" y="{TOP + 18 + 16 * index}" fill="{colour}">{label}</text>'
        )
    axis = f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" fill="none" stroke="#8888"/>'
    out.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        "<title>Loss and exact held-out traces by step</title>"
        "<style>text{font:11px system-ui,sans-serif;fill:#57606a}</style>"
        f'<text x="8" y="20">exact held-out traces (teacher-forced) and loss over {last} steps</text>'
        f"{axis}{''.join(parts)}</svg>\n"
    )

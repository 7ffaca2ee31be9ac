"""Draws docs/comfyui-graph.png from the shipped workflow: the graph as ComfyUI shows it, for the page about it.

python scripts/make_comfyui_graph.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).parents[1]
WORKFLOW = ROOT / "dino_ray" / "comfy" / "workflows" / "upscale.json"
OUTPUT = ROOT / "docs" / "comfyui-graph.png"

SCALE = 0.75
MARGIN, TITLE, LINE = 24, 26, 22
PAPER, NODE, HEAD, TEXT, VALUE = (32, 32, 36), (56, 56, 62), (74, 74, 84), (225, 225, 230), (160, 200, 255)
OURS = (88, 66, 130)
"""Head of this package's own nodes."""
COLOURS = {
    "IMAGE": (100, 180, 250), "MODEL": (180, 150, 255), "VAE": (255, 110, 110), "CLIP": (255, 213, 0),
    "CONDITIONING": (255, 165, 60), "STRING": (150, 220, 150), "MASK": (130, 200, 130), "*": (150, 220, 150),
}  # fmt: skip


def main() -> None:
    from dino_ray.comfy import NODE_CLASS_MAPPINGS

    graph = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    api = json.loads(WORKFLOW.with_name("upscale_api.json").read_text(encoding="utf-8"))
    nodes = graph["nodes"]
    right = max(node["pos"][0] + node["size"][0] for node in nodes)
    bottom = max(node["pos"][1] + node["size"][1] for node in nodes)
    size = round(right * SCALE) + 2 * MARGIN, round((bottom + TITLE) * SCALE) + 2 * MARGIN
    image = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(round(15 * SCALE))
    sockets: dict[tuple[int, str, int], tuple[float, float]] = {}
    for node in nodes:
        box(draw, font, node, api[str(node["id"])]["inputs"], node["type"] in NODE_CLASS_MAPPINGS, sockets)
    for _, start, slot, end, put, kind in graph["links"]:
        curve(draw, sockets[start, "out", slot], sockets[end, "in", put], COLOURS[kind])
    image.quantize(64).save(OUTPUT, optimize=True)


def box(
    draw: ImageDraw.ImageDraw,
    font: Any,
    node: dict[str, Any],
    values: dict[str, Any],
    ours: bool,
    sockets: dict[tuple[int, str, int], tuple[float, float]],
) -> None:
    x, y = (MARGIN + at * SCALE for at in node["pos"])
    w, h = (side * SCALE for side in node["size"])
    draw.rounded_rectangle((x, y, x + w, y + h + TITLE * SCALE), 8, fill=NODE)
    draw.rounded_rectangle((x, y, x + w, y + TITLE * SCALE), 8, fill=OURS if ours else HEAD)
    draw.text((x + 10, y + 4), node["title"], fill=TEXT, font=font)
    top = y + (TITLE + 14) * SCALE
    for slot, put in enumerate(node["inputs"]):
        at = x, top + slot * LINE * SCALE
        sockets[node["id"], "in", slot] = at
        dot(draw, at, COLOURS[put["type"]])
        draw.text((at[0] + 10, at[1] - 7), put["name"], fill=TEXT, font=font)
    for slot, out in enumerate(node["outputs"]):
        at = x + w, top + slot * LINE * SCALE
        sockets[node["id"], "out", slot] = at
        dot(draw, at, COLOURS[out["type"]])
        draw.text((at[0] - 10, at[1] - 7), out["name"], fill=TEXT, font=font, anchor="ra")
    top += max(len(node["inputs"]), len(node["outputs"])) * LINE * SCALE
    for name, value in values.items():
        if not isinstance(value, list):
            draw.text((x + 12, top), name, fill=TEXT, font=font)
            draw.text(
                (x + w - 12, top),
                shortened(str(value), w / SCALE - 8 * len(name)),
                fill=VALUE,
                font=font,
                anchor="ra",
            )
            top += LINE * SCALE


def shortened(text: str, room: float) -> str:
    """So many letters as fit."""
    most = max(8, int(room / 9) - 4)
    return text if len(text) <= most else text[: most - 1] + "…"


def dot(draw: ImageDraw.ImageDraw, at: tuple[float, float], colour: tuple[int, int, int]) -> None:
    draw.ellipse((at[0] - 4, at[1] - 4, at[0] + 4, at[1] + 4), fill=colour)


def curve(
    draw: ImageDraw.ImageDraw,
    start: tuple[float, float],
    end: tuple[float, float],
    colour: tuple[int, int, int],
) -> None:
    """A cubic, level at both ends."""
    reach = max(30.0, (end[0] - start[0]) / 2)
    points = []
    for i in range(33):
        t = i / 32
        a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3
        points.append((
            a * start[0] + b * (start[0] + reach) + c * (end[0] - reach) + d * end[0],
            (a + b) * start[1] + (c + d) * end[1],
        ))  # fmt: skip
    draw.line(points, fill=colour, width=2, joint="curve")


if __name__ == "__main__":
    main()

"""A real ComfyUI server on this machine's processors, and a client that sees what a browser would."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

START_S = 240
"""On a loaded machine ComfyUI's imports alone take a minute."""
RUN_S = 600
"""Of a prompt."""

STAND_INS = ("torchvision", "torchaudio")
"""Packages that ComfyUI imports, and of which nothing here is used; empty ones do where they are missing."""

HIDDEN = """
import importlib.util

_find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: None if name.split(".")[0] in {missing} else _find(name, *args)
"""
"""By this, which Python imports at its start, libraries that ask whether a package is there hear no."""

PREVIEW_EVENTS = (1, 4)
"""Of binary messages: a preview image, and one with metadata."""


@dataclass
class Seen:
    """What arrived about one prompt."""

    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    previews: int = 0
    seconds: float = 0.0
    outputs: dict[str, Any] = field(default_factory=dict)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [data for name, data in self.events if name == kind]

    def progress(self, node: str) -> list[tuple[float, float]]:
        return [(data["value"], data["max"]) for data in self.of("progress") if data.get("node") == node]

    @property
    def error(self) -> str | None:
        failed = self.of("execution_error")
        return failed[0]["exception_message"].strip() if failed else None


@dataclass(frozen=True)
class Server:
    port: int
    folder: Path

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            json.dumps(body or {}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def run(self, prompt: Mapping[str, Any], cancel_when: Callable[[Seen], bool] | None = None) -> Seen:
        """Queue a prompt and watch it to its end; cancel it once ``cancel_when`` says so."""
        return asyncio.run(self._run(prompt, cancel_when))

    async def _run(self, prompt: Mapping[str, Any], cancel_when: Callable[[Seen], bool] | None) -> Seen:
        import aiohttp

        seen, client = Seen(), f"test-{time.monotonic_ns()}"
        start = time.monotonic()
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(
                f"http://127.0.0.1:{self.port}/ws?clientId={client}", max_msg_size=0
            ) as socket,
        ):
            body = {"prompt": prompt, "client_id": client}
            async with session.post(f"http://127.0.0.1:{self.port}/prompt", json=body) as answer:
                queued = await answer.json()
            assert "prompt_id" in queued, queued
            asked = False
            async with asyncio.timeout(RUN_S):
                async for message in socket:
                    if message.type == aiohttp.WSMsgType.BINARY:
                        seen.previews += int.from_bytes(message.data[:4], "big") in PREVIEW_EVENTS
                        continue
                    event = json.loads(message.data)
                    if event["data"].get("prompt_id") not in (None, queued["prompt_id"]):
                        continue
                    seen.events.append((event["type"], event["data"]))
                    if cancel_when is not None and not asked and cancel_when(seen):
                        asked = True
                        async with session.post(f"http://127.0.0.1:{self.port}/interrupt") as _:
                            pass
                    if event["type"] in ("execution_success", "execution_error", "execution_interrupted"):
                        break
        seen.seconds = time.monotonic() - start
        for data in seen.of("executed"):
            seen.outputs[data["node"]] = data["output"]
        return seen

    def image(self, seen: Seen, node: str, number: int = 0) -> Path:
        """A picture that a SaveImage has saved."""
        said = seen.outputs[node]["images"][number]
        return self.folder / "output" / said["subfolder"] / said["filename"]


@contextmanager
def serve(comfyui: str, python: str, folder: Path, models: Path, *, nodes: str = "") -> Iterator[Server]:
    """Start a server whose files all lie in ``folder``, with this package installed into it.

    Parameters
    ----------
    models
        With checkpoints and so on, in folders as ComfyUI has them.
    nodes
        Source of more nodes.
    """
    from dino_ray.comfy.install import install

    made = folder / "custom_nodes"
    made.mkdir(parents=True, exist_ok=True)
    if not (folder / "models").exists():
        (folder / "models").symlink_to(models)
    (folder / "main.py").write_text("")  # by these ComfyUI is known
    (folder / "comfy").mkdir(exist_ok=True)
    install(folder)
    if nodes:
        (made / "test_nodes.py").write_text(nodes)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | environment_of(python, folder)
    command = [python, str(Path(comfyui) / "main.py"), "--cpu", "--listen", "127.0.0.1", "--port", str(port)]
    command += ["--disable-auto-launch", "--disable-api-nodes", "--preview-method", "none"]
    command += ["--base-directory", str(folder), "--database-url", "sqlite:///:memory:"]
    log = folder / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=comfyui, env=environment, stdout=out, stderr=out)
        try:
            server = Server(port, folder)
            until = time.monotonic() + START_S
            while True:
                with suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                    server.get("/system_stats")
                    break
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"ComfyUI did not start:\n{log.read_text()[-3000:]}")
                time.sleep(0.5)
            yield server
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()


def _stand_ins(python: str, folder: Path) -> list[str]:
    """A folder with empty packages in the place of those that are missing."""
    missing = [
        name
        for name in STAND_INS
        if subprocess.run([python, "-c", f"import {name}"], capture_output=True).returncode
    ]
    for name in missing:
        package = folder / "stand-ins" / name
        (package / "transforms").mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").write_text("")
        (package / "transforms" / "__init__.py").write_text("MelScale = None\n")
    if not missing:
        return []
    (folder / "stand-ins" / "sitecustomize.py").write_text(HIDDEN.format(missing=tuple(missing)))
    return [str(folder / "stand-ins")]


def environment_of(python: str, folder: Path) -> dict[str, str]:
    """By which that Python finds this package, and stand-ins, made in ``folder``, for what is missing."""
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), *_stand_ins(python, folder)])}


def make_checkpoint(comfyui: str, python: str, models: Path, kind: str) -> None:
    """Have ComfyUI's Python write a random checkpoint, unless it is there."""
    folder = "checkpoints" if kind == "sd15" else "diffusion_models"
    if (models / folder / f"{kind}.safetensors").exists():
        return
    script = Path(__file__).with_name("checkpoints.py")
    stand_ins = _stand_ins(python, models)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(stand_ins)}
    models.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [python, str(script), comfyui, str(models), kind], env=environment, check=True, stdout=sys.stderr
    )


CONDITIONING_NODES = '''
import torch

class RandomConditioning:
    """Embeddings of no text, of the widths that a model takes."""
    CATEGORY, FUNCTION, RETURN_TYPES = "testing", "run", ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls):
        whole = {"default": 8, "min": 1, "max": 10000}
        return {"required": {"tokens": ("INT", whole), "width": ("INT", whole), "pooled": ("INT", whole),
                             "seed": ("INT", whole)}}

    def run(self, tokens, width, pooled, seed):
        generator = torch.Generator().manual_seed(seed)
        text = torch.randn(1, tokens, width, generator=generator)
        return ([[text, {"pooled_output": torch.randn(1, pooled, generator=generator)}]],)

class NotANumber:
    CATEGORY, FUNCTION, RETURN_TYPES = "testing", "run", ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",)}}

    def run(self, image):
        return (image * float("nan"),)

NODE_CLASS_MAPPINGS = {"RandomConditioning": RandomConditioning, "NotANumber": NotANumber}
'''
"""Nodes for graphs whose models have no text encoder here."""

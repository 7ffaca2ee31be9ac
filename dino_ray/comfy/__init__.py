"""Nodes for ComfyUI. Only what is within this package imports ComfyUI's modules, and only when a node is used.

``dino-ray comfyui install PATH`` makes ComfyUI find it; see docs/comfyui.md.
"""

from __future__ import annotations

from dino_ray.comfy.dino_nodes import DinoFeatures, DinoFidelity
from dino_ray.comfy.ray_node import DinoRayUpscale
from dino_ray.comfy.upscale_node import DinoUpscale

NODE_CLASS_MAPPINGS = {
    "DinoUpscale": DinoUpscale,
    "DinoRayUpscale": DinoRayUpscale,
    "DinoFeatures": DinoFeatures,
    "DinoFidelity": DinoFidelity,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "DinoUpscale": "DINO Upscale",
    "DinoRayUpscale": "DINO Ray Upscale",
    "DinoFeatures": "DINO Features",
    "DinoFidelity": "DINO Fidelity",
}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]

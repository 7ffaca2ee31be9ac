"""The only package that imports ray.

Ray restarts actors; work is retried by the scheduler, since Ray's own retries are pinned to one actor and
would wait for it while others idle.
"""

from dino_ray.engine.ray.cluster import look_at
from dino_ray.engine.ray.engine import RayEngine

__all__ = ["RayEngine", "look_at"]

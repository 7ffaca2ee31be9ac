"""The only package that imports ray.

Work is retried by the scheduler, since Ray's own retries are pinned to one actor and would wait for it while
others idle. Dead actors are replaced, not restarted by Ray: calls to an actor that Ray is restarting fail at once
and can't be told from another death, where calls to a new one wait until it is there.
"""

from dino_ray.engine.ray.cluster import look_at
from dino_ray.engine.ray.engine import RayEngine

__all__ = ["RayEngine", "look_at"]

"""Making the base: the source enlarged to the canvas, the same pixels however the canvas is tiled.

Every upsampler computes a pixel from a bounded window of the source, edges replicated without end, and from
nothing else, so a tile is the crop of the whole: to the bit by Lanczos, to 1e-5 by the net. Importing this
package imports no torch.
"""

from __future__ import annotations

from dino_ray.upsample.base import Read, Upsampler, base_tile, load_net, unit_range
from dino_ray.upsample.lanczos import Lanczos

__all__ = ["Lanczos", "Read", "Upsampler", "base_tile", "load_net", "unit_range"]

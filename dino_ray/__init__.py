"""dino_ray: upscale images of any size with diffusion models on all your GPUs."""

__version__ = "0.1.0"

"""Everything that knows a diffusion model, behind one protocol: ``Denoiser``."""

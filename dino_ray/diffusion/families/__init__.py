"""One ``Denoiser`` per model family."""

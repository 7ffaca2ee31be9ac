"""Images larger than memory: the source read by windows, the canvas written by cells."""

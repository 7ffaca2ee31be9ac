"""Making the base: the source enlarged to the canvas's size, the same pixels however it is tiled."""

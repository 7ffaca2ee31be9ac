"""DINO features of the source: extracted once, cropped exactly for every tile."""

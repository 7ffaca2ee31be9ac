"""TIFF below the level of pixels: its directories, what they say of a file's layout, and samples that libvips lacks.

`directory` reads and writes directories byte by byte, for EXIF blocks as well as files: maker notes must stay where
they are and damage must be survived entry by entry, which no library offers. `layout` and `wide` decode, and leave
that to tifffile.
"""

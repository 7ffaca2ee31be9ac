"""How work meets workers."""

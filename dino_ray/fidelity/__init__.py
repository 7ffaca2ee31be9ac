"""Whether a refined tile is true to its source: bringing it back, judging it, mending it, telling of it."""

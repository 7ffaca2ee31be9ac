"""How true a refined tile is to its source: bringing it back, judging it, mending it, telling of it."""

"""How true a result is to its source: what it may differ by, and holding it to that."""

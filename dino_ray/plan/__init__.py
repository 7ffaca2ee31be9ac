"""What to do, decided by pure functions of integers: no I/O, no torch, no ray."""

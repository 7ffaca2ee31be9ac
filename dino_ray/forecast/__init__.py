"""What a job will take on this machine: memory, and, from a rehearsal of a part of it, time."""

"""What happened: progress while it runs, the run report afterwards."""

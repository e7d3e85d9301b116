"""The worker's half of the core."""

"""The worker's shells: sync and async."""

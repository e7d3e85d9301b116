"""The pure part: every decision about the registry, its replicas and calls. No socket, clock, thread or randomness."""

"""The broker's half of the core."""

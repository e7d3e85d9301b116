"""The shells: sockets, clocks and waiting. They carry bytes to the cores and back, and decide nothing."""

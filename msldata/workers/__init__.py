"""Where tasks run: local worker processes, or a Ray cluster."""

"""Run folders and checkpoints: our own, other people's, and where they lie."""

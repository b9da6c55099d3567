"""Streams shards into Masked Supervised Learning, and proves what the model learnt."""

"""Bytes in: memory maps, ranged reads, the shard cache of the host."""

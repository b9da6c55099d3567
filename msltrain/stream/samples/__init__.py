"""The samples of a dataset: shard set, index lookup, hold-out."""

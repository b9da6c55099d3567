"""From records to shards: the plan, one sample, one tar, the folder that fills up, and tars from other programs."""

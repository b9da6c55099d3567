"""From mask images to keep-mask shards: polarity, hole fraction, subsets, plan, build, plots."""

"""One pass over a dataset, each sample exactly once, and the predictions it gives."""

"""What the labels of a dataset mean: one value, all values together, and the reading that follows from them."""

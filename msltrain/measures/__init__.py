"""What is computed of predictions: average precision, rates, strata, intervals, thresholds."""

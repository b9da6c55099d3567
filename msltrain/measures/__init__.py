"""What is computed from predictions: average precision, rates, strata, intervals, thresholds."""

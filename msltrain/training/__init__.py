"""Training: the Siamese step, its losses, the optimiser, and the loop around them."""

"""THE CONTRACT: what a dataset folder holds, and the only code that reads or writes it."""

"""Which sample comes when, and what is drawn at random for it: pure functions of (seed, epoch, key)."""

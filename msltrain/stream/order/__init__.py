"""Which sample comes when, and what chance decides of it: pure functions of (seed, epoch, key)."""

"""A page on this machine: drop a photograph, paint over a part, and see what the recogniser makes of it."""

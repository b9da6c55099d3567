"""Look at datasets and change nothing: verify, describe, preview, doctor."""

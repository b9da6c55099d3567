"""What hides parts of the images: stored, drawn and object-aligned keep masks, and which one a sample meets."""

"""What others get: models, datasets and a page to try a model on, in the layouts of the Hugging Face hub."""

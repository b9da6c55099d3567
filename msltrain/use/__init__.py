"""What a trained model is used for: predict, serve, export."""

"""What is known of a model, and what follows its encoder."""

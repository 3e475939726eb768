"""The tiny world: models and data, made from a seed, that everything runs on without a GPU or an account."""

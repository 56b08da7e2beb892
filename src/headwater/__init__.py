"""Headwater: find the training examples behind a language model's output, and say whether that answer can be believed."""

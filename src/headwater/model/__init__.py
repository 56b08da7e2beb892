"""The model and what is measured on it."""

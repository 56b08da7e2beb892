"""Examples in: read rows from anywhere, turn them into tokens and loss masks, plan batches."""

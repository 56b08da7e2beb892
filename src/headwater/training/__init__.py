"""What a Hugging Face Trainer leaves behind: recorded while it runs, and read from its output folder when it is done."""

"""Single-message transforms on whole batches."""

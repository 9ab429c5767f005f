"""Floor 1: words to ids. Rows, their files, their validation, and batches of token ids."""

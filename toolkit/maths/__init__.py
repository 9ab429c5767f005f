"""Floor 0: tensors and floats in, tensors and floats out. No config, no tokenizer, no model."""

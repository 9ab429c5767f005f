"""Fine-tuning from human preferences on one GPU."""

"""Fine-tuning on structures."""

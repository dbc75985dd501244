"""The transformers `Trainer` with begat: its checkpoints become versions."""

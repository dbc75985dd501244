"""Hugging Face datasets and the Hub with begat: datasets as versions, versions as commits."""

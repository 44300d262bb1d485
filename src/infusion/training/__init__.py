"""A base, a fresh adapter, a concept -> a trained adapter; alone, with many others, or until it is best."""

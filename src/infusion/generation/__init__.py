"""A base, adapters, prompts and seeds -> images, by our own sampler or in a diffusers pipeline."""

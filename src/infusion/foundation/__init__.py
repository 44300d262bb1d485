"""The embedded model and its judges -> how good they are, gate by gate, and the model card."""

"""An adapter file, images, an evaluation -> a repository on the Hub, with a model card."""

"""A folder as people have it -> a concept: images, masks, captions, class noun, placeholder."""

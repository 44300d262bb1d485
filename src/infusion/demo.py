"""The main job on the embedded model: a toy it has never seen, taught from five pictures, in new places; and a page."""

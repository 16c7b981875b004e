"""Find, follow and picture objects in a video."""

"""Map features from aerial and satellite images."""

"""The stores, side by side: the same methods in the same order, each in its own language."""

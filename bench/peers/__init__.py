"""What people write by hand for the same job; the other side of every ratio."""

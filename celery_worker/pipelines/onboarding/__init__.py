"""A new user, with a profile, settings and a welcome mail."""

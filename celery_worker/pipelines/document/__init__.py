"""Entities, sentiment and category of a text, an HTML page or a PDF."""

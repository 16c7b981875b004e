"""The words of a page, or of the pages of a site."""

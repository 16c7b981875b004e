"""The workers: from a Celery signature to a stage function and back."""

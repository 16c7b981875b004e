"""The gateway: HTTP on one side, jobs/ on the other. It imports nothing of the workers."""

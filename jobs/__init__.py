"""What a job is: its record, its stores, its files, its rings. Imports neither the gateway nor the workers."""

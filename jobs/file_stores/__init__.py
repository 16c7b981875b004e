"""Where bytes can live. Each module keeps the Files protocol of jobs/files.py; `open_files` chooses by URL."""

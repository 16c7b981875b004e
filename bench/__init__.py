"""What Gristmill costs beside what people write by hand. Each bench prints its figures as its last lines."""

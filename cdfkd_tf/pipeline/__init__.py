"""One run: which of its steps are needed, and what each does."""

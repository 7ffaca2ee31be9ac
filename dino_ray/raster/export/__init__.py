"""The finished canvas as a file, one module per family of formats."""

"""What every room may import; nothing here imports another room of this package."""

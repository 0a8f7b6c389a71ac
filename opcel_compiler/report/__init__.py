"""What a compile says of itself."""

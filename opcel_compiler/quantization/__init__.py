"""From what was seen of a float model to a plan of its quantization, and what that costs in accuracy."""

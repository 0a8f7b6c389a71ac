"""Random graphs of every operator, through the passes, both interpreters and generated code."""

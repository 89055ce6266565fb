"""What was observed, when and in which units, and which part of it is shown."""

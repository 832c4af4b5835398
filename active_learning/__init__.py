"""The decisions of the loop, and the memory that they need."""

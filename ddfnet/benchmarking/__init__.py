"""Measures operations and models side by side, each in a process of its own, and reports what came out."""

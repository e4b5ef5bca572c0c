"""What is where: the books of every run and target, recounts on the targets, what they refused, and repairs (docs/truth.md)."""

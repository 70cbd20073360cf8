"""Stage two: a student is trained from a store alone, and any model is scored."""

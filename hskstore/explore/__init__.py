"""Looking: what a store holds, and the whole story told."""

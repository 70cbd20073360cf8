"""From any labelled text to rows of tokens: where text lies, what a task asks, how it is tokenised. No torch."""

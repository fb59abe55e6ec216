"""Plan in, plan out: each step says what it needs measured, and one sweep measures it for all of them."""

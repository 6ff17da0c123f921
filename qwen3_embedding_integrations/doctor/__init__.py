"""Is a backend right? Golden values, relations between answers, and names for what is wrong."""

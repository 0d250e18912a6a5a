"""What is done to a base block by block: computed again instead of kept, compiled, spread over cards."""

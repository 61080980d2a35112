"""Models on disk: norms of their weights, and the weights inside their balls. The command line is its front."""
